"""Available memory, and refusing results that would not fit before any work is done."""

from __future__ import annotations

import math
import os
import resource
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING

import psutil

from interp_embed.core.control_groups import memory_left
from interp_embed.errors import ResultTooLargeError

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["available_memory", "format_bytes", "memory_budget", "parse_size", "require_memory"]

_SHARE = 0.8
_VARIABLE = "INTERP_EMBED_MEMORY"

_budget: ContextVar[int | None] = ContextVar("budget", default=None)


def parse_size(size: float | str, name: str = "memory") -> int:
    """Return a number of bytes, as dask reads it: ``"8G"`` is 8e9 and ``"8GiB"`` 8 * 2**30.

    Raises
    ------
    ValueError
        If it is not a size.
    """
    from dask.utils import parse_bytes

    try:
        # dask takes no digit for a 1, and truth values for numbers.
        known = not isinstance(size, bool) and any(c.isdigit() for c in str(size))
        found = parse_bytes(str(size)) if known else 0
    except (ValueError, OverflowError):  # no size, or an infinite one
        found = 0
    if found < 1:
        raise ValueError(
            f"{name} must be a size such as 8G (8e9 bytes) or 8GiB, or a number of bytes, got {size!r}"
        )
    return found


@contextmanager
def memory_budget(size: int | str | None) -> Iterator[None]:
    """Let the calls inside use this much memory; None leaves the limit unchanged."""
    if size is None:
        yield
        return
    token = _budget.set(parse_size(size))
    try:
        yield
    finally:
        _budget.reset(token)


def available_memory() -> int:
    """Return how many bytes an operation may use.

    This is the value of `memory_budget`; or else of ``INTERP_EMBED_MEMORY`` (bytes, or with a unit as
    in ``8G``); or else 80 % of the machine's free memory or, if that is less, of what the control
    groups of the process and its limit of address space allow.

    Raises
    ------
    ValueError
        If the environment variable is not a size.
    """
    if (budget := _budget.get()) is not None:
        return budget
    if given := os.environ.get(_VARIABLE):
        return parse_size(given, _VARIABLE)
    return int(_SHARE * min(psutil.virtual_memory().available, memory_left(), _address_space()))


def _address_space() -> float:
    """Return how much more memory this process may map under ``ulimit -v``, which batch systems set."""
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    if limit == resource.RLIM_INFINITY:
        return math.inf
    return max(0.0, limit - float(psutil.Process().memory_info().vms))


def format_bytes(size: float) -> str:
    """Return a size for people: ``format_bytes(3e9) == "2.8 GiB"``."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(size) < 1024:
            return f"{size:.0f} B" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} TiB"


def require_memory(needed: int, what: str, instead: str) -> None:
    """Refuse a result that does not fit.

    Raises
    ------
    ResultTooLargeError
        With the size, the limit, and an alternative.
    """
    limit = available_memory()
    if needed > limit:
        raise ResultTooLargeError(
            f"{what} would take {format_bytes(needed)}, but only {format_bytes(limit)} may be used "
            f"(memory= or {_VARIABLE} sets the limit). {instead}"
        )
