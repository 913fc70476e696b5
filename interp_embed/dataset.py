"""`Dataset`: a view of some documents of a store, and the questions one asks of them."""

from __future__ import annotations

import operator
import os
import shutil
import tempfile
import uuid
import weakref
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, overload

import numpy as np
import pandas as pd

from interp_embed import ranking, saving
from interp_embed.aggregate.execute import (
    aggregate_dense,
    aggregate_sparse,
    entries,
    feature_count,
    unavailable,
)
from interp_embed.aggregate.memory import require_memory
from interp_embed.aggregate.reductions import REDUCTIONS, check_method, check_threshold
from interp_embed.inputs import as_frame, check_positive, check_rows, check_sae
from interp_embed.row import DatasetRow
from interp_embed.rows import Rows
from interp_embed.selection import positions_of
from interp_embed.store.layout import check_dtype

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from numpy.typing import DTypeLike, NDArray
    from scipy.sparse import csr_matrix

    from interp_embed.sae.base import BaseSAE
    from interp_embed.store import Store

__all__ = ["Dataset"]


class _TemporaryFolder:
    """A folder that goes with the last view that uses it, and at the latest with the process."""

    def __init__(self) -> None:
        self.path = tempfile.mkdtemp(prefix="interp-embed-")
        weakref.finalize(self, _remove, self.path, os.getpid())


def _stored_dtype(dtype: DTypeLike) -> np.dtype[Any]:
    try:
        return check_dtype(dtype)
    except TypeError:  # a name that numpy does not know
        raise ValueError(f"dtype must be float32 or float16, got {dtype!r}") from None


def _remove(path: str, owner: int) -> None:
    if os.getpid() == owner:  # a forked child ends before its parent does
        shutil.rmtree(path, ignore_errors=True)


