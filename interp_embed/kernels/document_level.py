"""The document level of a chunk: one pass over its nonzeros, without sorting."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numba
import numpy as np

from interp_embed.core.chunk import feature_dtype, has_own_sum
from interp_embed.core.threads import bounded_map
from interp_embed.kernels.bitmap import bitmaps, drain, touch

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from concurrent.futures import Executor

    from numpy.typing import NDArray

__all__ = ["Pooled", "fill_sums", "has_own_sum", "pool", "pool_blocks"]

_BLOCK_NNZ = 2**19  # nonzeros per call of a kernel: bounds its output buffers


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
            touch(word, summary, f)
            if signed:
                positive[f] += v > 0
        begin = n
        n = drain(word, summary, out_feature, n)
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


def _blocks(bounds: NDArray[np.int64]) -> Iterator[slice]:
    """Cut documents into runs of about `_BLOCK_NNZ` nonzeros; at least one document each."""
    start, n = 0, len(bounds) - 1
    while start < n:
        stop = int(np.searchsorted(bounds, bounds[start] + _BLOCK_NNZ, side="right")) - 1
        stop = min(max(stop, start + 1), n)
        yield slice(start, stop)
        start = stop


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
        The two CSR levels, as in `interp_embed.core.chunk.Chunk`.
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
    dtypes = (feature_dtype(d_sae), np.float32, np.uint32, np.uint32, np.float32)
    own = threading.local()

    def run(block: slice) -> Pooled:
        if not hasattr(own, "arrays"):
            own.arrays = (
                np.full(d_sae, -np.inf, np.float32),
                np.zeros(d_sae, np.float64),
                np.zeros(d_sae, np.uint32),
                np.zeros(d_sae if signed else 0, np.uint32),
                *bitmaps(d_sae),
            )
        arrays = own.arrays
        local = bounds[block.start : block.stop + 1]
        entries = slice(int(local[0]), int(local[-1]))
        # numba has no float16 on a CPU; a block at a time, the copy is small.
        values = np.ascontiguousarray(activation[entries], np.float32)
        pointers = np.zeros((2, len(local)), np.int64)
        features, top, count, positive, total = (np.empty(len(values), d) for d in dtypes)
        _pool_block(
            feature[entries], values, local - local[0], n_tokens[block], signed, *arrays,
            pointers, features, top, count, positive, total,
        )  # fmt: skip
        n, m = pointers[:, -1]
        if not signed:
            positive = count
        return Pooled(
            pointers[0], features[:n], top[:n], count[:n], positive[:n], pointers[1], total[:m]
        )

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


@numba.njit(cache=True, nogil=True)
def fill_sums(count, highest, own, out):  # type: ignore[no-untyped-def]
    """Fill ``out`` with the sum of each entry: its own where one is stored, else its max.

    Which entries have one is said by `has_own_sum`. ``own`` has one element more than there are
    stored: it is looked at without a branch, which would be mispredicted. Return how many are
    needed, which may be others in a damaged store.
    """
    taken = np.int64(0)
    last = np.int64(len(own) - 1)
    for i in range(len(highest)):
        has_own = np.int64(count[i] > 1) | np.int64(highest[i] <= 0)
        summed, single = own[min(taken, last)], highest[i]
        out[i] = summed if has_own else single
        taken += has_own
    return taken
