"""Known ways in which a cell fails, recognized in its logs and in what Slurm says of its job."""

import os
import re
import signal
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class KnownFailure:
    """A known way to fail.

    Attributes:
        name: Its name in `status`.
        pattern: What shows it in a log.
        fix: What to do.
        is_transient: Whether it passes by itself, so that a job is queued again (slurm.retry).
    """

    name: str
    pattern: re.Pattern[str]
    fix: str
    is_transient: bool = False


def _known(name: str, pattern: str, fix: str, is_transient: bool = False) -> KnownFailure:
    return KnownFailure(name, re.compile(pattern, re.IGNORECASE), fix, is_transient)


ON_RESTART = (
    "it continues (contamination, embeddings, merge, probe, scores, labels and analysis "
    "start again)"
)


def _lift(option: str) -> str:
    """What to do about a limit of the shell or the node. Soft limits are lifted by the kit."""
    return (
        f"a hard limit of `ulimit {option}`: on this machine start from a shell that does not set "
        "it; on nodes ask the site, whose slurmd sets it"
    )


# The first match counts, so what ends a job from outside stands before what its processes print as
# they die. "Slurm: ..." is not in any log: it is the answer of squeue or sacct.
KNOWN_FAILURES = [
    _known(
        "held by an administrator",
        r"Slurm: JobHeldAdmin",
        "ask your site's administrators: they hold it back, and they alone can release it",
    ),
    _known(
        "hours used up",
        r"Slurm: (Assoc|QOS)Grp(?!\w*Run)\w*Minutes",
        "the account or QOS has no hours left: ask for more, and the job starts; or name another "
        "account in the cluster profile, cancel, submit again",
    ),
    _known(
        "held job",
        r"Slurm: .*(held|hold)",
        "held back by hand, or after a node failed to start it; release it",
    ),
    _known(
        "dead dependency",
        r"Slurm: DependencyNeverSatisfied",
        "what it waits for is gone; submit again",
    ),
    _known(
        "refused by Slurm",
        r"Slurm: (PartitionTimeLimit|BadConstraints|AccountNotAllowed|QOSNotAllowed|Invalid|"
        r"(QOS|Assoc)Max\w*PerJob)",
        "it asks for more than its partition or account gives: correct the cluster profile, "
        "cancel it, submit again",
    ),
    _known(
        "duplicate",
        r"another process is running this cell",
        "nothing to do: the other job, or the person who runs it, keeps the result",
    ),
    _known(
        "requeue forbidden",
        r"presently disabled for job|'scontrol', 'requeue'.*non-zero",
        "the site forbids to requeue jobs: submit again, it continues; raise the stage's minutes",
    ),
    _known(
        "time limit",
        r"due to time limit|requeued because: timed-out|Slurm: TIMEOUT",
        f"raise the stage's minutes in the cluster profile; {ON_RESTART}",
    ),
    _known(
        "node failure",
        r"due to node failure|node failure on|Slurm: (NODE|BOOT)_FAIL",
        "run or submit again; leave the node out if it repeats",
        is_transient=True,
    ),
    _known(
        "preempted",
        r"due to (preemption|job requeue)|Slurm: PREEMPTED",
        f"run or submit again; {ON_RESTART}",
    ),
    _known(
        "out of GPU memory",
        r"CUDA (error: )?out of memory|OutOfMemoryError|CUBLAS_STATUS_ALLOC_FAILED|"
        r"less than desired GPU memory|no available memory for the cache blocks",
        "fewer rows at a time, a smaller max_model_len, or more GPUs",
    ),
    _known("limit on addresses", r"a limit of \d+ bytes of address space", _lift("-v")),
    _known("limit on CPU time", r"CPU time limit exceeded|SIGXCPU", _lift("-t")),
    _known(
        "limit on file size",
        r"File too large|File size limit exceeded|SIGXFSZ",
        _lift("-f"),
    ),
    _known("limit on open files", r"Too many open files", _lift("-n")),
    _known(
        "limit on processes",
        r"can't start new thread|(pthread_create|Thread creation) failed|"
        r"fork: .*Resource temporarily unavailable|BlockingIOError: \[Errno 11\]",
        _lift("-u"),
    ),
    _known(
        "out of memory",
        r"oom[-_ ]kill|out[ _]of[ _]memory|exceeded (job|step)? ?memory limit|"
        r"can't allocate memory|MemoryError|bad_alloc",
        "give the stage more memory, or fewer --jobs at a time",
    ),
    _known(
        "cancelled",
        r"\*\*\* JOB \d+ .*CANCELLED AT \S+ \*\*\*|Slurm: CANCELLED by",
        "run or submit again",
    ),
    _known(
        "setup ended",
        r"setup in the cluster profile ended the job's shell",
        "a line of setup, or of a file that it or $BASH_ENV reads, has exit or exec (`exec zsh`): "
        "leave it out of setup, or guard it for interactive shells",
    ),
    _known(
        "file of the job gone",
        r"FileNotFoundError: .*_submitted\.pkl",
        "submit again; the files in runs/STUDY/slurm/jobs must stay while jobs are queued",
    ),
    _known(
        "no such folder",
        r"couldn't chdir to|\bcd: .*/code-\w+: |Slurm: \w+ without a log",
        "the node cannot open that folder by this path: --runs on a disk that nodes see by the "
        "same path",
    ),
    _known(
        "GPU driver too old",
        r"driver on your system is too old|driver version is insufficient",
        "install requirements-cuda12.txt, which older drivers run, or have the driver updated",
    ),
    _known(
        "no GPU driver",
        r"Found no NVIDIA driver",
        "leave that node out (sbatch: {exclude: [NODE]} in the cluster profile), and tell its "
        "administrators: nvidia-smi fails there",
    ),
    _known(
        "CPU packages on a GPU",
        r"CPU build of torch|Torch not compiled with CUDA enabled",
        "install the GPU packages in another environment, and name it as python: in the cluster "
        "profile",
    ),
    _known(
        "GPU fault",
        r"uncorrectable ECC|(fell|fallen) off the bus|unspecified launch failure|"
        r"no CUDA GPUs are available|finds no CUDA device|busy or unavailable|"
        r"Error 802: system not yet initialized",
        "run or submit again; if it is the same node again, leave it out and tell its "
        "administrators",
        is_transient=True,
    ),
    _known(
        "no such interface",
        r"no such network interface",
        "interface: one that the nodes have (ip -brief address there) in the cluster profile",
    ),
    _known(
        "unknown node name",
        r"cannot resolve the name of the job's first node",
        "tell the site that its nodes do not resolve each other's names, or nodes: 1 in the "
        "cluster profile",
    ),
    _known(
        "port in use",
        r"address already in use|EADDRINUSE",
        "run again; each job takes a port of its own",
    ),
    _known(
        "no disk space",
        r"disk quota exceeded|no space left on device",
        "make room or choose another --runs",
    ),
    _known(
        "no compiler",
        r"Failed to find C compiler|no C compiler on PATH|Python\.h: No such file|"
        r"InvalidCxxCompiler|No working C\+\+ compiler|cannot execute .cc1",
        "setup: [module load gcc] in the cluster profile, or a Python with its headers "
        "(Debian: gcc, g++, python3-dev)",
    ),
    _known(
        "disk fault",
        r"read-only file system|input/output error|stale file handle",
        "run or submit again when the disk is well; another --runs if it stays",
    ),
    _known(
        "no locks",
        r"flock: [A-Z]",
        "--runs on a file system that has locks (Lustre: mount option flock)",
    ),
    # Of several ranks srun names first the one that ended first. The others die of it, in words of
    # the network.
    _known(
        "killed",
        r"\A(?:(?!tasks? [\d,-]+: (?:Exited|Terminated))[\s\S])*?tasks? [\d,-]+: Killed|"
        r"\d+ Killed +srun ",
        "run or submit again: it continues; if it repeats, often memory: give the stage more",
        is_transient=True,
    ),
    _known(
        "collective timeout",
        r"collective operation timeout|NCCL.*(timed? ?out|timeout)|NCCL error|gloo/transport|"
        r"Connection closed by peer|ranks came within",
        "a rank died or the network is slow: look at the other ranks' logs; set the network "
        "interface",
        is_transient=True,
    ),
    _known(
        "rate limit",
        r"rate ?limit|HTTP 429|too many requests|insufficient_quota",
        "lower concurrency, or wait; finished calls are kept",
    ),
    _known(
        "missing key",
        r"environment variable \w+; set it|the key .* is missing|key was refused|HTTP 401|"
        r"AuthenticationError",
        "export the key that key_env names",
    ),
    _known(
        "missing model",
        r"no model in |gated repo|repository not found|no such model",
        "check models in the study file, and access",
    ),
    _known(
        "unreachable endpoint",
        r"APIConnectionError|connection error|connection refused",
        "start the server or correct base_url",
    ),
    _known(
        "missing input",
        r"which is not finished; python -m study cell",
        "run that cell first, or the whole study",
    ),
    _known(
        "contaminated",
        r"was trained on text of the benchmark",
        "drop the documents that it names by the corpus' `exclude`; that makes new cells",
    ),
    _known(
        "too long",
        r"tokens and up to \d+ may follow",
        "raise engine.max_model_len as it says; no other cell changes",
    ),
    _known(
        "diverged",
        r"(the loss|gradient norm) is (nan|inf)|gradient norm (nan|inf)",
        "lower the learning rate; that makes a new cell",
    ),
    _known(
        "broken environment",
        r"ModuleNotFoundError|ImportError:|: command not found|execve\(\)",
        "correct python and setup in the cluster profile, or make the environment again",
    ),
    _known(
        "a process died",
        r"tasks? [\d,-]+: Killed|EngineDeadError",
        "run or submit again: it continues; if it repeats, often memory: give the stage more; or a "
        "rank that ended before: look at the other ranks' logs",
        is_transient=True,
    ),
]
STOPPED = _known(
    "stopped",
    r".",
    "the process ended without an error message (often Ctrl-C or scancel); run again to continue",
)
_ERROR = re.compile(r"error|exception|fatal|\*\*\*|^Slurm: ", re.IGNORECASE | re.MULTILINE)
# How a run of a cell begins in its log.txt, and a job in submitit's log. Lines before are of an
# earlier run.
_START = re.compile(r" starts \(process \d+[,)]| - Starting with JobEnvironment")
_END_BYTES = 1 << 16
_LAST_LINES = 8  # of a log, which count first
_EARLIER_LINES = 400  # of a log, of which errors alone count
# Exit status of a process -> the failure. Negative, or from 128 on: it ended by a signal.
_BY_STATUS = {
    **dict.fromkeys((-signal.SIGKILL, 128 + signal.SIGKILL), "out of memory"),  # by the kernel
    **dict.fromkeys((-signal.SIGXCPU, 128 + signal.SIGXCPU), "limit on CPU time"),
    **dict.fromkeys((-signal.SIGXFSZ, 128 + signal.SIGXFSZ), "limit on file size"),
}


