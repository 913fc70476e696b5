"""Mapping over threads with a bounded number of results waiting, so that memory is bounded too."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from concurrent.futures import Executor, Future

__all__ = ["bounded_map"]

T = TypeVar("T")
R = TypeVar("R")


def bounded_map(
    executor: Executor | None, run: Callable[[T], R], items: Iterable[T], ahead: int
) -> Iterator[R]:
    """Yield ``run(item)`` in order, with at most ``ahead`` calls begun before they are asked for.

    Parameters
    ----------
    executor
        Where to run; None to run each call when it is asked for.
    run, items
        What to call, and on what.
    ahead
        Calls begun before the one whose result is yielded.
    """
    if executor is None:
        yield from map(run, items)
        return
    pending: deque[Future[R]] = deque()
    try:
        for item in items:
            pending.append(executor.submit(run, item))
            if len(pending) > ahead:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        for future in pending:
            future.cancel()
