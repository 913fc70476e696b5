"""The documents to encode, in pieces that are committed one by one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from interp_embed.core.chunk import DocumentStatus
from interp_embed.core.spans import reason_not_text

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from interp_embed.store.ledger import Plan
    from interp_embed.store.store import Store

__all__ = ["Piece", "commit_size", "cut", "neighbours", "retries"]


@dataclass(frozen=True, slots=True)
class Piece:
    """Documents that are committed together.

    Attributes
    ----------
    start, stop : int
        Document numbers, half open.
    again : bool
        Whether they failed before.
    """

    start: int
    stop: int
    again: bool = False

    def __len__(self) -> int:
        return self.stop - self.start


def commit_size(most: int, batch_size: int) -> int:
    """Return the number of documents per commit if a crash may lose ``most``.

    It is a number of whole batches and half of ``most``, so that one commit is written while the next
    is encoded. A single batch is not cut for that.
    """
    return min(most, max(batch_size, most // 2 // batch_size * batch_size))


def cut(
    plan: Plan, runs: Iterable[tuple[int, int]], most: int, size: int, *, again: bool = False
) -> Iterator[Piece]:
    """Cut runs of documents at the multiples of ``most``, and between them after every ``size``.

    The piece of a document depends only on its number, so that two processes make the same commits.
    """
    for start, stop in runs:
        for low, high in plan.pieces(start, stop, most):
            base = low // most * most
            edges = [low, *(e for e in range(base + size, base + most, size) if low < e < high)]
            for first, last in zip(edges, [*edges[1:], high], strict=True):
                yield Piece(first, last, again)


def retries(store: Store) -> list[tuple[int, int]]:
    """Return runs of documents that failed although their text is a string."""
    suspects = []
    for interval in store.ledger.intervals:
        if interval.commit.n_failed:
            documents = np.arange(interval.start, interval.stop)
            failed = documents[store.status(documents) == DocumentStatus.FAILED]
            texts = store.frame(failed, [store.field]).iloc[:, 0].tolist()
            suspects += [
                int(d) for d, t in zip(failed, texts, strict=True) if reason_not_text(t) is None
            ]
    return neighbours(suspects)


def neighbours(numbers: Iterable[int]) -> list[tuple[int, int]]:
    """Group ascending numbers into half-open runs of neighbours."""
    runs: list[tuple[int, int]] = []
    for number in numbers:
        if runs and runs[-1][1] == number:
            runs[-1] = (runs[-1][0], number + 1)
        else:
            runs.append((number, number + 1))
    return runs
