"""Running a reduction over any documents: as a matrix, as an array, or block by block."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from interp_embed.aggregate.blocks import (
    Block,
    BlockRows,
    block_ahead,
    cut_documents,
    reduce_block,
)
from interp_embed.aggregate.scheduler import active_client, run_tasks
from interp_embed.core.chunk import DocumentStatus, gather_ranges, trusted_csr
from interp_embed.core.memory import require_memory
from interp_embed.store.store import MISSING

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray
    from scipy.sparse import csr_matrix

    from interp_embed.aggregate.reductions import Reduction
    from interp_embed.store.store import Store

__all__ = [
    "aggregate_blocks",
    "aggregate_dense",
    "aggregate_sparse",
    "entries",
    "feature_count",
    "unavailable",
]


def unavailable(store: Store, documents: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Return which documents have no activations: failed, or not encoded yet."""
    status = store.status(documents)
    return np.isin(status, (DocumentStatus.FAILED, MISSING))


def feature_count(store: Store) -> int:
    """Return the number of features; raise ValueError if it is unknown."""
    if store.d_sae is None:
        raise ValueError(
            f"nothing was encoded yet in {store.storage.url}, so the number of features is unknown. "
            + (
                "Compute the activations first: load_from_file(path, resume=True)"
                if store.n_documents
                else "It has no documents"
            )
        )
    return store.d_sae


def entries(store: Store, documents: NDArray[np.int64], *, pooled: bool) -> int:
    """Estimate the nonzeros of a selection, of its documents or its tokens, from the commits."""
    total = 0.0
    for chunk, positions, _ in store.parts(documents):
        size = chunk.commit.pooled_nnz if pooled else chunk.commit.nnz
        total += size * len(positions) / max(1, chunk.n_documents)
    return int(total)


@dataclass(frozen=True, slots=True, eq=False)
class _Order:
    """Documents in ascending order without repetition, and the way back."""

    ascending: NDArray[np.int64]
    back: NDArray[np.int64] | None
    """Row of each document in ``ascending``; None if both are the same."""


def _ordered(documents: NDArray[np.int64]) -> _Order:
    if len(documents) < 2 or (documents[1:] > documents[:-1]).all():
        return _Order(documents, None)
    return _Order(*np.unique(documents, return_inverse=True))


def aggregate_sparse(
    store: Store,
    documents: NDArray[np.int64],
    reduction: Reduction,
    threshold: float,
    features: NDArray[np.int64] | None = None,
    *,
    workers: int | None = None,
) -> csr_matrix:
    """Return the documents' features as CSR, float32, without explicit zeros.

    Parameters
    ----------
    store, documents
        The documents to aggregate, in any order; repetitions allowed.
    reduction, threshold
        How to aggregate them.
    features
        Columns of the result, in order; all by default.
    workers
        See `run_tasks`.

    Returns
    -------
    csr_matrix, shape (len(documents), len(features) or d_sae)
        Rows of NaN for documents without activations.

    Raises
    ------
    ResultTooLargeError
        If the result would not fit in memory.
    """
    width = feature_count(store) if features is None else len(features)
    order = _ordered(documents)
    absent = unavailable(store, order.ascending)
    upper = entries(store, documents, pooled=True) + int(absent.sum()) * width
    require_memory(
        # Pieces of a column and a value each, then the matrix; once more to put rows in order.
        upper * ((6 + 8) if order.back is None else (6 + 8 + 8)) + 24 * len(documents),
        f"{reduction.name} of {len(documents)} documents as a sparse matrix",
        "Pass lazy=True, iterate over blocks with iter_latents(), or select fewer documents",
    )
    parts = list(_run(store, order.ascending, reduction, threshold, features, workers))
    matrix = _assemble(parts, absent, width)
    if features is not None:  # columns stand in the order asked for
        matrix.has_sorted_indices = False
        matrix.sort_indices()
    return matrix if order.back is None else matrix[order.back]


def aggregate_dense(
    store: Store,
    documents: NDArray[np.int64],
    reduction: Reduction,
    threshold: float,
    features: NDArray[np.int64] | None = None,
    *,
    workers: int | None = None,
) -> NDArray[np.float32]:
    """Return the documents' features as a dense array; see `aggregate_sparse`.

    Returns
    -------
    ndarray of float32, shape (len(documents), len(features) or d_sae)
    """
    width = feature_count(store) if features is None else len(features)
    order = _ordered(documents)
    rows = len(documents) + (0 if order.back is None else len(order.ascending))
    require_memory(
        4 * width * rows,
        f"a dense array of {len(documents)} documents x {width} features",
        "Pass compress=True for a sparse matrix, lazy=True for a lazy one, or select fewer documents",
    )
    out = np.zeros((len(order.ascending), width), np.float32)
    at = 0
    for part in _run(store, order.ascending, reduction, threshold, features, workers):
        row = np.repeat(np.arange(at, at + len(part.lengths)), part.lengths)
        begin = 0
        for columns, values in zip(part.columns, part.values, strict=True):
            out[row[begin : begin + len(columns)], columns] = values
            begin += len(columns)
        at += len(part.lengths)
    out[unavailable(store, order.ascending)] = np.nan
    return out if order.back is None else out[order.back]


