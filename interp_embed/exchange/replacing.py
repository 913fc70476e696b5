"""Replacing a store with a finished one, so that one of the two always exists."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import re
import shutil
import uuid
from typing import TYPE_CHECKING

from interp_embed.core.files import sync_folder
from interp_embed.errors import NotAStoreError
from interp_embed.store import is_store

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


__all__ = ["clear_leftovers", "locked", "recover", "replace"]

_ATTEMPTS = 8


def replace(root: Path, fresh: Path) -> None:
    """Move ``fresh`` to ``root``. The old content stays beside it until it is cleared away."""
    for attempt in range(_ATTEMPTS):
        retired = root.with_name(f".{root.name}-{uuid.uuid4().hex[:8]}-old")
        if root.exists():
            root.rename(retired)
            sync_folder(root.parent)
        try:
            fresh.rename(root)
        except OSError as error:
            if not root.exists() and retired.exists():
                retired.rename(root)
            # Another process saved here, or put back what was retired.
            taken = error.errno in (errno.ENOTEMPTY, errno.EEXIST)
            if not taken or attempt == _ATTEMPTS - 1:
                raise
        else:
            sync_folder(root.parent)
            return


def _beside(root: Path, suffix: str) -> list[Path]:
    """Return the folders that saves to ``root`` left beside it."""
    pattern = re.compile(rf"\.{re.escape(root.name)}-[0-9a-f]{{8}}{suffix}")
    try:
        return sorted(p for p in root.parent.iterdir() if pattern.fullmatch(p.name) and p.is_dir())
    except OSError:
        return []


def recover(root: Path, *, strict: bool = True) -> None:
    """Restore the store that an interrupted save was about to replace."""
    root = root.resolve()
    if root.exists():
        return
    retired = [path for path in _beside(root, "-old") if is_store(path)]
    if len(retired) == 1:
        # Another process may have put it back, or finished its save; or nothing can be renamed.
        with contextlib.suppress(OSError):
            retired[0].rename(root)
            sync_folder(root.parent)
    elif retired and strict:
        raise NotAStoreError(
            f"there is nothing at {root}, but interrupted saves left "
            f"{', '.join(p.name for p in retired)} beside it. Rename the one you want to {root.name}"
        )


def clear_leftovers(root: Path) -> None:
    """Remove the folders that finished or interrupted saves to ``root`` left beside it."""
    for path in _beside(root, "-old"):
        shutil.rmtree(path, ignore_errors=True)
    for path in _beside(root, ""):
        with contextlib.suppress(OSError), locked(path) as held:
            if held:
                shutil.rmtree(path, ignore_errors=True)


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[bool]:
    """Lock a folder that is being written, if the disk supports locks; yield whether it is locked."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            held = True
        except OSError:
            held = False
        yield held
    finally:
        os.close(descriptor)
