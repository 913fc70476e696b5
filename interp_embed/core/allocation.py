"""Keeping what a process holds near what it uses.

An allocator keeps what is freed for the next request, and where sizes vary from block to block it
keeps more and more: what a process holds then grows with the length of a pass, though what it uses
does not. Asking for few different sizes, and asking it now and then to let go, bounds that.
"""

from __future__ import annotations

import ctypes
import sys
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import DTypeLike, NDArray

__all__ = ["release_freed_memory", "roomy_array"]

_ROOM = 2**20


def roomy_array(length: int, dtype: DTypeLike) -> NDArray[Any]:
    """Return a new array, whatever is in it, in memory of one of few sizes.

    For large arrays that follow each other in a pass: one takes the place of another. What it has
    more room than ``length`` for is never touched, and so takes no memory.
    """
    return np.empty(-(-length // _ROOM) * _ROOM, dtype)[:length]


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
