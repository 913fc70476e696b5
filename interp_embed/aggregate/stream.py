"""Reading the nonzeros of many documents piece by piece, in memory that is reused."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from interp_embed.store.chunks import StoredChunk

__all__ = ["TokenPiece", "stream_tokens"]

_PIECE_NNZ = 2**18
"""Nonzeros per piece, so that a core's cache holds them between decoding and counting."""


@dataclass(frozen=True, slots=True, eq=False)
class TokenPiece:
    """Nonzeros of some documents; ``feature`` and ``activation`` hold until the next piece is read.

    Attributes
    ----------
    feature, activation
        Nonzeros, and perhaps some of documents that are not asked for.
    begin, end : ndarray of int64
        Document ``i`` has nonzeros ``begin[i]:end[i]``.
    n_tokens : ndarray of int64
    """

    feature: NDArray[np.unsignedinteger]
    activation: NDArray[np.floating]
    begin: NDArray[np.int64]
    end: NDArray[np.int64]
    n_tokens: NDArray[np.int64]
    _single: _Single

    def single(self) -> NDArray[np.float32]:
        """Return the activations as float32, valid until the next piece is read."""
        return self._single.of(self.activation)


class _Single:
    """Room for half floats as floats."""

    def __init__(self) -> None:
        self._buffer = np.empty(0, np.float32)

    def of(self, values: NDArray[np.floating]) -> NDArray[np.float32]:
        if values.dtype == np.float32:
            return values.view(np.float32)
        if len(self._buffer) < len(values):
            self._buffer = np.empty(len(values), np.float32)
        out = self._buffer[: len(values)]
        out[:] = values
        return out


class _Window:
    """A stretch of a chunk's nonzeros that moves ahead."""

    def __init__(self, chunk: StoredChunk, start: int, stop: int) -> None:
        self._arrays = [chunk.array(name) for name in ("feature", "activation")]
        self._buffers = [np.empty(0, array.dtype) for array in self._arrays]
        self._inner = self._arrays[0].inner
        self._stop = stop
        self._low = self._high = start

    def move(self, low: int, high: int) -> list[NDArray[Any]]:
        """Return the nonzeros from ``low`` to at least ``high``; ``low`` never goes back."""
        kept = max(0, self._high - low)
        # Whole inner chunks, so that none is decoded twice.
        target = max(self._high, min(-(-high // self._inner) * self._inner, self._stop))
        begin = max(low, self._high)
        for number, (array, buffer) in enumerate(zip(self._arrays, self._buffers, strict=True)):
            if len(buffer) < target - low:
                grown = np.empty(target - low, buffer.dtype)
                grown[:kept] = buffer[low - self._low : low - self._low + kept]
                self._buffers[number] = buffer = grown
            elif kept:
                buffer[:kept] = buffer[low - self._low : low - self._low + kept]
            array.read_into(buffer[begin - low : target - low], begin)
        self._low, self._high = low, target
        return [buffer[: target - low] for buffer in self._buffers]


def stream_tokens(
    chunk: StoredChunk, low: int, high: int, positions: NDArray[np.int64]
) -> Iterator[TokenPiece]:
    """Read documents of a chunk.

    Parameters
    ----------
    chunk
        The chunk.
    low, high
        Documents to read over.
    positions
        The requested documents among them, ascending and unique.

    Yields
    ------
    TokenPiece
        The next documents, at least one.
    """
    doc_ptr = chunk.array("doc_ptr").read(low, high + 1, keep=False).astype(np.int64)
    first, last = int(doc_ptr[0]), int(doc_ptr[-1])
    token_ptr = chunk.array("token_ptr").read(first, last + 1, keep=False)
    bounds = token_ptr[doc_ptr - first].astype(np.int64)
    rows = positions - low
    begin, end, n_tokens = bounds[rows], bounds[rows + 1], np.diff(doc_ptr)[rows]
    window = _Window(chunk, int(bounds[0]), int(bounds[-1]))
    single = _Single()
    at = 0
    while at < len(rows):
        stop = int(np.searchsorted(end, begin[at] + _PIECE_NNZ, side="right"))
        stop = max(stop, at + 1)
        origin = int(begin[at])
        feature, activation = window.move(origin, int(end[stop - 1]))
        yield TokenPiece(
            feature,
            activation,
            begin[at:stop] - origin,
            end[at:stop] - origin,
            n_tokens[at:stop],
            single,
        )
        at = stop
