"""Recording the changes to the files below a folder, in order, whichever call makes them.

The calls of `os` and `open` are replaced while a `FileRecorder` is active, in this process and all of
its threads. Writes by other means (compiled code, another process) are not seen when they happen.
Therefore the recorder replays its record at the end, compares it with the folder byte by byte, and
raises if they differ.
"""

from __future__ import annotations

import builtins
import contextlib
import io
import os
import threading
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Literal, Self

from typing_extensions import override

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from types import TracebackType

__all__ = ["FileOperation", "FileRecord", "FileRecorder", "TreeState"]

Kind = Literal[
    "create", "mkdir", "link", "rename", "unlink", "rmdir", "write", "truncate", "sync", "mark"
]
Change = tuple[int, str, int | None]
"""A name in a folder, and the file or folder that it is of from now on; None if it is no name any more."""

ROOT = 0
"""The number of the folder that is recorded."""
_WRITING = os.O_WRONLY | os.O_RDWR
_REREAD = ("write", "pwrite", "writev", "pwritev", "ftruncate", "truncate", "sendfile")
"""Calls of `os` that write to a file that is their first argument."""


@dataclass(frozen=True, slots=True)
class FileOperation:
    """One recorded operation.

    Attributes
    ----------
    kind : str
        The kind of operation. ``"sync"`` is the fsync of a file or of a folder.
    path : str
        Path of the file or folder at that time, relative to the root; ``""`` is the root.
    node : int
        The number of that file or folder, which it keeps when it gets another name.
    target : str
        The new name of ``"link"`` and ``"rename"``.
    changes : tuple of (int, str, int or None)
        The names that are different now: a folder's number, the name, and what it is of.
    offset : int
        Where data was written, or the size to which a file was truncated.
    data : bytes
        The written bytes.
    mark : object
        The argument of `FileRecorder.mark`.
    """

    kind: Kind
    path: str = ""
    node: int = -1
    target: str = ""
    changes: tuple[Change, ...] = ()
    offset: int = 0
    data: bytes = b""
    mark: Any = None

    @override
    def __str__(self) -> str:
        size = f" {len(self.data)} bytes at {self.offset}" if self.kind == "write" else ""
        onto = f" to {self.target}" if self.target else ""
        said = f" {self.mark!r}" if self.kind == "mark" else ""
        return f"{self.kind} {self.path or '.'}{onto}{size}{said}"


@dataclass(slots=True)
class TreeState:
    """Files and folders by number, and their names.

    Attributes
    ----------
    names : dict of (int, str) to int
        The file or folder of each name in a folder.
    contents : dict of int to bytes
        The content of each file.
    folders : set of int
        The numbers that are folders.
    """

    names: dict[tuple[int, str], int] = field(default_factory=dict)
    contents: dict[int, bytes] = field(default_factory=dict)
    folders: set[int] = field(default_factory=lambda: {ROOT})

    @classmethod
    def of(cls, root: Path) -> tuple[TreeState, dict[tuple[int, int], int]]:
        """Read a folder; return its state, and the numbers by device and inode."""
        state, numbers = cls(), {_identity(root.stat()): ROOT}
        pending = [(ROOT, root)]
        while pending:
            number, folder = pending.pop()
            for entry in sorted(os.scandir(folder), key=lambda e: e.name):
                if entry.is_symlink():
                    raise ValueError(f"{entry.path} is a symbolic link, which cannot be recorded")
                known = numbers.setdefault(_identity(entry.stat()), len(numbers))
                state.names[number, entry.name] = known
                if entry.is_dir():
                    state.folders.add(known)
                    pending.append((known, Path(entry.path)))
                elif known not in state.contents:
                    state.contents[known] = Path(entry.path).read_bytes()
        return state, numbers

    def copy(self) -> TreeState:
        """Return a state that changes by itself."""
        return TreeState(dict(self.names), dict(self.contents), set(self.folders))

    def apply(self, operation: FileOperation) -> None:
        """Apply an operation."""
        if operation.kind == "mkdir":
            self.folders.add(operation.node)
        elif operation.kind == "create":
            self.contents[operation.node] = b""
        elif operation.kind in ("write", "truncate"):
            self.contents[operation.node] = _written(self.contents[operation.node], operation)
        rename(self.names, operation.changes)

    def write_to(self, path: Path) -> None:
        """Write the files and folders into ``path``, which is created."""
        write_tree(path, *self.tree())

    def tree(
        self, contents: Mapping[int, bytes] | None = None
    ) -> tuple[dict[str, bytes], set[str]]:
        """Return all files that have a name, by path, and the paths of the folders.

        Parameters
        ----------
        contents
            Content of some files, instead of that in `contents`.
        """
        below: dict[int, list[tuple[str, int]]] = {}
        for (folder, name), number in self.names.items():
            below.setdefault(folder, []).append((name, number))
        files: dict[str, bytes] = {}
        folders: set[str] = set()
        pending = [(ROOT, "")]
        while pending:
            at, prefix = pending.pop()
            for name, number in below.get(at, ()):
                if number in self.folders:
                    folders.add(prefix + name)
                    pending.append((number, f"{prefix}{name}/"))
                else:
                    held = None if contents is None else contents.get(number)
                    files[prefix + name] = self.contents[number] if held is None else held
        return files, folders


