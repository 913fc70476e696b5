"""Mapping over threads with a bounded number of waiting results, so that memory is bounded too."""

from __future__ import annotations

import math
import os
import threading
from collections import deque
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, TypeVar

from interp_embed.core.control_groups import cpu_limit

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Iterable, Iterator
    from concurrent.futures import Executor

__all__ = ["REQUESTS", "Flights", "ProcessPool", "available_cpus", "bounded_map", "request_pool"]

T = TypeVar("T")
R = TypeVar("R")

REQUESTS = 32
"""Requests in flight to remote storages."""


def available_cpus() -> int:
    """Return how many processors this process may use.

    On a cluster and in a container, this may be fewer than the machine has: the affinity of the process
    and the quota of its control groups count. A part of a processor counts as one.
    """
    try:
        count = len(os.sched_getaffinity(0))
    except AttributeError:  # macOS has no affinity
        count = os.cpu_count() or 1
    return math.ceil(min(count, cpu_limit()))


class ProcessPool:
    """Threads of one kind, one pool per process, started when they are first needed.

    Calls that run there must not submit to the same pool, because they could wait for themselves.

    Parameters
    ----------
    threads
        How many.
    name
        Prefix of their names.
    """

    def __init__(self, threads: int, name: str) -> None:
        self._threads, self._name = threads, name
        self._forget()
        # A forked child has the pool without its threads.
        os.register_at_fork(after_in_child=self._forget)

    def _forget(self) -> None:
        self._pool: ThreadPoolExecutor | None = None
        self._lock = threading.Lock()

    def __call__(self) -> ThreadPoolExecutor:
        """Return the pool."""
        with self._lock:
            if self._pool is None:
                self._pool = ThreadPoolExecutor(self._threads, self._name)
            return self._pool


request_pool = ProcessPool(REQUESTS, "interp-embed-request")
"""The threads that wait for remote storages. A call that runs there makes one request."""


class Flights:
    """Lets threads that want the same result at the same time wait for the first of them."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._flying: dict[Hashable, Future[Any]] = {}

    def do(self, key: Hashable, run: Callable[[], R]) -> R:
        """Return ``run()``, or the result of another thread that is running it under ``key``."""
        with self._lock:
            future = self._flying.get(key)
            if future is None:
                mine: Future[Any] = Future()
                self._flying[key] = mine
        if future is not None:
            try:
                found: R = future.result()
            except CancelledError:  # the first thread was interrupted
                return self.do(key, run)
            return found
        try:
            found = run()
        except BaseException as error:
            self._landed(key)
            if isinstance(error, Exception):
                mine.set_exception(error)
            else:  # Ctrl-C is for one thread alone
                mine.cancel()
            raise
        self._landed(key)
        mine.set_result(found)
        return found

    def _landed(self, key: Hashable) -> None:
        with self._lock:
            del self._flying[key]


def bounded_map(
    executor: Executor | None, run: Callable[[T], R], items: Iterable[T], ahead: int
) -> Iterator[R]:
    """Yield ``run(item)`` in order, with at most ``ahead`` calls begun before they are asked for.

    Parameters
    ----------
    executor
        Where to run; None to run each call when it is asked for.
    run, items
        The function, and its arguments.
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
