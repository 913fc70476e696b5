"""Files and names that survive a power cut.

The content of a file is on the disk once the file is synced, and its name once its folder is synced.
`replacing` and `write_new` do the first, `sync_folder` and `make_folder` the second.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import uuid
from pathlib import Path
from typing import IO, TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["make_folder", "replacing", "sync_folder", "sync_path", "sync_tree", "write_new"]


def sync_path(path: str | os.PathLike[str]) -> None:
    """Make the content of a file, or the names in a folder, durable."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_folder(folder: str | os.PathLike[str]) -> None:
    """Make the names in a folder durable."""
    sync_path(folder)


def sync_tree(folder: Path) -> None:
    """Make everything in a folder durable, except the folder's own name."""
    for at, _, names in os.walk(folder):
        for name in names:
            sync_path(Path(at, name))
        sync_folder(at)


def make_folder(folder: Path, since: Path | None = None) -> None:
    """Create a folder and its missing parents, and make the new names durable.

    Parameters
    ----------
    folder
        The folder.
    since
        The folder itself or a folder above it. The names from there on are made durable even if they
        are not new, because a process that made them may have been killed before.
    """
    every = [folder, *folder.parents]
    made = list(itertools.takewhile(lambda f: not f.exists(), every))
    folder.mkdir(parents=True, exist_ok=True)
    for each in made:
        sync_folder(each.parent)
    if since is not None:
        for each in every[len(made) : every.index(since) + 1]:
            with contextlib.suppress(PermissionError):  # above a store, others may have folders
                sync_folder(each.parent)


@contextlib.contextmanager
def write_new(path: Path) -> Iterator[IO[bytes]]:
    """Open a new file for writing. Its content is durable in the end; its name need not be.

    An error leaves no file behind.

    Raises
    ------
    FileExistsError
        If there is a file with that name.
    """
    file = path.open("xb")
    try:
        with file:
            yield file
            file.flush()
            os.fsync(file.fileno())
    except BaseException:
        path.unlink(missing_ok=True)
        raise


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[IO[bytes]]:
    """Open a file that replaces ``path`` when it is complete and on the disk.

    Its folder is created if needed. At any moment, even after a crash, the path holds the old file or
    the new one. An error leaves the old file.
    """
    make_folder(path.parent)
    aside = path.with_name(f".{path.name}-{uuid.uuid4().hex[:8]}")
    try:
        with write_new(aside) as file:
            yield file
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)
    with contextlib.suppress(PermissionError):  # a folder may be writable and not readable
        sync_folder(path.parent)
