"""A cache of documents that are read again and again, for one feature after another.

Choosing samples for one feature reads its column and some documents. For thousands of features most of
these documents are the same, and columns are read many at a time. The cache is bounded.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from cachetools import LRUCache

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray
    from scipy.sparse import csr_matrix

    from interp_embed.llm.samples.samples import Samples
    from interp_embed.selection.row import DatasetRow

__all__ = ["KeptReads"]

_ROW_BYTES = 2**28
_COLUMN_BYTES = 2**27
_BLOCK_BYTES = 2**26
"""Of the dense columns that are read together."""
_BLOCK_FEATURES = 256
_TOKEN_BYTES = 64
"""What a token's text takes in memory, about."""


class KeptReads:
    """Samples whose reads are cached. For one thread.

    Parameters
    ----------
    samples : Samples
        The documents.
    features : sequence of int
        The features that will be requested, approximately in this order.
    """

    def __init__(self, samples: Samples, features: Sequence[int]) -> None:
        self._samples = samples
        self._order = [*features]
        self._place = {feature: place for place, feature in enumerate(self._order)}
        self._rows: LRUCache[int, DatasetRow | None] = LRUCache(_ROW_BYTES, _row_size)
        self._columns: LRUCache[int, tuple[NDArray[Any], NDArray[np.float32]]] = LRUCache(
            _COLUMN_BYTES, lambda column: column[0].nbytes + column[1].nbytes
        )
        # What was read last, which is asked for next: no part of it makes room for another.
        self._block: dict[int, tuple[NDArray[Any], NDArray[np.float32]]] = {}

    def __len__(self) -> int:
        return len(self._samples)

    def strengths(self, features: Sequence[int]) -> NDArray[np.float32]:
        """Return the highest activation of some features per document."""
        feature = int(features[0]) if len(features) == 1 else -1
        if feature not in self._place:
            return self._samples.strengths(features)
        column = self._block.get(feature) or self._columns.get(feature)
        rows, values = self._read_columns(feature) if column is None else column
        out = np.zeros((len(self), 1), np.float32)
        out[rows, 0] = values
        return out

    def _read_columns(self, feature: int) -> tuple[NDArray[Any], NDArray[np.float32]]:
        """Read the column of a feature, and those of the features that will be asked for next."""
        count = max(1, min(_BLOCK_FEATURES, _BLOCK_BYTES // (4 * max(1, len(self)))))
        place = self._place[feature]
        wanted = [
            f
            for f in self._order[place : place + count]
            if f not in self._columns and f not in self._block
        ]
        dense = self._samples.strengths(wanted)
        for each, read in self._block.items():
            _keep(self._columns, each, read)
        self._block = {}
        for number, each in enumerate(wanted):
            rows = np.flatnonzero(dense[:, number])  # NaN is not 0
            self._block[each] = rows, dense[rows, number]
        return self._block[feature]

    def rows(self, positions: NDArray[np.int64]) -> list[DatasetRow | None]:
        """Read some documents with their activations."""
        wanted = positions.tolist()
        found = {p: self._rows[p] for p in wanted if p in self._rows}
        lacking = [p for p in wanted if p not in found]
        if lacking:
            read = self._samples.rows(np.array(lacking, np.int64))
            for position, row in zip(lacking, read, strict=True):
                if row is not None:
                    row.special_tokens = row.special_tokens.copy()  # a part of a larger array
                found[position] = row
                _keep(self._rows, position, row)
        return [found[position] for position in wanted]

    def matrix(self, positions: NDArray[np.int64]) -> csr_matrix:
        """Return the highest activation of every feature in some documents."""
        return self._samples.matrix(positions)

    def listed_top(self, feature: int, k: int) -> NDArray[np.int64] | None:
        """Return where a feature is strongest, if that is known without reading all documents."""
        return self._samples.listed_top(feature, k)

    def n_tokens(self, positions: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the numbers of tokens of some documents."""
        return self._samples.n_tokens(positions)

    def document(self, position: int) -> int:
        """Return the number of a document in its store."""
        return self._samples.document(position)


def _keep(cache: LRUCache[int, Any], key: int, value: Any) -> None:
    if cache.getsizeof(value) <= cache.maxsize:
        cache[key] = value


def _row_size(row: DatasetRow | None) -> int:
    if row is None:
        return _TOKEN_BYTES
    matrix = row.activations
    held = matrix.data.nbytes + matrix.indices.nbytes + matrix.indptr.nbytes
    return held + _TOKEN_BYTES * (1 + row.n_tokens) + 4 * len(row.data)
