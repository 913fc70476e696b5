"""How much memory there is, and refusing what would not fit before any work is done."""

from __future__ import annotations

import os
import re
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import TYPE_CHECKING

from interp_embed.errors import ResultTooLargeError

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["available_memory", "format_bytes", "memory_budget", "parse_size", "require_memory"]

_SHARE = 0.8
_VARIABLE = "INTERP_EMBED_MEMORY"
_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


_budget: ContextVar[int | None] = ContextVar("budget", default=None)


def parse_size(size: int | str, name: str = "memory") -> int:
    """Return a number of bytes: ``parse_size("8G") == 8 * 2**30``.

    Raises
    ------
    ValueError
        If it is not a size.
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]?)(?:i?B)?\s*", str(size), re.IGNORECASE)
    if not match or isinstance(size, bool) or _bytes(match) < 1:
        raise ValueError(f"{name} must be a size such as 8G or a number of bytes, got {size!r}")
    return _bytes(match)


def _bytes(match: re.Match[str]) -> int:
    return int(float(match[1]) * _UNITS[match[2].upper()])


@contextmanager
def memory_budget(size: int | str | None) -> Iterator[None]:
    """Let what is called inside use this much memory; None leaves things as they are."""
    if size is None:
        yield
        return
    token = _budget.set(parse_size(size))
    try:
        yield
    finally:
        _budget.reset(token)


def available_memory() -> int:
    """Return how many bytes an operation may take.

    What `memory_budget` says; or ``INTERP_EMBED_MEMORY`` (bytes, or with a unit as in ``8G``); or
    80 % of what the machine has free or, if that is less, of what the control group still allows.

    Raises
    ------
    ValueError
        If the variable is not a size.
    """
    if (budget := _budget.get()) is not None:
        return budget
    if given := os.environ.get(_VARIABLE):
        return parse_size(given, _VARIABLE)
    return int(_SHARE * min(_machine(), _control_group()))


def _machine() -> float:
    try:
        text = Path("/proc/meminfo").read_text()
    except OSError:
        text = ""
    if found := re.search(r"MemAvailable:\s+(\d+)", text):
        return 1024.0 * int(found[1])
    try:  # no figure for what is free: half of what there is
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2
    except (AttributeError, ValueError, OSError):
        return 4.0 * 2**30


def _control_group() -> float:
    for limit, used in (
        ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
        (
            "/sys/fs/cgroup/memory/memory.limit_in_bytes",
            "/sys/fs/cgroup/memory/memory.usage_in_bytes",
        ),
    ):
        try:
            return float(int(Path(limit).read_text()) - int(Path(used).read_text()))
        except (OSError, ValueError):  # no such control group, or "max"
            continue
    return float("inf")


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
        With the size, the limit, and what to do instead.
    """
    limit = available_memory()
    if needed > limit:
        raise ResultTooLargeError(
            f"{what} would take {format_bytes(needed)}, and {format_bytes(limit)} may be used "
            f"(memory= or {_VARIABLE} sets the limit). {instead}"
        )
