"""A data set whose documents are looked at again and again, for one feature after the other.

Choosing samples for one feature reads its column and some documents. For thousands of features most of
these documents are the same, and columns are read many at a time. What is held is bounded.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from typing_extensions import override

from interp_embed.activations import Activations

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from interp_embed.selection.row import DatasetRow

__all__ = ["SharedReads"]

_ROW_BYTES = 2**28
_COLUMN_BYTES = 2**27
_BLOCK_BYTES = 2**26
"""Of the dense columns that are read together."""
_BLOCK_FEATURES = 256
_TOKEN_BYTES = 64
"""What a token's text takes in memory, about."""


class SharedReads(Activations):
    """The same documents as another data set, with reads that are shared. For one thread.

    Views of it read by themselves.
    """

    _upcoming: dict[int, int] | None = None
    _order: list[int]
    _rows: OrderedDict[int, tuple[DatasetRow | None, int]]
    _row_bytes: int
    _columns: OrderedDict[int, tuple[NDArray[Any], NDArray[np.float32]]]
    _column_bytes: int

    @classmethod
    def of(cls, dataset: Activations, features: Sequence[int]) -> Self:
        """Return a data set of the same documents.

        Parameters
        ----------
        dataset
            Which documents.
        features
            Those that will be asked for, about in this order.
        """
        found = cls.__new__(cls)
        found.__dict__.update(dataset.__dict__)
        for name in ("rows", "_cached_frame"):  # they read through the other one
            found.__dict__.pop(name, None)
        found._order = [*features]
        found._upcoming = {feature: place for place, feature in enumerate(found._order)}
        found._rows = OrderedDict()
        found._row_bytes = 0
        found._columns = OrderedDict()
        found._column_bytes = 0
        return found

    @override
    def _feature_values(self, features: Sequence[int], method: str) -> NDArray[np.float32]:
        upcoming = self._upcoming
        feature = int(features[0]) if len(features) == 1 else -1
        if upcoming is None or method != "max" or feature not in upcoming:
            return super()._feature_values(features, method)
        if feature not in self._columns:
            self._read_columns(upcoming[feature])
        rows, values = self._columns[feature]
        out = np.zeros((len(self), 1), np.float32)
        out[rows, 0] = values
        return out

    def _read_columns(self, place: int) -> None:
        """Read the columns of a feature and of those that will be asked for next."""
        count = max(1, min(_BLOCK_FEATURES, _BLOCK_BYTES // (4 * max(1, len(self)))))
        wanted = [f for f in self._order[place : place + count] if f not in self._columns]
        dense = super()._feature_values(wanted, "max")
        while self._columns and self._column_bytes > _COLUMN_BYTES:
            _, (rows, values) = self._columns.popitem(last=False)
            self._column_bytes -= rows.nbytes + values.nbytes
        for number, feature in enumerate(wanted):
            column = dense[:, number]
            rows = np.flatnonzero(column)  # NaN is not 0
            self._columns[feature] = rows, column[rows]
            self._column_bytes += rows.nbytes + 4 * len(rows)

    @override
    def _read_rows(self, positions: NDArray[np.int64]) -> list[DatasetRow | None]:
        if self._upcoming is None:
            return super()._read_rows(positions)
        lacking = np.array([p for p in positions.tolist() if p not in self._rows], np.int64)
        found: dict[int, DatasetRow | None] = {}
        if len(lacking):
            found = dict(zip(lacking.tolist(), super()._read_rows(lacking), strict=True))
        out = []
        for position in positions.tolist():
            if position in self._rows:
                self._rows.move_to_end(position)
                out.append(self._rows[position][0])
            else:
                self._hold(position, found[position])
                out.append(found[position])
        while self._row_bytes > _ROW_BYTES:
            _, (_, size) = self._rows.popitem(last=False)
            self._row_bytes -= size
        return out

    def _hold(self, position: int, row: DatasetRow | None) -> None:
        size = _TOKEN_BYTES
        if row is not None:
            row.special_tokens = row.special_tokens.copy()  # it is a part of a larger array
            matrix = row.activations
            size += matrix.data.nbytes + matrix.indices.nbytes + matrix.indptr.nbytes
            size += _TOKEN_BYTES * row.n_tokens + 4 * len(row.data)
        self._rows[position] = row, size
        self._row_bytes += size
