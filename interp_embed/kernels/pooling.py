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

from interp_embed.chunk import feature_dtype, has_own_sum
from interp_embed.parallel import bounded_map

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from concurrent.futures import Executor

    from numpy.typing import DTypeLike, NDArray

__all__ = ["Pooled", "SparseRows", "count_above", "has_own_sum", "pool", "pool_blocks"]

_BLOCK_NNZ = 2**19  # nonzeros per call of a kernel: bounds its output buffers

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
def _drain(word, summary, out, n):  # type: ignore[no-untyped-def]
    """Append the set positions to ``out`` in ascending order, clear the bitmaps, return the end."""
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


@numba.njit(cache=True, nogil=True)
def _pool_block(  # type: ignore[no-untyped-def]
    feature, activation, bounds, n_tokens, signed, top, total, count, positive, word, summary,
    out_ptr, out_feature, out_max, out_count, out_positive, out_sum,
):  # fmt: skip
    n = 0
    m = 0
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
            out_count[j] = count[f]
            if count[f] > 1 or highest <= 0:
                out_sum[m] = total[f]
                m += 1
            top[f] = -np.inf
            total[f] = 0.0
            count[f] = 0
            if signed:
                out_positive[j] = positive[f]
                positive[f] = 0
        out_ptr[0, d + 1] = n
        out_ptr[1, d + 1] = m


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
        out_ptr[0, d + 1] = n


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
    max : ndarray of float32, shape (entries,)
        Highest activation over the document's tokens, those without the feature counting as 0.
    count : ndarray of uint32, shape (entries,)
        Number of tokens whose activation is not zero.
    positive : ndarray of uint32, shape (entries,)
        Number of tokens whose activation is above zero.
    sum_ptr : ndarray of int64, shape (documents + 1,)
        Document ``i`` has sums ``sum_ptr[i]:sum_ptr[i + 1]``.
    sum : ndarray of float32
        Sums over the document's tokens, added up in float64, of the entries that `has_own_sum`
        tells. The sum of the others is their max: the feature is positive on one token and absent
        from the rest.
    """

    doc_ptr: NDArray[np.int64]
    feature: NDArray[np.unsignedinteger]
    max: NDArray[np.float32]
    count: NDArray[np.uint32]
    positive: NDArray[np.uint32]
    sum_ptr: NDArray[np.int64]
    sum: NDArray[np.float32]

    @classmethod
    def empty(cls, d_sae: int) -> Pooled:
        """Return the document level of no documents."""
        zero, count = np.zeros(1, np.int64), np.empty(0, np.uint32)
        real = np.empty(0, np.float32)
        return cls(zero, np.empty(0, feature_dtype(d_sae)), real, count, count, zero, real)

    @classmethod
    def concatenate(cls, levels: Sequence[Pooled]) -> Pooled:
        """Join the document levels of chunks end to end."""

        def pointer(name: str) -> NDArray[np.int64]:
            lengths = np.concatenate([np.diff(getattr(level, name)) for level in levels])
            return np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])

        def column(name: str) -> NDArray[Any]:
            return np.concatenate([getattr(level, name) for level in levels])

        return cls(
            pointer("doc_ptr"),
            column("feature"),
            column("max"),
            column("count"),
            column("positive"),
            pointer("sum_ptr"),
            column("sum"),
        )


def _bitmaps(d_sae: int) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
    """Return the bitmap of a narrow SAE alone: looking at all its words is cheaper than a second."""
    words = max(1, -(-d_sae // 64))
    return np.zeros(words, np.uint64), np.zeros(-(-words // 64) if words > 256 else 0, np.uint64)


def _blocks(bounds: NDArray[np.int64]) -> Iterator[slice]:
    """Cut documents into runs of about `_BLOCK_NNZ` nonzeros; at least one document each."""
    start, n = 0, len(bounds) - 1
    while start < n:
        stop = int(np.searchsorted(bounds, bounds[start] + _BLOCK_NNZ, side="right")) - 1
        stop = min(max(stop, start + 1), n)
        yield slice(start, stop)
        start = stop


def _fill_block(
    bounds: NDArray[np.int64],
    columns: Sequence[tuple[DTypeLike, int]],
    kernel: Callable[..., None],
) -> tuple[NDArray[np.int64], list[NDArray[Any]]]:
    """Run a kernel over a block of documents.

    Parameters
    ----------
    bounds
        Nonzeros of each document of the block.
    columns
        Dtype of each column that is filled, and which of the pointers says how far.
    kernel
        Called with the bounds, the pointers, shape (pointers, documents + 1), and the columns.
    """
    levels = [level for _, level in columns]
    pointers = np.zeros((max(levels) + 1, len(bounds)), np.int64)
    filled = [np.empty(int(bounds[-1] - bounds[0]), dtype) for dtype, _ in columns]
    kernel(bounds, pointers, *filled)
    return pointers, [c[: pointers[i, -1]] for c, i in zip(filled, levels, strict=True)]


def pool_blocks(
    feature: NDArray[np.unsignedinteger],
    activation: NDArray[np.floating],
    token_ptr: NDArray[np.integer],
    doc_ptr: NDArray[np.integer],
    d_sae: int,
    *,
    signed: bool | None = None,
    executor: Executor | None = None,
) -> Iterator[Pooled]:
    """Pool a chunk's tokens into its documents, some documents at a time.

    Parameters
    ----------
    feature, activation
        Nonzeros, shape (nnz,).
    token_ptr, doc_ptr
        The two CSR levels, as in `interp_embed.chunk.Chunk`.
    d_sae
        Number of features.
    signed
        Whether an activation is below zero; looked for where it is not given.
    executor
        Threads to share the work.

    Yields
    ------
    Pooled
        The document level of the next documents; few are held at once.
    """
    bounds = np.asarray(token_ptr, np.int64)[np.asarray(doc_ptr, np.int64)]
    n_tokens = np.diff(np.asarray(doc_ptr, np.int64))
    if signed is None:
        signed = bool(len(activation) and activation.min() < 0)
    columns: list[tuple[DTypeLike, int]] = [
        (feature_dtype(d_sae), 0),
        (np.float32, 0),
        (np.uint32, 0),
        (np.uint32, 0),
        (np.float32, 1),
    ]
    own = threading.local()

    def run(block: slice) -> Pooled:
        if not hasattr(own, "arrays"):
            own.arrays = (
                np.full(d_sae, -np.inf, np.float32),
                np.zeros(d_sae, np.float64),
                np.zeros(d_sae, np.uint32),
                np.zeros(d_sae if signed else 0, np.uint32),
                *_bitmaps(d_sae),
            )
        arrays = own.arrays
        local = bounds[block.start : block.stop + 1]
        entries = slice(int(local[0]), int(local[-1]))
        # numba has no float16 on a CPU; a block at a time, the copy is small.
        values = np.ascontiguousarray(activation[entries], np.float32)
        pointers, (features, top, count, positive, total) = _fill_block(
            local - local[0],
            columns,
            lambda b, pointer, *out: _pool_block(
                feature[entries], values, b, n_tokens[block], signed, *arrays, pointer, *out
            ),
        )
        if not signed:
            positive = count
        return Pooled(pointers[0], features, top, count, positive, pointers[1], total)

    return bounded_map(executor, run, _blocks(bounds), ahead=3)


def pool(
    feature: NDArray[np.unsignedinteger],
    activation: NDArray[np.floating],
    token_ptr: NDArray[np.integer],
    doc_ptr: NDArray[np.integer],
    d_sae: int,
    *,
    executor: Executor | None = None,
) -> Pooled:
    """Pool a chunk's tokens into its documents; see `pool_blocks`."""
    blocks = pool_blocks(feature, activation, token_ptr, doc_ptr, d_sae, executor=executor)
    return Pooled.concatenate([Pooled.empty(d_sae), *blocks])


