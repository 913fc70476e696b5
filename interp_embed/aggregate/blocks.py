"""Cutting a selection into blocks of documents, and reducing one block, which is one task."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from interp_embed.aggregate.scheduler import worker_count
from interp_embed.aggregate.stream import stream_tokens
from interp_embed.core.allocation import roomy_array
from interp_embed.core.chunk import feature_dtype, gather_ranges
from interp_embed.core.memory import available_memory

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from numpy.typing import NDArray

    from interp_embed.aggregate.reductions import Reduction
    from interp_embed.store.arrays.readahead import ReadAhead, Wanted
    from interp_embed.store.chunks import StoredChunk
    from interp_embed.store.store import Store

__all__ = ["Block", "BlockRows", "block_ahead", "clusters", "cut_documents", "reduce_block"]

_GAP = 2**16
"""Gaps of at most this many entries are read, not skipped: they share an inner chunk anyway."""
_MOST, _LEAST = 2**22, 2**16
"""Entries of a block of tokens. Of the document level, of which every entry may stay in the result, at
most half as many: what a few threads hold of them adds up, and larger ones are hardly faster."""
_CUT_AT_ONCE = 2**16
_BYTES_AN_ENTRY = 32
"""Bytes per entry while a block is reduced: read, decoded, widened, and the result."""


@dataclass(frozen=True, slots=True, eq=False)
class Block:
    """Documents that are reduced together: everything that a task needs to know.

    Attributes
    ----------
    store : Store
        Sent to another process as a reference.
    documents : range or ndarray of int64
        Ascending and unique.
    reduction, threshold
        How to reduce them.
    features : ndarray of int64, optional
        Columns of the result, in order; all by default.
    wide : bool
        Return columns as int32, as in scipy, rather than in the smaller stored type.
    travels : bool
        The result goes to another process, so fewer bytes are worth some work: counts are returned
        as the smallest integers that hold them.
    alone : bool
        This is the only block. The data that it reads may be needed again soon and is cached.
    """

    store: Store
    documents: range | NDArray[np.int64]
    reduction: Reduction
    threshold: float
    features: NDArray[np.int64] | None = None
    wide: bool = False
    travels: bool = False
    alone: bool = False

    def __len__(self) -> int:
        return len(self.documents)


@dataclass(frozen=True, slots=True, eq=False)
class BlockRows:
    """The rows of a block: the number of entries per row, and columns and values in pieces."""

    lengths: NDArray[np.int64]
    columns: list[NDArray[np.integer[Any]]]
    values: list[NDArray[Any]]


def cut_documents(
    store: Store, documents: NDArray[np.int64], *, tokens: bool, workers: int | None = None
) -> list[range | NDArray[np.int64]]:
    """Cut documents into runs that are read together and fit in memory with their neighbours.

    Parameters
    ----------
    store
        The store.
    documents
        Ascending and unique.
    tokens
        Whether to read the tokens instead of the document level.
    workers
        Number of runs that are held at once.
    """
    if len(documents) == 0:
        return []
    share = available_memory() // (_BYTES_AN_ENTRY * 3 * worker_count(workers))
    # Far away, the fewer requests the better.
    most = _MOST if tokens or store.storage.remote else _MOST // 2
    limit = min(max(share, _LEAST), most)
    cuts = _cuts(store, documents, limit, tokens)
    runs: list[range | NDArray[np.int64]] = []
    for begin, end in zip(cuts, [*cuts[1:], len(documents)], strict=True):
        run = documents[begin:end]
        first, last = int(run[0]), int(run[-1])
        runs.append(range(first, last + 1) if last - first + 1 == len(run) else run.copy())
    return runs


def _cuts(
    store: Store, documents: NDArray[np.int64], limit: int, tokens: bool
) -> NDArray[np.int64]:
    """Return where runs of about ``limit`` entries begin; needs little memory for any corpus."""
    intervals = store.ledger.intervals
    rates = np.array([0.0, *(_entries_a_document(i.commit, tokens) for i in intervals)])
    found: list[NDArray[np.int64]] = []
    last, spent, number = int(documents[0]) - 1, 0.0, -1.0
    for begin in range(0, len(documents), _CUT_AT_ONCE):
        some = documents[begin : begin + _CUT_AT_ONCE]
        rate = rates[store.ledger.locate(some) + 1]
        # What lies between two documents is read over, up to a gap that is worth skipping.
        cost = np.minimum(np.diff(some, prepend=last) * rate, rate + _GAP)
        cost = spent + np.cumsum(cost)
        numbers = cost // limit
        found.append(begin + np.flatnonzero(np.diff(numbers, prepend=number)))
        last, spent, number = int(some[-1]), float(cost[-1]), float(numbers[-1])
    return np.concatenate(found)


def _entries_a_document(commit: Any, tokens: bool) -> float:
    return float((commit.nnz if tokens else commit.pooled_nnz) / max(1, commit.stop - commit.start))


def block_ahead(block: Block) -> ReadAhead:
    """Read ahead the data for `reduce_block`; the caller closes the result."""
    reduction = block.reduction
    tokens = reduction.needs_tokens(block.threshold)

    def plans() -> Iterator[Iterator[Iterable[Wanted]]]:
        for chunk, positions, _ in block.store.parts(np.asarray(block.documents, np.int64)):
            for which in clusters(chunk, positions, tokens=tokens):
                low, high = int(positions[which.start]), int(positions[which.stop - 1]) + 1
                if tokens:
                    yield chunk.steps_of_nonzeros(low, high, entries=True)
                else:
                    yield chunk.steps_of_pooled(
                        reduction.arrays, low, high, n_tokens=reduction.uses_n_tokens
                    )

    return block.store.ahead(plans())


def reduce_block(block: Block) -> BlockRows:
    """Reduce a block's documents in this thread; documents without activations have no entries."""
    return block.store.consistently(lambda: _reduce(block))


