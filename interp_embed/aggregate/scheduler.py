"""Running tasks on the threads of this process, or on the dask cluster that is active."""

from __future__ import annotations

import os
import sys
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, TypeVar

from tqdm.auto import tqdm

from interp_embed.parallel import bounded_map
from interp_embed.progress import show_progress

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    import distributed

T = TypeVar("T")
R = TypeVar("R")

__all__ = ["active_client", "run_tasks", "worker_count"]

_QUIET_SECONDS = 2.0
_TASKS_A_THREAD = 2
"""Tasks that a cluster's thread has before it: one is computed while the other's result travels."""


def active_client() -> distributed.Client | None:
    """Return the dask client that work should go to, or None for the threads of this process.

    Without ``distributed`` imported there is none. A task that itself runs on a dask worker works on
    the threads it has: it must not wait for tasks that wait for its place.
    """
    module: Any = sys.modules.get("distributed")
    if module is None:
        return None
    try:
        module.get_worker()
    except ValueError:
        pass
    else:
        return None
    try:
        client: distributed.Client = module.default_client()
    except ValueError:
        return None
    return None if client.asynchronous else client


def worker_count(workers: int | None = None) -> int:
    """Return how many tasks run at once in this process."""
    return workers or os.cpu_count() or 1


def run_tasks(
    run: Callable[[T], R],
    tasks: Iterable[T],
    *,
    workers: int | None = None,
    description: str = "",
    total: int | None = None,
    size: Callable[[T], int] = lambda _: 1,
    unit: str = "doc",
) -> Iterator[R]:
    """Yield ``run(task)`` in order; the number of results that wait is bounded.

    Parameters
    ----------
    run, tasks
        What to call, and on what. Both travel to the workers of a cluster.
    workers
        Threads; 1 runs each task when its result is asked for. By default the active dask client's
        workers, or else a thread for each core.
    description, total, size, unit
        Of the progress that is shown once it has taken two seconds: ``size(task)`` of ``total``.
    """
    bar = tqdm(
        total=total,
        desc=description,
        unit=unit,
        delay=_QUIET_SECONDS,
        disable=not (description and show_progress()),
        unit_scale=True,
        leave=False,
    )
    sizes: deque[int] = deque()

    def noted() -> Iterator[T]:
        for task in tasks:
            sizes.append(size(task))
            yield task

    with bar:
        for result in _ordered(run, noted(), workers):
            yield result
            bar.update(sizes.popleft())


def _ordered(run: Callable[[T], R], tasks: Iterable[T], workers: int | None) -> Iterator[R]:
    if workers == 1:
        yield from map(run, tasks)
        return
    client = active_client() if workers is None else None
    if client is not None:
        yield from _on_cluster(client, run, tasks)
        return
    threads = worker_count(workers)
    with ThreadPoolExecutor(threads, "interp-embed-aggregate") as executor:
        yield from bounded_map(executor, run, tasks, ahead=threads)


def _on_cluster(
    client: distributed.Client, run: Callable[[T], R], tasks: Iterable[T]
) -> Iterator[R]:
    pending: deque[Any] = deque()
    threads = 0
    try:
        for number, task in enumerate(tasks):
            if number % 64 == 0:  # a cluster may grow meanwhile
                threads = max(1, sum(client.nthreads().values()))
            # Not taken for pure: what a store holds may have changed since the last time.
            pending.append(client.submit(run, task, pure=False))
            if len(pending) > _TASKS_A_THREAD * threads:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        for future in pending:
            future.cancel()