def diagnose(log: str, status: int | None = None) -> KnownFailure | None:
    """The failure that the end of a log shows.

    Args:
        log: The text of its last lines.
        status: The exit status of the process (negative: a signal), where it is known.

    Returns:
        None where neither the log nor the status matches a known failure.
    """
    for failure in KNOWN_FAILURES:
        if failure.pattern.search(log):
            return failure
    if name := _BY_STATUS.get(status or 0):  # none of these writes anything into the log
        return next(failure for failure in KNOWN_FAILURES if failure.name == name)
    return STOPPED if log and status is None and not _ERROR.search(log) else None


def explain(
    logs: list[list[str]], slurm_reason: str = ""
) -> tuple[KnownFailure | None, str | None]:
    """The failure that several logs of one cell show, and the line that shows it.

    The last lines count first; of the lines before only errors do.

    Args:
        logs: The lines of each log.
        slurm_reason: What squeue or sacct answers about the job.
    """
    lines = [line for log in logs for line in log[-_LAST_LINES:]]
    if slurm_reason:
        lines.append(f"Slurm: {slurm_reason}")
    failure = diagnose("\n".join(lines))
    if failure in (None, STOPPED):
        earlier = [line for log in logs for line in log[-_EARLIER_LINES:] if _ERROR.search(line)]
        for line in reversed(earlier):
            if earlier_failure := diagnose(line):
                failure, lines = earlier_failure, earlier
                break
    if failure is None:
        return None, None
    shows_it = (line for line in reversed(lines) if failure.pattern.search(line))
    return failure, next(shows_it, None)


def end(path: Path) -> list[str]:
    """The lines at the end of a log, from the last start of its process on.

    Empty where there is no such file.
    """
    try:
        with open(path, "rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - _END_BYTES))
            lines = file.read().decode(errors="replace").splitlines()
    except FileNotFoundError:
        return []
    starts = [number for number, line in enumerate(lines) if _START.search(line)]
    return lines[starts[-1] :] if starts else lines


def last_lines(folder: Path, count: int = 8) -> list[str]:
    """The end of a cell's log.txt; empty where it has none."""
    return end(folder / "log.txt")[-count:]
