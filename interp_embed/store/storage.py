"""Keys and bytes: the few operations that a store needs of a disk or an object store.

Nothing here knows what is stored. Two things matter beyond reading and writing: whether a key can be
created *only if it does not exist* with exactly one winner (the ledger rests on it), and whether
written bytes can be made to survive a power cut.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import shutil
import uuid
from abc import ABC, abstractmethod
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from typing_extensions import override

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from zarr.abc.store import Store

__all__ = ["FsspecStorage", "LocalStorage", "ObjectStorage", "Sink", "Storage", "open_storage"]

_TEMPORARY = ".tmp-"
_BLOCK = 2**20
_AT_ONCE = 16


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
        self._put(b"".join(self._pieces))

    def abandon(self) -> None:
        """Let go of what was written; nothing needs to be readable."""
        self._pieces.clear()


class _FileSink(Sink):
    """A file that nobody reads before it is closed."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("wb", buffering=0)

    @override
    def write(self, piece: bytes) -> None:
        view = memoryview(piece)
        while view:
            view = view[self._file.write(view) :]

    @override
    def close(self) -> None:
        self._file.close()

    @override
    def abandon(self) -> None:
        self._file.close()


class Storage(ABC):
    """A flat namespace of ``/``-separated keys, each holding bytes."""

    url: str

    @abstractmethod
    def get(self, key: str) -> bytes:
        """Return all bytes of ``key``; raise `FileNotFoundError` where there is none."""

    @abstractmethod
    def get_range(self, key: str, start: int, length: int) -> bytes:
        """Return ``length`` bytes from ``start``, or fewer where the object ends before."""

    @abstractmethod
    def size(self, key: str) -> int:
        """Return the size of ``key`` in bytes; raise `FileNotFoundError` where there is none."""

    @abstractmethod
    def put(self, key: str, data: bytes) -> None:
        """Write ``key``, replacing what was there; readers see the old bytes or the new ones."""

    @abstractmethod
    def put_new(self, key: str, data: bytes) -> None:
        """Write a key that nobody else writes; it survives a power cut only after `sync`."""

    def create(self, key: str) -> Sink:
        """Open a new key to be written piece by piece; as `put_new` once it is closed."""
        return Sink(lambda data: self.put_new(key, data))

    def blocks(self, key: str) -> Iterator[bytes]:
        """Yield the bytes of ``key`` in order, a bounded number at a time where that costs nothing."""
        yield self.get(key)

    @abstractmethod
    def put_if_absent(self, key: str, data: bytes) -> bool:
        """Create ``key`` durably unless it exists; return whether this call created it."""

    @abstractmethod
    def list(self, prefix: str = "") -> Iterator[tuple[str, int]]:
        """Yield every key below ``prefix`` (a folder, or ``""``) with its size."""

    @abstractmethod
    def delete(self, key: str) -> None:
        """Delete ``key``; a missing one is no error."""

    @abstractmethod
    def delete_folder(self, prefix: str) -> None:
        """Delete every key below ``prefix``; a missing folder is no error."""

    def delete_folders(self, prefixes: Iterable[str]) -> None:
        """Delete several folders at once: most of the time is waiting."""
        with ThreadPoolExecutor(_AT_ONCE) as executor:
            for _ in executor.map(self.delete_folder, prefixes):
                pass

    @abstractmethod
    def zarr_store(self, *, read_only: bool = True) -> Store:
        """Return a zarr store over the same keys."""

    def sync(self, keys: Iterable[str]) -> None:  # noqa: B027  (nothing to do is a right answer)
        """Make ``keys``, which were written by `put_new`, durable. A no-op on object stores."""

    def folders(self, prefix: str) -> set[str]:
        """Return the names of the folders directly below the folder ``prefix``."""
        cut = len(prefix) + 1
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

        Proven, not believed: one probe key is created twice.
        """
        key = f"{_TEMPORARY}probe-{uuid.uuid4().hex}"
        try:
            return self.put_if_absent(key, b"first") and not self.put_if_absent(key, b"second")
        finally:
            self.delete(key)

    @override
    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.url!r})"


class LocalStorage(Storage):
    """A folder of this machine's file system."""

    def __init__(self, root: str | os.PathLike[str]) -> None:
        self.root = Path(root).expanduser().absolute()
        self.url = str(self.root)

    def _path(self, key: str) -> Path:
        return self.root / key

    @override
    def get(self, key: str) -> bytes:
        return self._path(key).read_bytes()

    @override
    def get_range(self, key: str, start: int, length: int) -> bytes:
        descriptor = os.open(self._path(key), os.O_RDONLY)
        try:
            parts = []
            while length > 0 and (part := os.pread(descriptor, length, start)):
                parts.append(part)
                start, length = start + len(part), length - len(part)
            return parts[0] if len(parts) == 1 else b"".join(parts)
        finally:
            os.close(descriptor)

    @override
    def size(self, key: str) -> int:
        return self._path(key).stat().st_size

    def _write_aside(self, key: str, data: bytes) -> Path:
        """Write and sync ``data`` to a file next to ``key`` that no reader looks at."""
        path = self._path(key)
        _make_folder(path.parent)
        aside = path.parent / f"{_TEMPORARY}{uuid.uuid4().hex}"
        try:
            with aside.open("xb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
        except BaseException:
            aside.unlink(missing_ok=True)
            raise
        return aside

    @override
    def put(self, key: str, data: bytes) -> None:
        path = self._path(key)
        self._write_aside(key, data).replace(path)
        _sync_folder(path.parent)

    @override
    def put_new(self, key: str, data: bytes) -> None:
        sink = self.create(key)
        sink.write(data)
        sink.close()

    @override
    def create(self, key: str) -> Sink:
        return _FileSink(self._path(key))

    @override
    def blocks(self, key: str) -> Iterator[bytes]:
        with self._path(key).open("rb", buffering=0) as file:
            while block := file.read(_BLOCK):
                yield block

    @override
    def put_if_absent(self, key: str, data: bytes) -> bool:
        path = self._path(key)
        aside = self._write_aside(key, data)
        try:
            # A hard link appears with its whole content, or fails: the one call on a local file
            # system that is both atomic and exclusive.
            os.link(aside, path)
        except FileExistsError:
            return False
        except OSError as error:
            raise OSError(
                error.errno,
                f"cannot create {path} exclusively: {error.strerror}. The file system must support "
                "hard links for a store to be written safely; write to another disk and copy the "
                "finished store",
            ) from error
        finally:
            aside.unlink(missing_ok=True)
        _sync_folder(path.parent)
        return True

    @override
    def list(self, prefix: str = "") -> Iterator[tuple[str, int]]:
        for folder, _, names in os.walk(self._path(prefix)):
            for name in names:
                path = Path(folder, name)
                with contextlib.suppress(FileNotFoundError):  # deleted by another process meanwhile
                    yield path.relative_to(self.root).as_posix(), path.stat().st_size

    @override
    def folders(self, prefix: str) -> set[str]:
        try:
            with os.scandir(self._path(prefix)) as entries:
                return {e.name for e in entries if e.is_dir()}
        except FileNotFoundError:
            return set()

    @override
    def delete(self, key: str) -> None:
        self._path(key).unlink(missing_ok=True)

    @override
    def delete_folder(self, prefix: str) -> None:
        shutil.rmtree(self._path(prefix), ignore_errors=True)

    @override
    def sync(self, keys: Iterable[str]) -> None:
        files = [self._path(key) for key in keys]
        folders: set[Path] = set()
        for path in files:
            for parent in path.parents:
                if parent in folders or parent == self.root.parent:
                    break
                folders.add(parent)
        # A file system syncs many files together in about the time of one, if asked at once.
        with ThreadPoolExecutor(_AT_ONCE) as executor:
            for _ in executor.map(_sync_path, files):
                pass
            for _ in executor.map(_sync_folder, folders):
                pass

    @override
    def zarr_store(self, *, read_only: bool = True) -> Store:
        from zarr.storage import LocalStore

        return LocalStore(self.root, read_only=read_only)


def _sync_path(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _make_folder(folder: Path) -> None:
    """Create a folder and what is missing above it, the new names durable."""
    made = list(itertools.takewhile(lambda f: not f.exists(), [folder, *folder.parents]))
    folder.mkdir(parents=True, exist_ok=True)
    for each in made:
        _sync_folder(each.parent)


def _sync_folder(path: Path) -> None:
    # A new name is durable only once its folder is. Windows has no such call and needs none.
    if os.name != "nt":
        _sync_path(path)


class ObjectStorage(Storage):
    """An object store (S3, Google Cloud, Azure, memory) through obstore."""

    def __init__(self, store: Any, url: str) -> None:
        self.store = store
        self.url = url

    @override
    def get(self, key: str) -> bytes:
        import obstore

        return bytes(obstore.get(self.store, key).bytes())

    @override
    def get_range(self, key: str, start: int, length: int) -> bytes:
        import obstore

        if length == 0:
            return b""
        try:
            return bytes(obstore.get_range(self.store, key, start=start, length=length))
        except obstore.exceptions.BaseError:
            if self.size(key) <= start:  # nothing there is an error to some stores
                return b""
            raise

    @override
    def size(self, key: str) -> int:
        import obstore

        return int(obstore.head(self.store, key)["size"])

    @override
    def put(self, key: str, data: bytes) -> None:
        import obstore

        obstore.put(self.store, key, data)

    @override
    def put_new(self, key: str, data: bytes) -> None:
        self.put(key, data)

    @override
    def put_if_absent(self, key: str, data: bytes) -> bool:
        import obstore
        from obstore.exceptions import AlreadyExistsError

        try:
            obstore.put(self.store, key, data, mode="create", use_multipart=False)
        except AlreadyExistsError:
            return False
        return True

    @override
    def list(self, prefix: str = "") -> Iterator[tuple[str, int]]:
        import obstore

        for batch in obstore.list(self.store, prefix or None):
            for item in batch:
                yield item["path"], int(item["size"])

    @override
    def folders(self, prefix: str) -> set[str]:
        import obstore

        found = obstore.list_with_delimiter(self.store, prefix)["common_prefixes"]
        return {name.rstrip("/").rsplit("/", 1)[-1] for name in found}

    @override
    def delete(self, key: str) -> None:
        import obstore

        with contextlib.suppress(FileNotFoundError):
            obstore.delete(self.store, key)

    @override
    def delete_folder(self, prefix: str) -> None:
        for key, _ in list(self.list(prefix)):
            self.delete(key)

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


_OBSTORE_SCHEMES = frozenset({"s3", "s3a", "gs", "az", "azure", "abfs", "abfss", "adl", "memory"})
_memory_stores: dict[str, Any] = {}


def open_storage(location: str | os.PathLike[str] | Storage) -> Storage:
    """Return the storage at a local path or a URL; nothing is read or created.

    Parameters
    ----------
    location
        A path, ``file://``, ``s3://``, ``gs://``, ``az://``, ``memory://``, or any other URL that an
        installed fsspec implementation understands. Credentials come from the environment.
    """
    if isinstance(location, Storage):
        return location
    text = os.fspath(location)
    if not isinstance(text, str) or not text:
        raise ValueError(f"a store needs a path or a URL, got {location!r}")
    scheme = urlsplit(text).scheme if "://" in text else ""
    if scheme in {"", "file", "local"}:
        return LocalStorage(text.split("://", 1)[1] if scheme else text)
    if scheme not in _OBSTORE_SCHEMES:
        return FsspecStorage(text)
    from obstore.store import MemoryStore, from_url

    url = text.rstrip("/")
    if scheme == "memory":
        return ObjectStorage(_memory_stores.setdefault(url, MemoryStore()), url)
    return ObjectStorage(from_url(url), url)
