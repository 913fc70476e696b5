"""What bounds the memory and the processors of a process, in containers and batch jobs too."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from typing import TYPE_CHECKING

import dask.system
import psutil
import pytest

from interp_embed.core import memory, threads
from interp_embed.core.control_groups import cpu_limit, memory_left

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

_V2 = "30 24 0:26 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw,nsdelegate"
_GIB = 2**30


def _system(root: Path, groups: str, mounts: str, files: Mapping[str, str]) -> Path:
    process = root / "proc/self"
    process.mkdir(parents=True)
    (process / "cgroup").write_text(groups + "\n")
    (process / "mountinfo").write_text(f"22 1 8:1 / / rw shared:1 - ext4 /dev/sda1 rw\n{mounts}\n")
    for name, text in files.items():
        file = root / "sys/fs/cgroup" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text + "\n")
    return root


def test_the_cache_of_files_in_a_group_is_memory_that_is_left(tmp_path: Path) -> None:
    root = _system(tmp_path, "0::/", _V2, {
        "memory.max": str(8 * _GIB),
        "memory.current": str(7 * _GIB),
        "memory.stat": f"anon {_GIB}\nfile {6 * _GIB}\ninactive_file {5 * _GIB}\nactive_file {_GIB}",
        "cpu.max": "150000 100000",
    })  # fmt: skip
    assert memory_left(root) == 6 * _GIB
    assert cpu_limit(root) == 1.5


def test_a_job_bounds_its_tasks_that_have_no_limit_themselves(tmp_path: Path) -> None:
    job = "system.slice/slurmstepd.scope/job_7"
    root = _system(tmp_path, f"0::/{job}/step_0/task_3", _V2, {
        f"{job}/memory.max": str(4 * _GIB),
        f"{job}/memory.current": str(3 * _GIB),
        f"{job}/cpu.max": "max 100000",
        f"{job}/step_0/memory.max": "max",
        f"{job}/step_0/memory.current": str(2 * _GIB),
        f"{job}/step_0/cpu.max": "300000 100000",
        f"{job}/step_0/task_3/memory.max": "max",
        f"{job}/step_0/task_3/memory.current": str(_GIB),
        f"{job}/step_0/task_3/cpu.max": "max 100000",
    })  # fmt: skip
    assert memory_left(root) == _GIB
    assert cpu_limit(root) == 3


def test_the_tightest_of_several_limits_counts_throttling_among_them(tmp_path: Path) -> None:
    root = _system(tmp_path, "0::/a/b", _V2, {
        "a/memory.max": str(6 * _GIB),
        "a/memory.current": str(_GIB),
        "a/cpu.max": "100000 100000",
        "a/b/memory.max": str(9 * _GIB),
        "a/b/memory.high": str(2 * _GIB),
        "a/b/memory.current": str(_GIB // 2),
        "a/b/cpu.max": "50000 100000",
    })  # fmt: skip
    assert memory_left(root) == 1.5 * _GIB
    assert cpu_limit(root) == 0.5


@pytest.mark.parametrize("controllers", ["cpu", "cpu,cpuacct"])
def test_version_1_is_found_wherever_its_controllers_are_mounted(
    tmp_path: Path, controllers: str
) -> None:
    mounts = "\n".join((
        f"31 24 0:27 / /sys/fs/cgroup/{controllers} rw - cgroup cgroup rw,{controllers}",
        "32 24 0:28 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory",
        "33 24 0:29 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw",
    ))  # fmt: skip
    groups = f"4:memory:/jobs/7\n2:{controllers}:/jobs/7\n0::/"
    root = _system(tmp_path, groups, mounts, {
        f"{controllers}/jobs/7/cpu.cfs_quota_us": "-1",
        f"{controllers}/jobs/7/cpu.cfs_period_us": "100000",
        f"{controllers}/jobs/cpu.cfs_quota_us": "250000",
        f"{controllers}/jobs/cpu.cfs_period_us": "100000",
        "memory/jobs/7/memory.limit_in_bytes": str(5 * _GIB),
        "memory/jobs/7/memory.usage_in_bytes": str(4 * _GIB),
        "memory/jobs/7/memory.stat": f"inactive_file 0\ntotal_inactive_file {3 * _GIB}",
        "memory/memory.limit_in_bytes": "9223372036854771712",
        "memory/memory.usage_in_bytes": str(5 * _GIB),
    })  # fmt: skip
    assert cpu_limit(root) == 2.5
    assert memory_left(root) == 4 * _GIB


@pytest.mark.parametrize("path", ["/docker/abc", "/docker/abc/child", "/../../elsewhere", "/x"])
def test_a_container_sees_its_groups_from_its_own_down(tmp_path: Path, path: str) -> None:
    top = "/" if path.startswith("/..") else "/docker/abc"
    mounts = f"31 24 0:27 {top} /sys/fs/cgroup/memory ro - cgroup cgroup rw,memory"
    root = _system(tmp_path, f"4:memory:{path}\n0::/", mounts, {
        "memory/memory.limit_in_bytes": str(2 * _GIB),
        "memory/memory.usage_in_bytes": str(_GIB),
    })  # fmt: skip
    assert memory_left(root) == _GIB


def test_a_group_beyond_its_limit_leaves_nothing(tmp_path: Path) -> None:
    root = _system(tmp_path, "0::/", _V2, {"memory.max": "100", "memory.current": "200"})
    assert memory_left(root) == 0


def test_without_control_groups_there_is_no_limit(tmp_path: Path) -> None:
    assert memory_left(tmp_path) == cpu_limit(tmp_path) == math.inf
    root = _system(tmp_path, "0::/a", _V2, {"a/memory.max": "max", "a/cpu.max": "max 100000"})
    assert memory_left(root) == cpu_limit(root) == math.inf


def test_here_the_limits_are_at_least_as_tight_as_dask_and_psutil_say() -> None:
    assert 1 <= threads.available_cpus() <= dask.system.cpu_count()
    assert memory_left() > 0
    assert 0 < memory.available_memory() <= psutil.virtual_memory().total


def test_a_share_of_the_smallest_of_all_limits_may_be_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("INTERP_EMBED_MEMORY", raising=False)
    files = {"memory.max": "3000000", "memory.current": "2000000", "cpu.max": "50000 100000"}
    root = _system(tmp_path, "0::/", _V2, files)
    monkeypatch.setattr(memory, "memory_left", lambda: memory_left(root))
    monkeypatch.setattr(threads, "cpu_limit", lambda: cpu_limit(root))
    assert memory.available_memory() == 800_000
    assert threads.available_cpus() == 1  # half of one is one


def test_the_affinity_of_a_process_bounds_its_threads() -> None:
    if not hasattr(os, "sched_setaffinity"):
        pytest.skip("this system has no affinity")
    code = (
        "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})\n"
        "from interp_embed.core.threads import available_cpus; print(available_cpus())"
    )
    assert subprocess.check_output([sys.executable, "-c", code], text=True) == "1\n"


def test_a_limit_of_address_space_bounds_the_memory() -> None:
    code = (
        "import psutil, resource\n"
        "from interp_embed.core.memory import available_memory\n"
        "held = psutil.Process().memory_info().vms\n"
        "resource.setrlimit(resource.RLIMIT_AS, (held + 2**27, resource.RLIM_INFINITY))\n"
        "print(available_memory())"
    )
    environment = {n: v for n, v in os.environ.items() if n != "INTERP_EMBED_MEMORY"}
    found = subprocess.check_output([sys.executable, "-c", code], text=True, env=environment)
    assert 0 < int(found) <= 0.8 * 2**27
