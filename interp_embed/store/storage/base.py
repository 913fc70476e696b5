"""Keys and bytes: the few operations that a store needs of a disk or an object store.

Nothing here knows what is stored. Two things matter beyond reading and writing: whether a key can be
created *only if it does not exist* with exactly one winner (the ledger rests on it), and whether
written bytes can be made to survive a power cut.
"""

from __future__ import annotations

import contextlib
import uuid
from abc import ABC, abstractmethod
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import numpy as np
from typing_extensions import override

from interp_embed.core.threads import REQUESTS, bounded_map, request_pool

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from concurrent.futures import Executor

    from numpy.typing import NDArray
    from zarr.abc.store import Store

__all__ = ["Sink", "Storage", "unless_missing"]

TEMPORARY = ".tmp-"
"""Prefix of names that readers ignore."""
BLOCK = 2**20
AT_ONCE = 16
"""Requests in flight."""


def unless_missing(error: Exception) -> None:
    """Raise the error that prevents listing a folder, unless the folder is missing.

    A missing folder is empty. After any other error, a partial listing would look complete.
    """
    if not isinstance(error, (FileNotFoundError, NotADirectoryError)):
        raise error


class Sink:
    """A key that is written piece by piece; this one collects them and puts them at once.

    Parameters
    ----------
    put
        Called with all bytes when the sink is closed.
    """

    def __init__(self, put: Callable[[bytes], None]) -> None:
        self._put = put
        self._pieces: list[bytes] = []

    def write(self, piece: bytes) -> None:
        """Append ``piece``."""
        self._pieces.append(piece)

    def close(self) -> None:
        """Finish writing."""
        data = b"".join(self._pieces)
        self._pieces.clear()
        self._put(data)

    def abandon(self) -> None:
        """Discard what was written; nothing needs to be readable."""
        self._pieces.clear()


class Storage(ABC):
    """A flat namespace of ``/``-separated keys, each holding bytes.

    Attributes
    ----------
    url : str
        Where it is; `open_storage` opens it from this.
    remote : bool
        Whether a request takes so long that many should be in flight at once.
    """

    url: str
    remote: bool = False

    def requests(self) -> Executor | None:
        """Return threads for independent requests; None if threads are not worth it."""
        return request_pool() if self.remote else None

    @abstractmethod
    def get(self, key: str) -> bytes:
        """Return all bytes of ``key``; raise `FileNotFoundError` if it does not exist."""

    @abstractmethod
    def get_range(self, key: str, start: int, length: int) -> bytes:
        """Return ``length`` bytes from ``start``, or fewer if the object ends before."""

    def get_range_into(self, key: str, start: int, out: NDArray[np.uint8]) -> int:
        """Fill ``out`` with bytes from ``start`` on; return how many bytes there were."""
        data = self.get_range(key, start, len(out))
        out[: len(data)] = np.frombuffer(data, np.uint8)
        return len(data)

    def get_several(self, keys: Iterable[str]) -> Iterator[bytes | None]:
        """Yield all bytes of each key, in order; None for a key that does not exist."""

        def read(key: str) -> bytes | None:
            try:
                return self.get(key)
            except FileNotFoundError:
                return None

        yield from bounded_map(self.requests(), read, keys, ahead=REQUESTS)

    @abstractmethod
    def size(self, key: str) -> int:
        """Return the size of ``key`` in bytes; raise `FileNotFoundError` if it does not exist."""

    @abstractmethod
    def put(self, key: str, data: bytes) -> None:
        """Write ``key``, replacing what was there; readers see the old bytes or the new ones."""

    @abstractmethod
    def put_new(self, key: str, data: bytes) -> None:
        """Write a key that no other process writes; it survives a power cut only after `sync`."""

    def create(self, key: str) -> Sink:
        """Open a new key to be written piece by piece; closing it has the effect of `put_new`."""
        return Sink(lambda data: self.put_new(key, data))

    def blocks(self, key: str) -> Iterator[bytes]:
        """Yield the bytes of ``key`` in order, in bounded pieces if that costs nothing."""
        yield self.get(key)

    @abstractmethod
    def put_if_absent(self, key: str, data: bytes) -> bool:
        """Create ``key`` durably unless it exists; return whether this call created it."""

    @abstractmethod
    def list(self, prefix: str = "") -> Iterator[tuple[str, int]]:
        """Yield every key below ``prefix`` (a folder, or ``""``) with its size."""

    @abstractmethod
    def delete(self, key: str) -> None:
        """Delete ``key`` durably; a missing key is not an error."""

    def delete_several(self, keys: Iterable[str]) -> None:
        """Delete several keys durably; missing keys are not an error."""
        for _ in bounded_map(self.requests(), self.delete, keys, ahead=REQUESTS):
            pass

    @abstractmethod
    def delete_folder(self, prefix: str) -> None:
        """Delete every key below ``prefix``; a missing folder is not an error.

        A power cut may bring some of them back, so nothing may name the folder any more.
        """

    def delete_folders(self, prefixes: Iterable[str]) -> None:
        """Delete several folders at once, because most of the time is spent waiting."""
        with ThreadPoolExecutor(AT_ONCE) as executor:
            for _ in executor.map(self.delete_folder, prefixes):
                pass

    @abstractmethod
    def zarr_store(self, *, read_only: bool = True) -> Store:
        """Return a zarr store over the same keys."""

    def sync(self, keys: Iterable[str]) -> None:  # noqa: B027  (nothing to do is a right answer)
        """Make ``keys``, which were written by `put_new`, durable. A no-op on object stores."""

    def sync_names(self, folders: Iterable[str]) -> None:  # noqa: B027  (as for `sync`)
        """Make durable which keys are directly in some folders; ``""`` is the root.

        A killed process may leave a key that every reader finds and that a power cut removes. So code
        that relies on existing keys calls this first. A no-op on object stores.
        """

    def folders(self, prefix: str) -> set[str]:
        """Return the names of the folders directly below the folder ``prefix``."""
        cut = len(prefix) + 1 if prefix else 0
        return {key[cut:].split("/", 1)[0] for key, _ in self.list(prefix) if "/" in key[cut:]}

    def exists(self, key: str) -> bool:
        """Return whether ``key`` holds something."""
        try:
            self.size(key)
        except (FileNotFoundError, NotADirectoryError):
            return False
        return True

    def arbitrates(self) -> bool:
        """Return whether two writers of one absent key get exactly one winner.

        This is tested: one probe key is created twice.
        """
        key = f"{TEMPORARY}probe-{uuid.uuid4().hex}"
        try:
            # The first answer counts for nothing: where it was lost, the key seems to be another's.
            self.put_if_absent(key, b"first")
            return not self.put_if_absent(key, b"second") and self.get(key) == b"first"
        finally:
            self.delete(key)

    def try_writing(self, folder: str) -> None:
        """Create a key in a folder and delete it, to test this before any work is done.

        Raises
        ------
        OSError
            If nothing can be written there.
        """
        key = f"{folder}/{TEMPORARY}probe-{uuid.uuid4().hex}"
        try:
            self.put_if_absent(key, b"probe")
        finally:
            # Some may write and not delete. What is left is a leftover like others, and no reader's.
            with contextlib.suppress(OSError):
                self.delete(key)

    @override
    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.url!r})"
