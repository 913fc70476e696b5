"""A folder that is deleted with its last user."""

from __future__ import annotations

import os
import shutil
import tempfile
import weakref

__all__ = ["TemporaryFolder"]


class TemporaryFolder:
    """A folder that is deleted with the last reference to it, and at the latest when the process ends.

    Attributes
    ----------
    path : str
    """

    def __init__(self) -> None:
        self.path = tempfile.mkdtemp(prefix="interp-embed-")
        weakref.finalize(self, _remove, self.path, os.getpid())


def _remove(path: str, owner: int) -> None:
    if os.getpid() == owner:  # a forked child ends before its parent does
        shutil.rmtree(path, ignore_errors=True)
