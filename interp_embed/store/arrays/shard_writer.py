"""Writing one array into one shard as its values arrive."""

from __future__ import annotations

from collections import deque
from concurrent.futures import wait
from typing import TYPE_CHECKING, Any

import google_crc32c
import numpy as np

from interp_embed.store.arrays.shard import INNER_ELEMENTS, ArraySpec, InnerCodec, crc

if TYPE_CHECKING:
    from collections.abc import Callable
    from concurrent.futures import Executor, Future

    from numpy.typing import NDArray

    from interp_embed.store.storage import Sink

__all__ = ["ArrayWriter"]

_TASK_CHUNKS = 8
"""Inner chunks per task: handing one to a thread costs as much as encoding it."""
_TASKS_AHEAD = 4


class ArrayWriter:
    """Writes one array into one shard as its values arrive, compressing on threads.

    Parameters
    ----------
    create
        Opens what the shard is written to; not called for an array without elements.
    spec
        How the values are stored.
    inner
        Elements of an inner chunk; an array with fewer has one inner chunk of its own length.
    executor
        Threads that compress.

    Attributes
    ----------
    length, size : int
        Elements and bytes so far.
    crc32c : int
        Of the bytes so far.
    metadata : dict
        The array's ``zarr.json``, once finished.
    index : bytes
        The shard's index, once finished.
    """

    def __init__(
        self,
        create: Callable[[], Sink],
        spec: ArraySpec,
        *,
        inner: int = INNER_ELEMENTS,
        executor: Executor | None = None,
    ) -> None:
        self.spec = spec
        self.inner = inner
        self.length = 0
        self.size = 0
        self.crc32c = 0
        self.index = b""
        self.finished = False
        self._create = create
        self._sink: Sink | None = None
        self._executor = executor
        self._codec = InnerCodec(spec.metadata(inner, inner), spec.dimension)
        self._carry = np.empty(0, self._codec.dtype)
        self._pending: deque[Future[list[bytes]]] = deque()
        self._sizes: list[int] = []

    def append(self, values: NDArray[Any]) -> None:
        """Add values at the end."""
        values = np.asarray(values, self._codec.dtype)
        self.length += len(values)
        if len(self._carry):
            values = np.concatenate([self._carry, values])
        whole = len(values) // self.inner * self.inner
        step = _TASK_CHUNKS * self.inner
        for begin in range(0, whole, step):
            self._compress(values[begin : min(begin + step, whole)])
        # A copy, so that the caller's array is not kept alive, nor changed under our hands.
        self._carry = values[whole:].copy()

    def _compress(self, values: NDArray[Any]) -> None:
        codec = self._codec

        def run() -> list[bytes]:
            return [
                codec.encode(values[i : i + codec.inner])
                for i in range(0, len(values), codec.inner)
            ]

        if self._executor is None:
            self._write(run())
            return
        self._pending.append(self._executor.submit(run))
        while len(self._pending) > _TASKS_AHEAD:
            self._write(self._pending.popleft().result())

    def _write(self, pieces: list[bytes]) -> None:
        self._sizes += map(len, pieces)
        for piece in pieces:
            self._put(piece)

    def _put(self, piece: bytes) -> None:
        if self._sink is None:
            self._sink = self._create()
        self._sink.write(piece)
        self.crc32c = google_crc32c.extend(self.crc32c, piece)
        self.size += len(piece)

    def finish(self, *, land: bool = True) -> None:
        """Write the rest and the index; without ``land``, the caller calls `land` later."""
        if len(self._carry):
            if self.length < self.inner:
                self.inner = self.length
                self._codec = InnerCodec(
                    self.spec.metadata(self.length, self.inner), self.spec.dimension
                )
            self._compress(self._carry)
        while self._pending:
            self._write(self._pending.popleft().result())
        self.metadata = self.spec.metadata(self.length, self.inner)
        if self.length:
            sizes = np.array(self._sizes, "<u8")
            index = np.stack([np.cumsum(sizes, dtype="<u8") - sizes, sizes], axis=1).tobytes()
            self.index = index + crc(index)
            self._put(self.index)
        self.finished = True
        if land:
            self.land()

    def land(self) -> None:
        """Close what the shard is written to."""
        if self._sink is not None:
            self._sink.close()

    def abandon(self) -> None:
        """Stop writing, after a failure."""
        for future in self._pending:
            future.cancel()
        wait(self._pending)
        if self._sink is not None:
            self._sink.abandon()
