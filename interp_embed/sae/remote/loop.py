"""An event loop on a thread of its own, so that waiting works inside and outside another loop."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from typing import TYPE_CHECKING, Any, Generic, TypeVar

if TYPE_CHECKING:
    from collections.abc import Coroutine
    from concurrent.futures import Future

__all__ = ["LoopThread"]

T = TypeVar("T")
_CLOSE_SECONDS = 5.0


class _Call(Generic[T]):
    """A coroutine that can be cancelled before it has begun.

    Parameters
    ----------
    work
        The coroutine.
    """

    def __init__(self, work: Coroutine[Any, Any, T]) -> None:
        self._work = work
        self._task: asyncio.Task[Any] | None = None
        self._cancelled = False

    async def run(self) -> T:
        if self._cancelled:
            self._work.close()
            raise asyncio.CancelledError
        self._task = asyncio.current_task()
        return await self._work

    def cancel(self) -> None:
        """Cancel it; on the event loop, as `run`."""
        self._cancelled = True
        if self._task is not None:
            self._task.cancel()


class LoopThread:
    """Runs coroutines for threads that wait for them.

    A notebook has an event loop that runs already, where ``asyncio.run`` is refused. The thread is a
    daemon: a process that is told to end does not wait for a service that does not answer.

    Parameters
    ----------
    name : str
        Of the thread.
    """

    def __init__(self, name: str) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name=name, daemon=True)
        self._thread.start()

    def is_alive(self) -> bool:
        """Return whether there is a thread to run coroutines."""
        return self._thread.is_alive()

    def submit(self, work: Coroutine[Any, Any, T]) -> Future[T]:
        """Start a coroutine; cancelling the future cancels it.

        Raises
        ------
        RuntimeError
            If the thread is gone, as it is in a process that was forked.
        """
        self._require_alive(work)
        return asyncio.run_coroutine_threadsafe(work, self._loop)

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Return what a coroutine returns; an interrupt of the thread that waits cancels it."""
        if threading.current_thread() is self._thread:
            work.close()
            raise RuntimeError(
                "a coroutine of an SAE cannot wait for the same SAE; await its coroutine instead"
            )
        self._require_alive(work)
        call = _Call(work)
        try:
            return self.submit(call.run()).result()
        except BaseException:
            # An interrupt may come before there is a future that could be cancelled.
            with contextlib.suppress(RuntimeError):  # of a loop that is closed
                self._loop.call_soon_threadsafe(call.cancel)
            raise

    def _require_alive(self, work: Coroutine[Any, Any, Any]) -> None:
        if not self.is_alive():
            work.close()
            raise RuntimeError(
                f"the thread {self._thread.name!r} is not in this process, which was forked after the "
                "SAE was loaded; call its destroy() and load() here"
            )

    def close(self) -> None:
        """Cancel what runs, and end the thread."""
        if not self._thread.is_alive():
            return
        asyncio.run_coroutine_threadsafe(self._wind_up(), self._loop)
        self._thread.join(_CLOSE_SECONDS)
        if not self._thread.is_alive():
            self._loop.close()

    async def _wind_up(self) -> None:
        rest = asyncio.all_tasks() - {asyncio.current_task()}
        for task in rest:
            task.cancel()
        await asyncio.gather(*rest, return_exceptions=True)
        await self._loop.shutdown_asyncgens()
        self._loop.stop()