def _reduce(block: Block) -> BlockRows:
    store, reduction = block.store, block.reduction
    documents = np.asarray(block.documents, np.int64)
    tokens = reduction.needs_tokens(block.threshold)
    column_of = None
    if block.features is not None and store.d_sae is not None:
        column_of = np.full(store.d_sae, -1, np.int64)
        column_of[block.features] = np.arange(len(block.features))
    rows = BlockRows(np.zeros(len(documents), np.int64), [], [])
    reduce = _from_tokens if tokens else _from_pooled
    for chunk, positions, where in store.parts(documents):
        for which in clusters(chunk, positions, tokens=tokens):
            found = reduce(chunk, positions[which], block)
            lengths, columns, values = _select(*found, column_of)
            at = int(where[which.start])
            rows.lengths[at : at + len(lengths)] = lengths
            rows.columns.append(columns)
            if block.travels and reduction.gives_integers:
                values = values.astype(np.min_scalar_type(int(values.max(initial=0))))
            rows.values.append(values)
    return rows


def clusters(chunk: StoredChunk, positions: NDArray[np.int64], *, tokens: bool) -> Iterator[slice]:
    """Group ascending positions in a chunk that are worth reading together."""
    size = chunk.commit.nnz if tokens else chunk.commit.pooled_nnz
    # About how many documents stand in `_GAP` entries.
    gap = max(1, int(_GAP * chunk.n_documents / max(1, size)))
    cuts = np.flatnonzero(np.diff(positions, prepend=positions[0] - gap - 1) > gap)
    for begin, end in zip(cuts, [*cuts[1:], len(positions)], strict=True):
        yield slice(int(begin), int(end))


_Piece = tuple["NDArray[np.int64]", "NDArray[np.integer[Any]]", "NDArray[np.float32]"]


def _from_tokens(chunk: StoredChunk, positions: NDArray[np.int64], block: Block) -> _Piece:
    reduction = block.reduction
    if reduction.tokens is None:
        raise ValueError(f"reduction {reduction.name!r} needs tokens, but has no `tokens` class")
    low, high = int(positions[0]), int(positions[-1]) + 1
    # The document level says how many entries there are at most.
    pointer = chunk.array("pooled/doc_ptr").read(low, high + 1, keep=block.alone)
    pointer = pointer.astype(np.int64)
    rows = positions - low
    most = int((pointer[rows + 1] - pointer[rows]).sum())
    lengths = np.zeros(len(positions), np.int64)
    dtype = np.dtype(np.int32) if block.wide else feature_dtype(chunk.d_sae)
    columns, values = roomy_array(most, dtype), roomy_array(most, np.float32)
    reduce = reduction.tokens()(chunk.d_sae)
    at = n = 0
    for piece in stream_tokens(chunk, low, high, positions):
        stop = at + len(piece.begin)
        n += reduce(
            piece.feature, piece.activation, piece.begin, piece.end, piece.n_tokens, block.threshold,
            lengths[at:stop], columns[n:], values[n:],
        )  # fmt: skip
        at = stop
    if n < most // 2:  # most of the room was not needed: give it back
        return lengths, columns[:n].copy(), values[:n].copy()
    return lengths, columns[:n], values[:n]


def _from_pooled(chunk: StoredChunk, positions: NDArray[np.int64], block: Block) -> _Piece:
    reduction = block.reduction
    if reduction.finalize is None:
        raise ValueError(
            f"reduction {reduction.name!r} needs the document level, but has no `finalize`"
        )
    low, high = int(positions[0]), int(positions[-1]) + 1
    level = chunk.pooled(reduction.arrays, low, high, keep=block.alone)
    lengths = np.diff(level["doc_ptr"])
    n_tokens = None
    if reduction.uses_n_tokens:
        doc_ptr = chunk.array("doc_ptr").read(low, high + 1, keep=block.alone).astype(np.int64)
        n_tokens = np.repeat(np.diff(doc_ptr).astype(np.float32), lengths)
    columns = level["feature"]
    values = _as(np.float32, reduction.finalize(level, n_tokens, block.threshold))
    if block.wide:
        columns = _as(np.int32, columns)
    if len(positions) != high - low:
        rows = positions - low
        entries = gather_ranges(level["doc_ptr"][rows], level["doc_ptr"][rows + 1])
        lengths, columns, values = lengths[rows], columns[entries], values[entries]
    if (chunk.commit.has_negative or reduction.gives_zeros) and not values.all():
        return _keep(values != 0, lengths, columns, values)
    return lengths, columns, values


def _as(dtype: type[np.generic], values: NDArray[Any]) -> NDArray[Any]:
    if values.dtype == dtype or len(values) < _GAP:
        return values.astype(dtype, copy=False)
    out = roomy_array(len(values), dtype)
    out[:] = values
    return out


def _select(
    lengths: NDArray[np.int64],
    columns: NDArray[np.integer[Any]],
    values: NDArray[np.float32],
    column_of: NDArray[np.int64] | None,
) -> _Piece:
    """Keep only the requested columns."""
    if column_of is None:
        return lengths, columns, values
    mapped = column_of[columns]
    return _keep(mapped >= 0, lengths, mapped, values)


def _keep(
    keep: NDArray[np.bool_],
    lengths: NDArray[np.int64],
    columns: NDArray[np.integer[Any]],
    values: NDArray[np.float32],
) -> _Piece:
    before = np.concatenate([[0], np.cumsum(keep)])
    pointer = np.concatenate([[0], np.cumsum(lengths)])
    return np.diff(before[pointer]), columns[keep], values[keep]
