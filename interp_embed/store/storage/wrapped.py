"""A storage around another storage, for tests and half-written saves."""

from __future__ import annotations

from typing import TYPE_CHECKING

from typing_extensions import override

from interp_embed.store.storage.base import Storage

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from zarr.abc.store import Store

__all__ = ["AtOnce", "WrappedStorage"]


class WrappedStorage(Storage):
    """Passes every call on to another storage."""

    def __init__(self, inner: Storage) -> None:
        self.inner = inner
        self.url = inner.url
        self.remote = inner.remote

    def _call(self, name: str, key: str) -> None:
        """Run before each call."""

    @override
    def get(self, key: str) -> bytes:
        self._call("get", key)
        return self.inner.get(key)

    @override
    def get_range(self, key: str, start: int, length: int) -> bytes:
        self._call("get_range", key)
        return self.inner.get_range(key, start, length)

    @override
    def size(self, key: str) -> int:
        self._call("size", key)
        return self.inner.size(key)

    @override
    def put(self, key: str, data: bytes) -> None:
        self._call("put", key)
        self.inner.put(key, data)

    @override
    def put_new(self, key: str, data: bytes) -> None:
        self._call("put_new", key)
        self.inner.put_new(key, data)

    @override
    def put_if_absent(self, key: str, data: bytes) -> bool:
        self._call("put_if_absent", key)
        return self.inner.put_if_absent(key, data)

    @override
    def list(self, prefix: str = "") -> Iterator[tuple[str, int]]:
        self._call("list", prefix)
        yield from self.inner.list(prefix)

    @override
    def folders(self, prefix: str) -> set[str]:
        self._call("folders", prefix)
        return self.inner.folders(prefix)

    @override
    def delete(self, key: str) -> None:
        self._call("delete", key)
        self.inner.delete(key)

    @override
    def delete_folder(self, prefix: str) -> None:
        self._call("delete_folder", prefix)
        self.inner.delete_folder(prefix)

    @override
    def sync(self, keys: Iterable[str]) -> None:
        self._call("sync", "")
        self.inner.sync(keys)

    @override
    def sync_names(self, folders: Iterable[str]) -> None:
        self.inner.sync_names(folders)

    @override
    def arbitrates(self) -> bool:
        return self.inner.arbitrates()

    @override
    def zarr_store(self, *, read_only: bool = True) -> Store:
        return self.inner.zarr_store(read_only=read_only)


class AtOnce(WrappedStorage):
    """Reads some keys together, far away, and gives each of them once without another request.

    Parameters
    ----------
    inner
        The storage that does the work.
    keys
        What will be read, whether it is there or not.
    """

    def __init__(self, inner: Storage, keys: Sequence[str]) -> None:
        super().__init__(inner)
        found = zip(keys, inner.get_several(keys), strict=True) if inner.remote else ()
        self._found: dict[str, bytes | None] = dict(found)

    @override
    def get(self, key: str) -> bytes:
        if key not in self._found:
            return super().get(key)
        data = self._found.pop(key)
        if data is None:
            raise FileNotFoundError(f"there is no {key} in {self.url}")
        return data
