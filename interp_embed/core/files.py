"""Files and names that survive a power cut.

What is written to a file is on the disk once the file was synced, and its name once the folder was
that it is in. `replacing` and `write_new` do the one, `sync_folder` and `make_folder` the other.
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
    """Have the disk keep the content of a file, or the names in a folder."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_folder(folder: str | os.PathLike[str]) -> None:
    """Have the disk keep the names in a folder."""
    sync_path(folder)


def sync_tree(folder: Path) -> None:
    """Have the disk keep everything in a folder, though not the folder's own name."""
    for at, _, names in os.walk(folder):
        for name in names:
            sync_path(Path(at, name))
        sync_folder(at)


def make_folder(folder: Path, since: Path | None = None) -> None:
    """Create a folder and what is missing above it, the new names durable.

    Parameters
    ----------
    folder
        The folder.
    since
        A folder above it, or itself: the names from there on are made durable though they are not new.
        A process may have made them that was killed before they were.
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
    """Open a new file to be written, whose content is durable in the end; its name need not be.

    An error leaves no file.

    Raises
    ------
    FileExistsError
        If there is a file of that name.
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
    """Open a file that takes the place of ``path`` when it is whole and on the disk.

    Its folder is created if need be. At any moment, whatever crashes, the path is of the file that was
    there before or of the new one; an error leaves the one before.
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
