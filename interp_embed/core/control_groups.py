"""Limits of Linux control groups for this process: memory and processors.

A container, a SLURM job and a systemd unit bound their processes by control groups, and any group
above a process's own may have the tightest limit. psutil sees none of them. dask and distributed
look at one folder each: neither sees the limit of a group further up, such as that of a SLURM job
above its tasks, nor how much of it is in use, and dask 2026.8 misses version 1 where its controllers
are mounted apart (``/sys/fs/cgroup/cpu``).
"""

from __future__ import annotations

import math
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["cpu_limit", "memory_left"]

_ROOT = Path("/")
_MEMORY = (
    # limit, use, and the part of the use that is given up before anything fails
    ("memory.max", "memory.current", "inactive_file"),
    ("memory.high", "memory.current", "inactive_file"),
    ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
)


def memory_left(root: Path = _ROOT) -> float:
    """Return how many more bytes every group of this process allows; infinity without a limit.

    Parameters
    ----------
    root
        Where ``proc`` and the mounted groups are.
    """
    left = math.inf
    for folder in _groups("memory", root):
        for limit_name, used_name, reclaimable in _MEMORY:
            limit, used = _numbers(folder / limit_name), _numbers(folder / used_name)
            if limit and used:
                held = used[0] - _statistics(folder / "memory.stat").get(reclaimable, 0)
                left = min(left, limit[0] - max(held, 0))
    return max(left, 0)


def cpu_limit(root: Path = _ROOT) -> float:
    """Return how many processors every group of this process allows; infinity without a limit.

    Parameters
    ----------
    root
        Where ``proc`` and the mounted groups are.
    """
    limit = math.inf
    for folder in _groups("cpu", root):
        for found in (
            _numbers(folder / "cpu.max"),
            _numbers(folder / "cpu.cfs_quota_us") + _numbers(folder / "cpu.cfs_period_us"),
        ):
            if len(found) == 2 and found[0] > 0:  # -1 is no limit
                limit = min(limit, found[0] / found[1])
    return limit


def _groups(controller: str, root: Path) -> Iterator[Path]:
    """Yield the folder of each group that bounds this process, its own first.

    Both versions may be mounted side by side, and the controller is in one of them. A container sees
    its hierarchy from its own group down.
    """
    try:
        groups = (root / "proc/self/cgroup").read_text().splitlines()
        mounts = (root / "proc/self/mountinfo").read_text().splitlines()
    except OSError:  # no Linux
        return
    paths: dict[str, str] = {}
    for line in groups:
        _, controllers, path = line.split(":", 2)
        paths.update(dict.fromkeys(controllers.split(","), path))
    for line in mounts:
        mount, _, source = line.partition(" - ")
        kind, _, options = source.split(" ", 2)
        if kind == "cgroup2":
            name = ""  # version 2 names no controller
        elif kind == "cgroup" and controller in options.split(","):
            name = controller
        else:
            continue
        top, point = mount.split(" ")[3:5]
        parts = _below(paths.get(name, top), top)
        for depth in range(len(parts), -1, -1):
            yield root.joinpath(point.lstrip("/"), *parts[:depth])


def _below(path: str, top: str) -> tuple[str, ...]:
    """Return the names on the way from a mounted group down to another; none if it is not below."""
    try:
        parts = PurePosixPath(path).relative_to(top).parts
    except ValueError:
        return ()
    return () if ".." in parts else parts


def _numbers(file: Path) -> list[int]:
    """Return the numbers in a file; none if there is no such file or it says "max"."""
    try:
        return [int(word) for word in file.read_text().split()]
    except (OSError, ValueError):
        return []


def _statistics(file: Path) -> dict[str, int]:
    try:
        lines = file.read_text().splitlines()
    except OSError:
        return {}
    return {name: int(value) for name, _, value in (line.partition(" ") for line in lines)}
