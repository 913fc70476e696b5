"""Object stores, and everything that fsspec can open, as storages."""

from __future__ import annotations

import contextlib
import os
import re
import threading
from datetime import timedelta
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import numpy as np
from typing_extensions import override

from interp_embed.core.threads import request_pool
from interp_embed.store.storage.base import Storage, unless_missing

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

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
_ANSWER = re.compile(r"<Code>(?P<code>\w+)</Code>(?:.*?<Message>(?P<message>.*?)</Message>)?")
_NO_CONDITIONS = re.compile(r"501 Not Implemented|NotImplemented")
_OLD_CREDENTIALS = ("ExpiredToken", "InvalidToken", "TokenRefreshRequired")
"""Error codes of S3 about credentials that come with another status than a denial."""
_METADATA_SERVICES = ("169.254.169.254", "metadata.google.internal")
"""Where clients ask for credentials when the environment has none."""
_LOCAL_PROTOCOLS = frozenset({"file", "local", "memory"})


def object_store(url: str) -> Any:
    """Return obstore's client for a URL; credentials and endpoints come from the environment.

    Raises
    ------
    ValueError
        If the URL and the environment do not name a place.
    """
    from obstore.exceptions import BaseError
    from obstore.store import from_url

    scheme, rest = url.split("://", 1)
    options = {**_CLIENT, **_client_settings(scheme)}
    host, slash, path = rest.partition("/")
    # A key means what it says, as everywhere else: "#", "?" and "%" are characters like others.
    quoted = f"{scheme}://{host}{slash}{quote(path)}"
    try:
        return from_url(quoted, retry_config=_RETRIES, client_options=options)  # type: ignore[call-overload]
    except BaseError as error:
        raise ValueError(
            f"{url!r} cannot be opened: {_said(error)}. The account, the region and the endpoint come "
            "from the environment unless the URL names them"
        ) from error


def _said(error: BaseException) -> str:
    """Return a client's message for an error; from a server's page, only the meaning."""
    text = " ".join(str(error).split("Debug source:")[0].split())
    if found := _ANSWER.search(text):
        text = f"{found['code']}: {found['message'] or 'no further message'}"
    return text.rstrip(".") if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."


