"""From tokens to documents: one pass over a chunk's nonzeros, without sorting.

A document's features are collected in dense accumulators of ``d_sae`` entries that are reused from
document to document. A bitmap remembers which entries were touched, and a second bitmap which words
of the first, so that emitting the features in ascending order and clearing the accumulators cost
what the document touched and not ``d_sae``. The loops hold no lock, so chunks pool in parallel.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numba
import numpy as np

from interp_embed.chunk import feature_dtype

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from concurrent.futures import Executor

    from numpy.typing import DTypeLike, NDArray

__all__ = ["Pooled", "SparseRows", "count_above", "pool"]

_BLOCK_NNZ = 2**20  # nonzeros per call of a kernel: bounds its output buffers

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


@numba.njit(cache=True, nogil=True, inline="always")
def _touch(word, summary, f):  # type: ignore[no-untyped-def]
    w = np.uint64(f) >> _SIX
    word[w] |= _ONE << (np.uint64(f) & _LOW)
    summary[w >> _SIX] |= _ONE << (w & _LOW)


@numba.njit(cache=True, nogil=True, inline="always")
def _lowest_bit(bits):  # type: ignore[no-untyped-def]
    lowest = bits & (~bits + _ONE)
    return np.uint64(_BIT_POSITION[(lowest * _DE_BRUIJN) >> _SHIFT])


@numba.njit(cache=True, nogil=True)
def _drain(word, summary, out, n):  # type: ignore[no-untyped-def]
    """Append the set positions to ``out`` in ascending order, clear the bitmaps, return the end."""
    for s in range(len(summary)):
        while summary[s]:
            w = (np.uint64(s) << _SIX) | _lowest_bit(summary[s])
            summary[s] &= summary[s] - _ONE
            bits = word[w]
            word[w] = np.uint64(0)
            while bits:
                out[n] = (w << _SIX) | _lowest_bit(bits)
                bits &= bits - _ONE
                n += 1
    return n


@numba.njit(cache=True, nogil=True)
def _pool_block(  # type: ignore[no-untyped-def]
    feature, activation, bounds, n_tokens, signed, top, total, count, positive, word, summary,
    out_ptr, out_feature, out_max, out_sum, out_count, out_positive,
):  # fmt: skip
    n = 0
    for d in range(len(bounds) - 1):
        for i in range(bounds[d], bounds[d + 1]):
            f = feature[i]
            v = activation[i]
            top[f] = max(top[f], v)
            total[f] += v
            count[f] += 1
            _touch(word, summary, f)
            if signed:
                positive[f] += v > 0
        begin = n
        n = _drain(word, summary, out_feature, n)
        for j in range(begin, n):
            f = out_feature[j]
            highest = top[f]
            if count[f] < n_tokens[d] and highest < 0:
                highest = np.float32(0)  # a token without the feature counts as 0
            out_max[j] = highest
            out_sum[j] = total[f]
            out_count[j] = count[f]
            top[f] = -np.inf
            total[f] = 0.0
            count[f] = 0
            if signed:
                out_positive[j] = positive[f]
                positive[f] = 0
        out_ptr[d + 1] = n
    return n


@numba.njit(cache=True, nogil=True)
def _count_block(  # type: ignore[no-untyped-def]
    feature, activation, bounds, threshold, count, word, summary, out_ptr, out_feature, out_count
):
    n = 0
    for d in range(len(bounds) - 1):
        for i in range(bounds[d], bounds[d + 1]):
            if activation[i] > threshold:
                f = feature[i]
                count[f] += 1
                _touch(word, summary, f)
        begin = n
        n = _drain(word, summary, out_feature, n)
        for j in range(begin, n):
            out_count[j] = count[out_feature[j]]
            count[out_feature[j]] = 0
        out_ptr[d + 1] = n
    return n


@dataclass(frozen=True, slots=True, eq=False)
class SparseRows:
    """Rows of a sparse matrix: CSR arrays with ascending columns."""

    indptr: NDArray[np.int64]
    indices: NDArray[np.unsignedinteger]
    data: NDArray[np.float32]


@dataclass(frozen=True, slots=True, eq=False)
class Pooled:
    """The document level of a chunk: per document, every feature with a nonzero at some token.

    Attributes
    ----------
    doc_ptr : ndarray of int64, shape (documents + 1,)
        Document ``i`` has entries ``doc_ptr[i]:doc_ptr[i + 1]``.
    feature : ndarray of uint16 or uint32, shape (entries,)
        Ascending within a document.
    max : ndarray of float32
        Highest activation over the document's tokens, those without the feature counting as 0.
    sum : ndarray of float32
        Sum of the activations over the document's tokens, added up in float64.
    count : ndarray of uint32
        Number of tokens whose activation is not zero.
    positive : ndarray of uint32
        Number of tokens whose activation is above zero.
    """

    doc_ptr: NDArray[np.int64]
    feature: NDArray[np.unsignedinteger]
    max: NDArray[np.float32]
    sum: NDArray[np.float32]
    count: NDArray[np.uint32]
    positive: NDArray[np.uint32]


def _bitmaps(d_sae: int) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
    words = max(1, -(-d_sae // 64))
    return np.zeros(words, np.uint64), np.zeros(-(-words // 64), np.uint64)


def _blocks(bounds: NDArray[np.int64]) -> Iterator[slice]:
    """Cut documents into runs of about `_BLOCK_NNZ` nonzeros; at least one document each."""
    start, n = 0, len(bounds) - 1
    while start < n:
        stop = int(np.searchsorted(bounds, bounds[start] + _BLOCK_NNZ, side="right")) - 1
        stop = min(max(stop, start + 1), n)
        yield slice(start, stop)
        start = stop


def _by_block(
    bounds: NDArray[np.int64],
    dtypes: Sequence[DTypeLike],
    kernel: Callable[[slice], Callable[..., int]],
    executor: Executor | None,
) -> tuple[NDArray[np.int64], list[NDArray[Any]]]:
    """Run a kernel over the blocks and join what it fills.

    Parameters
    ----------
    bounds
        Nonzeros of each document.
    dtypes
        Of the columns that are filled.
    kernel
        ``kernel(block)`` returns a function of the block's bounds, of a pointer and of the columns
        to fill, which returns how many entries it filled.
    executor
        Threads for the blocks.
    """

    def run(block: slice) -> tuple[NDArray[np.int64], list[NDArray[Any]]]:
        local = bounds[block.start : block.stop + 1]
        pointer = np.zeros(len(local), np.int64)
        columns = [np.empty(int(local[-1] - local[0]), t) for t in dtypes]
        used = kernel(block)(local, pointer, *columns)
        return pointer[1:], [column[:used] for column in columns]

    n_documents = len(bounds) - 1
    pointers = np.zeros(n_documents + 1, np.int64)
    # As long as could be: pages that are not written to take no memory.
    joined = [np.empty(int(bounds[-1] - bounds[0]), t) for t in dtypes]
    documents = filled = 0
    blocks = _blocks(bounds)
    for pointer, columns in map(run, blocks) if executor is None else executor.map(run, blocks):
        pointers[documents + 1 : documents + 1 + len(pointer)] = pointer + filled
        documents += len(pointer)
        for target, column in zip(joined, columns, strict=True):
            target[filled : filled + len(column)] = column
        filled += len(columns[0])
    return pointers, [column[:filled] for column in joined]


def pool(
    feature: NDArray[np.unsignedinteger],
    activation: NDArray[np.floating],
    token_ptr: NDArray[np.integer],
    doc_ptr: NDArray[np.integer],
    d_sae: int,
    *,
    executor: Executor | None = None,
) -> Pooled:
    """Pool a chunk's tokens into its documents.

    Parameters
    ----------
    feature, activation
        Nonzeros, shape (nnz,).
    token_ptr, doc_ptr
        The two CSR levels, as in `interp_embed.chunk.Chunk`.
    d_sae
        Number of features.
    executor
        Threads to share the work.
    """
    values = np.ascontiguousarray(activation, np.float32)  # numba has no float16 on a CPU
    bounds = np.asarray(token_ptr, np.int64)[np.asarray(doc_ptr, np.int64)]
    n_tokens = np.diff(np.asarray(doc_ptr, np.int64))
    signed = bool(len(values) and values.min() < 0)
    own = threading.local()

    def kernel(block: slice) -> Callable[..., int]:
        if not hasattr(own, "arrays"):
            own.arrays = (
                np.full(d_sae, -np.inf, np.float32),
                np.zeros(d_sae, np.float64),
                np.zeros(d_sae, np.uint32),
                np.zeros(d_sae if signed else 0, np.uint32),
                *_bitmaps(d_sae),
            )
        arrays = own.arrays
        return lambda local, pointer, *out: _pool_block(
            feature, values, local, n_tokens[block], signed, *arrays, pointer, *out
        )

    dtypes = (feature_dtype(d_sae), np.float32, np.float32, np.uint32, np.uint32)
    pointer, columns = _by_block(bounds, dtypes, kernel, executor)
    if not signed:
        columns[-1] = columns[-2]
    return Pooled(pointer, *columns)


def count_above(
    feature: NDArray[np.unsignedinteger],
    activation: NDArray[np.floating],
    token_ptr: NDArray[np.integer],
    doc_ptr: NDArray[np.integer],
    d_sae: int,
    threshold: float,
) -> SparseRows:
    """Count, per document and feature, the tokens whose activation is above ``threshold`` >= 0."""
    values = np.ascontiguousarray(activation, np.float32)
    bounds = np.asarray(token_ptr, np.int64)[np.asarray(doc_ptr, np.int64)]
    arrays = (np.zeros(d_sae, np.uint32), *_bitmaps(d_sae))

    def kernel(_: slice) -> Callable[..., int]:
        return lambda local, pointer, *out: _count_block(
            feature, values, local, np.float64(threshold), *arrays, pointer, *out
        )

    pointer, columns = _by_block(bounds, (feature_dtype(d_sae), np.float32), kernel, None)
    return SparseRows(pointer, *columns)
