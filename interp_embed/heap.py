"""Giving memory that was freed back to the system.

An allocator keeps what is freed for the next request, and where sizes vary from block to block it
keeps more and more: what a process holds then grows with the length of a pass, though what it uses
does not. Asking it now and then to let go bounds that.
"""

from __future__ import annotations

import ctypes
import sys
from functools import cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["release_freed_memory"]


@cache
def _trim() -> Callable[[int], int] | None:
    """Return ``malloc_trim`` of the GNU C library, or None on other systems."""
    if not sys.platform.startswith("linux"):
        return None
    try:
        return ctypes.CDLL(None).malloc_trim
    except (OSError, AttributeError):  # another C library, such as musl
        return None


def release_freed_memory() -> None:
    """Let the C library give what was freed back to the system, where it can.

    That takes milliseconds, and what is given back has to be taken again page by page: for once in
    some hundred megabytes.
    """
    if (trim := _trim()) is not None:
        trim(0)