def aggregate_blocks(
    store: Store,
    documents: NDArray[np.int64],
    reduction: Reduction,
    threshold: float,
    *,
    workers: int | None = None,
) -> Iterator[tuple[NDArray[np.int64], csr_matrix]]:
    """Aggregate block by block, in the order of the store; few blocks are in memory at once.

    Returns
    -------
    iterator of (positions, matrix)
    positions : ndarray of int64
        Index in ``documents`` of each row.
    matrix : csr_matrix of float32, shape (len(positions), d_sae)
        Rows of NaN for documents without activations.
    """
    width = feature_count(store)
    order = _ordered(documents)
    absent = unavailable(store, order.ascending)
    where = None
    if order.back is not None:
        where = np.argsort(order.back, kind="stable")
        first = np.searchsorted(order.back[where], np.arange(len(order.ascending) + 1))
    parts = _run(store, order.ascending, reduction, threshold, None, workers, wide=width < 2**31)

    def blocks() -> Iterator[tuple[NDArray[np.int64], csr_matrix]]:
        at = 0
        for part in parts:
            end = at + len(part.lengths)
            matrix = _assemble([part], absent[at:end], width)
            if where is None or order.back is None:
                yield np.arange(at, end), matrix
            else:
                positions = where[first[at] : first[end]]
                yield positions, matrix[order.back[positions] - at]
            at = end

    return blocks()


def _run(
    store: Store,
    ascending: NDArray[np.int64],
    reduction: Reduction,
    threshold: float,
    features: NDArray[np.int64] | None,
    workers: int | None,
    *,
    wide: bool = False,
) -> Iterator[BlockRows]:
    tokens = reduction.needs_tokens(threshold)
    runs = cut_documents(store, ascending, tokens=tokens, workers=workers)
    travels = workers is None and active_client() is not None
    return run_tasks(
        reduce_block,
        (
            Block(
                store,
                run,
                reduction,
                threshold,
                features,
                wide=wide and not travels,
                travels=travels,
                alone=len(runs) == 1,
            )
            for run in runs
        ),
        workers=workers,
        description=reduction.name,
        total=len(ascending),
        size=len,
        ahead=block_ahead if store.storage.remote else None,
    )


def _assemble(parts: Sequence[BlockRows], absent: NDArray[np.bool_], width: int) -> csr_matrix:
    """Join blocks of rows; rows of ``absent`` documents are NaN."""
    lengths = np.concatenate([np.empty(0, np.int64), *(part.lengths for part in parts)])
    held = np.concatenate([[0], np.cumsum(lengths)])
    filled = np.where(absent, width, lengths)
    indptr = np.concatenate([[0], np.cumsum(filled)])
    total = int(indptr[-1])
    index_dtype: type[np.signedinteger[Any]] = np.int32 if max(total, width) < 2**31 else np.int64
    if len(parts) == 1 and len(parts[0].columns) == 1 and not absent.any():
        columns: Any = parts[0].columns[0]
        if columns.dtype == index_dtype:  # taken as they are
            shape = len(filled), width
            values = parts[0].values[0]
            if not values.flags.writeable:  # the store's cache has them
                values = values.copy()
            if not columns.flags.writeable:
                columns = columns.copy()
            return trusted_csr(values, columns, indptr.astype(index_dtype), shape)
    indices, data = np.empty(total, index_dtype), np.empty(total, np.float32)
    gaps = bool(absent.any())
    at = 0
    for part in parts:
        for columns, values in zip(part.columns, part.values, strict=True):
            target: slice | NDArray[np.int64] = slice(at, at + len(columns))
            if gaps:  # entries move up by the rows of NaN before them
                entry = np.arange(at, at + len(columns))
                row = np.searchsorted(held, entry, side="right") - 1
                target = entry + (indptr[row] - held[row])
            indices[target], data[target] = columns, values
            at += len(columns)
    if gaps:
        rows = gather_ranges(indptr[:-1][absent], indptr[1:][absent])
        indices[rows] = np.tile(np.arange(width, dtype=index_dtype), int(absent.sum()))
        data[rows] = np.nan
    return trusted_csr(data, indices, indptr.astype(index_dtype), (len(filled), width))
