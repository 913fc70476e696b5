"""Object stores, and whatever fsspec knows, as storages."""

from __future__ import annotations

import contextlib
import os
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import numpy as np
from typing_extensions import override

from interp_embed.store.storage_base import Storage

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from numpy.typing import NDArray
    from zarr.abc.store import Store

__all__ = ["FsspecStorage", "ObjectStorage", "object_store"]

_RETRIES: dict[str, Any] = {
    # What is throttled, or fails on the server's side, is tried again for three minutes at most.
    "max_retries": 12,
    "retry_timeout": timedelta(minutes=3),
    "backoff": {
        "init_backoff": timedelta(milliseconds=100),
        "max_backoff": timedelta(seconds=15),
        "base": 2,
    },
}
_CLIENT: dict[str, Any] = {
    # A large range over a slow line takes long; a line that is silent does not get better.
    "timeout": timedelta(minutes=5),
    "read_timeout": timedelta(seconds=60),
    "connect_timeout": timedelta(seconds=10),
}
_FROM_ENVIRONMENT = (
    "allow_http", "allow_invalid_certificates", "connect_timeout", "pool_idle_timeout",
    "pool_max_idle_per_host", "proxy_ca_certificate", "proxy_excludes", "proxy_url", "read_timeout",
    "timeout", "user_agent",
)  # fmt: skip
_PREFIXES = {"s3": "AWS", "gs": "GOOGLE"}
_LONGEST = 300
_LOCAL_PROTOCOLS = frozenset({"file", "local", "memory"})


def object_store(url: str) -> Any:
    """Return obstore's client for a URL; credentials and endpoints come from the environment."""
    from obstore.store import from_url

    options = {**_CLIENT, **_client_settings(url.split("://", 1)[0])}
    return from_url(url, retry_config=_RETRIES, client_options=options)  # type: ignore[call-overload]


def _client_settings(scheme: str) -> dict[str, Any]:
    """Return what the environment says of connections; obstore looks there only without options."""
    prefix = _PREFIXES.get(scheme.rstrip("a"), "AZURE")
    given = {name: os.environ.get(f"{prefix}_{name.upper()}") for name in _FROM_ENVIRONMENT}
    return {
        name: value.lower() in {"1", "true", "yes", "on"} if name.startswith("allow_") else value
        for name, value in given.items()
        if value is not None
    }


class ObjectStorage(Storage):
    """An object store (S3, Google Cloud, Azure, memory) through obstore."""

    def __init__(self, store: Any, url: str) -> None:
        self.store = store
        self.url = url
        self.remote = not url.startswith("memory:")

    @contextlib.contextmanager
    def _plainly(self, what: str) -> Iterator[None]:
        """Raise what a caller who does not know obstore expects: an `OSError` that says where."""
        from obstore.exceptions import BaseError, PermissionDeniedError, UnauthenticatedError

        try:
            yield
        except BaseError as error:
            denied = isinstance(error, (PermissionDeniedError, UnauthenticatedError))
            said = " ".join(str(error).split("Debug source:")[0].split())
            said = said if len(said) <= _LONGEST else f"{said[:_LONGEST]}..."
            hint = (
                ". Credentials come from the environment: check them, and what they allow"
                if denied
                else ""
            )
            message = f"{what} in {self.url} failed: {said}{hint}"
            raise (PermissionError if denied else OSError)(message) from error

    @override
    def get(self, key: str) -> bytes:
        import obstore

        with self._plainly(f"reading {key}"):
            return bytes(obstore.get(self.store, key).bytes())

    @override
    def get_range(self, key: str, start: int, length: int) -> bytes:
        return bytes(self._range(key, start, length))

    def _range(self, key: str, start: int, length: int) -> Any:
        import obstore

        if length == 0:
            return b""
        try:
            return obstore.get_range(self.store, key, start=start, length=length)
        except obstore.exceptions.BaseError:
            with self._plainly(f"reading {key}"):
                if self.size(key) <= start:  # nothing there is an error to some stores
                    return b""
                raise

    @override
    def get_range_into(self, key: str, start: int, out: NDArray[np.uint8]) -> int:
        data = np.frombuffer(self._range(key, start, len(out)), np.uint8)
        out[: len(data)] = data
        return len(data)

    @override
    def size(self, key: str) -> int:
        import obstore

        with self._plainly(f"looking at {key}"):
            return int(obstore.head(self.store, key)["size"])

    @override
    def put(self, key: str, data: bytes) -> None:
        import obstore

        with self._plainly(f"writing {key}"):
            obstore.put(self.store, key, data)

    @override
    def put_new(self, key: str, data: bytes) -> None:
        self.put(key, data)

    @override
    def put_if_absent(self, key: str, data: bytes) -> bool:
        import obstore
        from obstore.exceptions import AlreadyExistsError

        with self._plainly(f"creating {key}"):
            try:
                obstore.put(self.store, key, data, mode="create", use_multipart=False)
            except AlreadyExistsError:
                return False
        return True

    @override
    def list(self, prefix: str = "") -> Iterator[tuple[str, int]]:
        import obstore

        with self._plainly(f"listing {prefix or 'everything'}"):
            for batch in obstore.list(self.store, prefix or None):
                for item in batch:
                    yield item["path"], int(item["size"])

    @override
    def folders(self, prefix: str) -> set[str]:
        import obstore

        with self._plainly(f"listing {prefix}"):
            found = obstore.list_with_delimiter(self.store, prefix)["common_prefixes"]
        return {name.rstrip("/").rsplit("/", 1)[-1] for name in found}

    @override
    def delete(self, key: str) -> None:
        import obstore

        with contextlib.suppress(FileNotFoundError), self._plainly(f"deleting {key}"):
            obstore.delete(self.store, key)

    @override
    def delete_several(self, keys: Iterable[str]) -> None:
        import obstore

        every = [*keys]
        if not every:
            return
        try:
            obstore.delete(self.store, every)  # a thousand a request, where the store can do that
        except (FileNotFoundError, obstore.exceptions.BaseError):
            super().delete_several(every)

    @override
    def delete_folder(self, prefix: str) -> None:
        self.delete_several(key for key, _ in self.list(prefix))

    @override
    def zarr_store(self, *, read_only: bool = True) -> Store:
        from zarr.storage import ObjectStore

        return ObjectStore(self.store, read_only=read_only)


