"""How many cells run at a time, by what a process may use: files of the kernel's as they are in
containers and jobs."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from core import cores
from tests.place import ROOT

GB = 10**9


def kernel(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


@pytest.fixture
def many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(64)), raising=True)


@pytest.mark.parametrize(
    ("files", "cpus"),
    [
        ({}, 64),
        ({"proc/self/cgroup": "0::/a/b\n", "sys/fs/cgroup/a/b/cpu.max": "150000 100000\n"}, 2),
        ({"proc/self/cgroup": "0::/a/b\n", "sys/fs/cgroup/a/b/cpu.max": "max 100000\n"}, 64),
        # A quota of a group above holds too.
        ({"proc/self/cgroup": "0::/a/b\n", "sys/fs/cgroup/a/cpu.max": "300000 100000\n",
          "sys/fs/cgroup/a/b/cpu.max": "max 100000\n"}, 3),
        # A container that sees its own group at the top, whatever the host calls it.
        ({"proc/self/cgroup": "0::/docker/123\n", "sys/fs/cgroup/cpu.max": "50000 100000\n"}, 1),
        ({"proc/self/cgroup": "4:cpu,cpuacct:/x\n1:name=systemd:/x\n",
          "sys/fs/cgroup/cpu,cpuacct/x/cpu.cfs_quota_us": "400000\n",
          "sys/fs/cgroup/cpu,cpuacct/x/cpu.cfs_period_us": "100000\n"}, 4),
        ({"proc/self/cgroup": "4:cpu:/x\n", "sys/fs/cgroup/cpu/x/cpu.cfs_quota_us": "-1\n",
          "sys/fs/cgroup/cpu/x/cpu.cfs_period_us": "100000\n"}, 64),
    ],
)  # fmt: skip
@pytest.mark.usefixtures("many")
def test_cgroups_limit_the_cores(files: dict[str, str], cpus: int, tmp_path: Path) -> None:
    assert cores.usable_cpus({}, kernel(tmp_path, files)) == cpus


@pytest.mark.parametrize(
    ("environment", "cpus"),
    [
        ({"SLURM_CPUS_ON_NODE": "8"}, 8),
        ({"SLURM_CPUS_ON_NODE": "8", "SLURM_CPUS_PER_TASK": "2"}, 2),
        ({"SLURM_CPUS_PER_TASK": ""}, 64),
        ({"SLURM_CPUS_ON_NODE": "0"}, 64),
    ],
)
@pytest.mark.usefixtures("many")
def test_a_slurm_job_limits_the_cores(
    environment: dict[str, str], cpus: int, tmp_path: Path
) -> None:
    assert cores.usable_cpus(environment, tmp_path) == cpus


@pytest.mark.multiprocess
def test_taskset_limits_the_cores() -> None:
    one = {min(os.sched_getaffinity(0))}
    code = "from core.cores import usable_cpus; print(usable_cpus())"
    command = [sys.executable, "-c", f"import os; os.sched_setaffinity(0, {one}); {code}"]
    assert (
        subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
        == "1\n"
    )


MEMINFO = {"proc/meminfo": "MemTotal: 65536000 kB\nMemAvailable: 32768000 kB\n"}


@pytest.mark.parametrize(
    ("files", "environment", "memory"),
    [
        (MEMINFO, {}, 32768000 * 1024),
        ({**MEMINFO, "proc/self/cgroup": "0::/a\n", "sys/fs/cgroup/a/memory.max": f"{8 * GB}\n",
          "sys/fs/cgroup/a/memory.current": f"{3 * GB}\n",
          "sys/fs/cgroup/a/memory.stat": f"anon 5\ninactive_file {GB}\n"}, {}, 6 * GB),
        ({**MEMINFO, "proc/self/cgroup": "0::/a\n", "sys/fs/cgroup/a/memory.max": "max\n",
          "sys/fs/cgroup/a/memory.current": "5\n"}, {}, 32768000 * 1024),
        ({**MEMINFO, "proc/self/cgroup": "4:memory:/a\n",
          "sys/fs/cgroup/memory/a/memory.limit_in_bytes": f"{4 * GB}\n",
          "sys/fs/cgroup/memory/a/memory.usage_in_bytes": f"{GB}\n"}, {}, 3 * GB),
        ({**MEMINFO, "proc/self/cgroup": "4:memory:/\n",
          "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n",
          "sys/fs/cgroup/memory/memory.usage_in_bytes": f"{GB}\n"}, {}, 32768000 * 1024),
        (MEMINFO, {"SLURM_MEM_PER_NODE": "4096"}, 4 * 2**30),
        (MEMINFO, {"SLURM_MEM_PER_CPU": "1024", "SLURM_CPUS_ON_NODE": "2"}, 2 * 2**30),
        ({}, {}, cores.CELL_BYTES),
    ],
)  # fmt: skip
@pytest.mark.usefixtures("many")
def test_memory_that_is_left(
    files: dict[str, str], environment: dict[str, str], memory: int, tmp_path: Path
) -> None:
    assert cores.usable_memory(environment, kernel(tmp_path, files)) == memory


@pytest.mark.parametrize(("cpus", "memory", "jobs"), [(8, 3.5, 3), (2, 100, 2), (8, 0.5, 1)])
def test_jobs_are_bounded_by_cores_and_memory(
    cpus: int, memory: float, jobs: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cores, "usable_cpus", lambda: cpus)
    monkeypatch.setattr(cores, "usable_memory", lambda: int(memory * cores.CELL_BYTES))
    assert cores.default_jobs() == jobs


@pytest.mark.parametrize(
    ("value", "threads"), [("", 1), ("4,2", 4), (" 3 ", 3), ("many", 1), ("0", 1), (None, 1)]
)
def test_threads_of_openmp_whatever_a_profile_says(
    value: str | None, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS")
    if value is not None:
        monkeypatch.setenv("OMP_NUM_THREADS", value)
    assert cores.omp_threads() == threads
