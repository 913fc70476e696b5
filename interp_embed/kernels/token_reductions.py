"""From tokens to documents, for what the stored document level does not answer.

Each class holds the accumulators that its kernel uses again from call to call: one a thread. Rows are
written where the caller has room for them, so that none is copied.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

import numba
import numpy as np

from interp_embed.kernels.bitmap import bitmaps, drain, drain_counts, touch

if TYPE_CHECKING:
    from numpy.typing import NDArray


__all__ = ["CountAbove", "TokenReducer", "Variance"]


class TokenReducer(Protocol):
    """Reduces the tokens of some documents; made for a number of features."""

    def __init__(self, d_sae: int) -> None: ...

    def __call__(
        self,
        feature: NDArray[np.unsignedinteger],
        activation: NDArray[np.floating],
        begin: NDArray[np.int64],
        end: NDArray[np.int64],
        n_tokens: NDArray[np.int64],
        threshold: float,
        lengths: NDArray[np.int64],
        columns: NDArray[np.integer[Any]],
        values: NDArray[np.float32],
    ) -> int:
        """Reduce documents.

        Parameters
        ----------
        feature, activation
            Nonzeros; float16 or float32.
        begin, end
            Document ``i`` has nonzeros ``begin[i]:end[i]``.
        n_tokens
            Of each document, those without nonzeros included.
        threshold
            For what depends on one; 0 or more.
        lengths
            Filled with the entries of each document.
        columns, values
            Filled from the front: features, ascending within a document, and values, none zero. With
            room for every feature of each document.

        Returns
        -------
        int
            How many entries were filled.
        """
        ...


@numba.njit(cache=True, nogil=True)
def _count(  # type: ignore[no-untyped-def]
    feature, activation, begin, end, threshold, count, word, summary, lengths, columns, values
):
    n = 0
    for d in range(len(begin)):
        for i in range(begin[d], end[d]):
            if activation[i] > threshold:
                f = feature[i]
                count[f] += 1
                touch(word, summary, f)
        first = n
        n = drain_counts(word, summary, count, columns, values, n)
        lengths[d] = n - first
    return n


@numba.njit(cache=True, nogil=True)
def _variance(  # type: ignore[no-untyped-def]
    feature, activation, begin, end, n_tokens, total, square, count, word, summary,
    lengths, columns, values,
):  # fmt: skip
    n = 0
    for d in range(len(begin)):
        for i in range(begin[d], end[d]):
            f = feature[i]
            total[f] += activation[i]
            count[f] += 1
            touch(word, summary, f)
        # Around the mean, in a second look: the difference of two large sums would lose digits.
        for i in range(begin[d], end[d]):
            f = feature[i]
            deviation = activation[i] - total[f] / n_tokens[d]
            square[f] += deviation * deviation
        first = n
        n = drain(word, summary, columns, n)
        kept = first
        for j in range(first, n):
            f = columns[j]
            mean = total[f] / n_tokens[d]
            value = np.float32((square[f] + (n_tokens[d] - count[f]) * mean * mean) / n_tokens[d])
            total[f] = 0.0
            square[f] = 0.0
            count[f] = 0
            if value != 0:
                columns[kept] = f
                values[kept] = value
                kept += 1
        n = kept
        lengths[d] = n - first
    return n


def _comparable(
    activation: NDArray[np.floating], threshold: float
) -> tuple[NDArray[Any], np.generic]:
    """Return activations and a threshold that a CPU compares as the numbers they stand for.

    Half floats are compared as integers, in whose order those above zero stand: numba has no half
    float on a CPU, and widening them first takes as long as the counting.
    """
    if activation.dtype != np.float16:
        return activation, np.float64(threshold)
    with np.errstate(over="ignore"):
        limit = np.float16(threshold)
    if float(limit) > threshold:  # the highest half float that is not above the threshold
        limit = np.nextafter(limit, np.float16(-np.inf))
    return activation.view(np.int16), limit.view(np.int16)


class CountAbove:
    """Tokens whose activation is above the threshold; see `TokenReducer`."""

    def __init__(self, d_sae: int) -> None:
        self._state = np.zeros(d_sae, np.uint32), *bitmaps(d_sae)

    def __call__(
        self,
        feature: NDArray[np.unsignedinteger],
        activation: NDArray[np.floating],
        begin: NDArray[np.int64],
        end: NDArray[np.int64],
        n_tokens: NDArray[np.int64],
        threshold: float,
        lengths: NDArray[np.int64],
        columns: NDArray[np.integer[Any]],
        values: NDArray[np.float32],
    ) -> int:
        """Count; see `TokenReducer`."""
        bits, limit = _comparable(activation, threshold)
        return int(_count(feature, bits, begin, end, limit, *self._state, lengths, columns, values))


class Variance:
    """Variance over a document's tokens, those without the feature counting as 0.

    The mean of the squared deviations from the mean (no degree of freedom is taken off), in float64.
    """

    def __init__(self, d_sae: int) -> None:
        self._state = np.zeros(d_sae), np.zeros(d_sae), np.zeros(d_sae, np.uint32), *bitmaps(d_sae)

    def __call__(
        self,
        feature: NDArray[np.unsignedinteger],
        activation: NDArray[np.floating],
        begin: NDArray[np.int64],
        end: NDArray[np.int64],
        n_tokens: NDArray[np.int64],
        threshold: float,
        lengths: NDArray[np.int64],
        columns: NDArray[np.integer[Any]],
        values: NDArray[np.float32],
    ) -> int:
        """Reduce; see `TokenReducer`."""
        single = activation.astype(np.float32, copy=False)
        return int(
            _variance(feature, single, begin, end, n_tokens, *self._state, lengths, columns, values)
        )