class FsspecStorage(Storage):
    """Anything else that fsspec reaches. Its conditional put is not exclusive: one writer only."""

    def __init__(self, url: str) -> None:
        import fsspec

        self.fs, self.root = fsspec.core.url_to_fs(url)
        self.url = url
        protocol = self.fs.protocol
        names = {protocol} if isinstance(protocol, str) else {*protocol}
        self.remote = names.isdisjoint(_LOCAL_PROTOCOLS)

    def _path(self, key: str) -> str:
        return f"{self.root.rstrip('/')}/{key}" if key else self.root

    @override
    def get(self, key: str) -> bytes:
        return bytes(self.fs.cat_file(self._path(key)))

    @override
    def get_range(self, key: str, start: int, length: int) -> bytes:
        return bytes(self.fs.cat_file(self._path(key), start=start, end=start + length))

    @override
    def size(self, key: str) -> int:
        return int(self.fs.info(self._path(key))["size"])

    @override
    def put(self, key: str, data: bytes) -> None:
        path = self._path(key)
        self.fs.makedirs(path.rsplit("/", 1)[0], exist_ok=True)
        self.fs.pipe_file(path, data)

    @override
    def put_new(self, key: str, data: bytes) -> None:
        self.put(key, data)

    @override
    def put_if_absent(self, key: str, data: bytes) -> bool:
        if self.fs.exists(self._path(key)):
            return False
        self.put(key, data)
        return True

    @override
    def arbitrates(self) -> bool:
        return False  # exists() followed by a write is two steps, whatever one probe shows

    @override
    def list(self, prefix: str = "") -> Iterator[tuple[str, int]]:
        base = len(self.fs._strip_protocol(self._path("x"))) - 1
        try:
            found = self.fs.find(self._path(prefix), detail=True)
        except FileNotFoundError:
            return
        for path, info in found.items():
            yield path[base:], int(info["size"])

    @override
    def delete(self, key: str) -> None:
        with contextlib.suppress(FileNotFoundError):
            self.fs.rm_file(self._path(key))

    @override
    def delete_folder(self, prefix: str) -> None:
        with contextlib.suppress(FileNotFoundError):
            self.fs.rm(self._path(prefix), recursive=True)

    @override
    def zarr_store(self, *, read_only: bool = True) -> Store:
        from zarr.storage import FsspecStore

        return FsspecStore.from_url(self.url, read_only=read_only)
