"""A folder of this machine's file system as a storage."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import uuid
from concurrent.futures import wait
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from typing_extensions import override

from interp_embed.core.files import make_folder, sync_folder, sync_path, write_new
from interp_embed.core.threads import ProcessPool
from interp_embed.errors import DiskFullError
from interp_embed.store.storage.base import AT_ONCE, BLOCK, TEMPORARY, Sink, Storage, unless_missing

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    import numpy as np
    from numpy.typing import NDArray
    from zarr.abc.store import Store

__all__ = ["LocalStorage"]

T = TypeVar("T")

_NO_ROOM = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
_ATTEMPTS = 3


class _FileSink(Sink):
    """A file that no reader sees before it is closed."""

    def __init__(self, root: Path, key: str) -> None:
        self._root, self._key, self._size = root, key, 0
        with _room(root, key, 0):
            (root / key).parent.mkdir(parents=True, exist_ok=True)
            self._file = (root / key).open("wb", buffering=0)

    @override
    def write(self, piece: bytes) -> None:
        self._size += len(piece)
        view = memoryview(piece)
        with _room(self._root, self._key, self._size):
            while view:
                view = view[self._file.write(view) :]

    @override
    def close(self) -> None:
        with _room(self._root, self._key, self._size):  # some file systems say only now
            self._file.close()

    @override
    def abandon(self) -> None:
        self._file.close()


class LocalStorage(Storage):
    """A folder of this machine's file system."""

    def __init__(self, root: str | os.PathLike[str]) -> None:
        self.root = Path(root).expanduser().absolute()
        self.url = str(self.root)
        self._kept: set[Path] = set()  # folders whose names are known to be durable

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
    def get_range_into(self, key: str, start: int, out: NDArray[np.uint8]) -> int:
        descriptor = os.open(self._path(key), os.O_RDONLY)
        try:
            filled = 0
            room: Any = out
            while filled < len(out):
                more = os.preadv(descriptor, [room[filled:]], start + filled)
                if more == 0:
                    break
                filled += more
            return filled
        finally:
            os.close(descriptor)

    @override
    def size(self, key: str) -> int:
        return self._path(key).stat().st_size

    def _write_aside(self, key: str, data: bytes) -> Path:
        """Write and sync ``data`` to a file next to ``key`` that no reader looks at."""
        path = self._path(key)
        aside = path.parent / f"{TEMPORARY}{uuid.uuid4().hex}"
        with _room(self.root, key, len(data)):
            if path.parent not in self._kept or not path.parent.exists():
                make_folder(path.parent, since=self.root)
                self._kept.add(path.parent)
            with write_new(aside) as file:
                file.write(data)
        return aside

    def _place(self, key: str, data: bytes, place: Callable[[Path, Path], T]) -> T:
        """Write ``data`` aside and give it its name, durably; return what ``place`` does."""
        path = self._path(key)
        for left in reversed(range(_ATTEMPTS)):
            aside = self._write_aside(key, data)
            try:
                with _room(self.root, key, len(data)):
                    placed = place(aside, path)
                break
            except FileNotFoundError:
                # Another process cleared away what it took for left over.
                if not left:
                    raise
            finally:
                aside.unlink(missing_ok=True)
        sync_folder(path.parent)
        return placed

    @override
    def put(self, key: str, data: bytes) -> None:
        self._place(key, data, Path.replace)

    @override
    def put_new(self, key: str, data: bytes) -> None:
        sink = self.create(key)
        try:
            sink.write(data)
        finally:
            sink.close()

    @override
    def create(self, key: str) -> Sink:
        return _FileSink(self.root, key)

    def link(self, source: Path, key: str) -> bool:
        """Make ``key`` another name of a file that nobody changes; False where that cannot be done."""
        path = self._path(key)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)
        try:
            os.link(source, path)
        except OSError:  # another disk, or a file system without hard links
            return False
        return True

    @override
    def blocks(self, key: str) -> Iterator[bytes]:
        with self._path(key).open("rb", buffering=0) as file:
            while block := file.read(BLOCK):
                yield block

    @override
    def put_if_absent(self, key: str, data: bytes) -> bool:
        return self._place(key, data, _link)

    @override
    def list(self, prefix: str = "") -> Iterator[tuple[str, int]]:
        for folder, _, names in os.walk(self._path(prefix), onerror=unless_missing):
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
        self.delete_several([key])

    @override
    def delete_several(self, keys: Iterable[str]) -> None:
        folders: dict[Path, None] = {}
        for path in map(self._path, keys):
            with contextlib.suppress(FileNotFoundError):
                path.unlink()
                folders[path.parent] = None
        for folder in folders:
            with contextlib.suppress(FileNotFoundError):  # deleted by another process meanwhile
                sync_folder(folder)

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
        _all_at_once(self._sync_file, files)
        _all_at_once(sync_folder, folders)

    @override
    def sync_names(self, folders: Iterable[str]) -> None:
        for folder in folders:
            # Nothing there yet; or a folder that may be used and not listed.
            with contextlib.suppress(FileNotFoundError, PermissionError):
                sync_folder(self._path(folder))

    def _sync_file(self, path: Path) -> None:
        # Some file systems say only now that there is no room.
        with _room(self.root, path.relative_to(self.root).as_posix(), path.stat().st_size):
            sync_path(path)

    @override
    def zarr_store(self, *, read_only: bool = True) -> Store:
        from zarr.storage import LocalStore

        return LocalStore(self.root, read_only=read_only)


@contextlib.contextmanager
def _room(root: Path, key: str, size: int) -> Iterator[None]:
    """Raise `DiskFullError` if there is no room for ``size`` bytes of ``key``."""
    try:
        yield
    except OSError as error:
        if error.errno not in _NO_ROOM:
            raise
        message = (
            f"{error.strerror}: {size:,} bytes of {key} could not be written to the store at {root}, "
            f"where {_free(root)}. What was committed before is safe. Free some space, and make the "
            "same call again to continue"
        )
        raise DiskFullError(error.errno, message) from error


def _free(root: Path) -> str:
    try:
        return f"{shutil.disk_usage(root).free:,} bytes are free"
    except OSError:
        return "nothing is free"


# Starting threads takes longer than a small commit.
_sync_pool = ProcessPool(AT_ONCE, "interp-embed-sync")


def _all_at_once(run: Callable[[Path], None], paths: Iterable[Path]) -> None:
    """Run it for all paths; nothing is under way any more when this returns or raises."""
    every = [*paths]

    def some(first: int) -> None:
        for path in every[first::AT_ONCE]:
            run(path)

    running = [_sync_pool().submit(some, first) for first in range(min(AT_ONCE, len(every)))]
    try:
        for future in running:
            future.result()
    finally:
        wait([future for future in running if not future.cancel()])


def _link(aside: Path, path: Path) -> bool:
    """Give a file its name unless that exists; return whether it has it.

    A hard link appears with its whole content, or fails: the one call on a local file system that is
    both atomic and exclusive.
    """
    try:
        os.link(aside, path)
    except FileExistsError:
        # NFS repeats a call whose answer was lost, and then finds the name that it made itself.
        return aside.stat().st_nlink > 1
    except OSError as error:
        if error.errno in {*_NO_ROOM, errno.ENOENT}:
            raise
        raise OSError(
            error.errno,
            f"cannot create {path} exclusively: {error.strerror}. Writing a store safely needs a file "
            "system with hard links; write to another disk and copy the finished store",
        ) from error
    return True
