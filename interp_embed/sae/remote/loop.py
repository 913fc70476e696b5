"""An event loop in a separate thread, so that waiting works inside and outside another loop."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from collections.abc import Coroutine

__all__ = ["LoopThread"]

T = TypeVar("T")
_CLOSE_SECONDS = 5.0


class LoopThread:
    """Runs coroutines for threads that wait for them, through anyio's portal.

    Not started by ``start_blocking_portal``, which waits for its thread without limit when it ends,
    and when it is garbage-collected: a process that forgot to end it, or was forked, would hang.

    Parameters
    ----------
    name : str
        Name of the thread. It is a daemon thread: a process that is told to end does not wait for a
        service that does not answer.
    """

    def __init__(self, name: str) -> None:
        import anyio
        from anyio.from_thread import BlockingPortal

        ready: Future[BlockingPortal] = Future()

        async def serve() -> None:
            async with BlockingPortal() as portal:
                ready.set_result(portal)
                await portal.sleep_until_stopped()

        self._thread = threading.Thread(target=anyio.run, args=(serve,), name=name, daemon=True)
        self._thread.start()
        self._portal = ready.result()

    def is_alive(self) -> bool:
        """Return whether the thread that runs coroutines exists; it does not in a forked process."""
        return self._thread.is_alive()

    def submit(self, work: Coroutine[Any, Any, T]) -> Future[T]:
        """Start a coroutine; cancelling the future cancels it.

        Raises
        ------
        RuntimeError
            If the thread is not in this process, or is the calling thread.
        """
        if not self.is_alive():
            work.close()
            raise RuntimeError(
                f"the thread {self._thread.name!r} is not in this process, which was forked after the SAE was "
                "loaded; call its destroy() and load() here"
            )
        if threading.current_thread() is self._thread:
            work.close()
            raise RuntimeError(
                "a coroutine of an SAE cannot call the blocking methods of the same SAE; await its "
                "coroutine instead"
            )
        return self._portal.start_task_soon(lambda: work)

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Return the result of a coroutine; an interrupt of the waiting thread cancels it."""
        task: asyncio.Task[Any] | None = None
        given_up = False

        async def cancellable() -> T:
            nonlocal task
            task = asyncio.current_task()
            if given_up and task is not None:
                task.cancel()
            return await work

        def cancel() -> None:
            nonlocal given_up
            given_up = True
            if task is not None:
                task.cancel()

        try:
            return self.submit(cancellable()).result()
        except Exception:
            work.close()  # if it was not begun
            raise
        except BaseException:
            # An interrupt may come before the portal has given a future that could be cancelled.
            self._portal.start_task_soon(cancel)
            raise

    def close(self) -> None:
        """Cancel running coroutines and end the thread."""
        if self.is_alive():
            self._portal.start_task_soon(self._portal.stop, True)
            self._thread.join(_CLOSE_SECONDS)
