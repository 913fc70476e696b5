"""A selection of documents of a store: their columns, texts and rows."""

from __future__ import annotations

import uuid
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, Self, overload

import numpy as np
import pandas as pd

from interp_embed import exchange as saving
from interp_embed.aggregate.matrices import unavailable
from interp_embed.core.chunk import DocumentStatus
from interp_embed.selection.positions import positions_of
from interp_embed.selection.row import DatasetRow
from interp_embed.selection.rows import Rows
from interp_embed.store import MISSING

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from numpy.typing import NDArray

    from interp_embed.sae.base import BaseSAE
    from interp_embed.store import Store

__all__ = ["View"]

_FEW = 4
_AT_ONCE = 8
"""Documents that are read at once."""


class View:
    """Some documents of a store, in some order, with columns of their own beside the stored ones.

    Slicing, masking and sorting give new views and copy no activations.
    """

    field: Any
    sae: BaseSAE | None
    dataset_description: str
    id: str

    def _bind(
        self,
        store: Store,
        sae: BaseSAE | None,
        documents: NDArray[np.int64],
        extra: Mapping[str, NDArray[Any]],
        labels: Mapping[int, str] | None,
        folder: object | None,
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

    def _bind_documents(self, documents: NDArray[np.int64]) -> None:
        """Become a view of other documents of the store."""
        self._documents = documents
        self._forget()

    def _forget(self) -> None:
        """Let go of what was read of the documents' columns."""
        for name in ("rows", "_cached_frame"):
            vars(self).pop(name, None)

    def _keep_up(self) -> None:
        """Let go of what was read before the store had other columns, as after `append`."""
        schema = self._store.schema
        if vars(self).get("_schema") is not schema:
            self._forget()
            self._schema = schema

    def _view(
        self, positions: NDArray[np.int64], extra: Mapping[str, NDArray[Any]] | None = None
    ) -> Self:
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

    def __copy__(self) -> Self:
        new = type(self).__new__(type(self))
        new.__dict__.update(self.__dict__)
        return new

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
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

    @property
    def _cached_frame(self) -> pd.DataFrame:
        self._keep_up()
        if "_cached_frame" not in vars(self):
            vars(self)["_cached_frame"] = self._frame(np.arange(len(self)))
        found: pd.DataFrame = vars(self)["_cached_frame"]
        return found

    @property
    def rows(self) -> Rows:
        """The rows: a sequence that reads a document when it is looked at."""
        self._keep_up()
        if "rows" not in vars(self):
            vars(self)["rows"] = Rows(len(self), self._read_rows)
        found: Rows = vars(self)["rows"]
        return found

    def _frame(
        self, positions: NDArray[np.int64], columns: Sequence[Any] | None = None
    ) -> pd.DataFrame:
        frame = self._store.frame(self._documents[positions], columns)
        for name, values in self._extra.items():
            if columns is None or name in columns:
                frame[name] = values[positions]
        return frame

    def _read_rows(self, positions: NDArray[np.int64]) -> list[DatasetRow | None]:
        from interp_embed.core.spans import token_strings

        documents = self._documents[positions]
        absent = unavailable(self._store, documents)
        records: list[dict[Any, Any]] = []

        def read(number: int) -> DatasetRow | None:
            if absent[number]:
                return None
            record = records[number]
            matrix, table, vocabulary = self._store.document(int(documents[number]))
            return DatasetRow(
                row=record,
                tokenized_document=token_strings(record[self.field], table, vocabulary),
                activations=matrix,
                field=self.field,
                special_tokens=table.special,
            )

        with self._store.documents_ahead(documents[~absent], documents):
            records += self._frame(positions).to_dict(orient="records")
            if len(documents) < _FEW:
                return [read(number) for number in range(len(documents))]
            # Beside each other: they decode.
            with ThreadPoolExecutor(_AT_ONCE, "interp-embed-rows") as executor:
                return list(executor.map(read, range(len(documents))))

    def feature_labels(self) -> dict[int, str]:
        """Return names of features, by feature.

        Of several labels of a feature the best: what was given by a person, else what scored highest;
        see `interp_embed.labels.record.best_labels`. `labels` has all of them.
        """
        return self._store.labels.shown(*self._first_labels())

    def _first_labels(self) -> tuple[Mapping[int, str] | None, str]:
        """Return what stands in place of the labels that the store began with, and its source."""
        if self._labels is None and not self._store.labels.first() and self.sae is not None:
            return self.sae.feature_labels() or {}, "sae"
        return self._labels, "given"

    def status(self) -> NDArray[np.str_]:
        """Return what became of each document.

        Returns
        -------
        ndarray of str, shape (documents,)
            ``"ok"``; ``"truncated"``, encoded up to the context length; ``"failed"`` (`failures` says
            why); or ``"missing"``, not encoded yet.
        """
        names = np.full(MISSING + 1, "missing", "<U9")
        for status in DocumentStatus:
            names[status] = status.name.lower()
        return names[self._store.status(self._documents)]

    def _status_counts(self) -> list[str]:
        """Return how many documents are not "ok", in words; nothing where all are."""
        status = self.status()
        words = {"failed": "failed", "missing": "not encoded yet", "truncated": "truncated"}
        counts = {said: int((status == name).sum()) for name, said in words.items()}
        return [f"{count:,} {said}" for said, count in counts.items() if count]

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

    def sort_by_columns(self, columns: Any, descending: bool = True) -> Self:
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
        TypeError
            If a column holds values that have no order.
        """
        single = columns is None or np.isscalar(columns)
        names: Any = [columns] if single else [*columns]
        if unknown := [name for name in names if name not in self.columns]:
            raise ValueError(f"no column {unknown[0]!r}; the columns are {self.columns}")
        if not names:
            raise ValueError("give at least one column to sort by")
        frame = self._frame(np.arange(len(self)), names)
        for name in reversed(names):  # as all sorts are stable, the first column decides
            try:
                frame = frame.sort_values(by=name, ascending=not descending, kind="stable")
            except TypeError as error:
                raise TypeError(
                    f"column {name!r} cannot be sorted by, as its values have no order ({error}); "
                    "sort by another column"
                ) from error
        return self._view(frame.index.to_numpy(np.int64))

    def filter_na_rows(self) -> Self:
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
    def __getitem__(self, index: Any) -> DatasetRow | Self | None:
        if isinstance(index, (int, np.integer)) and not isinstance(index, bool):
            return self.rows[int(index)]
        return self._view(positions_of(index, len(self)))
