"""The rows of a dataset: a sequence that reads each document on access."""

from __future__ import annotations

import operator
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, overload

import numpy as np
from cachetools import LRUCache

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from interp_embed.selection.row import DatasetRow

__all__ = ["Rows"]

_HELD = 64
_BLOCK = 256


class Rows(Sequence["DatasetRow | None"]):
    """Rows of some documents; None for a document without activations.

    Parameters
    ----------
    n
        Number of rows.
    read
        ``read(positions)`` returns the rows at some positions.
    """

    def __init__(
        self, n: int, read: Callable[[NDArray[np.int64]], list[DatasetRow | None]]
    ) -> None:
        self._n = n
        self._read = read
        self._held: LRUCache[int, DatasetRow | None] = LRUCache(_HELD)

    def __len__(self) -> int:
        return self._n

    @overload
    def __getitem__(self, index: int) -> DatasetRow | None: ...
    @overload
    def __getitem__(self, index: slice) -> list[DatasetRow | None]: ...
    def __getitem__(self, index: int | slice) -> DatasetRow | list[DatasetRow | None] | None:
        if isinstance(index, slice):
            return self._read(np.arange(self._n)[index])
        position = operator.index(index)
        if not -self._n <= position < self._n:
            raise IndexError(f"document {position} is out of range for {self._n} documents")
        position %= self._n
        if position not in self._held:
            self._held[position] = self._read(np.array([position]))[0]
        return self._held[position]

    def __iter__(self) -> Iterator[DatasetRow | None]:
        for start in range(0, self._n, _BLOCK):
            yield from self._read(np.arange(start, min(start + _BLOCK, self._n)))

    def __repr__(self) -> str:
        return f"<{self._n} rows, read on access>"