def write_tree(path: Path, files: Mapping[str, bytes], folders: Iterable[str]) -> None:
    """Write files and folders into a new folder."""
    path.mkdir()
    for folder in sorted(folders):
        Path(f"{path}/{folder}").mkdir()
    for name, data in files.items():
        Path(f"{path}/{name}").write_bytes(data)


def _by_path(state: TreeState) -> dict[str, int]:
    """Return the number of each file and folder by its paths."""
    found = {"": ROOT}
    pending = [""]
    while pending:
        at = pending.pop()
        for (folder, name), number in state.names.items():
            if folder == found[at]:
                path = f"{at}/{name}"
                found[path] = number
                if number in state.folders:
                    pending.append(path)
    return found


def rename(names: dict[tuple[int, str], int], changes: tuple[Change, ...]) -> None:
    """Make names be of other files or folders."""
    for folder, name, number in changes:
        if number is None:
            names.pop((folder, name), None)
        else:
            names[folder, name] = number


def _written(content: bytes, operation: FileOperation) -> bytes:
    begin = content[: operation.offset].ljust(operation.offset, b"\0")
    if operation.kind == "truncate":
        return begin
    return begin + operation.data + content[operation.offset + len(operation.data) :]


@dataclass(frozen=True, slots=True)
class FileRecord:
    """The changes to a folder.

    Attributes
    ----------
    before : TreeState
        The state at the beginning.
    operations : list of FileOperation
        The operations, in order.
    """

    before: TreeState
    operations: list[FileOperation] = field(default_factory=list)

    def followed_by(self, later: FileRecord) -> FileRecord:
        """Return what was done in this record and then, in a folder of the same files, in another one.

        So what a process did that was killed, and what the next one made of it, are one record: a kill
        loses nothing, but it syncs nothing either.
        """
        numbers = _by_path(self.replayed())
        known = {number: numbers[path] for path, number in _by_path(later.before).items()}
        offset = 1 + max(self.replayed().names.values(), default=ROOT)

        def moved(number: int) -> int:
            return known.get(number, number + offset)

        moves = [
            replace(
                operation,
                node=moved(operation.node),
                changes=tuple(
                    (moved(folder), name, None if number is None else moved(number))
                    for folder, name, number in operation.changes
                ),
            )
            for operation in later.operations
        ]
        return FileRecord(self.before, [*self.operations, *moves])

    def replayed(self) -> TreeState:
        """Return the state after all operations."""
        state = self.before.copy()
        for operation in self.operations:
            state.apply(operation)
        return state


