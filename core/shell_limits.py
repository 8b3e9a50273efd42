"""Limits that a shell or a node sets to its processes (ulimit), and that end cells."""

import re
import resource
from dataclasses import dataclass


@dataclass(frozen=True)
class Limit:
    """One limit.

    Attributes:
        option: Of `ulimit`.
        number: Of `resource`.
        name: What it limits.
        least: What is enough for any cell; None: no limit at all.
    """

    option: str
    number: int
    name: str
    least: int | None = None


LIMITS = (
    # CUDA and vLLM reserve far more addresses than memory.
    Limit("-v", resource.RLIMIT_AS, "bytes of address space"),
    Limit("-t", resource.RLIMIT_CPU, "seconds of CPU time"),
    Limit("-f", resource.RLIMIT_FSIZE, "bytes of a file"),
    Limit("-n", resource.RLIMIT_NOFILE, "open files", 1024),
    Limit("-u", resource.RLIMIT_NPROC, "processes", 1024),
)
_OUT_OF_ADDRESSES = re.compile(
    r"MemoryError|allocate memory|out of memory|bad_alloc|failed to map segment", re.IGNORECASE
)


def lift() -> None:
    """Lift this process's soft limits to the hard ones, which only the site can lift.

    At a hard limit of CPU time the kernel sends SIGKILL, and no log shows why. A second before it
    sends SIGXCPU.
    """
    for limit in LIMITS:
        soft, hard = resource.getrlimit(limit.number)
        if limit.number == resource.RLIMIT_CPU and hard != resource.RLIM_INFINITY:
            resource.setrlimit(limit.number, (max(1, hard - 1), hard))
        elif soft != hard:
            resource.setrlimit(limit.number, (hard, hard))


def tight() -> list[str]:
    """The hard limits of this process that a cell may reach, in words."""
    texts = []
    for limit in LIMITS:
        _, hard = resource.getrlimit(limit.number)
        if hard != resource.RLIM_INFINITY and (limit.least is None or hard < limit.least):
            texts.append(f"{hard} {limit.name} (ulimit {limit.option})")
    return texts


def note(error: Exception) -> str | None:
    """Says that a limit, not the machine's memory, is what an error is about."""
    if not _OUT_OF_ADDRESSES.search(f"{type(error).__name__}: {error}"):
        return None
    return next((f"a limit of {text}" for text in tight() if "ulimit -v" in text), None)
