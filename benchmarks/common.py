"""What the benchmarks share: timing, sizes on disk, the page cache, the machine in words."""

from __future__ import annotations

import os
import platform
import shutil
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.sparse import csr_matrix

if TYPE_CHECKING:
    from collections.abc import Callable

    from interp_embed.core.chunk import Chunk


def best(run: Callable[[], Any], repeat: int, before: Callable[[], Any] = lambda: None) -> float:
    """Return the shortest time of a few runs, in seconds."""
    times = []
    for _ in range(repeat):
        before()
        begin = time.perf_counter()
        run()
        times.append(time.perf_counter() - begin)
    return min(times)


def timed(run: Callable[..., Any], *arguments: Any) -> tuple[float, Any]:
    """Return how long a call took, in seconds, and what it returned."""
    begin = time.perf_counter()
    found = run(*arguments)
    return time.perf_counter() - begin, found


def folder_size(path: Path) -> int:
    """Return the bytes of a file, or of all files below a folder."""
    if path.is_file():
        return path.stat().st_size
    return sum(f.stat().st_size for f in path.rglob("*") if f.is_file())


def remove(path: Path) -> None:
    """Delete a file or a folder."""
    if path.is_dir():
        shutil.rmtree(path)
    path.unlink(missing_ok=True)


def drop_from_page_cache(path: Path) -> None:
    """Have the next read of a file, or of all files below a folder, come from the disk."""
    files = [path] if path.is_file() else [f for f in path.rglob("*") if f.is_file()]
    for file in files:
        handle = os.open(file, os.O_RDONLY)
        try:
            os.fdatasync(handle)  # what is not on the disk yet would stay
            os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(handle)


def peak_memory() -> int:
    """Return the most memory that this process has held, in bytes.

    Not ``ru_maxrss``: across fork and exec that starts at what the parent held.
    """
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return 1024 * int(line.split()[1])
    raise OSError("/proc/self/status does not say VmHWM; the benchmark needs Linux")


def machine() -> str:
    """Return the machine in words."""
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30
    return (
        f"{platform.machine()}, {os.cpu_count()} cores, {memory:.0f} GiB, "
        f"Python {platform.python_version()}"
    )


def token_matrix(chunk: Chunk) -> csr_matrix:
    """Return all tokens of a chunk as one matrix, float32, (tokens, d_sae)."""
    return csr_matrix(
        (
            chunk.activation.astype(np.float32, copy=False),
            chunk.feature.astype(np.int32),
            chunk.token_ptr.astype(np.int32),
        ),
        shape=(chunk.n_tokens, chunk.d_sae),
    )
