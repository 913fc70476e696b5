"""A set of features that empties itself in ascending order, for kernels that visit documents.

A document's features are collected in dense accumulators of ``d_sae`` entries that are reused from
document to document. A bitmap remembers which entries were touched, and a second bitmap which words
of the first, so that emitting the features in ascending order and clearing the accumulators cost
what the document touched and not ``d_sae``. No lock is held, so documents are visited in parallel.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numba
import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["bitmaps", "drain", "touch"]

# Position of the lowest set bit of a 64-bit word by a de Bruijn sequence, see
# Leiserson, Prokop, Randall (1998), "Using de Bruijn sequences to index a 1 in a computer word".
_DE_BRUIJN = np.uint64(0x03F79D71B4CB0A89)
_BIT_POSITION = np.zeros(64, np.uint8)
for _i in range(64):
    _BIT_POSITION[((1 << _i) * int(_DE_BRUIJN) & (2**64 - 1)) >> 58] = _i

_ONE = np.uint64(1)
_SIX = np.uint64(6)
_LOW = np.uint64(63)
_SHIFT = np.uint64(58)


def bitmaps(d_sae: int) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
    """Return the two empty bitmaps for ``d_sae`` features.

    A narrow SAE has the first alone: looking at all its words is cheaper than a second.
    """
    words = max(1, -(-d_sae // 64))
    return np.zeros(words, np.uint64), np.zeros(-(-words // 64) if words > 256 else 0, np.uint64)


@numba.njit(cache=True, nogil=True, inline="always")
def touch(word, summary, f):  # type: ignore[no-untyped-def]
    """Put feature ``f`` into the set."""
    w = np.uint64(f) >> _SIX
    word[w] |= _ONE << (np.uint64(f) & _LOW)
    if len(summary):
        summary[w >> _SIX] |= _ONE << (w & _LOW)


@numba.njit(cache=True, nogil=True, inline="always")
def _lowest_bit(bits):  # type: ignore[no-untyped-def]
    lowest = bits & (~bits + _ONE)
    return np.uint64(_BIT_POSITION[(lowest * _DE_BRUIJN) >> _SHIFT])


@numba.njit(cache=True, nogil=True, inline="always")
def _drain_word(word, w, out, n):  # type: ignore[no-untyped-def]
    bits = word[w]
    word[w] = np.uint64(0)
    while bits:
        out[n] = (w << _SIX) | _lowest_bit(bits)
        bits &= bits - _ONE
        n += 1
    return n


@numba.njit(cache=True, nogil=True)
def drain(word, summary, out, n):  # type: ignore[no-untyped-def]
    """Append the set to ``out`` from ``n`` on in ascending order, empty it, return the end."""
    if len(summary) == 0:
        for i in range(len(word)):
            if word[i]:
                n = _drain_word(word, np.uint64(i), out, n)
    for s in range(len(summary)):
        while summary[s]:
            w = (np.uint64(s) << _SIX) | _lowest_bit(summary[s])
            summary[s] &= summary[s] - _ONE
            n = _drain_word(word, w, out, n)
    return n