def _hint(said: str, *, denied: bool) -> str:
    """Return what to do about an error, if that is known."""
    if denied:
        return (
            ". Credentials come from the environment: check them and their permissions. Without "
            "permission to list, S3 also reports missing objects this way"
        )
    if any(service in said for service in _METADATA_SERVICES):
        return (
            ". The environment has no credentials; public data on S3 needs none if "
            "AWS_SKIP_SIGNATURE=true is set"
        )
    if "builder error" in said:
        return ". To allow an endpoint without TLS, set AWS_ALLOW_HTTP=true in the environment"
    return ""


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
        self._conditional = True  # as far as is known

    @contextlib.contextmanager
    def _plainly(self, what: str) -> Iterator[None]:
        """Raise what a caller who does not know obstore expects: an `OSError` that says where."""
        from obstore.exceptions import BaseError, PermissionDeniedError, UnauthenticatedError

        try:
            yield
        except (BaseError, FileNotFoundError) as error:
            said = _said(error)
            denied = isinstance(error, (PermissionDeniedError, UnauthenticatedError))
            denied = denied or said.startswith(_OLD_CREDENTIALS)
            message = f"{what} in {self.url} failed: {said}{_hint(said, denied=denied)}"
            kind: type[OSError] = PermissionError if denied else OSError
            # A bucket that is missing is no object that is missing, which would be an answer.
            if isinstance(error, FileNotFoundError) and not said.startswith("NoSuchBucket"):
                kind = FileNotFoundError
            raise kind(message) from None  # a server's answer may have keys and tokens in it

    def _request(self, call: Callable[..., Any], *args: Any, **options: Any) -> Any:
        """Make a request; the main thread has another one wait, and so hears of Ctrl-C."""
        if not self.remote or threading.current_thread() is not threading.main_thread():
            return call(*args, **options)
        try:
            answer = request_pool().submit(call, *args, **options)
        except RuntimeError:  # the interpreter is ending
            return call(*args, **options)
        return answer.result()

    @override
    def get(self, key: str) -> bytes:
        import obstore

        with self._plainly(f"reading {key}"):
            return bytes(self._request(lambda: obstore.get(self.store, key).bytes()))

    @override
    def get_range(self, key: str, start: int, length: int) -> bytes:
        return bytes(self._range(key, start, length))

    def _range(self, key: str, start: int, length: int) -> Any:
        import obstore

        if length == 0:
            return b""
        with self._plainly(f"reading {key}"):
            try:
                return self._request(obstore.get_range, self.store, key, start=start, length=length)
            except obstore.exceptions.GenericError as error:
                # Nothing there is an error to stores. Of others, it was tried for long enough.
                if "range" in str(error).lower() and self.size(key) <= start:
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
            return int(self._request(obstore.head, self.store, key)["size"])

    @override
    def put(self, key: str, data: bytes) -> None:
        import obstore

        with self._plainly(f"writing {key}"):
            self._request(obstore.put, self.store, key, data)

    @override
    def put_new(self, key: str, data: bytes) -> None:
        self.put(key, data)

    @override
    def put_if_absent(self, key: str, data: bytes) -> bool:
        import obstore
        from obstore.exceptions import AlreadyExistsError

        if not self._conditional:
            if self.exists(key):
                return False
            self.put(key, data)
            return True
        with self._plainly(f"creating {key}"):
            try:
                self._request(
                    obstore.put, self.store, key, data, mode="create", use_multipart=False
                )
            except AlreadyExistsError:
                return False
            except obstore.exceptions.BaseError as error:
                if not _NO_CONDITIONS.search(str(error)):
                    raise
                self._conditional = False
                return self.put_if_absent(key, data)
        return True

    @override
    def arbitrates(self) -> bool:
        # A server that takes no notice of the condition would say to everybody that they were first.
        proven = super().arbitrates()
        self._conditional = self._conditional and proven
        return self._conditional

    @override
    def list(self, prefix: str = "") -> Iterator[tuple[str, int]]:
        import obstore

        with self._plainly(f"listing {prefix or 'everything'}"):
            pages = obstore.list(self.store, prefix or None)
            while (page := self._request(next, pages, None)) is not None:
                for item in page:
                    yield item["path"], int(item["size"])

    @override
    def folders(self, prefix: str) -> set[str]:
        import obstore

        with self._plainly(f"listing {prefix}"):
            found = self._request(obstore.list_with_delimiter, self.store, prefix)
        return {name.rstrip("/").rsplit("/", 1)[-1] for name in found["common_prefixes"]}

    @override
    def delete(self, key: str) -> None:
        import obstore

        with contextlib.suppress(FileNotFoundError), self._plainly(f"deleting {key}"):
            self._request(obstore.delete, self.store, key)

    @override
    def delete_several(self, keys: Iterable[str]) -> None:
        import obstore

        every = [*keys]
        if not every:
            return
        try:
            # A thousand a request, where the store can do that.
            self._request(obstore.delete, self.store, every)
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
        try:
            data = bytes(self.fs.cat_file(self._path(key), start=start, end=start + length))
        except OSError:
            if self.size(key) <= start:  # nothing there is an error to some
                return b""
            raise
        # A server that knows no ranges gives everything.
        return data if len(data) <= length else data[start : start + length]

    @override
    def size(self, key: str) -> int:
        self.fs.invalidate_cache()  # others write, too
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
        if self.exists(key):
            return False
        self.put(key, data)
        return True

    @override
    def arbitrates(self) -> bool:
        return False  # exists() followed by a write is two steps, whatever one probe shows

    @override
    def list(self, prefix: str = "") -> Iterator[tuple[str, int]]:
        top: str | None = None
        self.fs.invalidate_cache()
        # Not `find`, which leaves out what it could not list.
        folders = self.fs.walk(self._path(prefix), detail=True, on_error=unless_missing)
        for folder, _, files in folders:
            # The first is the one that was asked for, in the file system's own spelling.
            top = folder if top is None else top
            parent = "/".join(filter(None, (prefix.strip("/"), folder[len(top) :].strip("/"))))
            for name, info in files.items():
                if name:  # else the folder itself
                    yield (f"{parent}/{name}" if parent else name), int(info["size"])

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
