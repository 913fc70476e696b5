"""`Dataset`: the page that users read. Each method calls the module that does its work.

A dataset holds a `Selection` of a store, the SAE that encodes its documents, and a few words about
both.
"""

from __future__ import annotations

import copy
import uuid
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal, Self, overload

import numpy as np
import pandas as pd

from interp_embed.aggregate.by_index import known_totals
from interp_embed.aggregate.matrices import (
    aggregate_blocks,
    aggregate_dense,
    aggregate_sparse,
    feature_count,
    unavailable,
)
from interp_embed.aggregate.reductions import REDUCTIONS, check_method, check_threshold
from interp_embed.aggregate.summary import (
    DEFAULT_STATISTICS,
    check_statistics,
    feature_statistics,
)
from interp_embed.core.checks import check_dtype, check_positive
from interp_embed.core.chunk import DocumentStatus
from interp_embed.core.memory import memory_budget, parse_size
from interp_embed.core.progress import show_progress
from interp_embed.exchange import joining, opening, saving
from interp_embed.exchange.given_rows import write_rows
from interp_embed.exchange.labels import SeenLabels, label_records
from interp_embed.exchange.temporary import TemporaryFolder
from interp_embed.inputs import as_documents, check_rows, check_sae
from interp_embed.labels.report import LabelsAdded, NamedFeatures
from interp_embed.llm.defaults import DEFAULT_MODEL, DEFAULT_RETRIES, DEFAULT_TIMEOUT
from interp_embed.selection import by_feature
from interp_embed.selection.positions import positions_of
from interp_embed.selection.rows import Rows
from interp_embed.selection.selection import Selection
from interp_embed.selection.sorting import sorted_by_columns
from interp_embed.selection.tokens import dense_tokens, sparse_tokens
from interp_embed.store import MISSING

if TYPE_CHECKING:
    import os
    from collections.abc import Iterable, Iterator, Mapping

    import xarray as xr
    from numpy.typing import DTypeLike, NDArray
    from scipy.sparse import csr_matrix

    from interp_embed.labels.record import FeatureLabel
    from interp_embed.llm import Answers, FeatureLabelResponse, LLMClient, Prompts
    from interp_embed.llm.asking import Asking
    from interp_embed.llm.bulk.plan import BulkAsking, Estimate
    from interp_embed.llm.bulk.result import BulkLabels
    from interp_embed.llm.labelling import Kept
    from interp_embed.llm.samples.samples import SelectedSamples
    from interp_embed.llm.score import Method
    from interp_embed.sae.base import BaseSAE
    from interp_embed.selection.row import DatasetRow
    from interp_embed.store.labels.paid_answers import Answers as StoredAnswers

__all__ = ["Dataset", "merge"]


