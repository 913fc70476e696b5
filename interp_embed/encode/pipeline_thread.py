"""A thread of the pipeline: calls run in order, and none after one that failed."""

from __future__ import annotations

import threading
from concurrent.futures import Future
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Stage"]

P = ParamSpec("P")
R = TypeVar("R")


class Stage:
    """Runs calls one after another in a separate thread.

    The caller bounds the number of waiting calls. The thread is a daemon thread: a process that is
    told to end does not wait for a disk that does not answer.

    Parameters
    ----------
    name
        Of the thread.
    """

    def __init__(self, name: str) -> None:
        self._calls: SimpleQueue[tuple[Future[Any], Callable[[], Any]] | None] = SimpleQueue()
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._work, name=name, daemon=True)
        self._thread.start()

    @property
    def stopped(self) -> bool:
        """Whether no further call will begin."""
        return self._stopped.is_set()

    def submit(self, run: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> Future[R]:
        """Have ``run`` called after the calls that were submitted before."""
        future: Future[R] = Future()
        self._calls.put((future, lambda: run(*args, **kwargs)))
        return future

    def stop(self) -> None:
        """Begin no further call, and cancel the waiting ones."""
        self._stopped.set()

    def close(self, timeout: float | None = None) -> bool:
        """Wait until all submitted calls are done; return False if that takes longer."""
        self._calls.put(None)
        self._thread.join(timeout)
        return not self._thread.is_alive()

    def _work(self) -> None:
        while (call := self._calls.get()) is not None:
            future, run = call
            if self.stopped:
                future.cancel()
            if future.set_running_or_notify_cancel():
                try:
                    result = run()
                except BaseException as error:  # noqa: BLE001 - whoever asks for the result gets it
                    self.stop()
                    future.set_exception(error)
                else:
                    future.set_result(result)
                    del result
            del call, future, run  # nothing stays alive while the thread waits
