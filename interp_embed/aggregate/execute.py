"""Running a reduction over the chunks that hold some documents, a few chunks at a time."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from interp_embed.aggregate.memory import require_memory
from interp_embed.chunk import DocumentStatus, gather_ranges, trusted_csr
from interp_embed.parallel import bounded_map
from interp_embed.store.reader import MISSING

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray
    from scipy.sparse import csr_matrix

    from interp_embed.aggregate.reductions import Reduction
    from interp_embed.store.chunks import StoredChunk
    from interp_embed.store.reader import Store

__all__ = ["aggregate_dense", "aggregate_sparse", "entries", "feature_count", "unavailable"]

_GAP = 2**16
"""Entries that are read over rather than skipped, as they share an inner chunk anyway."""


@dataclass(frozen=True, slots=True, eq=False)
class _Rows:
    """Some documents' entries: lengths of the rows, then columns and values row by row."""

    where: NDArray[np.int64]
    lengths: NDArray[np.int64]
    columns: NDArray[np.integer[Any]]
    values: NDArray[np.float32]


def unavailable(store: Store, documents: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Return which documents have no activations: failed, or not encoded yet."""
    status = store.status(documents)
    return np.isin(status, (DocumentStatus.FAILED, MISSING))


def aggregate_sparse(
    store: Store,
    documents: NDArray[np.int64],
    reduction: Reduction,
    threshold: float,
    features: NDArray[np.int64] | None = None,
) -> csr_matrix:
    """Return the documents' features as CSR, float32, without explicit zeros.

    Parameters
    ----------
    store, documents
        What to aggregate; documents in any order, repetitions allowed.
    reduction, threshold
        How.
    features
        Columns of the result, in order; all by default.

    Returns
    -------
    csr_matrix, shape (len(documents), len(features) or d_sae)
        Rows of NaN for documents without activations.

    Raises
    ------
    ResultTooLargeError
        If it would not fit in memory.
    """
    width = feature_count(store) if features is None else len(features)

    def compute() -> csr_matrix:
        absent = unavailable(store, documents)
        n_absent = int(absent.sum())
        upper = entries(store, documents, pooled=True) + n_absent * width
        require_memory(
            upper * 3 * 8,  # a column and a value each, with the copy that puts rows in order
            f"{reduction.name} of {len(documents)} documents as a sparse matrix",
            "Select fewer documents, for instance dataset[:10_000], or a few features",
        )
        parts = list(_parts(store, documents, reduction, threshold, features))
        lengths = np.zeros(len(documents), np.int64)
        for part in parts:
            lengths[part.where] = part.lengths
        lengths[absent] = width
        indptr = np.concatenate([[0], np.cumsum(lengths)])
        index_dtype: type[np.signedinteger[Any]] = (
            np.int32 if max(int(indptr[-1]), width) < 2**31 else np.int64
        )
        indices = np.empty(int(indptr[-1]), index_dtype)
        data = np.empty(int(indptr[-1]), np.float32)
        while parts:
            part = parts.pop()
            # Not up to the next row: one without activations has room for NaN and no entries here.
            target = gather_ranges(indptr[part.where], indptr[part.where] + part.lengths)
            indices[target], data[target] = part.columns, part.values
        if n_absent:
            target = gather_ranges(indptr[:-1][absent], indptr[1:][absent])
            indices[target] = np.tile(np.arange(width, dtype=index_dtype), n_absent)
            data[target] = np.nan
        matrix = trusted_csr(data, indices, indptr.astype(index_dtype), (len(documents), width))
        if features is not None:  # columns stand in the order asked for
            matrix.has_sorted_indices = False
            matrix.sort_indices()
        return matrix

    return store.consistently(compute)


def aggregate_dense(
    store: Store,
    documents: NDArray[np.int64],
    reduction: Reduction,
    threshold: float,
    features: NDArray[np.int64] | None = None,
) -> NDArray[np.float32]:
    """Return the documents' features as a dense array; see `aggregate_sparse`.

    Returns
    -------
    ndarray of float32, shape (len(documents), len(features) or d_sae)
    """
    width = feature_count(store) if features is None else len(features)
    require_memory(
        4 * width * len(documents),
        f"a dense array of {len(documents)} documents x {width} features",
        "Pass compress=True for a sparse matrix, or select fewer documents",
    )

    def compute() -> NDArray[np.float32]:
        out = np.zeros((len(documents), width), np.float32)
        for part in _parts(store, documents, reduction, threshold, features):
            out[np.repeat(part.where, part.lengths), part.columns] = part.values
        out[unavailable(store, documents)] = np.nan
        return out

    return store.consistently(compute)


def feature_count(store: Store) -> int:
    """Return the number of features; raise ValueError where nothing says it."""
    if store.d_sae is None:
        raise ValueError(
            f"nothing was encoded yet in {store.storage.url}, so the number of features is unknown. "
            "Compute the activations first: load_from_file(path, resume=True)"
        )
    return store.d_sae


def entries(store: Store, documents: NDArray[np.int64], *, pooled: bool) -> int:
    """Estimate the nonzeros of a selection, of its documents or its tokens, from the commits."""
    total = 0.0
    for chunk, positions, _ in store.parts(documents):
        size = chunk.commit.pooled_nnz if pooled else chunk.commit.nnz
        total += size * len(positions) / max(1, chunk.n_documents)
    return int(total)


def _parts(
    store: Store,
    documents: NDArray[np.int64],
    reduction: Reduction,
    threshold: float,
    features: NDArray[np.int64] | None,
) -> Iterator[_Rows]:
    column_of = None
    if features is not None:
        column_of = np.full(feature_count(store), -1, np.int64)
        column_of[features] = np.arange(len(features))
    tasks = (
        (chunk, low, high, positions[span], where[span])
        for chunk, positions, where in store.parts(documents)
        for low, high, span in _clusters(chunk, positions, reduction.needs_tokens(threshold))
    )

    def run(task: tuple[StoredChunk, int, int, NDArray[np.int64], NDArray[np.int64]]) -> _Rows:
        return _aggregate_rows(*task, reduction, threshold, column_of)

    workers = os.cpu_count() or 1
    with ThreadPoolExecutor(workers, "interp-embed-aggregate") as executor:
        yield from bounded_map(executor, run, tasks, ahead=workers)


def _clusters(
    chunk: StoredChunk, positions: NDArray[np.int64], tokens: bool
) -> Iterator[tuple[int, int, NDArray[np.int64]]]:
    """Group positions that are worth reading together.

    Yields
    ------
    low, high : int
        The positions to read.
    which : ndarray of int64
        Index of the members in ``positions``.
    """
    n = chunk.n_documents
    size = chunk.commit.nnz if tokens else chunk.commit.pooled_nnz
    order = np.argsort(positions, kind="stable")
    ascending = positions[order]
    # About how many documents stand in `_GAP` entries.
    gap = max(1, int(_GAP * n / max(1, size)))
    cuts = np.flatnonzero(np.diff(ascending, prepend=ascending[0] - gap - 1) > gap)
    for begin, end in zip(cuts, [*cuts[1:], len(ascending)], strict=True):
        yield int(ascending[begin]), int(ascending[end - 1]) + 1, order[begin:end]


def _aggregate_rows(
    chunk: StoredChunk,
    low: int,
    high: int,
    positions: NDArray[np.int64],
    where: NDArray[np.int64],
    reduction: Reduction,
    threshold: float,
    column_of: NDArray[np.int64] | None,
) -> _Rows:
    """Aggregate documents ``low:high`` of a chunk, and take those at ``positions``."""
    if reduction.needs_tokens(threshold):
        pointer, columns, values = _count(chunk, low, high, threshold)
    else:
        level = chunk.pooled(reduction.arrays, low, high)
        pointer, columns = level["doc_ptr"], level["feature"]
        doc_ptr = chunk.array("doc_ptr").read(low, high + 1).astype(np.int64)
        n_tokens = np.repeat(np.diff(doc_ptr), np.diff(pointer))
        values = reduction.finalize(level, n_tokens, threshold).astype(np.float32)
    rows = positions - low
    if len(rows) != high - low or not np.array_equal(rows, np.arange(high - low)):
        entries = gather_ranges(pointer[rows], pointer[rows + 1])
        columns, values = columns[entries], values[entries]
        pointer = np.concatenate([[0], np.cumsum(np.diff(pointer)[rows])])
    keep = values != 0
    if column_of is not None:
        mapped = column_of[columns]
        keep &= mapped >= 0
        columns = mapped
    if not keep.all():
        kept = np.concatenate([[0], np.cumsum(keep)])
        pointer, columns, values = kept[pointer], columns[keep], values[keep]
    return _Rows(where, np.diff(pointer), columns, values)


def _count(
    chunk: StoredChunk, low: int, high: int, threshold: float
) -> tuple[NDArray[np.int64], NDArray[Any], NDArray[np.float32]]:
    from interp_embed.kernels.pooling import count_above

    doc_ptr = chunk.array("doc_ptr").read(low, high + 1).astype(np.int64)
    token_ptr = chunk.array("token_ptr").read(int(doc_ptr[0]), int(doc_ptr[-1]) + 1)
    begin, end = int(token_ptr[0]), int(token_ptr[-1])
    rows = count_above(
        chunk.array("feature").read(begin, end),
        chunk.array("activation").read(begin, end),
        token_ptr.astype(np.int64) - begin,
        doc_ptr - doc_ptr[0],
        chunk.d_sae,
        threshold,
    )
    return rows.indptr, rows.indices, rows.data
