"""Per-feature statistics of any documents, in one pass: frequencies, means, histograms, quantiles.

Each statistic is data: what it reads, how it counts a block of documents, and how it combines blocks.
Blocks are combined in the order of the store, so the result does not depend on which worker computed
them. To add a statistic, add an entry to `STATISTICS`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from interp_embed.aggregate.blocks import clusters, cut_documents
from interp_embed.aggregate.matrices import feature_count, unavailable
from interp_embed.aggregate.scheduler import run_tasks, worker_count
from interp_embed.aggregate.stream import stream_tokens
from interp_embed.core.memory import require_memory

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from numpy.typing import NDArray

    from interp_embed.aggregate.stream import TokenPiece
    from interp_embed.store.arrays.readahead import ReadAhead, Wanted
    from interp_embed.store.chunks import StoredChunk
    from interp_embed.store.store import Store

    Level = Mapping[str, NDArray[Any]]
    Totals = dict[str, NDArray[Any]]

__all__ = ["STATISTICS", "Statistic", "availability", "count_features"]


@dataclass(frozen=True, slots=True)
class Statistic:
    """A per-feature statistic that adds up over documents.

    Attributes
    ----------
    name : str
        The name that callers pass.
    arrays : tuple of str
        Arrays of the document level that are read; see `StoredChunk.pooled`.
    from_documents : callable, optional
        ``from_documents(level, begin, end, threshold, out)`` adds documents to ``out``; entries of
        document ``i`` are ``begin[i]:end[i]``.
    from_tokens : callable, optional
        ``from_tokens(piece, threshold, out)`` does so from the tokens.
    needs_tokens : callable
        ``needs_tokens(threshold)``: whether it reads the tokens.
    start : float
        The value for no documents.
    combine : ufunc
        Combines two blocks.
    dtype : dtype
        Type of ``out``.
    """

    name: str
    arrays: tuple[str, ...] = ()
    from_documents: Callable[[Level, Any, Any, float, Any], None] | None = None
    from_tokens: Callable[[TokenPiece, float, Any], None] | None = None
    needs_tokens: Callable[[float], bool] = lambda _: False
    start: float = 0
    combine: np.ufunc = np.add
    dtype: type[np.generic] = np.int64

    def zeros(self, d_sae: int) -> NDArray[Any]:
        """Return the values for no documents, shape (d_sae,) or (d_sae, bins)."""
        shape: tuple[int, ...] = (d_sae,)
        if self.name == "histogram":
            from interp_embed.kernels.statistics import BINS

            shape = (d_sae, BINS)
        return np.full(shape, self.start, self.dtype)


def _document_frequency(
    level: Level, begin: Any, end: Any, threshold: float, out: NDArray[np.int64]
) -> None:
    from interp_embed.kernels.statistics import count_above

    values = level["max"].astype(np.float32, copy=False)
    count_above(level["feature"], values, begin, end, np.float64(threshold), out)


def _entries(level: Level, begin: Any, end: Any, threshold: float, out: NDArray[np.int64]) -> None:
    from interp_embed.kernels.statistics import count_entries

    count_entries(level["feature"], begin, end, out)


def _tokens(level: Level, begin: Any, end: Any, threshold: float, out: NDArray[np.int64]) -> None:
    from interp_embed.kernels.statistics import add_values

    add_values(level["feature"], level["positive"], begin, end, out)


def _tokens_above(piece: TokenPiece, threshold: float, out: NDArray[np.int64]) -> None:
    from interp_embed.kernels.statistics import count_above

    count_above(piece.feature, piece.single(), piece.begin, piece.end, np.float64(threshold), out)


def _total(level: Level, begin: Any, end: Any, threshold: float, out: NDArray[np.float64]) -> None:
    from interp_embed.kernels.statistics import add_values

    add_values(level["feature"], level["sum"], begin, end, out)


def _highest(
    level: Level, begin: Any, end: Any, threshold: float, out: NDArray[np.float32]
) -> None:
    from interp_embed.kernels.statistics import take_highest

    values = level["max"].astype(np.float32, copy=False)
    take_highest(level["feature"], values, begin, end, out)


def _histogram(piece: TokenPiece, threshold: float, out: NDArray[np.int64]) -> None:
    from interp_embed.kernels.statistics import count_bins

    bits = piece.single().view(np.int32)
    count_bins(piece.feature, bits, piece.begin, piece.end, out)


STATISTICS: Mapping[str, Statistic] = {
    s.name: s
    for s in (
        Statistic("document_frequency", ("max",), _document_frequency),
        Statistic("entries", (), _entries),
        Statistic(
            "token_frequency",
            ("positive",),
            _tokens,
            _tokens_above,
            needs_tokens=lambda threshold: threshold > 0,
        ),
        Statistic("total", ("sum",), _total, dtype=np.float64),
        Statistic(
            "highest", ("max",), _highest, start=-np.inf, combine=np.maximum, dtype=np.float32
        ),
        Statistic("histogram", from_tokens=_histogram, needs_tokens=lambda threshold: True),
    )
}


@dataclass(frozen=True, slots=True, eq=False)
class _Task:
    store: Store
    documents: range | NDArray[np.int64]
    statistics: tuple[str, ...]
    threshold: float
    alone: bool

    def __len__(self) -> int:
        return len(self.documents)


def count_features(
    store: Store,
    documents: NDArray[np.int64],
    statistics: Sequence[str],
    *,
    threshold: float = 0.0,
    workers: int | None = None,
) -> Totals:
    """Compute statistics over documents, a few blocks of them in memory at a time.

    Parameters
    ----------
    store, documents
        The documents to count; a document that occurs twice counts twice.
    statistics
        Names in `STATISTICS`.
    threshold
        A feature counts as active above this value; 0 or more.
    workers
        See `run_tasks`.

    Returns
    -------
    dict of str to ndarray
        By name, shape (d_sae,), the histogram (d_sae, bins).

    Raises
    ------
    ResultTooLargeError
        If the statistics do not fit in memory.
    """
    width = feature_count(store)
    chosen = [STATISTICS[name] for name in dict.fromkeys(statistics)]
    totals = {s.name: s.zeros(width) for s in chosen}
    held = 2 + 2 * worker_count(workers)  # blocks that are counted, or wait to be added
    require_memory(
        held * sum(total.nbytes for total in totals.values()),
        f"statistics of {width} features",
        "Leave out the histogram and quantiles"
        if "histogram" in totals
        else "Request fewer statistics at a time, or allow more memory",
    )
    tokens = any(s.needs_tokens(threshold) for s in chosen)
    rest = np.sort(documents, kind="stable")
    while len(rest):
        twice = np.concatenate([[False], np.diff(rest) == 0])
        single, rest = rest[~twice], rest[twice]  # repetitions are counted in another round
        runs = cut_documents(store, single, tokens=tokens, workers=workers)
        names = tuple(totals)
        for counted in run_tasks(
            _count_block,
            (_Task(store, run, names, threshold, len(runs) == 1) for run in runs),
            workers=workers,
            description="statistics",
            total=len(single),
            size=len,
            ahead=_task_ahead if store.storage.remote else None,
        ):
            for name, values in counted.items():
                STATISTICS[name].combine(totals[name], values, out=totals[name])
    return totals


def _task_ahead(task: _Task) -> ReadAhead:
    """Read ahead the data for `_count_block`; the caller closes the result."""
    chosen = [STATISTICS[name] for name in task.statistics]
    tokens = any(s.needs_tokens(task.threshold) for s in chosen)
    from_documents = [s for s in chosen if not s.needs_tokens(task.threshold)]

    def plans() -> Iterator[Iterator[Iterable[Wanted]]]:
        for chunk, positions, _ in task.store.parts(np.asarray(task.documents, np.int64)):
            if from_documents:
                rules = [_rule(s, chunk, task.threshold) for s in from_documents]
                names = sorted({name for rule in rules for name in rule.arrays})
                for which in clusters(chunk, positions, tokens=False):
                    low, high = int(positions[which.start]), int(positions[which.stop - 1]) + 1
                    yield chunk.steps_of_pooled(names, low, high)
            if tokens:
                for which in clusters(chunk, positions, tokens=True):
                    low, high = int(positions[which.start]), int(positions[which.stop - 1]) + 1
                    yield chunk.steps_of_nonzeros(low, high)

    return task.store.ahead(plans())


def _count_block(task: _Task) -> Totals:
    return task.store.consistently(lambda: _count(task))


def _count(task: _Task) -> Totals:
    chosen = [STATISTICS[name] for name in task.statistics]
    totals = {s.name: s.zeros(feature_count(task.store)) for s in chosen}
    from_tokens = [s for s in chosen if s.needs_tokens(task.threshold)]
    from_documents = [s for s in chosen if not s.needs_tokens(task.threshold)]
    for chunk, positions, _ in task.store.parts(np.asarray(task.documents, np.int64)):
        if from_documents:
            for which in clusters(chunk, positions, tokens=False):
                _count_documents(chunk, positions[which], task, from_documents, totals)
        if from_tokens:
            for which in clusters(chunk, positions, tokens=True):
                members = positions[which]
                low, high = int(members[0]), int(members[-1]) + 1
                for piece in stream_tokens(chunk, low, high, members):
                    for statistic in from_tokens:
                        assert statistic.from_tokens is not None
                        statistic.from_tokens(piece, task.threshold, totals[statistic.name])
    return totals


def _count_documents(
    chunk: StoredChunk,
    positions: NDArray[np.int64],
    task: _Task,
    statistics: Sequence[Statistic],
    totals: Totals,
) -> None:
    low, high = int(positions[0]), int(positions[-1]) + 1
    rules = [(_rule(s, chunk, task.threshold), totals[s.name]) for s in statistics]
    names = sorted({name for rule, _ in rules for name in rule.arrays})
    level = chunk.pooled(names, low, high, keep=task.alone)
    rows = positions - low
    begin, end = level["doc_ptr"][rows], level["doc_ptr"][rows + 1]
    for rule, out in rules:
        assert rule.from_documents is not None
        rule.from_documents(level, begin, end, task.threshold, out)


def _rule(statistic: Statistic, chunk: StoredChunk, threshold: float) -> Statistic:
    """Return how a statistic is counted in a chunk."""
    if statistic.name == "document_frequency" and threshold == 0 and not chunk.commit.has_negative:
        # Without negative activations a feature is above zero wherever it has an entry, so that the
        # values need not be read.
        return STATISTICS["entries"]
    return statistic


def availability(store: Store, documents: NDArray[np.int64]) -> tuple[int, int]:
    """Return how many documents have activations, and how many tokens those have."""
    present = documents[~unavailable(store, documents)]
    return len(present), int(store.n_tokens(present).sum())
