"""How many cells may run at a time on this machine: by the cores and the memory that this process
may use.

The number of cores of a machine is not enough: `taskset`, a container's quota (cgroups) and a Slurm
job allow fewer.
"""

import math
import os
from collections.abc import Iterator, Mapping
from pathlib import Path

# Memory (bytes) of one process of cells of the tiny study: generating answers by vLLM takes the
# most, 1.5 GB resident.
CELL_BYTES = 1_500_000_000
_UNLIMITED = 2**60  # cgroup v1 says "no limit" with a number near 2**63


def default_jobs() -> int:
    """Processes at a time: one a core, and no more than the memory holds."""
    by_memory = usable_memory() // CELL_BYTES
    return max(1, min(usable_cpus(), by_memory))


def omp_threads() -> int:
    """Threads of a process's computations, by OMP_NUM_THREADS; 1 where it is no number.

    A list, such as 4,2, is of nested regions: the first counts.
    """
    first = os.environ.get("OMP_NUM_THREADS", "").split(",")[0].strip()
    return max(1, int(first)) if first.isdecimal() else 1


def usable_cpus(environment: Mapping[str, str] = os.environ, root: Path = Path("/")) -> int:
    """Cores this process may use, at least 1: the fewest of its affinity, its cgroups' quotas and
    its Slurm job's."""
    limits = [len(os.sched_getaffinity(0)), *map(math.ceil, _quotas(root))]
    limits += [
        count
        for name in ("SLURM_CPUS_PER_TASK", "SLURM_CPUS_ON_NODE")
        if (count := _number(environment, name))
    ]
    return max(1, min(limits))


def usable_memory(environment: Mapping[str, str] = os.environ, root: Path = Path("/")) -> int:
    """Bytes this process may still take: the least of what the machine, its cgroups and its Slurm
    job leave."""
    limits = [*_available(root), *_memory_left(root)]
    if megabytes := _number(environment, "SLURM_MEM_PER_NODE"):
        limits.append(megabytes * 2**20)
    if megabytes := _number(environment, "SLURM_MEM_PER_CPU"):
        limits.append(megabytes * 2**20 * usable_cpus(environment, root))
    return min(limits, default=CELL_BYTES)  # one cell at a time where nothing is known


def _number(environment: Mapping[str, str], name: str) -> int | None:
    value = environment.get(name, "")
    return int(value) if value.isdecimal() else None


def _available(root: Path) -> Iterator[int]:
    """Bytes that the machine has left."""
    words = _words(root / "proc/meminfo")
    if "MemAvailable:" in words:
        yield int(words[words.index("MemAvailable:") + 1]) * 1024


def _cgroups(root: Path, controller: str) -> Iterator[Path]:
    """Folders of the control groups that hold this process, from its own up to the top: of v2, and
    of v1's controller.

    Inside a container the path may name a folder of the host that is not visible: then only the top
    exists.
    """
    for line in _lines(root / "proc/self/cgroup"):
        _, controllers, path = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        for name in (
            (controller, controllers) if controllers else ("",)
        ):  # "cpu", or "cpu,cpuacct" for both
            top = root / "sys/fs/cgroup" / name
            group = top / path.lstrip("/")
            yield from (
                folder
                for folder in (group, *group.parents)
                if folder.is_relative_to(top) and folder.is_dir()
            )


def _quotas(root: Path) -> Iterator[float]:
    """Cores that the groups' CPU quotas allow."""
    for folder in _cgroups(root, "cpu"):
        words = _words(folder / "cpu.max") or _words(folder / "cpu.cfs_quota_us") + _words(
            folder / "cpu.cfs_period_us"
        )
        if len(words) == 2 and words[0] not in ("max", "-1"):
            yield int(words[0]) / int(words[1])


def _memory_left(root: Path) -> Iterator[int]:
    """Bytes that the groups' memory limits leave: file cache counts as free, because the kernel
    gives it back."""
    for folder in _cgroups(root, "memory"):
        limit = _words(folder / "memory.max") or _words(folder / "memory.limit_in_bytes")
        used = _words(folder / "memory.current") or _words(folder / "memory.usage_in_bytes")
        if not limit or not used or limit[0] == "max" or int(limit[0]) >= _UNLIMITED:
            continue
        statistics = _words(folder / "memory.stat")
        names = dict(zip(statistics[::2], statistics[1::2], strict=False))
        cache = int(names.get("total_inactive_file", names.get("inactive_file", 0)))
        yield max(0, int(limit[0]) - int(used[0]) + cache)


def _lines(path: Path) -> list[str]:
    """The lines of a file of the kernel's; none where it isn't there."""
    try:
        return path.read_text().splitlines()
    except OSError:
        return []


def _words(path: Path) -> list[str]:
    return [word for line in _lines(path) for word in line.split()]
