"""A bounded queue of requests for the device: one is encoded while the next are tokenised."""

from __future__ import annotations

import asyncio
import contextlib
import math
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, TypeVar

from interp_embed.encode.isolate import encode_isolated, prepare_isolated
from interp_embed.sae.batch_budget import Budget

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator, Sequence
    from typing import Any

    from interp_embed.core.chunk import Chunk
    from interp_embed.sae.base import BaseSAE

__all__ = ["BusyError", "ClosingError", "DeviceQueue", "GoneError"]

T = TypeVar("T")
_SMOOTHING = 0.3


class BusyError(Exception):
    """The queue of requests is full.

    Attributes
    ----------
    retry_after : int
        Seconds until one of them should be done.
    """

    def __init__(self, retry_after: int) -> None:
        super().__init__(f"the queue of requests is full; try again in {retry_after} s")
        self.retry_after = retry_after


class ClosingError(Exception):
    """The server is shutting down."""


class GoneError(Exception):
    """The client has disconnected."""


class DeviceQueue:
    """Encodes the documents of requests.

    One request uses the device; those after it are tokenised meanwhile. One thread tokenises with the
    SAE and another runs it, as in an encoding run, so an SAE need not be safe for other uses by two
    threads.

    Parameters
    ----------
    sae : BaseSAE
        Loaded.
    most : int
        Requests that may wait or run at once.
    batch_size : int
        Documents per batch, for an SAE that makes no batches itself.
    """

    def __init__(self, sae: BaseSAE, *, most: int, batch_size: int) -> None:
        self._sae = sae
        self._most = most
        self._budget = Budget(batch_size)
        self._tokenizer = ThreadPoolExecutor(1, "interp-embed-tokenise")
        self._runner = ThreadPoolExecutor(1, "interp-embed-device")
        self._device = asyncio.Lock()
        self._inside = 0
        self._closing = False
        self._seconds = 1.0

    @property
    def inside(self) -> int:
        """Number of requests that wait or run."""
        return self._inside

    @property
    def closing(self) -> bool:
        """Whether requests that have not begun are rejected."""
        return self._closing

    def stop(self) -> None:
        """Reject requests that have not begun; running ones finish. Safe in a signal handler."""
        self._closing = True

    def close(self) -> None:
        """End the threads."""
        self.stop()
        for executor in (self._tokenizer, self._runner):
            executor.shutdown(wait=False, cancel_futures=True)

    @contextlib.contextmanager
    def admit(self) -> Iterator[None]:
        """Hold a place in the queue inside.

        Raises
        ------
        BusyError
            If the queue is full.
        ClosingError
            If the server is shutting down.
        """
        if self._closing:
            raise ClosingError
        if self._inside >= self._most:
            raise BusyError(max(1, math.ceil(self._seconds)))
        self._inside += 1
        try:
            yield
        finally:
            self._inside -= 1

    async def encode(self, texts: Sequence[str], gone: Callable[[], Awaitable[bool]]) -> Chunk:
        """Return the documents as a run of this SAE would commit them as float32.

        Parameters
        ----------
        texts
            The documents.
        gone
            Returns whether the client has disconnected.

        Raises
        ------
        ClosingError, GoneError
            Before the device is asked.
        """
        loop = asyncio.get_running_loop()
        sae = self._sae
        prepared = await loop.run_in_executor(self._tokenizer, prepare_isolated, sae, list(texts))
        async with self._device:
            if self._closing:
                raise ClosingError
            if await gone():
                raise GoneError
            begun = time.monotonic()
            given_up = threading.Event()

            def check() -> None:
                if given_up.is_set():
                    raise ClosingError

            try:
                encoded = await loop.run_in_executor(
                    self._runner, encode_isolated, sae, prepared, self._budget, check
                )
            except asyncio.CancelledError:
                given_up.set()  # a process cannot end before its threads
                raise
            taken = time.monotonic() - begun
        self._seconds += _SMOOTHING * (taken - self._seconds)
        return await self.off_loop(_finished, encoded, sae)

    async def off_loop(self, call: Callable[..., T], *args: Any) -> T:
        """Return the result of a call that would block the event loop."""
        return await asyncio.get_running_loop().run_in_executor(self._tokenizer, call, *args)


def _finished(encoded: Any, sae: BaseSAE) -> Chunk:
    """Return documents in order; those that cannot be stored as float32 fail, as when committing."""
    import numpy as np

    chunk: Chunk = encoded.chunk(0, sae.d_sae)
    kind = np.dtype(np.float32)
    return chunk.with_failures(chunk.beyond_range(kind)).as_dtype(kind)