class FileRecorder:
    """Records the changes to the files below a folder, while it is active as a context manager.

    Parameters
    ----------
    root
        The folder. It stays where it is; nothing is moved into it or out of it, and there are no
        symbolic links below it.

    Attributes
    ----------
    record : FileRecord
        The changes so far.

    Raises
    ------
    AssertionError
        At the end, if the folder differs from the record: something wrote past the recorder.

    Examples
    --------
    >>> with FileRecorder(folder) as recorder:
    ...     (folder / "a").write_bytes(b"1")
    >>> [str(operation) for operation in recorder.record.operations]
    ['create a', 'write a 1 bytes at 0']
    """

    def __init__(self, root: str | os.PathLike[str]) -> None:
        self.root = Path(root).resolve()
        self._lock = threading.RLock()
        self._patched: list[tuple[Any, str, Any]] = []

    def mark(self, value: Any) -> None:
        """Record that something was reported as done, so that no crash may undo it from here on."""
        with self._lock:
            self._add(FileOperation("mark", mark=value))

    def __enter__(self) -> Self:
        before, self._numbers = TreeState.of(self.root)
        self._next = 1 + max(self._numbers.values())
        self._now = before.copy()
        self._found: dict[int, tuple[int, str]] = {}  # one of the names of each
        self.record = FileRecord(before)
        self._real_open = builtins.open
        for module, name, replacement in self._replacements():
            real = getattr(module, name, None)
            if real is not None:
                self._patched.append((module, name, real))
                setattr(module, name, replacement(real))
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        while self._patched:
            module, name, real = self._patched.pop()
            setattr(module, name, real)
        if kind is None:
            found, recorded = TreeState.of(self.root)[0].tree(), self.record.replayed().tree()
            odd = sorted(
                p for p in {*found[0], *recorded[0]} if found[0].get(p) != recorded[0].get(p)
            )
            odd += sorted(found[1] ^ recorded[1])
            assert not odd, f"written past the recorder: {', '.join(odd[:9])}"

    # What is replaced

    def _replacements(self) -> list[tuple[Any, str, Callable[[Any], Any]]]:
        found: list[tuple[Any, str, Callable[[Any], Any]]] = [
            (builtins, "open", lambda real: self._open),
            (io, "open", lambda real: self._open),
            (os, "open", self._os_open),
            (os, "fsync", self._sync),
            (os, "fdatasync", self._sync),
            (os, "mkdir", self._mkdir),
            (os, "rmdir", lambda real: self._removing("rmdir", real)),
            (os, "unlink", lambda real: self._removing("unlink", real)),
            (os, "remove", lambda real: self._removing("unlink", real)),
            (os, "rename", self._renaming),
            (os, "replace", self._renaming),
            (os, "link", self._link),
            (os, "copy_file_range", lambda real: self._rereading(real, place=1)),
        ]
        return found + [(os, name, self._rereading) for name in _REREAD]

    def _open(
        self,
        file: Any,
        mode: str = "r",
        buffering: int = -1,
        encoding: str | None = None,
        errors: str | None = None,
        newline: str | None = None,
        closefd: bool = True,
        opener: Any = None,
    ) -> IO[Any]:
        if not set(mode) & set("wax+") or not self._is_ours(file):
            return self._real_open(
                file, mode, buffering, encoding, errors, newline, closefd, opener
            )
        with self._lock:
            raw = _RecordedFile(self, file, mode, closefd, opener)
        if buffering == 0:
            return raw
        size = io.DEFAULT_BUFFER_SIZE if buffering < 2 else buffering
        updating = "+" in mode
        buffer: Any = io.BufferedRandom(raw, size) if updating else io.BufferedWriter(raw, size)
        if "b" in mode:
            return buffer  # type: ignore[no-any-return]
        text = io.TextIOWrapper(buffer, encoding, errors, newline, buffering == 1)
        text.mode = mode  # type: ignore[misc]
        return text

    def _os_open(self, real: Any) -> Any:
        def call(path: Any, flags: int, mode: int = 0o777, *, dir_fd: int | None = None) -> int:
            where = self._where(path, dir_fd)
            if where is None or not flags & (_WRITING | os.O_CREAT | os.O_TRUNC):
                return int(real(path, flags, mode, dir_fd=dir_fd))
            with self._lock:
                descriptor = int(real(path, flags, mode, dir_fd=dir_fd))
                self.opened(descriptor, where, truncated=bool(flags & os.O_TRUNC))
            return descriptor

        return call

    def _sync(self, real: Any) -> Any:
        def call(descriptor: Any) -> None:
            with self._lock:
                real(descriptor)
                number = self._number(descriptor)
                if number is not None:
                    self._add(FileOperation("sync", self._path(number), number))

        return call

    def _mkdir(self, real: Any) -> Any:
        def call(path: Any, mode: int = 0o777, *, dir_fd: int | None = None) -> None:
            where = self._where(path, dir_fd)
            with self._lock:
                real(path, mode, dir_fd=dir_fd)
                if where is not None:
                    number = self._new((self.root / where).stat())
                    changes = ((*self._place(where), number),)
                    self._add(FileOperation("mkdir", where, number, changes=changes))

        return call

    def _removing(self, kind: Literal["unlink", "rmdir"], real: Any) -> Any:
        def call(path: Any, *, dir_fd: int | None = None) -> None:
            where = self._where(path, dir_fd)
            with self._lock:
                real(path, dir_fd=dir_fd)
                if where is not None:
                    place = self._place(where)
                    number = self._now.names[place]
                    self._add(FileOperation(kind, where, number, changes=((*place, None),)))

        return call

    def _renaming(self, real: Any) -> Any:
        def call(
            src: Any, dst: Any, *, src_dir_fd: int | None = None, dst_dir_fd: int | None = None
        ) -> None:
            a, b = self._where(src, src_dir_fd), self._where(dst, dst_dir_fd)
            self._require_one_side(a, b)
            with self._lock:
                real(src, dst, src_dir_fd=src_dir_fd, dst_dir_fd=dst_dir_fd)
                if a is not None and b is not None:
                    old, new = self._place(a), self._place(b)
                    number = self._now.names[old]
                    if self._now.names.get(new) == number:  # two names of one file: nothing happens
                        return
                    changes = ((*old, None), (*new, number))
                    self._add(FileOperation("rename", a, number, b, changes))

        return call

    def _link(self, real: Any) -> Any:
        def call(src: Any, dst: Any, **options: Any) -> None:
            a = self._where(src, options.get("src_dir_fd"))
            b = self._where(dst, options.get("dst_dir_fd"))
            self._require_one_side(a, b)
            with self._lock:
                real(src, dst, **options)
                if a is not None and b is not None:
                    number = self._now.names[self._place(a)]
                    changes = ((*self._place(b), number),)
                    self._add(FileOperation("link", a, number, b, changes))

        return call

    def _rereading(self, real: Any, place: int = 0) -> Any:
        """Record what a call changed in a file by reading the file again."""

        def call(*arguments: Any, **options: Any) -> Any:
            with self._lock:
                result = real(*arguments, **options)
                number = self._number(arguments[place] if len(arguments) > place else -1)
                if number is not None:
                    self._reread(number)
            return result

        return call

    # What is recorded

    def opened(self, descriptor: int, where: str, *, truncated: bool) -> int:
        """Record that a file was opened for writing; return its number."""
        place = self._place(where)
        number = self._now.names.get(place)
        if number is None:
            number = self._new(os.fstat(descriptor))
            self._add(FileOperation("create", where, number, changes=((*place, number),)))
        elif truncated and self._now.contents[number]:
            self._add(FileOperation("truncate", where, number))
        return number

    def wrote(self, number: int, offset: int, data: bytes) -> None:
        """Record that a file's content changed from ``offset`` on."""
        self._add(FileOperation("write", self._path(number), number, offset=offset, data=data))

    def cut(self, number: int, size: int) -> None:
        """Record that a file has another size."""
        self._add(FileOperation("truncate", self._path(number), number, offset=size))

    @contextlib.contextmanager
    def locked(self) -> Any:
        """Keep other threads from changing files, so that the record is in the order of the changes."""
        with self._lock:
            yield

    def _reread(self, number: int) -> None:
        with self._real_open(self.root / self._path(number), "rb") as file:
            data: bytes = file.read()
        before = self._now.contents[number]
        if len(data) < len(before):
            self.cut(number, len(data))
        if data != before[: len(data)]:
            pairs = zip(data, before, strict=False)
            same = next((i for i, (a, b) in enumerate(pairs) if a != b), len(before))
            self.wrote(number, same, data[same:])

    def _add(self, operation: FileOperation) -> None:
        self.record.operations.append(operation)
        self._now.apply(operation)
        for folder, name, number in operation.changes:
            if number is not None:
                self._found[number] = (folder, name)

    def _new(self, stat: os.stat_result) -> int:
        """Return a number for what was just created; an inode may be that of something deleted."""
        number = self._numbers[_identity(stat)] = self._next
        self._next += 1
        return number

    def _number(self, target: Any) -> int | None:
        """Return the number of what a descriptor, an open file or a path is of; None elsewhere."""
        if not isinstance(target, (int, str, bytes, os.PathLike)):
            target = target.fileno()
        try:
            return self._numbers.get(_identity(os.stat(target)))  # noqa: PTH116 - a descriptor too
        except OSError:
            return None

    def _is_ours(self, file: Any) -> bool:
        return (self._number(file) if isinstance(file, int) else self._where(file)) is not None

    def where(self, file: Any) -> str:
        """Return the path below the folder of what is opened, by its path or its descriptor."""
        if isinstance(file, int):
            number = self._number(file)
            assert number is not None
            return self._path(number)
        found = self._where(file)
        assert found is not None
        return found

    def _where(self, path: Any, dir_fd: int | None = None) -> str | None:
        """Return a path relative to the folder; None elsewhere."""
        if isinstance(path, int):
            number = self._number(path)
            return None if number is None else self._path(number)
        text = Path(os.fsdecode(path))
        if dir_fd is not None and not text.is_absolute():
            number = self._number(dir_fd)
            if number is None:
                return None
            text = self.root / self._path(number) / text
        whole = Path(os.path.realpath(text.parent), text.name)
        if not whole.is_relative_to(self.root):
            return None
        relative = whole.relative_to(self.root).as_posix()
        return "" if relative == "." else relative

    def _place(self, where: str) -> tuple[int, str]:
        """Return the number of the folder that a path is in, and the name there."""
        at = ROOT
        *folders, name = where.split("/")
        for each in folders:
            at = self._now.names[at, each]
        return at, name

    def _path(self, number: int) -> str:
        """Return one of the paths of a file or folder; ``"(deleted)"`` if it has none."""
        parts: list[str] = []
        names = self._now.names
        while number != ROOT:
            found = self._found.get(number)
            if found is None or names.get(found) != number:
                found = next((k for k, v in names.items() if v == number), None)
            if found is None:
                return "(deleted)"
            self._found[number] = found
            number, name = found
            parts.append(name)
        return "/".join(reversed(parts))

    def _require_one_side(self, a: str | None, b: str | None) -> None:
        if (a is None) != (b is None):
            raise ValueError(
                f"nothing may be moved or linked across the border of {self.root} while it is recorded"
            )


class _RecordedFile(io.FileIO):
    """A file without a buffer that tells a recorder what is written."""

    def __init__(
        self, recorder: FileRecorder, file: Any, mode: str, closefd: bool, opener: Any
    ) -> None:
        self._recorder = recorder
        super().__init__(file, mode.replace("b", "").replace("t", ""), closefd, opener)
        where = recorder.where(file)
        self._appending = "a" in mode
        self._known = recorder.opened(self.fileno(), where, truncated="w" in mode)

    @override
    def write(self, data: Any, /) -> int:
        with self._recorder.locked():
            offset = self.seek(0, os.SEEK_END) if self._appending else self.tell()
            written = super().write(data)
            piece = bytes(memoryview(data).cast("B")[:written])
            self._recorder.wrote(self._known, offset, piece)
        return written

    @override
    def truncate(self, size: int | None = None, /) -> int:
        with self._recorder.locked():
            length = super().truncate(size)
            self._recorder.cut(self._known, length)
        return length


def _identity(stat: os.stat_result) -> tuple[int, int]:
    return stat.st_dev, stat.st_ino
