"""What the kit asks of Slurm itself, beyond submitit. Text formats only: --json differs between versions."""

import getpass
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from core.errors import UserError

SECONDS = 60
LEAK = re.compile(r"^(SLURM|SBATCH|SRUN|SALLOC|PMI|PMIX|PALS|SUBMITIT)_?")


@dataclass(frozen=True)
class Queued:
    """A job (or a task of an array) that is not over."""

    job: str  # 123, or 123_4
    state: str
    reason: str
    comment: str


def queue() -> list[Queued]:
    """The user's jobs that are not over. Raises UserError where Slurm doesn't answer: unknown is not "none"."""
    lines = _ask("squeue", "--me", "--noheader", "--array", "--format=%i|%T|%r|%k").splitlines()
    return [Queued(*line.strip().split("|", 3)) for line in lines if line.count("|") >= 3]


def known(jobs: list[str]) -> set[str]:
    """Those of the jobs that the controller still remembers, ended or not.

    Slurm 22.05 starts a job at once whose dependency it has forgotten, even where that job failed.
    """
    if not jobs:
        return set()
    bases = sorted({job.split("_")[0] for job in jobs})
    result = _call("squeue", "--noheader", "--array", "--states=all", "--format=%i", f"--jobs={','.join(bases)}")
    # With a single id that it has forgotten, squeue fails instead of printing nothing.
    if result.returncode and "Invalid job id" not in result.stderr:
        raise _refusal("squeue", result.stderr)
    return set(jobs) & set(result.stdout.split())


def largest_array() -> int:
    """Tasks that one array may have: MaxArraySize is one more than the largest index."""
    return max(1, int(_setting("MaxArraySize") or 2) - 1)


def has_accounts() -> bool:
    """Whether this cluster keeps accounts; one that doesn't ignores --account and --qos."""
    return "slurmdbd" in _setting("AccountingStorageType")


def submit_limit(account: str | None) -> int | None:
    """Jobs that the user may have queued at once by Slurm's accounts (of any account, or the named one).

    None where there is no limit, or no accounts to ask.
    """
    if not has_accounts() or not shutil.which("sacctmgr"):
        return None
    where = [f"user={getpass.getuser()}", *([f"account={account}"] if account else [])]
    found = _call("sacctmgr", "-nP", "show", "assoc", "where", *where, "format=MaxSubmitJobs,GrpSubmitJobs")
    limits = [int(word) for word in re.split(r"[|\s]", found.stdout) if word.isdigit()]
    return min(limits, default=None)


def _setting(name: str) -> str:
    found = re.search(rf"^{name}\s*=\s*(\S+)", _ask("scontrol", "show", "config"), re.MULTILINE)
    return found[1] if found else ""


def refused(script: str) -> str | None:
    """Why Slurm would refuse a script, or None. sbatch --test-only checks all but limits, and queues nothing."""
    result = _call("sbatch", "--test-only", stdin=script)
    return last_line(result.stderr) if result.returncode else None


def asleep(partition: str | None) -> bool:
    """Whether no node of the partition answers Slurm now, as in the first minute after its controller was restarted.

    It then refuses whatever asks for more than nothing, and calls the request itself impossible.
    """
    if not shutil.which("sinfo"):
        return False
    states = _call("sinfo", "--noheader", "--format=%T", *([f"--partition={partition}"] if partition else []))
    answering = re.compile(r"(idle|mixed|allocated|completing|planned|reserved)[^*]*$", re.MULTILINE)
    return states.returncode == 0 and not answering.search(states.stdout)


def scancel(jobs: list[str]) -> None:
    """Cancel these ids and nothing else; ids that are over already are no mistake."""
    for start in range(0, len(jobs), 200):
        result = _call("scancel", "--quiet", *jobs[start : start + 200])
        if result.returncode and "Invalid job id" not in result.stderr:
            raise _refusal("scancel", result.stderr)


@contextmanager
def clean_environment() -> Iterator[None]:
    """Without what an enclosing job would pass on to the jobs submitted from it; SLURM_CONF alone is kept."""
    before = dict(os.environ)
    for name in [n for n in os.environ if LEAK.match(n) and n != "SLURM_CONF"]:
        del os.environ[name]
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def last_line(text: str) -> str:
    """Slurm's reason: the last line that says something, without the program's name."""
    lines = [line for line in text.splitlines() if line.strip()]
    if not lines:
        return "it gave no reason"
    return re.sub(r"^((\w+: )?(error|fatal): |allocation failure: |Batch job submission failed: )+", "", lines[-1])


def must_be_here() -> None:
    """Raises UserError where Slurm's commands are not on PATH."""
    missing = [name for name in ("sbatch", "srun", "squeue", "scontrol", "scancel") if not shutil.which(name)]
    if missing:
        raise UserError(f"{', '.join(missing)}: not on PATH; submit from a login node of the cluster")


def _ask(*command: str) -> str:
    result = _call(*command)
    if result.returncode:
        raise _refusal(command[0], result.stderr)
    return result.stdout


def _call(*command: str, stdin: str | None = None) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(command, input=stdin, capture_output=True, text=True, timeout=SECONDS)
    except FileNotFoundError:
        raise UserError(f"{command[0]}: not on PATH; submit from a login node of the cluster") from None
    except subprocess.TimeoutExpired:
        raise _refusal(command[0], f"no answer within {SECONDS} s") from None


def _refusal(command: str, text: str) -> UserError:
    cure = "try again later"
    if re.search(
        "configuration (source|file)", text
    ):  # no cluster here, or its controller, which hands it out, is down
        cure += ", or go to a login node, or name the cluster's slurm.conf in SLURM_CONF"
    return UserError(f"{command}: {last_line(text)}; the jobs' state is unknown, so nothing was done; {cure}")
