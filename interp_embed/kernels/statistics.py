"""From documents to the corpus: what adds up per feature."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numba
import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = [
    "BINS",
    "add_values",
    "bin_edges",
    "count_above",
    "count_bins",
    "count_entries",
    "quantiles",
    "take_highest",
]

_MANTISSA_BITS = 3
_SHIFT = 23 - _MANTISSA_BITS
_LOWEST_EXPONENT, _HIGHEST_EXPONENT = -16, 16

FIRST_BIN = (127 + _LOWEST_EXPONENT) << _MANTISSA_BITS
BINS = (_HIGHEST_EXPONENT - _LOWEST_EXPONENT) << _MANTISSA_BITS
"""Bins of a histogram: eight of equal width for each power of two, from 2^-16 to 2^16.

The leading bits of a float32 are its bin, so that finding it takes a shift. The scheme is that of
HdrHistogram (G. Tene, hdrhistogram.org): a value is known to an eighth of its size at worst.
"""


def bin_edges() -> NDArray[np.float64]:
    """Return the edges of the bins, shape (BINS + 1,); the outer bins hold what is beyond, too."""
    bits = (FIRST_BIN + np.arange(BINS + 1, dtype=np.int64)) << _SHIFT
    return bits.astype(np.uint32).view(np.float32).astype(np.float64)


def quantiles(histogram: NDArray[np.int64], q: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return quantiles from histograms.

    Parameters
    ----------
    histogram
        Counts, shape (features, BINS).
    q
        Shape (quantiles,), each from 0 to 1.

    Returns
    -------
    ndarray of float64, shape (quantiles, features)
        The middle of the bin that holds the value of that rank: within 1/16 of it. NaN where nothing
        was counted.
    """
    edges = bin_edges()
    middle = (edges[1:] + edges[:-1]) / 2
    running = np.cumsum(histogram, axis=1)
    total = running[:, -1]
    out = np.full((len(q), len(histogram)), np.nan)
    for row, share in zip(out, q, strict=True):
        rank = np.maximum(1, np.ceil(share * total))  # the smallest value that many are not above
        found = (running < rank[:, None]).sum(axis=1)
        row[total > 0] = middle[found[total > 0]]
    return out


@numba.njit(cache=True, nogil=True)
def count_entries(feature, begin, end, out):  # type: ignore[no-untyped-def]
    """Count each feature's entries in ``begin[i]:end[i]`` for every i."""
    for d in range(len(begin)):
        for i in range(begin[d], end[d]):
            out[feature[i]] += 1


@numba.njit(cache=True, nogil=True)
def count_above(feature, values, begin, end, threshold, out):  # type: ignore[no-untyped-def]
    """Count each feature's values that are above a threshold."""
    for d in range(len(begin)):
        for i in range(begin[d], end[d]):
            out[feature[i]] += values[i] > threshold


@numba.njit(cache=True, nogil=True)
def add_values(feature, values, begin, end, out):  # type: ignore[no-untyped-def]
    """Add up each feature's values."""
    for d in range(len(begin)):
        for i in range(begin[d], end[d]):
            out[feature[i]] += values[i]


@numba.njit(cache=True, nogil=True)
def take_highest(feature, values, begin, end, out):  # type: ignore[no-untyped-def]
    """Find each feature's highest value."""
    for d in range(len(begin)):
        for i in range(begin[d], end[d]):
            f = feature[i]
            out[f] = max(out[f], values[i])


@numba.njit(cache=True, nogil=True)
def count_bins(feature, bits, begin, end, out):  # type: ignore[no-untyped-def]
    """Count each feature's values above zero by bin.

    ``bits`` are the integers that the values, float32, are made of; ``out`` is (d_sae, BINS).
    """
    last = out.shape[1] - 1
    for d in range(len(begin)):
        for i in range(begin[d], end[d]):
            if bits[i] > 0:
                where = (bits[i] >> _SHIFT) - FIRST_BIN
                out[feature[i], min(max(where, 0), last)] += 1
