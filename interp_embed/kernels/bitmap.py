"""A set of features that empties itself in ascending order, for kernels that visit documents.

A document's features are collected in dense accumulators of ``d_sae`` entries that are reused from
document to document. A bitmap remembers which entries were touched, and a second bitmap which words
of the first, so that emitting the features in ascending order and clearing the accumulators cost
what the document touched and not ``d_sae``. No lock is held, so documents are visited in parallel.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numba
import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["bitmaps", "drain", "drain_counts", "touch"]

_ONE = np.uint64(1)
_SIX = np.uint64(6)
_LOW = np.uint64(63)


@intrinsic  # type: ignore[untyped-decorator]
def _trailing_zeros(typing_context: Any, word: Any) -> Any:
    """Position of the lowest set bit of a 64-bit word that is not 0: one instruction."""

    def build(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.cttz(arguments[0], ir.Constant(ir.IntType(1), 1))

    return types.uint64(types.uint64), build


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
def _drain_word(word, w, out, n):  # type: ignore[no-untyped-def]
    bits = word[w]
    word[w] = np.uint64(0)
    while bits:
        out[n] = (w << _SIX) | _trailing_zeros(bits)
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
            w = (np.uint64(s) << _SIX) | _trailing_zeros(summary[s])
            summary[s] &= summary[s] - _ONE
            n = _drain_word(word, w, out, n)
    return n


@numba.njit(cache=True, nogil=True, inline="always")
def _drain_word_counts(word, w, count, out, values, n):  # type: ignore[no-untyped-def]
    bits = word[w]
    word[w] = np.uint64(0)
    while bits:
        f = (w << _SIX) | _trailing_zeros(bits)
        bits &= bits - _ONE
        out[n] = f
        values[n] = count[f]
        count[f] = 0
        n += 1
    return n


@numba.njit(cache=True, nogil=True)
def drain_counts(word, summary, count, out, values, n):  # type: ignore[no-untyped-def]
    """Like `drain`, and move the features' counts to ``values``: half the time of a second look."""
    if len(summary) == 0:
        for i in range(len(word)):
            n = _drain_word_counts(word, np.uint64(i), count, out, values, n)
    for s in range(len(summary)):
        while summary[s]:
            w = (np.uint64(s) << _SIX) | _trailing_zeros(summary[s])
            summary[s] &= summary[s] - _ONE
            n = _drain_word_counts(word, w, count, out, values, n)
    return n
