"""Storages around a real one that count their requests or delay them."""

from __future__ import annotations

import threading
import time
from collections import Counter
from typing import TYPE_CHECKING

from typing_extensions import override

from interp_embed.store.storage.wrapped import WrappedStorage

if TYPE_CHECKING:
    from interp_embed.store.storage import Storage

__all__ = ["CountingStorage", "SlowStorage"]


class CountingStorage(WrappedStorage):
    """Counts requests.

    Every call is one request, except `sync`, which an object store does not need. Deleting a folder is
    also one request.

    Parameters
    ----------
    inner
        The storage that does the work.
    remote
        Whether it is read like a remote storage. The default is that of ``inner``.

    Attributes
    ----------
    requests_by_kind : Counter of str
        By the name of the method: ``get``, ``get_range``, ``put_new``, ``list`` and so on.
    keys : list of (str, str)
        Method and key of each request.
    bytes_read : int
        Bytes of all ``get`` and ``get_range``.
    in_flight, most_in_flight : int
        Requests in flight, and the largest number so far.
    """

    def __init__(self, inner: Storage, *, remote: bool | None = None) -> None:
        super().__init__(inner)
        if remote is not None:
            self.remote = remote
        self._lock = threading.Lock()
        self.reset()

    def reset(self) -> None:
        """Reset all counts."""
        self.requests_by_kind: Counter[str] = Counter()
        self.keys: list[tuple[str, str]] = []
        self.bytes_read = 0
        self.in_flight = self.most_in_flight = 0

    @property
    def n_requests(self) -> int:
        """Number of requests so far."""
        return self.requests_by_kind.total()

    @override
    def _call(self, name: str, key: str) -> None:
        if name == "sync":
            return
        with self._lock:
            self.requests_by_kind[name] += 1
            self.keys.append((name, key))
            self.in_flight += 1
            self.most_in_flight = max(self.most_in_flight, self.in_flight)
        try:
            self._wait()
        finally:
            with self._lock:
                self.in_flight -= 1

    def _wait(self) -> None:
        """Take the time of a request."""

    @override
    def get(self, key: str) -> bytes:
        data = super().get(key)
        with self._lock:
            self.bytes_read += len(data)
        return data

    @override
    def get_range(self, key: str, start: int, length: int) -> bytes:
        data = super().get_range(key, start, length)
        with self._lock:
            self.bytes_read += len(data)
        return data


class SlowStorage(CountingStorage):
    """Counts requests, and delays each by a given time, as an object store does.

    Any number of requests may be in flight at once.

    Parameters
    ----------
    inner
        The storage that does the work.
    latency
        Least number of seconds per request.
    """

    def __init__(self, inner: Storage, latency: float = 0.05) -> None:
        super().__init__(inner, remote=True)
        self.latency = latency

    @override
    def _wait(self) -> None:
        if self.latency:
            time.sleep(self.latency)