class Dataset:
    """Documents and their feature activations.

    The activations live in a store on disk, and this object selects documents of that store. Slicing,
    masking, sorting and filtering return new views and copy no activations.

    Parameters
    ----------
    data : DataFrame, list of dict, path, Arrow table, Hugging Face dataset, iterable of dict, ...
        The documents. A path or URL may point to a Parquet, CSV, TSV, JSON Lines or JSON file or to a
        folder of such files, or it may be a pattern. A list of paths is read in order. Everything
        except data frames and lists of dictionaries is read block by block and need not fit in memory.
    sae : BaseSAE
        Computes the activations.
    dataset_description : str
        A description for people. The default is the description of the store at ``save_path``, if
        there is one.
    rows : list of DatasetRow or None, optional
        Activations that are already known; None for documents without any.
    field : str
        Column that holds the text.
    compute_activations : bool
        Encode the documents that have no activations yet. If the store at ``save_path`` already has
        activations for the same documents, SAE and settings, only the rest is encoded.
    feature_labels : dict of int to str, optional
        Names of features; by default the names that the SAE comes with.
    save_path : str or path, optional
        Path or URL of the store. Without it the store is in a temporary folder, which is deleted when
        the process ends.
    save_every_batch : int
        Number of batches per commit. A crash loses at most this many finished batches.
    batch_size : int
        Number of documents per batch.
    dtype : dtype
        Type of the stored activations: float32 (exact) or float16 (half the size; a document with an
        activation beyond its range fails).

    Attributes
    ----------
    id : str
        Six characters that identify this dataset.
    dataset_description, field, sae
        The arguments of the same name.

    Raises
    ------
    FileNotFoundError
        If a file is missing, or no file matches a pattern.
    ValueError
        If the documents have no column ``field``, or a file is damaged.
    FingerprintMismatchError
        If the store at ``save_path`` was made with other documents, another SAE or other settings.
    StoreExistsError
        If ``save_path`` holds something that is not a store.
    """

    def __init__(
        self,
        data: Any,
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
        documents = as_documents(data, field)
        check_sae(sae)
        check_positive(save_every_batch=save_every_batch, batch_size=batch_size)
        stored_dtype = check_dtype(dtype)
        if rows is not None:
            check_rows(rows, documents.frame(), field)
        keep = None
        if save_path is None:
            keep = TemporaryFolder()
            save_path = keep.path
        needed = compute_activations and (rows is None or any(row is None for row in rows))
        was_loaded = sae.is_loaded()
        try:
            store = opening.plan_store(
                documents,
                save_path,
                sae,
                field=field,
                description=dataset_description,
                documents_per_chunk=int(save_every_batch) * int(batch_size),
                dtype=stored_dtype,
                feature_labels=feature_labels,
                load=needed,
            )
            self._bind(Selection.whole(store, keep), sae, feature_labels, store.attributes["id"])
            if dataset_description:
                self.dataset_description = dataset_description
            if rows is not None:
                write_rows(store, sae, rows)
            if compute_activations:
                self._compute(int(batch_size), int(save_every_batch) * int(batch_size))
        finally:
            if sae.is_loaded() and not was_loaded:
                sae.destroy()

    def _bind(
        self,
        selection: Selection,
        sae: BaseSAE | None,
        labels: Mapping[int, str] | None,
        identifier: str | None = None,
    ) -> None:
        self._selection = selection
        self._labels = None if labels is None else {int(k): v for k, v in labels.items()}
        self._why_no_sae = ""
        self._frame: pd.DataFrame | None = None
        self._rows: Rows | None = None
        self._schema = selection.store.schema
        self.sae: BaseSAE | None = sae
        self.field: Any = selection.store.field
        self.dataset_description = selection.store.attributes["description"]
        self.id: str = identifier or uuid.uuid4().hex[:6]

    @classmethod
    def from_selection(cls, selection: Selection, sae: BaseSAE | None = None) -> Self:
        """Make a dataset from some documents of an open store.

        Parameters
        ----------
        selection
            The documents. ``Selection.whole(store)`` selects all of them.
        sae
            Encodes documents that are added or not encoded yet.
        """
        dataset = cls.__new__(cls)
        dataset._bind(selection, sae, None)
        return dataset

    @classmethod
    def _of(cls, opened: opening.Opened) -> Self:
        dataset = cls.__new__(cls)
        dataset._bind(opened.selection, opened.sae, opened.labels, opened.identifier)
        dataset._why_no_sae = opened.why_no_sae
        return dataset

    def _view(self, selection: Selection) -> Self:
        view = type(self).__new__(type(self))
        view._bind(selection, self.sae, self._labels)
        view.dataset_description = self.dataset_description
        view._why_no_sae = self._why_no_sae
        return view

    def __copy__(self) -> Self:
        new = type(self).__new__(type(self))
        new.__dict__.update(self.__dict__)
        return new

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return copy.copy(self)

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle the store's path and the document numbers, so that another process can reopen them.

        A temporary store lives as long as the process that created it.
        """
        chosen = {"documents": self._selection.documents, "columns": self._selection.columns}
        words = {"labels": self._labels, "description": self.dataset_description, "id": self.id}
        return type(self)._reopened, (self.path, chosen, words)

    @classmethod
    def _reopened(cls, path: str, chosen: Mapping[str, Any], words: Mapping[str, Any]) -> Self:
        opened = opening.open_store(path)
        dataset = cls._of(
            replace(
                opened,
                selection=Selection(opened.selection.store, **chosen),
                labels=words["labels"],
                identifier=words["id"],
            )
        )
        dataset.dataset_description = words["description"]
        return dataset

    def _compute(self, batch_size: int, documents_per_commit: int | None = None) -> None:
        from interp_embed.encode import encode_store
        from interp_embed.encode.recorded_sae import keep_labels

        store = self._selection.store
        if self.sae is None:
            if opening.is_done(store):
                return
            raise ValueError(self._cannot_encode())
        report = encode_store(
            store, self.sae, batch_size=batch_size, documents_per_commit=documents_per_commit
        )
        keep_labels(store, self.sae, wrote=report.encoded > 0)

    def _cannot_encode(self, instead: str = "") -> str:
        reason = f": {self._why_no_sae.rstrip('.')}" if self._why_no_sae else ""
        return (
            f"the SAE that made {self.path} cannot be rebuilt from its metadata, so nothing can be "
            f"encoded{reason}. "
            + (instead or "Pass the data, the SAE and this save_path to Dataset(...) instead")
        )

    def append(self, data: Any, compute_activations: bool = True, batch_size: int = 8) -> None:
        """Add documents to the store and encode them. This dataset then includes them.

        If the call is interrupted while it writes the documents, call it again with the same arguments
        to continue. Once they are written they belong to the store, and
        ``load_from_file(path, resume=True)`` encodes the rest of them.

        Parameters
        ----------
        data
            The documents, in any form that `Dataset` takes. If only some documents have a column, its
            value is missing in the others.
        compute_activations
            Whether to encode the documents now.
        batch_size
            Number of documents per batch.

        Raises
        ------
        ValueError
            If this dataset is only part of the store, if documents of the store are not encoded yet,
            or if there is no SAE to encode with.
        FingerprintMismatchError
            If the store was made with a different SAE.
        """
        check_positive(batch_size=batch_size)
        joining.require_whole(self._selection, "added to")
        if compute_activations and self.sae is None:
            raise ValueError(self._cannot_encode("Set `dataset.sae` before appending"))
        sae, store = self.sae, self._selection.store
        was_loaded = sae is not None and sae.is_loaded()
        try:
            joining.append(store, data, sae, load=compute_activations)
            self._selection = Selection.whole(store, self._selection.keep)
            self._frame = self._rows = None
            if compute_activations:
                self._compute(int(batch_size))
        finally:
            if sae is not None and sae.is_loaded() and not was_loaded:
                sae.destroy()

    # ---- Disk

    @classmethod
    def load_from_file(
        cls,
        file_path: str | os.PathLike[str],
        resume: bool = False,
        batch_size: int = 8,
        device: str | Mapping[str, str] = opening.DEFAULT_DEVICE,
    ) -> Dataset:
        """Open a saved dataset. Reading it needs neither a model nor a GPU.

        Parameters
        ----------
        file_path
            A store, or a pickle of the original library. The content decides which of the two it is.
        resume
            Encode the documents that have no activations yet, and retry those that failed. If the
            store names an SAE class of your own, this imports its module, so pass ``resume=True`` only
            for stores that you trust. For a pickle, import the class first.
        batch_size
            Number of documents per batch, when resuming.
        device
            Device of the SAE, when resuming. If there is no GPU, the run uses the CPU, and it warns if
            ``device`` names a GPU other than the default.

        Raises
        ------
        NotAStoreError
            If there is neither a store nor a pickle.
        UnsafePickleError
            If a pickle holds anything but arrays, frames and plain values.
        """
        check_positive(batch_size=batch_size)
        loaded = cls._of(opening.open_saved(file_path, import_modules=resume))
        if resume:
            opening.choose_device(loaded.sae, device)
            loaded._compute(batch_size)
        return loaded

    def save_to_file(
        self, file_path: str | os.PathLike[str] | None = None, dtype: DTypeLike = np.float32
    ) -> None:
        """Save this view's documents and activations.

        Parameters
        ----------
        file_path
            Where to save, by default ``dataset_{id}.zarr``. A path that ends in ``.pkl`` or
            ``.pickle`` gets the one-file pickle of the original library, for exchange; any other path
            gets a store. A pickle does not keep why documents failed or which were truncated. When it
            is read back, a failed document counts as not encoded yet, unless it has no text. A dataset
            that is already there is replaced; a process that has the replaced store open then fails to
            read from it and has to open it again.
        dtype
            Type of the saved activations, float32 or float16.

        Raises
        ------
        ValueError
            If ``dtype`` is neither float32 nor float16.
        OverflowError
            If an activation is beyond the range of ``dtype``.
        """
        path = f"dataset_{self.id}.zarr" if file_path is None else file_path
        words = saving.Words(self.id, self.dataset_description, self._seen_labels)
        saving.save(self._selection, words, path, check_dtype(dtype))

    def build_index(self, memory: int | str | None = None, *, rebuild: bool = False) -> None:
        """Index the whole store by feature, so that questions about a few features are quick.

        Finding a feature's documents then takes a few reads instead of a pass over the corpus. A
        store of some size gets an index when its encoding is complete. Call this for a store that was
        encoded in part or lost its index. Parts of the index that are up to date are kept.

        Parameters
        ----------
        memory
            Bytes that this may use in addition to what the process already holds, or a size such as
            ``"4G"``; 512 MiB by default.
        rebuild
            Delete the existing index first, for instance because it is damaged.

        Raises
        ------
        ValueError
            If nothing was encoded yet, or ``memory`` is not a size.
        """
        from interp_embed.store.write.indexing import DEFAULT_MEMORY, build_index

        room = DEFAULT_MEMORY if memory is None else parse_size(memory)
        store = self._selection.store
        build_index(store, memory=room, rebuild=rebuild, progress=show_progress())

    # ---- What it is

    @property
    def selection(self) -> Selection:
        """The documents of this dataset: their store, which of its documents, and in which order."""
        return self._selection

    @property
    def path(self) -> str:
        """Path or URL of the store."""
        return self._selection.store.storage.url

    @property
    def num_documents(self) -> int:
        """Number of documents in this view."""
        return len(self._selection)

    @property
    def d_sae(self) -> int | None:
        """Number of features; None if nothing was encoded and the SAE does not say."""
        stored = self._selection.store.d_sae
        return self.sae.d_sae if stored is None and self.sae is not None else stored

    @property
    def token_count(self) -> int:
        """Number of tokens in this view's documents."""
        return int(self._selection.store.n_tokens(self._selection.documents).sum())

    @property
    def columns(self) -> list[Any]:
        """Names of the documents' columns. This reads no documents."""
        return self._selection.column_names

    def _width(self) -> int:
        return self.d_sae or feature_count(self._selection.store)

    def status(self) -> NDArray[np.str_]:
        """Return the status of each document.

        Returns
        -------
        ndarray of str, shape (documents,)
            ``"ok"``; ``"truncated"``, encoded up to the context length; ``"failed"`` (`failures` says
            why); or ``"missing"``, not encoded yet.
        """
        names = np.full(MISSING + 1, "missing", "<U9")
        for status in DocumentStatus:
            names[status] = status.name.lower()
        return names[self._selection.store.status(self._selection.documents)]

    def failures(self) -> pd.DataFrame:
        """Return the documents that could not be encoded.

        Returns
        -------
        DataFrame
            ``document`` (position in this view) and ``reason``.
        """
        reasons = self._selection.store.failures(self._selection.documents)
        return pd.DataFrame(
            {
                "document": np.array(list(reasons), np.int64),
                "reason": np.array(list(reasons.values()), object),
            }
        )

    # ---- Documents

    def _keep_up(self) -> None:
        """Drop cached frames and rows if the store's columns have changed, as after `append`."""
        if self._schema is not (schema := self._selection.store.schema):
            self._frame = self._rows = None
            self._schema = schema

    @property
    def dataset(self) -> pd.DataFrame:
        """The documents' columns as a data frame with index 0 to n - 1.

        This is a copy: changes to it change neither the dataset nor what is saved.
        """
        self._keep_up()
        if self._frame is None:
            self._frame = self._selection.frame()
        return self._frame.copy(deep=True)

    def pandas(self) -> pd.DataFrame:
        """Return the documents' columns as a data frame.

        This is a copy: changes to it change neither the dataset nor what is saved.
        """
        return self.dataset

    def documents(self) -> list[Any]:
        """Return the texts."""
        return self._selection.texts()

    @property
    def rows(self) -> Rows:
        """The rows: a sequence that reads each document when you access it."""
        self._keep_up()
        if self._rows is None:
            self._rows = Rows(len(self), self._selection.rows)
        return self._rows

    def dataset_rows(self) -> Rows:
        """Return the rows; see `rows`."""
        return self.rows

    def __len__(self) -> int:
        return self.num_documents

    def __iter__(self) -> Iterator[DatasetRow | None]:
        return iter(self.rows)

    @overload
    def __getitem__(self, index: int | np.integer[Any]) -> DatasetRow | None: ...
    @overload
    def __getitem__(self, index: Any) -> Any: ...
    def __getitem__(self, index: Any) -> DatasetRow | Self | None:
        if isinstance(index, (int, np.integer)) and not isinstance(index, bool):
            return self.rows[int(index)]
        return self._view(self._selection.take(positions_of(index, len(self))))

    def sort_by_columns(self, columns: Any, descending: bool = True) -> Self:
        """Return the documents sorted by columns. Ties keep their order; missing values come last.

        Parameters
        ----------
        columns
            The name of a column, or a sequence of names.
        descending
            Highest first.

        Raises
        ------
        ValueError
            If there is no such column.
        TypeError
            If a column holds values that cannot be ordered.
        """
        return self._view(sorted_by_columns(self._selection, columns, descending=descending))

    def filter_na_rows(self) -> Self:
        """Return the documents that have activations."""
        known = ~unavailable(self._selection.store, self._selection.documents)
        return self._view(self._selection.take(np.flatnonzero(known)))

    # ---- Activations

    @overload
    def latents(
        self,
        aggregation_method: Literal["max", "mean", "sum", "binarize", "count"] = "max",
        compress: Literal[False] = False,
        activated_threshold: float = 0,
        *,
        memory: int | str | None = None,
    ) -> NDArray[np.float32]: ...
    @overload
    def latents(
        self,
        aggregation_method: Literal["max", "mean", "sum", "binarize", "count"],
        compress: Literal[True],
        activated_threshold: float = 0,
        *,
        memory: int | str | None = None,
    ) -> csr_matrix: ...
    @overload
    def latents(
        self,
        aggregation_method: str = "max",
        compress: Literal[False] = False,
        activated_threshold: float = 0,
        *,
        lazy: Literal[True],
        memory: int | str | None = None,
    ) -> xr.DataArray: ...
    @overload
    def latents(
        self,
        aggregation_method: str = "max",
        compress: bool = False,
        activated_threshold: float = 0,
        *,
        lazy: Literal[False] = False,
        memory: int | str | None = None,
    ) -> NDArray[Any] | csr_matrix | list[csr_matrix]: ...
    def latents(
        self,
        aggregation_method: str = "max",
        compress: bool = False,
        activated_threshold: float = 0,
        *,
        lazy: bool = False,
        memory: int | str | None = None,
    ) -> NDArray[Any] | csr_matrix | list[csr_matrix] | xr.DataArray:
        """Return the documents' activations, aggregated over their tokens.

        A feature that is absent on a token counts as 0 there. Documents without activations are rows
        of NaN.

        Parameters
        ----------
        aggregation_method
            ``"max"``, ``"mean"``, ``"sum"``, ``"binarize"`` (1 if any token is above the threshold),
            ``"count"`` (number of tokens above the threshold), ``"nnz"`` (number of tokens that are
            not 0), ``"var"`` (population variance over the tokens), or ``"all"`` (no aggregation).
        compress
            Return sparse matrices, without explicit zeros.
        activated_threshold
            A feature counts as active above this value, for ``"binarize"`` and ``"count"``; 0 or more.
        lazy
            Return a lazy array for xarray and dask. Nothing is read, except the documents' lengths for
            ``"all"``. Its blocks are always sparse, so ``compress`` cannot be given with it. See
            docs/how-to/lazy-arrays.md.
        memory
            Bytes that may be used, or a size such as ``"2G"``. The default is the value of
            ``INTERP_EMBED_MEMORY``, or most of the free memory. It cannot be given with ``lazy``.

        Returns
        -------
        ndarray or csr_matrix of float32, shape (documents, d_sae)
            For ``"all"`` a list of csr_matrix, or a 1-D object array of dense arrays, each of shape
            (n_tokens, d_sae).
        DataArray of float32, dims ("doc", "feature")
            If ``lazy`` is set: a dask array of `sparse.COO` blocks, where ``doc`` is the document's
            number in the store. For ``"all"`` the dims are ("doc", "token", "feature"). It is padded
            with 0 to the longest document, and a document without activations has NaN on its first
            position.

        Raises
        ------
        ResultTooLargeError
            If the result would not fit in memory. Nothing is computed.
        ValueError
            If ``lazy`` is given with ``compress`` or ``memory``.
        """
        check_method(aggregation_method, also=("all",))
        threshold = check_threshold(activated_threshold)
        store, documents = self._selection.store, self._selection.documents
        if lazy:
            if compress:
                raise ValueError("a lazy array always has sparse blocks: leave out compress=True")
            if memory is not None:
                raise ValueError(
                    "memory cannot be given with lazy=True: dask's setting array.chunk-size decides "
                    "the size of a lazy array's blocks. Leave out memory"
                )
            from interp_embed.lazy import convert

            return convert.latents(
                store, documents, aggregation_method, threshold, self._selection.keep
            )
        with memory_budget(memory):
            if aggregation_method == "all":
                if compress:
                    return sparse_tokens(self._selection)
                return dense_tokens(self._selection)
            run = aggregate_sparse if compress else aggregate_dense
            return run(store, documents, REDUCTIONS[aggregation_method], threshold)

    def iter_latents(
        self,
        aggregation_method: str = "max",
        activated_threshold: float = 0,
        *,
        memory: int | str | None = None,
    ) -> Iterator[tuple[NDArray[np.int64], csr_matrix]]:
        """Iterate over the documents' aggregated activations block by block.

        Use it for corpora whose sparse matrix does not fit in memory. Only a few blocks are held at a
        time, whatever the size of the corpus.

        Parameters
        ----------
        aggregation_method, activated_threshold
            See `latents`. ``"all"`` is not allowed.
        memory
            Bytes that may be used, or a size such as ``"2G"``.

        Returns
        -------
        iterator of (positions, matrix)
            ``positions`` (ndarray of int64) are the positions of the block's documents in this
            dataset, and ``matrix`` (csr_matrix of float32, shape (len(positions), d_sae)) has their
            rows. Blocks come in the order of the store. Each document of this dataset is in exactly
            one block.
        """
        reduction = REDUCTIONS[check_method(aggregation_method)]
        threshold = check_threshold(activated_threshold)
        store, documents = self._selection.store, self._selection.documents
        with memory_budget(memory):
            return aggregate_blocks(store, documents, reduction, threshold)

    def feature_statistics(
        self,
        statistics: Sequence[str] | str = DEFAULT_STATISTICS,
        quantiles: Sequence[float] = (),
        activated_threshold: float = 0,
        *,
        memory: int | str | None = None,
    ) -> xr.Dataset:
        """Return statistics of every feature over this dataset's documents, in one pass.

        Parameters
        ----------
        statistics
            Any of

            - ``"document_frequency"``: number of documents in which the feature is above the
              threshold on at least one token;
            - ``"token_frequency"``: number of tokens on which it is above the threshold;
            - ``"mean"``: its activation, averaged over all tokens;
            - ``"max"``: the highest ``max`` of its documents;
            - ``"histogram"``: number of tokens by activation above zero, in 256 bins: eight bins of
              equal width for each power of two from 2^-16 to 2^16. The outer bins also hold the
              values beyond this range. This reads the tokens.
        quantiles
            Numbers from 0 to 1. Each quantile is taken over the activations above zero, as by numpy's
            method ``"inverted_cdf"``, which returns a value that occurs. It is read off the histogram,
            so it is within 1/16 of the true value if that is from 2^-16 to 2^16. This reads the tokens.
        activated_threshold
            Threshold of the frequencies; 0 or more.
        memory
            Bytes that may be used, or a size such as ``"2G"``.

        Returns
        -------
        xarray.Dataset
            Variables over ``feature``; the histogram is over (``feature``, ``bin``) and ``quantiles``
            over (``quantile``, ``feature``). The attributes ``n_documents`` and ``n_tokens`` count
            the documents that have activations, and their tokens.

        Raises
        ------
        ValueError
            If a statistic is unknown, a quantile is not from 0 to 1, or the threshold is negative.
        """
        names, wanted = check_statistics(statistics, quantiles)
        threshold = check_threshold(activated_threshold)
        store, documents = self._selection.store, self._selection.documents
        with memory_budget(memory):
            known = known_totals(store, documents, threshold)
            return feature_statistics(
                store, documents, names, wanted, threshold, self.feature_labels(), known=known
            )

    def to_xarray(self) -> xr.Dataset:
        """Return everything known about the documents as lazy arrays; see docs/how-to/lazy-arrays.md.

        Returns
        -------
        Dataset
            ``activations`` (doc, token, feature); each reduction of `latents` under its name, with an
            ``activated_threshold`` of 0, (doc, feature); ``token_mask`` and ``token_weight`` (doc,
            token), which say where a document has tokens; and the documents' columns (doc). A column
            whose name is taken gets the prefix ``column_``. The coordinates are ``doc`` (the
            document's number in the store), ``feature``, ``token``, ``n_tokens`` (doc), ``status``
            (doc), and ``feature_label`` (feature) if there are labels. Only the coordinates are in
            memory.

        Raises
        ------
        ValueError
            If nothing was encoded yet, so that the number of features is unknown.
        """
        from interp_embed.lazy.convert import to_dataset

        return to_dataset(
            self._selection.store,
            self._selection.documents,
            extra=self._selection.columns,
            labels=self.feature_labels(),
            attributes={"id": self.id, "description": self.dataset_description, "path": self.path},
            keep=self._selection.keep,
        )

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
            Maximum number of documents.
        select_top
            Highest first; otherwise lowest first. Ties keep document order.
        include_nonactive_samples
            Also consider documents in which the feature is not active.
        """
        check_positive(k=k)
        chosen = by_feature.top_positions(
            self._selection,
            feature,
            self._width(),
            method=aggregation_type,
            k=k,
            highest=select_top,
            inactive=include_nonactive_samples,
        )
        rows = [row for row in self._selection.rows(chosen) if row is not None]
        return [row.token_activations(feature) for row in rows] if document_only else rows

    def token_activations(self, feature: int) -> list[str | None]:
        """Return every document's text with the tokens on which a feature is active highlighted.

        Returns
        -------
        list of str or None
            None for documents without activations.
        """
        return by_feature.highlighted(self._selection, feature, self._width())

    def sort_by_features(
        self,
        features: Sequence[int] | int,
        aggregation_type: str = "max",
        descending: bool = True,
        include_top_feature: bool = True,
        include_nonactive_samples: bool = True,
    ) -> Self:
        """Return the documents sorted by their highest activation among some features.

        Documents in which none of the features is active come after the others (before them when
        ascending), in document order. Documents without activations come last.

        Parameters
        ----------
        features
            Feature indices, or one index.
        aggregation_type
            How a document's tokens are aggregated; see `latents`.
        descending
            Highest first.
        include_top_feature
            Add the columns ``feature_activation``, ``top_feature_label`` and ``top_feature_index``
            (-1 if none is active) to the result. The columns of this dataset do not change.
        include_nonactive_samples
            Keep the documents in which none of the features is active.
        """
        if isinstance(features, (int, np.integer)):
            features = [features]
        return self._view(
            by_feature.sorted_by_features(
                self._selection,
                features,
                self._width(),
                self.feature_labels if include_top_feature else None,
                method=aggregation_type,
                descending=descending,
                inactive=include_nonactive_samples,
            )
        )

    # ---- Labels of features

    def _seen_labels(self) -> SeenLabels:
        own, source, store = self._labels, "given", self._selection.store
        if own is None and not store.labels.first() and self.sae is not None:
            own, source = self.sae.feature_labels() or {}, "sae"
        return SeenLabels(store, own, source, self.d_sae)

    def feature_labels(self) -> dict[int, str]:
        """Return the names of features, by feature.

        If a feature has several labels, this returns the best one: a label that a person gave, or else
        the label with the highest score; see `interp_embed.labels.record.best_labels`. `labels` returns
        all of them.
        """
        return self._seen_labels().shown()

    def label_records(self) -> list[FeatureLabel]:
        """Return every label of every feature, including labels that other processes have added.

        Returns
        -------
        list of FeatureLabel
            Sorted by feature, then by time.
        """
        return self._seen_labels().records()

    def labels(self) -> pd.DataFrame:
        """Return every label of every feature as a table.

        Returns
        -------
        DataFrame
            ``feature``; ``label``; ``best``, whether `feature_labels` returns this label; ``source``
            (see `FeatureLabel`); ``brief_description``, ``detailed_explanation``, ``model``,
            ``prompt_version``, ``seed``, ``origin`` and ``created``; the score that counts, as
            ``score_method``, ``score``, ``low``, ``high`` and ``n`` (missing if there is no score);
            ``n_scores`` and ``n_examples``. `label_records` returns all scores and examples.
        """
        return self._seen_labels().table()

    def add_labels(
        self,
        labels: Mapping[int, str] | Iterable[FeatureLabel] | FeatureLabel,
        source: str = "given",
    ) -> LabelsAdded:
        """Add labels to the store. They are on disk when this returns. No label is replaced.

        Any number of processes may add labels at once. If the store already has a record with other
        scores, the new scores are added to it.

        Parameters
        ----------
        labels
            Labels by feature, one record, or several records.
        source
            Where labels by feature come from; see `FeatureLabel`.

        Returns
        -------
        LabelsAdded
            The number of labels written. It is an integer whose printed form says what happened to
            each label: ``new``, ``scored``, ``again`` or ``same``, and which of them are ``shown``.

        Raises
        ------
        IndexError
            If the SAE has no such feature. Nothing is added then.
        TypeError, ValueError
            If something is not a label.
        """
        records = [*label_records(labels, source)]
        return self._seen_labels().add(records)

    def export_labels(self, path: str | os.PathLike[str], *, best: bool = False) -> int:
        """Write labels to a file that `import_labels` can read.

        Parameters
        ----------
        path
            A path that ends in ``.json`` or ``.csv``. An existing file is replaced.
        best
            Write only the label that `feature_labels` returns for each feature.

        Returns
        -------
        int
            Number of labels written.

        Raises
        ------
        ValueError
            If the name does not end in ``.json`` or ``.csv``.
        """
        return self._seen_labels().export(path, best=best)

    def import_labels(
        self,
        path: str | os.PathLike[str],
        *,
        source: str | None = None,
        only: str | None = None,
    ) -> LabelsAdded:
        """Add the labels from one or several files.

        Parameters
        ----------
        path
            A file, a folder of files, a pattern or a URL; files may be compressed with gzip. Each may
            be JSON or CSV from `export_labels`; a table with the columns ``feature`` and ``label``; a
            JSON object of labels by feature; or explanations that Neuronpedia exports (JSON Lines or
            JSON). Examples in a file of `export_labels` are document numbers; they are left out if
            this store has too few documents.
        source
            Where the labels come from. This replaces what the file says; the default is ``"import"``
            if the file says nothing. ``"given"`` ranks them above all other labels.
        only
            If a file has the explanations of several SAEs, read only those of this one:
            ``"model/layer"`` as Neuronpedia names it, such as ``"gpt2-small/8-res-jb"``.

        Returns
        -------
        LabelsAdded
            As for `add_labels`. Rows without a label are left out.

        Raises
        ------
        FileNotFoundError
            If there is no such file.
        ValueError
            If a file has no labels or is not a file of labels. The message names the file and line.
        IndexError
            If the SAE has no such feature, so that the labels belong to another SAE. Nothing is added
            then.
        """
        return self._seen_labels().import_from(path, source=source, only=only)

    def label_features_from_tokens(
        self,
        features: Sequence[int] | None = None,
        *,
        k: int = 20,
        words: int = 3,
        commit: bool = True,
        memory: int | str | None = None,
    ) -> NamedFeatures:
        """Name features by the words that they prefer, without a language model.

        Each feature is named after the words on which it is active in its strongest documents, or
        after the word that precedes them; see `interp_embed.analysis.lexical_names`. The same documents
        give the same names. This reads the document level once, then the documents in which one of the
        features is strongest, and the texts of up to 2,048 documents to find out which words are
        common. Memory does not grow with the corpus.

        Such a name is shown only if a feature has no better label. All other labels rank above it,
        including those that the SAE came with, unless they were scored and are no better than guessing.
        The result says how many of the names are shown.

        Parameters
        ----------
        features
            Features to name; by default all that are active in some document.
        k
            Documents per feature, all with different texts.
        words
            Maximum number of words per label.
        commit
            Whether to add the labels to the store.
        memory
            Bytes that the pass over the documents may use, or a size such as ``"2G"``.

        Returns
        -------
        NamedFeatures
            A list of `FeatureLabel` with the source ``"tokens"``, in order of features. A feature
            that is never active gets no label. Its printed form says how many labels are shown.

        Raises
        ------
        IndexError
            If the SAE has no such feature.
        ValueError
            If nothing was encoded yet.
        OSError
            If the labels are to be added and the store cannot be written. This is checked before any
            work.
        """
        from interp_embed.analysis.token_labels import feature_mask, labels_from_tokens

        check_positive(k=k, words=words)
        wanted = feature_mask(features, self._width())
        if commit:
            self._selection.store.labels.check_writable()
        with memory_budget(memory):
            found = labels_from_tokens(self._selection, wanted, k=k, words=words)
        seen = self._seen_labels()
        if not commit:
            return NamedFeatures(found, None, seen.preview(found))
        added = seen.add(found)
        assert added.shown is not None
        return NamedFeatures(found, added, added.shown)

    @property
    def answers(self) -> StoredAnswers:
        """Answers of language models, kept in the store by the digest of the request."""
        return self._selection.store.answers

    def _samples(self, **given: Dataset | None) -> list[SelectedSamples]:
        """Return these documents, and those of each dataset that an argument gave in their place.

        Those of one dataset are one object, whose reads are shared.
        """
        from interp_embed.llm.samples.samples import SelectedSamples

        for name, chosen in given.items():
            if chosen is not None and not isinstance(chosen, Dataset):
                raise TypeError(
                    f"{name} must be a Dataset, got {type(chosen).__name__}: {chosen!r:.60}"
                )
        datasets = [self, *(self if chosen is None else chosen for chosen in given.values())]
        known = {id(each): SelectedSamples(each.selection, each._width()) for each in datasets}
        return [known[id(each)] for each in datasets]

    async def label_feature(
        self,
        feature: int,
        model: str = DEFAULT_MODEL,
        label_and_score: Mapping[str, Any] | None = None,
        positive_dataset: Dataset | None = None,
        negative_dataset: Dataset | None = None,
        k: int = 20,
        *,
        base_url: str | None = None,
        examples: Literal["top", "quantile", "random"] = "top",
        negatives: Literal["random", "hard"] = "random",
        seed: int = 0,
        window_tokens: int = 64,
        prompts: str | os.PathLike[str] | Prompts | None = None,
        settings: Mapping[str, Any] | None = None,
        timeout: float = DEFAULT_TIMEOUT,
        max_retries: int = DEFAULT_RETRIES,
        answers: Answers | None = None,
        client: LLMClient | None = None,
    ) -> FeatureLabelResponse:
        """Ask a language model what a feature stands for.

        Parameters
        ----------
        feature
            Feature index.
        model
            ``openai/NAME`` for a model of OpenAI; otherwise a model of OpenRouter. The key is read
            from ``OPENAI_API_KEY`` or ``OPENROUTER_API_KEY``.
        label_and_score
            A label to improve, and its score: ``{"label": ..., "score": ...}``. You can pass the result
            of `score_feature` with the label added.
        positive_dataset, negative_dataset
            Where the samples with and without the feature come from; this dataset by default.
        k
            Maximum number of samples with the feature, and of samples without it.
        base_url
            Another server that speaks OpenAI's protocol (vLLM, Ollama, ...), for instance
            ``http://localhost:8000/v1``; ``OPENAI_BASE_URL`` or ``OPENROUTER_BASE_URL`` by default.
        examples
            Which documents show the feature: ``"top"``, some of the 3 k in which it is strongest;
            ``"quantile"``, equally many of each strength; ``"random"``, any in which it is active.
        negatives
            Which documents do not have the feature: ``"random"``, or ``"hard"``, those most like the
            positive ones in other features.
        seed
            The same seed chooses the same samples.
        window_tokens
            Number of tokens to show per document, around its strongest token. Special tokens are left
            out.
        prompts
            A folder of prompts that replace the prompts of this package; see
            docs/reference/language-models.md.
        settings
            Further parameters of the request, such as ``{"temperature": 0.7, "max_tokens": 500}``.
        timeout
            Seconds that one attempt of a request may take; 120 by default.
        max_retries
            How often a request is sent again if the server does not answer in time, cannot be reached,
            is overloaded (429) or fails (5xx); 4 by default.
        answers
            Keeps answers, so that no request is sent twice; see `interp_embed.llm.Answers`.
        client
            An open `interp_embed.llm.LLMClient`, to share connections, limits and counts. It replaces
            ``model``, ``base_url``, ``answers``, ``timeout`` and ``max_retries``.

        Returns
        -------
        FeatureLabelResponse
            It has ``label``, ``brief_description`` and ``detailed_explanation`` (which may be None).

        Raises
        ------
        ValueError
            If the feature is not active in any document, or an argument is invalid.
        IndexError
            If there is no such feature.
        LLMAuthenticationError
            If there is no key, or the server rejects it.
        LLMAnswerError
            If the model did not answer in the requested form, in two rounds. The answer is in ``raw``.
        LLMError
            For other failures of the server, after retries.
        """
        from interp_embed.llm.labelling import Connection, ask_feature_label, require_packages

        require_packages()
        _, positive, negative = self._samples(
            positive_dataset=positive_dataset, negative_dataset=negative_dataset
        )
        return await ask_feature_label(
            positive,
            negative,
            feature,
            _asking(model, examples, negatives, seed, window_tokens, prompts, settings),
            Connection(base_url, timeout, max_retries, answers, client),
            k=k,
            label_and_score=label_and_score,
        )

    async def score_feature(
        self,
        feature: int,
        label: str,
        model: str = DEFAULT_MODEL,
        positive_dataset: Dataset | None = None,
        negative_dataset: Dataset | None = None,
        k: int = 10,
        *,
        method: Literal["reference", "detection", "fuzzing"] = "reference",
        base_url: str | None = None,
        examples: Literal["top", "quantile", "random"] = "top",
        negatives: Literal["random", "hard"] = "random",
        seed: int = 0,
        window_tokens: int = 64,
        prompts: str | os.PathLike[str] | Prompts | None = None,
        settings: Mapping[str, Any] | None = None,
        timeout: float = DEFAULT_TIMEOUT,
        max_retries: int = DEFAULT_RETRIES,
        answers: Answers | None = None,
        client: LLMClient | None = None,
    ) -> dict[str, Any]:
        """Ask a language model how well a label says where a feature is active.

        Parameters
        ----------
        feature, label
            The feature, and the label to judge.
        model, positive_dataset, negative_dataset, base_url, examples, negatives
            See `label_feature`.
        k
            Maximum number of samples with the feature, and of samples without it.
        method
            ``"reference"``: the model sees each sample alone, with its active tokens marked, and judges
            whether the label fits. ``"detection"``: the model sees samples with and without the
            feature together, without marks, and says which have the feature. ``"fuzzing"``: the model
            sees samples with the feature, exactly half of them with random tokens marked, and says
            which are marked correctly.
        seed, window_tokens, prompts, settings, timeout, max_retries, answers, client
            See `label_feature`.

        Returns
        -------
        dict
            - ``score``: from 0 to 1. For ``"reference"`` this is the share of samples that the label
              fits, for the others the balanced accuracy;
            - ``total_count``: number of samples that were judged;
            - ``responses``: a `SingleSampleScoringResponse` for each sample, which also has
              ``document``, ``text``, ``expected`` and ``judged``;
            - ``balanced_accuracy``, the mean of the accuracies on samples with and without the feature,
              and ``interval``, its 95 % interval (low, high); NaN if only one of the two kinds occurs;
            - ``n_positive``, ``n_negative``: number of samples with and without the feature;
            - ``failures``: a dictionary with ``documents`` and ``reason`` for each request that left
              samples without a usable verdict;
            - ``method``, ``model``, ``prompt_version``, ``seed``.

        Raises
        ------
        ValueError
            If the feature is not active in any document, if there is nothing to compare with, or if an
            argument is invalid.
        IndexError
            If there is no such feature.
        LLMError
            If no request was answered, or the server rejects the key or does not know the model. If
            only some samples have no verdict, the others count and a warning says so.
        """
        from interp_embed.llm.labelling import Connection, ask_feature_score, require_packages

        require_packages()
        _, positive, negative = self._samples(
            positive_dataset=positive_dataset, negative_dataset=negative_dataset
        )
        return await ask_feature_score(
            positive,
            negative,
            feature,
            label,
            _asking(model, examples, negatives, seed, window_tokens, prompts, settings),
            Connection(base_url, timeout, max_retries, answers, client),
            k=k,
            method=method,
        )

    async def label_features(
        self,
        features: Sequence[int] | None = None,
        model: str = DEFAULT_MODEL,
        *,
        score: Method | Sequence[Method] | None = None,
        k: int = 20,
        score_k: int = 10,
        seed: int = 0,
        examples: Literal["top", "quantile", "random"] = "top",
        negatives: Literal["random", "hard"] = "random",
        window_tokens: int = 64,
        scored_on: Dataset | None = None,
        max_concurrency: int = 8,
        requests_per_minute: float | None = None,
        tokens_per_minute: float | None = None,
        max_tokens: int | None = None,
        max_cost: float | None = None,
        prices: tuple[float, float] | None = None,
        base_url: str | None = None,
        prompts: str | os.PathLike[str] | Prompts | None = None,
        settings: Mapping[str, Any] | None = None,
        timeout: float = DEFAULT_TIMEOUT,
        max_retries: int = DEFAULT_RETRIES,
        progress: bool | None = None,
    ) -> BulkLabels:
        """Ask a language model what many features stand for, and keep its labels in the store.

        Answers and labels are written to disk as they arrive, so you can interrupt or kill this at any
        time. The same call then continues, and does not pay again for answers that are kept. See
        docs/how-to/label-features.md.

        Parameters
        ----------
        features
            Features to label. None means those that occur in these documents and either have no label
            of this model and these prompts yet, or have one that lacks a requested score.
        model, k, seed, examples, negatives, window_tokens, base_url, prompts, settings
            See `label_feature`.
        score
            How to score each label: one method of `score_feature`, or several; None for no score.
        score_k
            Maximum number of samples with the feature, and of samples without it, per score.
        scored_on
            Where the samples for scores come from; this dataset by default.
        max_concurrency
            Maximum number of requests in flight. A crash loses at most this many paid answers.
        requests_per_minute, tokens_per_minute
            Rate limits of the server; None for no limit. Tokens are those of prompts and answers,
            estimated before a request is sent. Retries are not counted.
        max_tokens
            Tokens of prompts and answers that this call may use; None for no limit.
        max_cost
            US dollars that this call may spend. This needs ``prices``. If the server reports its own
            cost, that cost counts.
        prices
            US dollars per million tokens of prompts, and of answers.
        timeout, max_retries
            See `label_feature`.
        progress
            Whether to show the estimate and a progress bar; by default only if somebody is watching.

        Returns
        -------
        BulkLabels
            ``table``, a data frame with one row per feature: its label, its score, why it failed, and
            what it used; ``stopped``, why the call ended early, if a budget was reached; and the totals
            that were used.

        Raises
        ------
        ValueError
            If an argument is invalid. Nothing is sent.
        IndexError
            If the SAE has no such feature.
        LLMError
            If the server refuses the key, the model or the account, or fails for many features in a
            row. Labels made before that are kept. Any other failure affects only one feature and is in
            the table.
        """
        from interp_embed.llm.labelling import (
            Connection,
            Limits,
            ask_feature_labels,
            require_packages,
        )

        require_packages("aiolimiter")
        limits = Limits(
            max_concurrency,
            requests_per_minute,
            tokens_per_minute,
            max_tokens,
            max_cost,
            prices,
        )
        asking = _asking(model, examples, negatives, seed, window_tokens, prompts, settings)
        samples, scored = self._samples(scored_on=scored_on)
        return await ask_feature_labels(
            samples,
            scored,
            features,
            _bulk_asking(asking, score, k, score_k),
            Connection(base_url, timeout, max_retries),
            limits,
            self._kept(),
            progress=progress,
        )

    def estimate_labels(
        self,
        features: Sequence[int] | None = None,
        model: str = DEFAULT_MODEL,
        *,
        score: Method | Sequence[Method] | None = None,
        k: int = 20,
        score_k: int = 10,
        seed: int = 0,
        examples: Literal["top", "quantile", "random"] = "top",
        negatives: Literal["random", "hard"] = "random",
        window_tokens: int = 64,
        scored_on: Dataset | None = None,
        prices: tuple[float, float] | None = None,
        prompts: str | os.PathLike[str] | Prompts | None = None,
        settings: Mapping[str, Any] | None = None,
    ) -> Estimate:
        """Estimate what `label_features` would use. Nothing is sent and no key is needed.

        This builds the requests of up to 32 evenly spread features and counts their characters.

        Parameters
        ----------
        features, model, score, k, score_k, seed, examples, negatives, window_tokens
            See `label_features`.
        scored_on, prices, prompts, settings
            See `label_features`.

        Returns
        -------
        Estimate
            ``features``, ``requests``, ``kept`` (already answered), ``prompt_tokens``,
            ``completion_tokens``, and ``cost`` in US dollars (None without prices).

        Raises
        ------
        ValueError, IndexError
            As for `label_features`.
        """
        from interp_embed.llm.labelling import estimate_feature_labels, require_packages

        require_packages()
        asking = _asking(model, examples, negatives, seed, window_tokens, prompts, settings)
        samples, scored = self._samples(scored_on=scored_on)
        return estimate_feature_labels(
            samples,
            scored,
            features,
            _bulk_asking(asking, score, k, score_k),
            prices,
            self._kept(),
        )

    def _kept(self) -> Kept:
        from interp_embed.llm.labelling import Kept

        def occurring() -> NDArray[np.bool_]:
            found = self.feature_statistics(["document_frequency"])
            return found["document_frequency"].to_numpy() > 0

        store = self._selection.store
        return Kept(store.labels, store.answers, occurring, self._width())

    # ---- Display

    def _status_counts(self) -> list[str]:
        """Return how many documents are not "ok", in words; empty if all are."""
        status = self.status()
        words = {"failed": "failed", "missing": "not encoded yet", "truncated": "truncated"}
        counts = {said: int((status == name).sum()) for name, said in words.items()}
        return [f"{count:,} {said}" for said, count in counts.items() if count]

    def __repr__(self) -> str:
        if len(self) == 0:
            return "Dataset(<EMPTY>)"
        names = ", ".join(repr(name) for name in self.columns)
        shown = range(len(self)) if len(self) < 5 else [0, 1, len(self) - 2, len(self) - 1]
        lines = [f"    {i}: {self.rows[i]!r}" for i in shown]
        if len(self) >= 5:
            lines.insert(2, "    ...")
        body = "\n".join(lines)
        counts = ", ".join(
            [f"{len(self):,} documents", *self._status_counts(), f"{self.d_sae or '?'} features"]
        )
        return f"Dataset {self.id} ({counts})(\n  columns=[{names}]\n  rows=[\n{body}\n  ]\n)"

    def _repr_html_(self) -> str:
        from interp_embed.viz.html import dataset_html

        others = ", ".join(self._status_counts())
        summary = {
            "Documents": f"{len(self):,}" + (f" ({others})" if others else ""),
            "Tokens": f"{self.token_count:,}",
            "Features": f"{self.d_sae or 'unknown'}",
            "Store": self.path,
        }
        if self.dataset_description:
            summary = {"Description": self.dataset_description, **summary}
        return dataset_html(summary, self._selection.frame(np.arange(min(5, len(self)))))

    # Last, as it hides the builtin in this class.
    def list(self) -> list[dict[Any, Any]]:
        """Return the documents' columns as a list of dictionaries."""
        return self.dataset.to_dict(orient="records")


def _asking(
    model: str,
    examples: Literal["top", "quantile", "random"],
    negatives: Literal["random", "hard"],
    seed: int,
    window_tokens: int,
    prompts: str | os.PathLike[str] | Prompts | None,
    settings: Mapping[str, Any] | None,
) -> Asking:
    from interp_embed.llm.asking import Asking, read_prompts
    from interp_embed.llm.samples.choice import Choice

    choice = Choice(examples, negatives, seed, window_tokens)
    return Asking(model, choice, read_prompts(prompts), settings)


def _bulk_asking(
    asking: Asking, score: Method | Sequence[Method] | None, k: int, score_k: int
) -> BulkAsking:
    from interp_embed.llm.bulk.plan import BulkAsking, check_methods

    return BulkAsking(asking, check_methods(score), k, score_k)


def merge(
    stores: Sequence[str | os.PathLike[str] | Dataset], path: str | os.PathLike[str]
) -> Dataset:
    """Join stores of the same SAE and settings into a new one.

    The new store has the documents of all stores, one store after the other. If a store lacks a
    column, its values are missing there. Nothing is encoded or compressed again. On the same disk the
    files are hard links, which take no space; elsewhere they are copied byte for byte. The original
    stores do not change. If the call is interrupted, call it again with the same arguments to continue.

    Parameters
    ----------
    stores
        Paths, URLs or whole datasets; at least one.
    path
        Path or URL of the new store.

    Returns
    -------
    Dataset
        All documents. Documents that were not encoded in their store are not encoded in this one.

    Raises
    ------
    FingerprintMismatchError
        If the stores were not made with the same SAE and settings. The message names the difference.
    StoreExistsError
        If there is already something at ``path``.
    ValueError
        If a dataset is part of a store or has columns of its own, or if there is nothing to join.
    """
    if not isinstance(stores, Sequence) or isinstance(stores, (str, bytes, Dataset)) or not stores:
        raise ValueError(
            f"stores must be a list of at least one path or dataset, got {stores!r:.100}"
        )
    parts = [each.selection if isinstance(each, Dataset) else each for each in stores]
    return Dataset.load_from_file(joining.merge(parts, path))
