"""Storages that fail on demand, around a real one."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Literal

from typing_extensions import override

from interp_embed.store.storage.wrapped import WrappedStorage

if TYPE_CHECKING:
    from interp_embed.store.storage import Storage

__all__ = ["FaultyStorage", "InjectedError", "LostResponseStorage", "TornStorage", "WrappedStorage"]


class InjectedError(OSError):
    """The requested failure.

    Attributes
    ----------
    first : bool
        Whether this is the requested call, and not one after the process is dead.
    """

    def __init__(self, message: str, *, first: bool = True) -> None:
        super().__init__(message)
        self.first = first


class FaultyStorage(WrappedStorage):
    """Raises `InjectedError` at one call, counted over all methods.

    Parameters
    ----------
    inner
        The storage that does the work.
    fail_at
        Number of the call that fails, from 0; None for never.
    dead
        Whether every later call fails too, as if the process had been killed without any clean-up.
    torn
        Whether a failing write leaves half of its bytes, if a write is not atomic.

    Attributes
    ----------
    calls : list of (str, str)
        Method and key of every call so far.
    """

    def __init__(
        self, inner: Storage, fail_at: int | None = None, *, dead: bool = True, torn: bool = True
    ) -> None:
        super().__init__(inner)
        self.fail_at = fail_at
        self.dead = dead
        self.torn = torn
        self.calls: list[tuple[str, str]] = []
        self._lock = threading.Lock()

    @override
    def _call(self, name: str, key: str) -> None:
        with self._lock:
            number = len(self.calls)
            self.calls.append((name, key))
        if self.fail_at is not None and (
            number == self.fail_at or (self.dead and number > self.fail_at)
        ):
            raise InjectedError(
                f"{name}({key!r}) failed, as requested, at call {number}",
                first=number == self.fail_at,
            )

    @override
    def put_new(self, key: str, data: bytes) -> None:
        try:
            self._call("put_new", key)
        except InjectedError as error:
            if self.torn and error.first:
                self.inner.put_new(key, data[: len(data) // 2])
            raise
        self.inner.put_new(key, data)

    @override
    def delete_folder(self, prefix: str) -> None:
        try:
            self._call("delete_folder", prefix)
        except InjectedError as error:
            if self.torn and error.first:
                for key, _ in list(self.inner.list(prefix))[::2]:
                    self.inner.delete(key)
            raise
        self.inner.delete_folder(prefix)


class LostResponseStorage(WrappedStorage):
    """Creates the key, but the answer of one `put_if_absent` never arrives.

    Parameters
    ----------
    inner
        The storage that does the work.
    prefix
        Keys that begin with it are affected.
    answer : {"raise", "false"}
        The answer that the caller sees: an error, or that the key already existed (as for a client
        that retried by itself after the first answer was lost).
    times
        Number of calls that are affected.
    """

    def __init__(
        self, inner: Storage, prefix: str, answer: Literal["raise", "false"], times: int = 1
    ) -> None:
        super().__init__(inner)
        self.prefix = prefix
        self.answer = answer
        self.times = times

    @override
    def put_if_absent(self, key: str, data: bytes) -> bool:
        created = self.inner.put_if_absent(key, data)
        if self.times and key.startswith(self.prefix):
            self.times -= 1
            if self.answer == "raise":
                raise InjectedError(f"no answer to the creation of {key}")
            return False
        return created


class TornStorage(WrappedStorage):
    """Keeps only the first half of the bytes of one `put_new`, and reports success.

    Parameters
    ----------
    inner
        The storage that does the work.
    tear_at
        Number of the call of `put_new` that is affected, from 0.
    """

    def __init__(self, inner: Storage, tear_at: int = 0) -> None:
        super().__init__(inner)
        self.tear_at = tear_at
        self._lock = threading.Lock()
        self._written = 0

    @override
    def put_new(self, key: str, data: bytes) -> None:
        with self._lock:
            torn = self._written == self.tear_at
            self._written += 1
        super().put_new(key, data[: len(data) // 2] if torn else data)