def count_above(
    feature: NDArray[np.unsignedinteger],
    activation: NDArray[np.floating],
    token_ptr: NDArray[np.integer],
    doc_ptr: NDArray[np.integer],
    d_sae: int,
    threshold: float,
) -> SparseRows:
    """Count, per document and feature, the tokens whose activation is above ``threshold`` >= 0."""
    bounds = np.asarray(token_ptr, np.int64)[np.asarray(doc_ptr, np.int64)]
    arrays = (np.zeros(d_sae, np.uint32), *_bitmaps(d_sae))
    lengths = [np.zeros(1, np.int64)]
    indices = [np.empty(0, feature_dtype(d_sae))]
    data = [np.empty(0, np.float32)]
    for block in _blocks(bounds):
        local = bounds[block.start : block.stop + 1]
        entries = slice(int(local[0]), int(local[-1]))
        values = np.ascontiguousarray(activation[entries], np.float32)
        pointers, columns = _fill_block(
            local - local[0],
            [(feature_dtype(d_sae), 0), (np.float32, 0)],
            lambda b, pointer, *out, f=feature[entries], v=values: _count_block(
                f, v, b, np.float64(threshold), *arrays, pointer, *out
            ),
        )
        lengths.append(np.diff(pointers[0]))
        indices.append(columns[0])
        data.append(columns[1])
    return SparseRows(
        np.cumsum(np.concatenate(lengths)), np.concatenate(indices), np.concatenate(data)
    )
