"""Choosing the documents that a worker encodes next if several workers encode one store.

Nothing on disk says which worker is busy with which chunk. Worker ``i`` of ``n`` owns a contiguous
share of the planned chunks and goes through it in order. When its share is done, it takes chunks from
the latter halves of other shares. Before it takes a chunk, it looks up the commits. Two workers may
encode the same chunk, for example if one takes over from one that died; then one of them commits.
"""

from __future__ import annotations

import re
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from interp_embed.store.ledger import committed_ranges

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from numpy.typing import NDArray

    from interp_embed.store.store import Store

__all__ = ["Worker", "chunk_ranges", "gaps", "missing_chunks", "take_work"]

_LISTING_SHARE = 0.05
"""Largest share of a worker's time for listing commits while its own share lasts."""


@dataclass(frozen=True, slots=True)
class Worker:
    """One of several workers, numbered from 0.

    Attributes
    ----------
    number : int
    count : int
    """

    number: int
    count: int

    def __post_init__(self) -> None:
        if not 0 <= self.number < self.count:
            raise ValueError(
                f"worker must be from 0/{self.count} to {self.count - 1}/{self.count}, got {self}"
                if self.count > 0
                else f"the number of workers must be positive, got {self}"
            )

    @classmethod
    def parse(cls, text: str) -> Worker:
        """Read ``i/n``.

        Raises
        ------
        ValueError
            If it does not have this form, or ``i`` is not from 0 to n - 1.
        """
        if (found := re.fullmatch(r"(\d+)/(\d+)", text.strip())) is None:
            raise ValueError(
                f"worker must have the form i/n, its number from 0 and the count, got {text!r}"
            )
        return cls(int(found[1]), int(found[2]))

    def part(self, number: int, count: int) -> Worker:
        """Return one of the ``count`` workers that share this one's work."""
        return Worker(self.number * count + number, self.count * count)

    def share(self, n_chunks: int) -> tuple[int, int]:
        """Return the half-open range of this worker's own chunks; empty if there are few chunks."""
        return n_chunks * self.number // self.count, n_chunks * (self.number + 1) // self.count

    def __str__(self) -> str:
        return f"{self.number}/{self.count}"


def take_work(store: Store, worker: Worker) -> Iterator[tuple[int, int]]:
    """Yield runs of missing documents for one worker to encode, each chosen when it is requested.

    Ends when every missing document has been yielded.

    Parameters
    ----------
    store
        The store. Its snapshot of the ledger is neither used nor changed.
    worker
        The worker. All workers of a store should have the same ``count``.
    """
    n_chunks = _count(store)
    begin, end = worker.share(n_chunks)
    taken = np.zeros(n_chunks, bool)
    found: list[tuple[int, int]] = []
    free = np.zeros(n_chunks, bool)
    rng = np.random.default_rng([worker.number, worker.count])
    listed = cost = 0.0
    while True:
        own = np.flatnonzero(free[begin:end])
        now = time.monotonic()
        if len(own) == 0 or (now - listed) * _LISTING_SHARE > cost:
            found, listed = gaps(store), now
            cost = time.monotonic() - now
            free = _open(store, found) & ~taken
            own = np.flatnonzero(free[begin:end])
        chunk = begin + int(own[0]) if len(own) else _steal(free, worker.count, rng)
        if chunk is None:
            return
        taken[chunk], free[chunk] = True, False
        first, last = _documents(store, chunk)
        yield from [
            (max(start, first), min(stop, last))
            for start, stop in found
            if start < last and stop > first
        ]


def _steal(free: NDArray[np.bool_], count: int, rng: np.random.Generator) -> int | None:
    """Return a chunk of a share in which most are missing, from its latter half.

    The owner comes from the front. Which share and which chunk is left to chance: several thieves at
    once should not want the same one.
    """
    cuts = [Worker(i, count).share(len(free))[0] for i in range(count)]
    before = np.concatenate([[0], np.cumsum(free)])
    left = np.diff(before[[*cuts, len(free)]])
    if left.max(initial=0) == 0:
        return None
    victim = int(rng.choice(np.flatnonzero(left == left.max())))
    first, last = Worker(victim, count).share(len(free))
    there = first + np.flatnonzero(free[first:last])
    return int(rng.choice(there[len(there) // 2 :]))


def gaps(store: Store, start: int = 0, stop: int | None = None) -> list[tuple[int, int]]:
    """Return the runs of documents from ``start`` to ``stop`` that no commit holds, as of now."""
    stop = store.n_documents if stop is None else stop
    missing, at = [], start
    for low, high in committed_ranges(store.storage):
        if low >= stop:
            break
        if low > at:
            missing.append((at, low))
        at = max(at, high)
    if at < stop:
        missing.append((at, stop))
    return missing


def missing_chunks(store: Store) -> list[int]:
    """Return the numbers of the planned chunks with missing documents, as of now."""
    return np.flatnonzero(_open(store, gaps(store))).tolist()


def chunk_ranges(numbers: Iterable[int]) -> str:
    """Return ascending numbers as text, neighbours as ranges: ``3, 7-9``."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and runs[-1][1] == number - 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return ", ".join(f"{a}" if a == b else f"{a}-{b}" for a, b in runs)


def _count(store: Store) -> int:
    return -(-store.n_documents // store.plan.documents_per_chunk)


def _documents(store: Store, chunk: int) -> tuple[int, int]:
    step = store.plan.documents_per_chunk
    return chunk * step, min((chunk + 1) * step, store.n_documents)


def _open(store: Store, found: list[tuple[int, int]]) -> NDArray[np.bool_]:
    """Return of each planned chunk whether a document of it is missing."""
    edges = np.zeros(_count(store) + 1, np.int64)
    for start, stop in found:
        edges[start // store.plan.documents_per_chunk] += 1
        edges[(stop - 1) // store.plan.documents_per_chunk + 1] -= 1
    return np.asarray(np.cumsum(edges[:-1]) > 0)
