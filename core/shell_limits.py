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


def tight() -> list[tuple[str, str]]:
    """The limits of this process that a cell may reach.

    Each as the command that lifts it, where the site allows that, and in words.
    """
    pairs = []
    for limit in LIMITS:
        value, _ = resource.getrlimit(limit.number)
        if value != resource.RLIM_INFINITY and (limit.least is None or value < limit.least):
            command = f"ulimit {limit.option} {limit.least or 'unlimited'}"
            pairs.append((command, f"{value} {limit.name} (ulimit {limit.option})"))
    return pairs


def note(error: Exception) -> str | None:
    """Says that a limit, not the machine's memory, is what an error is about."""
    if not _OUT_OF_ADDRESSES.search(f"{type(error).__name__}: {error}"):
        return None
    return next((f"a limit of {text}" for _, text in tight() if "ulimit -v" in text), None)
