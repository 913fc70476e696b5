"""Cutting the documents of a lazy array into blocks."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from interp_embed.store import Store
    from interp_embed.store.ledger import Commit

__all__ = ["BYTES_AN_ENTRY", "Positions", "as_positions", "block_edges", "chosen"]

Positions = range | np.ndarray[Any, np.dtype[np.int64]]
"""Documents or features: a range where they are one, so that a million take no room."""

BYTES_AN_ENTRY = 28
"""Of a token-level `sparse.COO`: three coordinates and a value."""


def as_positions(values: Positions) -> Positions:
    """Return ``values`` as a range if they are evenly spaced."""
    if isinstance(values, range) or len(values) == 0:
        return range(0) if len(values) == 0 else values
    first = int(values[0])
    if len(values) == 1:
        return range(first, first + 1)
    step = int(values[1]) - first
    if step == 0 or (np.diff(values) != step).any():
        return values
    return range(first, int(values[-1]) + step, step)


def chosen(values: Positions, index: slice | NDArray[np.int64]) -> Positions:
    """Return ``values[index]``."""
    if isinstance(index, slice):
        return values[index]
    return as_positions(np.asarray(values, np.int64)[index])


def block_edges(store: Store, documents: Positions, width: int, nbytes: int) -> NDArray[np.int64]:
    """Return where blocks of documents begin and end, in ``documents``.

    Blocks end where chunks do: one holds a part of a chunk, or several small ones. Documents in an
    order of their own, which jump from chunk to chunk, are cut by their size alone. All lazy arrays
    of the same documents have the same blocks.

    Parameters
    ----------
    store, documents
        Whose documents.
    width
        Number of features: what a document without activations is, a row of NaN.
    nbytes
        How large the tokens' activations of a block may be. A single document may be larger.

    Returns
    -------
    ndarray of int64
        From 0 to ``len(documents)``.
    """
    if len(documents) == 0:
        return np.array([0, 0])
    counts, sizes = _runs(store, documents, width)
    if len(counts) > 2 * len(store.ledger.intervals) + 1:
        each = np.repeat(sizes, counts)
        block = (np.cumsum(each) - each) // nbytes
        inner = np.flatnonzero(np.diff(block)) + 1
        return np.concatenate([[0], inner, [len(documents)]]).astype(np.int64)
    edges, at, held = [0], 0, 0.0
    for count, size in zip(counts.tolist(), (counts * sizes).tolist(), strict=True):
        if held and held + size > nbytes:
            edges.append(at)
            held = 0.0
        parts = min(count, math.ceil(size / nbytes))
        edges += [at + count * i // parts for i in range(1, parts)]
        held = held + size if parts == 1 else size / parts
        at += count
    return np.array([*edges, at], np.int64)


def _runs(
    store: Store, documents: Positions, width: int
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Return lengths of the runs of documents that one chunk holds, or none; and bytes a document."""
    intervals = store.ledger.intervals
    # A document that no chunk holds is a row of NaN; it has number -1.
    sizes = [*(_document_bytes(i.commit, width) for i in intervals), 1.0 + BYTES_AN_ENTRY * width]
    if isinstance(documents, range) and abs(documents.step) == 1:  # millions are not looked at
        low, high = min(documents[0], documents[-1]), max(documents[0], documents[-1]) + 1
        starts, stops = store.ledger.starts, store.ledger.stops
        inner = np.unique(np.concatenate([starts, stops]))
        first = np.concatenate([[low], inner[(inner > low) & (inner < high)]])
        counts, located = np.diff(np.append(first, high)), store.ledger.locate(first)
        if documents.step < 0:
            counts, located = counts[::-1], located[::-1]
    else:
        every = store.ledger.locate(np.asarray(documents, np.int64))
        first = np.flatnonzero(np.diff(every, prepend=-2))
        counts, located = np.diff(np.append(first, len(every))), every[first]
    return counts, np.array(sizes)[located]


def _document_bytes(commit: Commit, width: int) -> float:
    entries = commit.nnz + commit.n_failed * width
    return BYTES_AN_ENTRY * entries / (commit.stop - commit.start) + 1.0
