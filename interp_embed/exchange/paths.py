"""Paths and URLs as callers give them."""

from __future__ import annotations

import os

__all__ = ["expanded"]


def expanded(path: str | os.PathLike[str]) -> str:
    """Return a path or URL as a string, with ``~`` replaced by the user's home folder.

    Raises
    ------
    TypeError
        If ``path`` is neither a path nor a URL.
    """
    if not isinstance(path, (str, os.PathLike)):
        raise TypeError(f"file_path must be a path or a URL, got {path!r}")
    text = os.fspath(path)
    return text if "://" in text else os.path.expanduser(text)  # noqa: PTH111  (keeps "" as it is)