class Dataset:
    """Documents and their feature activations.

    The activations live in a store on disk; this object selects documents of it. Slicing, masking,
    sorting and filtering give new views and copy no activations.

    Parameters
    ----------
    data : DataFrame or list of dict
        The documents.
    sae : BaseSAE
        Computes the activations.
    dataset_description : str
        For people; by default that of the store at ``save_path``, where there is one.
    rows : list of DatasetRow or None, optional
        Activations that are known already; None for documents that have none.
    field : str
        Column that holds the text.
    compute_activations : bool
        Encode the documents that have no activations yet. Where the store at ``save_path`` has some
        already, for the same documents, SAE and settings, only the rest is encoded.
    feature_labels : dict of int to str, optional
        Names of features; by default those that the SAE comes with.
    save_path : str or path, optional
        Where the store goes, a path or a URL. Without it the store is in a temporary folder that
        goes when the process ends.
    save_every_batch : int
        Batches between two commits: at most this much finished work is lost by a crash.
    batch_size : int
        Documents a batch.
    dtype : dtype
        Of the stored activations: float32 (exact) or float16 (half the size; a document with an
        activation beyond its range fails).

    Attributes
    ----------
    id : str
        Six characters that name this dataset.
    dataset_description, field, sae
        As given.

    Raises
    ------
    FingerprintMismatchError
        If ``save_path`` holds a store of other documents, another SAE or other settings.
    StoreExistsError
        If ``save_path`` holds something that is no store.
    """

    def __init__(
        self,
        data: pd.DataFrame | Sequence[dict[Any, Any]],
        sae: BaseSAE,
        dataset_description: str = "",
        rows: Sequence[DatasetRow | None] | None = None,
        field: str = "text",
        compute_activations: bool = True,
        feature_labels: Mapping[int, str] | None = None,
        save_path: str | os.PathLike[str] | None = None,
        save_every_batch: int = 5,
        batch_size: int = 8,
        *,
        dtype: DTypeLike = np.float32,
    ) -> None:
        frame = as_frame(data, field)
        check_sae(sae)
        check_positive(save_every_batch=save_every_batch, batch_size=batch_size)
        stored_dtype = _stored_dtype(dtype)
        if rows is not None:
            check_rows(rows, frame, field)
        folder = None
        if save_path is None:
            folder = _TemporaryFolder()
            save_path = folder.path
        needed = compute_activations and (rows is None or any(row is None for row in rows))
        was_loaded = sae.is_loaded()
        try:
            store = saving.open_or_create(
                save_path,
                frame,
                sae,
                field=field,
                description=dataset_description,
                identifier=uuid.uuid4().hex[:6],
                documents_per_chunk=int(save_every_batch) * int(batch_size),
                dtype=stored_dtype,
                feature_labels=feature_labels,
                load=needed and len(frame) > 0,
            )
            self._bind(store, sae, np.arange(store.n_documents), {}, feature_labels, folder)
            if dataset_description:
                self.dataset_description = dataset_description
            self.id = store.attributes["id"]
            if rows is not None:
                saving.write_rows(store, sae, rows)
            if compute_activations:
                self._compute(int(batch_size), int(save_every_batch) * int(batch_size))
        finally:
            if sae.is_loaded() and not was_loaded:
                sae.destroy()

    def _bind(
        self,
        store: Store,
        sae: BaseSAE | None,
        documents: NDArray[np.int64],
        extra: Mapping[str, NDArray[Any]],
        labels: Mapping[int, str] | None,
        folder: _TemporaryFolder | None,
    ) -> None:
        self._store = store
        self._documents = documents
        self._extra = dict(extra)
        self._labels = None if labels is None else {int(k): v for k, v in labels.items()}
        self._folder = folder
        self._no_sae = ""  # why there is none
        self.sae = sae
        self.field = store.field
        self.dataset_description = store.attributes["description"]
        self.id = uuid.uuid4().hex[:6]

    def _compute(self, batch_size: int, documents_per_commit: int | None = None) -> None:
        from interp_embed.encode import encode_store

        if self.sae is None:
            if saving.is_done(self._store):
                return
            reason = f": {self._no_sae.rstrip('.')}" if self._no_sae else ""
            raise ValueError(
                f"the SAE that made {self.path} cannot be rebuilt from its metadata, so nothing can "
                f"be encoded{reason}. Pass the data, the SAE and this save_path to Dataset(...) "
                "instead"
            )
        report = encode_store(
            self._store, self.sae, batch_size=batch_size, documents_per_commit=documents_per_commit
        )
        saving.keep_labels(self._store, self.sae, wrote=report.encoded > 0)

    def _view(
        self, positions: NDArray[np.int64], extra: Mapping[str, NDArray[Any]] | None = None
    ) -> Dataset:
        view = type(self).__new__(type(self))
        columns = {name: values[positions] for name, values in self._extra.items()}
        view._bind(
            self._store,
            self.sae,
            self._documents[positions],
            {**columns, **(extra or {})},
            self._labels,
            self._folder,
        )
        view.dataset_description = self.dataset_description
        view._no_sae = self._no_sae
        return view

    def __copy__(self) -> Dataset:
        new = type(self).__new__(type(self))
        new.__dict__.update(self.__dict__)
        return new

    def __deepcopy__(self, memo: dict[int, Any]) -> Dataset:
        return self.__copy__()

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle as which documents of which store, so that it can be sent to another process.

        A temporary store lives as long as the process that made it.
        """
        state = {
            "documents": self._documents,
            "extra": self._extra,
            "labels": self._labels,
            "description": self.dataset_description,
            "identifier": self.id,
        }
        return saving.reopen, (type(self), self.path, state)

    # What it is

    @property
    def path(self) -> str:
        """Where the store is."""
        return self._store.storage.url

    @property
    def num_documents(self) -> int:
        """Number of documents of this view."""
        return len(self._documents)

    @property
    def d_sae(self) -> int | None:
        """Number of features; None where nothing was encoded and the SAE does not say."""
        if self._store.d_sae is None and self.sae is not None:
            return self.sae.d_sae
        return self._store.d_sae

    @property
    def token_count(self) -> int:
        """Number of tokens of this view's documents."""
        return int(self._store.n_tokens(self._documents).sum())

    @property
    def columns(self) -> list[Any]:
        """Names of the documents' columns; nothing is read."""
        stored = [column.name for column in self._store.schema]
        return [*stored, *(name for name in self._extra if name not in stored)]

    @property
    def dataset(self) -> pd.DataFrame:
        """The documents' columns as a data frame with index 0 to n - 1.

        A copy: what is changed in it changes neither the dataset nor what is saved of it.
        """
        return self._cached_frame.copy(deep=True)

    @cached_property
    def _cached_frame(self) -> pd.DataFrame:
        return self._frame(np.arange(len(self)))

    @cached_property
    def rows(self) -> Rows:
        """The rows: a sequence that reads a document when it is looked at."""
        return Rows(len(self), self._read_rows)

    def _frame(
        self, positions: NDArray[np.int64], columns: Sequence[Any] | None = None
    ) -> pd.DataFrame:
        frame = self._store.frame(self._documents[positions], columns)
        for name, values in self._extra.items():
            if columns is None or name in columns:
                frame[name] = values[positions]
        return frame

    def _read_rows(self, positions: NDArray[np.int64]) -> list[DatasetRow | None]:
        from interp_embed.sae.tokens import token_strings

        documents = self._documents[positions]
        absent = unavailable(self._store, documents)
        records = self._frame(positions).to_dict(orient="records")
        rows: list[DatasetRow | None] = []
        for document, missing, record in zip(documents, absent, records, strict=True):
            if missing:
                rows.append(None)
                continue
            matrix, table, vocabulary = self._store.document(int(document))
            rows.append(
                DatasetRow(
                    row=record,
                    tokenized_document=token_strings(record[self.field], table, vocabulary),
                    activations=matrix,
                    field=self.field,
                    special_tokens=table.special,
                )
            )
        return rows

    def feature_labels(self) -> dict[int, str]:
        """Return names of features, by feature."""
        if self._labels is None:
            stored = self._store.feature_labels()
            if not stored and self.sae is not None:
                stored = {int(k): v for k, v in (self.sae.feature_labels() or {}).items()}
            self._labels = stored
        return dict(self._labels)

    def failures(self) -> pd.DataFrame:
        """Return the documents that could not be encoded.

        Returns
        -------
        DataFrame
            ``document`` (position in this view) and ``reason``.
        """
        reasons = self._store.failures(self._documents)
        return pd.DataFrame(
            {
                "document": np.array(list(reasons), np.int64),
                "reason": np.array(list(reasons.values()), object),
            }
        )

    # Activations

    @overload
    def latents(
        self,
        aggregation_method: Literal["max", "mean", "sum", "binarize", "count"] = "max",
        compress: Literal[False] = False,
        activated_threshold: float = 0,
    ) -> NDArray[np.float32]: ...
    @overload
    def latents(
        self,
        aggregation_method: Literal["max", "mean", "sum", "binarize", "count"],
        compress: Literal[True],
        activated_threshold: float = 0,
    ) -> csr_matrix: ...
    @overload
    def latents(
        self,
        aggregation_method: str = "max",
        compress: bool = False,
        activated_threshold: float = 0,
    ) -> NDArray[Any] | csr_matrix | list[csr_matrix]: ...
    def latents(
        self,
        aggregation_method: str = "max",
        compress: bool = False,
        activated_threshold: float = 0,
    ) -> NDArray[Any] | csr_matrix | list[csr_matrix]:
        """Return the documents' activations, aggregated over their tokens.

        A token on which a feature is absent counts as 0. Documents without activations are rows of
        NaN.

        Parameters
        ----------
        aggregation_method
            ``"max"``, ``"mean"``, ``"sum"``, ``"binarize"`` (1 where any token is above the
            threshold), ``"count"`` (tokens above the threshold), or ``"all"`` (no aggregation).
        compress
            Return sparse matrices, without explicit zeros.
        activated_threshold
            Above which a feature counts as active, for ``"binarize"`` and ``"count"``; 0 or more.

        Returns
        -------
        ndarray or csr_matrix of float32, shape (documents, d_sae)
            For ``"all"`` a list of csr_matrix, or a 1-D object array of dense arrays, each of shape
            (n_tokens, d_sae).

        Raises
        ------
        ResultTooLargeError
            If the result would not fit in memory; nothing is computed.
        """
        check_method(aggregation_method, also=("all",))
        threshold = check_threshold(activated_threshold)
        if aggregation_method == "all":
            return self._all_latents(compress)
        run = aggregate_sparse if compress else aggregate_dense
        return run(self._store, self._documents, REDUCTIONS[aggregation_method], threshold)

    def _all_latents(self, compress: bool) -> NDArray[np.object_] | list[csr_matrix]:
        from scipy.sparse import csr_matrix as csr

        width = self.d_sae or 0
        absent = unavailable(self._store, self._documents)
        size = 4 * width * (self.token_count + int(absent.sum()))
        if compress:
            # A column and a value an entry, a pointer a token; NaN for what is not there.
            known = entries(self._store, self._documents, pooled=False)
            require_memory(
                8 * (known + width * int(absent.sum())) + 4 * (self.token_count + 2 * len(absent)),
                f"sparse activations of {self.token_count} tokens",
                "Select fewer documents, for instance dataset[:1000], or look at documents one by "
                "one through .rows",
            )
        else:
            require_memory(
                size,
                f"dense activations of {self.token_count} tokens x {width} features",
                "Pass compress=True, or look at documents one by one through .rows",
            )
        empty = np.full((1, width), np.nan, np.float32)
        found = [
            csr(empty) if missing else self._store.document(int(document))[0]
            for document, missing in zip(self._documents, absent, strict=True)
        ]
        if compress:
            return found
        out = np.empty(len(found), object)
        for position, matrix in enumerate(found):
            out[position] = matrix.toarray()
        return out

    def _feature_values(self, features: Sequence[int], method: str) -> NDArray[np.float32]:
        """Return some features' aggregates, shape (documents, features)."""
        check_method(method)
        columns = np.asarray(features)
        if columns.ndim != 1 or columns.dtype.kind not in "iu" or len(columns) == 0:
            raise TypeError(f"features must be one or more integers, got {features!r}")
        width = self._width()
        if (bad := columns[(columns < 0) | (columns >= width)]).size:
            raise IndexError(f"feature {bad[0]} is not among the {width} features of the SAE")
        unique, where = np.unique(columns.astype(np.int64), return_inverse=True)
        values = aggregate_dense(self._store, self._documents, REDUCTIONS[method], 0.0, unique)
        return values[:, where]

    def _width(self) -> int:
        return self.d_sae or feature_count(self._store)

    # Documents by activation

    @overload
    def top_documents_for_feature(
        self,
        feature: int,
        aggregation_type: str = "max",
        document_only: Literal[True] = True,
        k: int = 10,
        select_top: bool = True,
        include_nonactive_samples: bool = False,
    ) -> list[str]: ...
    @overload
    def top_documents_for_feature(
        self,
        feature: int,
        aggregation_type: str = "max",
        *,
        document_only: Literal[False],
        k: int = 10,
        select_top: bool = True,
        include_nonactive_samples: bool = False,
    ) -> list[DatasetRow]: ...
    def top_documents_for_feature(
        self,
        feature: int,
        aggregation_type: str = "max",
        document_only: bool = True,
        k: int = 10,
        select_top: bool = True,
        include_nonactive_samples: bool = False,
    ) -> list[str] | list[DatasetRow]:
        """Return the documents in which a feature is strongest (or weakest).

        Parameters
        ----------
        feature
            Feature index.
        aggregation_type
            How a document's tokens are aggregated; see `latents`.
        document_only
            Return texts with active tokens highlighted; otherwise rows.
        k
            How many documents at most.
        select_top
            Highest first; otherwise lowest first. Ties go by document order.
        include_nonactive_samples
            Also consider documents in which the feature is nowhere active.
        """
        check_positive(k=k)
        values = self._feature_values([feature], aggregation_type)[:, 0]
        chosen = ranking.extreme(values, k, highest=select_top, inactive=include_nonactive_samples)
        rows = [row for row in self._read_rows(chosen) if row is not None]
        return [row.token_activations(feature) for row in rows] if document_only else rows

    def token_activations(self, feature: int) -> list[str | None]:
        """Return every document's text with the tokens on which a feature is active highlighted.

        Returns
        -------
        list of str or None
            None for documents without activations.
        """
        feature, width = operator.index(feature), self._width()
        if not 0 <= feature < width:
            raise IndexError(f"feature {feature} is not among the {width} features of the SAE")
        return [None if row is None else row.token_activations(feature) for row in self.rows]

    def sort_by_features(
        self,
        features: Sequence[int],
        aggregation_type: str = "max",
        descending: bool = True,
        include_top_feature: bool = True,
        include_nonactive_samples: bool = True,
    ) -> Dataset:
        """Return the documents ordered by the highest activation among some features.

        Documents in which none of them is active come after the others (before them when
        ascending), in document order; those without activations come last.

        Parameters
        ----------
        features
            Feature indices.
        aggregation_type
            How a document's tokens are aggregated; see `latents`.
        descending
            Highest first.
        include_top_feature
            Add the columns ``feature_activation``, ``top_feature_label`` and ``top_feature_index``
            (-1 where none is active) to the result. This dataset keeps its columns.
        include_nonactive_samples
            Keep the documents in which none of the features is active.
        """
        values = self._feature_values(features, aggregation_type)
        order, activation, best = ranking.by_features(
            values, descending=descending, inactive=include_nonactive_samples
        )
        if not include_top_feature:
            return self._view(order)
        index = np.append(np.asarray(features, np.int64), -1)[best]
        labels = self.feature_labels()
        names = np.array(["NA" if f < 0 else labels.get(int(f), "") for f in index], object)
        extra = {
            "feature_activation": activation,
            "top_feature_label": names,
            "top_feature_index": index,
        }
        return self._view(order, extra)

    def sort_by_columns(self, columns: Any, descending: bool = True) -> Dataset:
        """Return the documents ordered by some columns; ties keep their order, missing come last.

        Parameters
        ----------
        columns
            One column's name, or a sequence of names.
        descending
            Highest first.

        Raises
        ------
        ValueError
            If there is no such column.
        """
        single = columns is None or np.isscalar(columns)
        names: Any = [columns] if single else [*columns]
        if unknown := [name for name in names if name not in self.columns]:
            raise ValueError(f"no column {unknown[0]!r}; the columns are {self.columns}")
        if not names:
            raise ValueError("give at least one column to sort by")
        frame = self._frame(np.arange(len(self)), names)
        ordered = frame.sort_values(by=names, ascending=not descending, kind="stable")
        return self._view(ordered.index.to_numpy(np.int64))

    def filter_na_rows(self) -> Dataset:
        """Return the documents that have activations."""
        return self._view(np.flatnonzero(~unavailable(self._store, self._documents)))

    # Documents

    def dataset_rows(self) -> Rows:
        """Return the rows; see `rows`."""
        return self.rows

    def pandas(self) -> pd.DataFrame:
        """Return the documents' columns as a data frame.

        A copy: what is changed in it changes neither the dataset nor what is saved of it.
        """
        return self.dataset

    def list(self) -> list[dict[Any, Any]]:
        """Return the documents' columns as a list of dictionaries."""
        return self.dataset.to_dict(orient="records")

    def documents(self) -> list[Any]:  # type: ignore[valid-type]
        """Return the texts."""
        return self._frame(np.arange(len(self)), [self.field])[self.field].tolist()  # type: ignore[no-any-return]

    def __len__(self) -> int:
        return self.num_documents

    def __iter__(self) -> Iterator[DatasetRow | None]:
        return iter(self.rows)

    @overload
    def __getitem__(self, index: int | np.integer[Any]) -> DatasetRow | None: ...
    @overload
    def __getitem__(self, index: Any) -> Any: ...
    def __getitem__(self, index: Any) -> DatasetRow | Dataset | None:
        if isinstance(index, (int, np.integer)) and not isinstance(index, bool):
            return self.rows[int(index)]
        return self._view(positions_of(index, len(self)))

    # Disk

    def save_to_file(
        self, file_path: str | os.PathLike[str] | None = None, dtype: DTypeLike = np.float32
    ) -> None:
        """Save this view's documents and activations.

        Parameters
        ----------
        file_path
            Where; by default ``dataset_{id}.zarr``. A path that ends in ``.pkl`` or ``.pickle``
            gets the one-file pickle of the original library, for exchange; any other a store. A
            dataset that is there already is replaced; a process that has the replaced store open
            then fails to read from it, and has to open it again.
        dtype
            Of the saved activations, float32 or float16.

        Raises
        ------
        ValueError
            If ``dtype`` is neither float32 nor float16.
        OverflowError
            If an activation is beyond the range of ``dtype``.
        """
        path = Path(f"dataset_{self.id}.zarr") if file_path is None else file_path
        saving.save(self, path, _stored_dtype(dtype))

    @classmethod
    def load_from_file(
        cls,
        file_path: str | os.PathLike[str],
        resume: bool = False,
        batch_size: int = 8,
        device: str | Mapping[str, str] = "cuda:0",
    ) -> Dataset:
        """Open a saved dataset. Neither a model nor a GPU is needed to read it.

        Parameters
        ----------
        file_path
            A store, or a pickle of the original library, told apart by their content.
        resume
            Encode the documents that have no activations yet, and try again those that failed. The
            module of an SAE class of your own is then imported if the store names it: pass it only
            for stores that you trust. For a pickle, import the class first.
        batch_size
            Documents a batch, when resuming.
        device
            For the SAE, when resuming.

        Raises
        ------
        NotAStoreError
            If there is neither.
        UnsafePickleError
            If a pickle holds anything but arrays, frames and plain values.
        """
        check_positive(batch_size=batch_size)
        loaded = saving.load(cls, file_path, import_modules=resume)
        if resume:
            saving.choose_device(loaded.sae, device)
            loaded._compute(batch_size)
        return loaded

    # Display

    def __repr__(self) -> str:
        if len(self) == 0:
            return "Dataset(<EMPTY>)"
        names = ", ".join(repr(name) for name in self.columns)
        shown = range(len(self)) if len(self) < 5 else [0, 1, len(self) - 2, len(self) - 1]
        lines = [f"    {i}: {self.rows[i]!r}" for i in shown]
        if len(self) >= 5:
            lines.insert(2, "    ...")
        body = "\n".join(lines)
        return (
            f"Dataset {self.id} ({len(self):,} documents, {self.d_sae or '?'} features)(\n"
            f"  columns=[{names}]\n  rows=[\n{body}\n  ]\n)"
        )

    def _repr_html_(self) -> str:
        from interp_embed.viz.html import dataset_html

        failed = int(unavailable(self._store, self._documents).sum())
        summary = {
            "Documents": f"{len(self):,}"
            + (f" ({failed:,} without activations)" if failed else ""),
            "Tokens": f"{self.token_count:,}",
            "Features": f"{self.d_sae or 'unknown'}",
            "Store": self.path,
        }
        if self.dataset_description:
            summary = {"Description": self.dataset_description, **summary}
        return dataset_html(summary, self._frame(np.arange(min(5, len(self)))))
