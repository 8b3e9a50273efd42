"""Why a cell failed, in words, from the end of its log."""

import re
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Cause:
    """A known way to fail: its sign in a log, its name, and what to do."""

    name: str
    sign: re.Pattern[str]
    cure: str


def _cause(name: str, sign: str, cure: str) -> Cause:
    return Cause(name, re.compile(sign, re.IGNORECASE), cure)


# The first that matches is told, so what ends a job from outside stands before what its processes say as they die.
CAUSES = [
    _cause("time limit", r"due to time limit", "raise the stage's minutes in the cluster profile; it continues"),
    _cause("node failure", r"due to node failure|NODE_FAIL", "run or submit again; leave the node out if it repeats"),
    _cause("preempted", r"due to preemption|due to job requeue", "run or submit again; it continues"),
    _cause(
        "out of GPU memory",
        r"CUDA out of memory|OutOfMemoryError|CUBLAS_STATUS_ALLOC_FAILED",
        "fewer rows at a time, a smaller max_model_len, or more GPUs",
    ),
    _cause(
        "out of memory",
        r"oom[-_ ]kill|out of memory|exceeded (job|step) memory limit|can't allocate memory|MemoryError",
        "give the stage more memory, or fewer --jobs at a time",
    ),
    _cause(
        "collective timeout",
        r"collective operation timeout|NCCL.*(timed? ?out|timeout)|Connection closed by peer",
        "a rank died or the network is slow: look at the other ranks' logs; set the network interface",
    ),
    _cause("port in use", r"address already in use|EADDRINUSE", "run again; each job takes a port of its own"),
    _cause("no disk space", r"disk quota exceeded|no space left on device", "make room or choose another --runs"),
    _cause(
        "rate limit",
        r"rate limit|HTTP 429|too many requests|insufficient_quota",
        "lower concurrency, or wait; finished calls are kept",
    ),
    _cause(
        "missing key",
        r"environment variable \w+; set it|the key .* is missing|key was refused|HTTP 401",
        "export the key that key_env names",
    ),
    _cause(
        "missing model",
        r"no model in |gated repo|repository not found|no such model",
        "check models in the study file, and access",
    ),
    _cause(
        "unreachable endpoint",
        r"APIConnectionError|connection error|connection refused",
        "start the server or correct base_url",
    ),
    _cause("missing input", r"which is not finished; python -m study cell", "run that cell first, or the whole study"),
]


def cause(log: str, status: int | None = None) -> Cause | None:
    """The cause that the end of a log shows, or the exit status (negative: a signal); None where neither tells."""
    for known in CAUSES:
        if known.sign.search(log):
            return known
    if status in (-9, 137):  # the kernel's out-of-memory killer leaves no word in the log
        return next(known for known in CAUSES if known.name == "out of memory")
    return None


def last_lines(folder: Path, count: int = 8) -> list[str]:
    """The end of a cell's log.txt; nothing where it has none."""
    try:
        return (folder / "log.txt").read_text(errors="replace").splitlines()[-count:]
    except FileNotFoundError:
        return []
