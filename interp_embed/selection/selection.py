"""`Selection`: an immutable choice of documents of a store, in some order, with extra columns."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from interp_embed.aggregate.matrices import unavailable
from interp_embed.core.spans import token_strings
from interp_embed.selection.row import DatasetRow

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import pandas as pd
    from numpy.typing import NDArray

    from interp_embed.store import Store

__all__ = ["Selection"]

_FEW = 4
_AT_ONCE = 8
"""Number of documents that are read at once."""


@dataclass(frozen=True, slots=True, eq=False)
class Selection:
    """Some documents of a store.

    Selections are cheap: taking documents out of one copies their numbers, and no activations.

    Parameters
    ----------
    store : Store
        Where the documents are.
    documents : ndarray of int64
        Their numbers in the store, in the order of the selection.
    columns : mapping of name to ndarray
        Columns beside the stored ones, a value per document. They take the place of stored columns
        of the same name.
    keep : object
        Lives as long as the selection does, such as a temporary folder with the store in it.
    """

    store: Store
    documents: NDArray[np.int64]
    columns: Mapping[Any, NDArray[Any]] = field(default_factory=dict)
    keep: object = None

    @classmethod
    def whole(cls, store: Store, keep: object = None) -> Selection:
        """Select all documents of a store."""
        return cls(store, np.arange(store.n_documents), keep=keep)

    def __len__(self) -> int:
        return len(self.documents)

    @property
    def is_whole(self) -> bool:
        """Whether this selects all documents of the store, in order, without columns of its own."""
        return not self.columns and np.array_equal(
            self.documents, np.arange(self.store.n_documents)
        )

    @property
    def column_names(self) -> list[Any]:
        """Names of the documents' columns. This reads no documents."""
        stored = [column.name for column in self.store.schema]
        return [*stored, *(name for name in self.columns if name not in stored)]

    def take(
        self, positions: NDArray[np.int64], columns: Mapping[Any, NDArray[Any]] | None = None
    ) -> Selection:
        """Return the documents at some positions.

        Parameters
        ----------
        positions
            In this selection.
        columns
            Further columns of the result, a value per position.
        """
        own = {name: values[positions] for name, values in self.columns.items()}
        return Selection(
            self.store, self.documents[positions], {**own, **(columns or {})}, self.keep
        )

    def frame(
        self, positions: NDArray[np.int64] | None = None, names: Sequence[Any] | None = None
    ) -> pd.DataFrame:
        """Read columns of the documents.

        Parameters
        ----------
        positions
            Positions of the documents in this selection; all by default.
        names
            Names of the columns; all by default.

        Returns
        -------
        DataFrame
            With index 0 to n - 1.
        """
        wanted: Any = slice(None) if positions is None else positions
        frame = self.store.frame(self.documents[wanted], names)
        for name, values in self.columns.items():
            if names is None or name in names:
                frame[name] = values[wanted]
        return frame

    def texts(self, positions: NDArray[np.int64] | None = None) -> list[Any]:
        """Read the column of texts. Its values may be other than strings."""
        return self.frame(positions, [self.store.field])[self.store.field].tolist()  # type: ignore[no-any-return]

    def rows(self, positions: NDArray[np.int64]) -> list[DatasetRow | None]:
        """Read some documents with their activations; None for documents without activations."""
        documents = self.documents[positions]
        absent = unavailable(self.store, documents)
        records: list[dict[Any, Any]] = []

        def read(number: int) -> DatasetRow | None:
            if absent[number]:
                return None
            record = records[number]
            matrix, table, vocabulary = self.store.document(int(documents[number]))
            return DatasetRow(
                row=record,
                tokenized_document=token_strings(record[self.store.field], table, vocabulary),
                activations=matrix,
                field=self.store.field,
                special_tokens=table.special,
            )

        with self.store.documents_ahead(documents[~absent], documents):
            records += self.frame(positions).to_dict(orient="records")
            if len(documents) < _FEW:
                return [read(number) for number in range(len(documents))]
            # Beside each other: they decode.
            with ThreadPoolExecutor(_AT_ONCE, "interp-embed-rows") as executor:
                return list(executor.map(read, range(len(documents))))
