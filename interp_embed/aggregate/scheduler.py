"""Running tasks on the threads of this process, or on the dask cluster that is active."""

from __future__ import annotations

import contextlib
import sys
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from tqdm.auto import tqdm

from interp_embed.core.allocation import releasing
from interp_embed.core.memory import available_memory
from interp_embed.core.progress import show_progress
from interp_embed.core.threads import available_cpus, bounded_map

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from contextlib import AbstractContextManager

    import distributed

T = TypeVar("T")
R = TypeVar("R")

__all__ = ["active_client", "run_tasks", "worker_count"]

_QUIET_SECONDS = 2.0
_TASKS_A_THREAD = 2
"""Tasks per thread of a cluster: one is computed while the result of the other is sent."""
_TASKS_AHEAD = 16
"""Maximum number of tasks whose data is read ahead."""
_TASK_BYTES = 6 * 2**22
"""Compressed size of the data of a large task."""


def active_client() -> distributed.Client | None:
    """Return the dask client that work should go to, or None for the threads of this process.

    If ``distributed`` is not imported, there is none. A task that itself runs on a dask worker uses the
    threads of its process: it must not wait for tasks that wait for its slot.
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
    return workers or _threads()


def _threads() -> int:
    """Return the number of threads for this process, or for the cluster task that runs here."""
    if (module := sys.modules.get("distributed")) is not None:
        try:
            return int(module.get_worker().state.nthreads)
        except ValueError:
            pass
    return available_cpus()


def run_tasks(
    run: Callable[[T], R],
    tasks: Iterable[T],
    *,
    workers: int | None = None,
    description: str = "",
    total: int | None = None,
    size: Callable[[T], int] = lambda _: 1,
    unit: str = "doc",
    ahead: Callable[[T], AbstractContextManager[Any]] | None = None,
) -> Iterator[R]:
    """Yield ``run(task)`` in order; the number of results that wait is bounded.

    Parameters
    ----------
    run, tasks
        The function, and its arguments. Both are sent to the workers of a cluster.
    workers
        Threads; 1 runs each task when its result is asked for. By default the active dask client's
        workers, or else a thread for each core.
    description, total, size, unit
        Of the progress that is shown once it has taken two seconds: ``size(task)`` of ``total``.
    ahead
        ``ahead(task)`` reads what ``run(task)`` will need, which it holds until it is closed. Called
        for a few tasks before their turn, as memory allows.
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
        for result in _ordered(run, noted(), workers, ahead):
            yield result
            del result
            bar.update(sizes.popleft())


def _ordered(
    run: Callable[[T], R],
    tasks: Iterable[T],
    workers: int | None,
    ahead: Callable[[T], AbstractContextManager[Any]] | None,
) -> Iterator[R]:
    client = active_client() if workers is None else None
    if client is not None:
        yield from _on_cluster(client, run if ahead is None else _Fetched(run, ahead), tasks)
        return
    threads = 1 if workers == 1 else worker_count(workers)
    with contextlib.ExitStack() as stack:
        if ahead is not None:
            fetching = stack.enter_context(_Fetching(ahead))
            run, tasks = fetching.using(run), fetching.before(tasks)
        if workers == 1:
            yield from releasing(map(run, tasks))
            return
        executor = stack.enter_context(ThreadPoolExecutor(threads, "interp-embed-aggregate"))
        yield from releasing(bounded_map(executor, run, tasks, ahead=threads))


class _Fetching(Generic[T]):
    """Reads the bytes of tasks before their turn, and releases them after it."""

    def __init__(self, ahead: Callable[[T], AbstractContextManager[Any]]) -> None:
        self._ahead = ahead
        self._depth = min(max(available_memory() // 4 // _TASK_BYTES, 2), _TASKS_AHEAD)
        self._executor = ThreadPoolExecutor(self._depth, "interp-embed-ahead")
        self._fetched: dict[int, Future[AbstractContextManager[Any]]] = {}

    def before(self, tasks: Iterable[T]) -> Iterator[Any]:
        """Yield tasks, numbered, once their bytes are there."""
        waiting: deque[tuple[int, T]] = deque()
        for number, task in enumerate(tasks):
            self._fetched[number] = self._executor.submit(self._ahead, task)
            waiting.append((number, task))
            if len(waiting) > self._depth:
                wait([self._fetched[waiting[0][0]]])
                yield waiting.popleft()
        while waiting:
            wait([self._fetched[waiting[0][0]]])
            yield waiting.popleft()

    def using(self, run: Callable[[T], R]) -> Callable[[Any], R]:
        """Return ``run`` for the tasks that `before` yields."""

        def with_bytes(numbered: tuple[int, T]) -> R:
            number, task = numbered
            with self._fetched.pop(number).result():
                return run(task)

        return with_bytes

    def __enter__(self) -> _Fetching[T]:
        return self

    def __exit__(self, *_: object) -> None:
        # Nothing is waited for: after an error or Ctrl-C, requests may take long yet.
        self._executor.shutdown(wait=False, cancel_futures=True)
        for future in self._fetched.values():
            future.add_done_callback(_let_go)


def _let_go(future: Future[AbstractContextManager[Any]]) -> None:
    """Let go of bytes that nobody will ask for."""
    if not future.cancelled() and future.exception() is None:
        with future.result():
            pass


@dataclass(frozen=True, slots=True, eq=False)
class _Fetched(Generic[T, R]):
    """A task and its bytes, on a worker of a cluster."""

    run: Callable[[T], R]
    ahead: Callable[[T], AbstractContextManager[Any]]

    def __call__(self, task: T) -> R:
        with self.ahead(task):
            return self.run(task)


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
