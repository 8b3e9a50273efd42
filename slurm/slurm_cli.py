"""Calls of Slurm's own commands, for what submitit lacks.

Text formats only: the output of --json differs between Slurm versions.
"""

import os
import pwd
import re
import shutil
import subprocess
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

from core.errors import UserError

SECONDS = 60
"""Time limit of one call."""
LEAK = re.compile(
    r"^(_?SLURM|SLURMD|SBATCH|SRUN|SALLOC|SQUEUE|SCANCEL|SCONTROL|SINFO|SACCT|SACCTMGR|SPRIO|SSTAT"
    r"|STRIGGER|SPANK|PMI|PMIX|PALS|SUBMITIT)_|(SHELLOPTS|BASHOPTS)$"
)
"""Variables of a shell or an enclosing job that would change what Slurm's commands do or answer, or
how each shell reads its lines."""
BUSY = re.compile("temporarily unable|[Tt]oo many|timed out|Zero Bytes|[Uu]nable to contact")
"""A controller that answers soon after."""
PAUSES = (0.5, 2.0)
"""Seconds before a question is asked again."""
KEPT = {"SLURM_CONF", "SLURM_CONF_SERVER", "SLURM_JWT"}
"""Those of them by which the commands reach the cluster."""
CLUSTERS = ("SLURM_CLUSTERS", "SBATCH_CLUSTERS")
REQUIRED = ("sbatch", "srun", "squeue", "scontrol", "scancel")

_LOGIN_NODE = "submit from a login node of the cluster"
_ENDED = re.compile(
    "COMPLETED|CANCELLED|FAILED|TIMEOUT|NODE_FAIL|BOOT_FAIL|OUT_OF_ME|DEADLINE|REVOKED"
)
_SUBMITTED = re.compile(r"(?:.*Submitted batch job )?(\d+)(?:;\S*| on cluster \S+)?\s*$")
_UNSURE = re.compile("timed out|Zero Bytes|[Uu]nable to contact|Unexpected message")
_MESSAGE_PREFIX = re.compile(
    r"^((\w+: )?(error|fatal): |allocation failure: |Batch job submission failed: )+"
)


@dataclass(frozen=True)
class Queued:
    """A job (or a task of an array) in the queue: pending, running or completing."""

    job: str  # 123, or 123_4
    state: str
    reason: str
    name: str
    command: str  # the path of the batch script
    comment: str


def queue() -> list[Queued]:
    """The user's jobs that have not ended.

    Raises UserError where Slurm does not answer: an unknown queue is not an empty one.
    """
    form = "--format=%i|%T|%r|%j|%o|%k"
    lines = ask("squeue", "--me", "--noheader", "--array", form).splitlines()
    return [Queued(*line.strip().split("|", 5)) for line in lines if line.count("|") >= 5]


def controllers_jobs(ids: Iterable[str | None]) -> list[Queued]:
    """The jobs with these ids that have not ended, by the controller itself. None: all users' jobs.

    Some sites answer squeue from a copy that is a minute old.
    """
    jobs = []
    for job_id in ids:
        words = ("scontrol", "--oneliner", "show", "job", *filter(None, [job_id]))
        for line in _query(*words).stdout.splitlines():
            facts = dict(re.findall(r"(\w+)=(\S*)", line))
            if not _ENDED.match(facts.get("JobState", "COMPLETED")):
                comment = re.search(r" Comment=(.*?)(?= \w+=|$)", line)
                rest = (
                    *(facts[key] for key in ("JobState", "Reason", "JobName")),
                    facts.get("Command", ""),
                    comment[1] if comment else "",
                )
                jobs += [Queued(job, *rest) for job in _task_ids(facts)]
    return jobs


def _task_ids(facts: dict[str, str]) -> list[str]:
    """The ids of the tasks that one line of scontrol is about: `ArrayTaskId=0-2,5%4`."""
    if "ArrayJobId" not in facts:
        return [facts["JobId"]]
    indices: list[int] = []
    for part in facts["ArrayTaskId"].partition("%")[0].split(","):
        first, _, last = part.partition("-")
        indices += range(int(first), int(last or first) + 1)
    return [f"{facts['ArrayJobId']}_{index}" for index in indices]


def state(job: str) -> str:
    """The state of a job in the queue; empty where it is not there, or Slurm does not answer."""
    return _answer(_query("squeue", "--noheader", f"--jobs={job}", "--format=%T"))


def submit_line(job: str) -> str:
    """The command by which a job was submitted, as accounting has it; empty where it has none."""
    command = ("sacct", "--noheader", "--parsable2", "--allocations", "--format=SubmitLine")
    with suppress(UserError):
        return _answer(call(*command, f"--jobs={job}"))
    return ""


def _answer(result: subprocess.CompletedProcess[str]) -> str:
    """The one line that a command answers, which a site's greeting may stand before."""
    return result.stdout.strip().rpartition("\n")[2]


def may_requeue(job: str) -> bool:
    """Whether this job may be queued again: neither its script nor the site forbids it."""
    return " Requeue=1 " in call("scontrol", "show", "job", job).stdout


def known_job_ids(jobs: list[str]) -> set[str]:
    """Those of the jobs that the controller still remembers, ended or not.

    Slurm 22.05 starts a job at once if it has forgotten the job's dependency, even a failed one.
    """
    if not jobs:
        return set()
    bases = ",".join(sorted({job.split("_")[0] for job in jobs}))
    result = _query(
        "squeue", "--noheader", "--array", "--states=all", "--format=%i", f"--jobs={bases}"
    )
    # With a single id that it has forgotten, squeue fails instead of printing nothing.
    if result.returncode and "Invalid job id" not in result.stderr:
        raise _no_answer("squeue", result.stderr)
    return set(jobs) & set(result.stdout.split())


def largest_array() -> int:
    """Tasks that one array may have: MaxArraySize is one more than the largest index.

    SchedulerParameters may allow fewer.
    """
    config = settings()
    size = max(1, int(config.get("MaxArraySize", 2)) - 1)
    match = re.search(r"\bmax_array_tasks=(\d+)", config.get("SchedulerParameters", ""))
    return min(size, int(match[1])) if match else size


def has_accounts() -> bool:
    """Whether this cluster keeps accounts. One that does not ignores --account and --qos."""
    return "slurmdbd" in setting("AccountingStorageType")


def user_name() -> str:
    """The user as Slurm knows them, by uid: USER and LOGNAME may name somebody else."""
    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:  # a container without an entry for the uid
        return str(os.getuid())


def setting(name: str) -> str:
    """A value of Slurm's configuration; empty where it is not set."""
    return settings().get(name, "")


def settings() -> dict[str, str]:
    """Slurm's configuration."""
    lines = ask("scontrol", "show", "config")
    return dict(re.findall(r"^(\w+)[ \t]*=[ \t]*(\S+)", lines, re.MULTILINE))


def test_submission(script: str) -> str | None:
    """Why Slurm would refuse a script, or None.

    Uses sbatch --test-only, which queues nothing. It checks all but the limits on jobs.
    """
    result = call("sbatch", "--test-only", stdin=script)
    return reason(result.stderr) if result.returncode else None


def scancel(jobs: list[str]) -> None:
    """Cancel these ids and nothing else. Ids of jobs that have ended are no error."""
    for start in range(0, len(jobs), 200):
        result = call("scancel", "--quiet", *jobs[start : start + 200])
        if result.returncode and "Invalid job id" not in result.stderr:
            raise _no_answer("scancel", result.stderr)


@contextmanager
def clean_environment() -> Iterator[None]:
    """Drop what would change Slurm's commands or a job's, and restore it at the end."""
    before = dict(os.environ)
    for name in before.keys() - _clean_variables().keys():
        del os.environ[name]
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def _clean_variables() -> dict[str, str]:
    variables = os.environ.items()
    return {name: value for name, value in variables if name in KEPT or not LEAK.match(name)}


def submitted_id(result: subprocess.CompletedProcess[str]) -> str | None:
    """The job that `sbatch --parsable` says it has queued; None where it says none.

    Sites' wrappers drop the option, and print lines of their own.
    """
    if result.returncode:
        return None
    ids = [match[1] for line in result.stdout.splitlines() if (match := _SUBMITTED.match(line))]
    return ids[-1] if ids else None


def may_be_queued(result: subprocess.CompletedProcess[str]) -> bool:
    """Whether the controller may have queued a job, or will, of which sbatch gives no id.

    It may after a time-out, and where a site's wrapper ends with status 0.
    """
    return not result.returncode or bool(_UNSURE.search(result.stderr + result.stdout))


def reason(text: str) -> str:
    """All that Slurm or a site's plugin says, as one line without the prefixes."""
    lines = [_MESSAGE_PREFIX.sub("", line.strip()) for line in text.splitlines() if line.strip()]
    return "; ".join(dict.fromkeys(lines)) or "it gave no reason"


def last_line(text: str) -> str:
    """The reason in Slurm's output: its last line that is not blank, without the prefixes."""
    lines = [line for line in text.splitlines() if line.strip()]
    return _MESSAGE_PREFIX.sub("", lines[-1]) if lines else "it gave no reason"


def require_slurm() -> None:
    """Raises UserError where Slurm's commands are not on PATH."""
    missing = [name for name in REQUIRED if not shutil.which(name)]
    if missing:
        raise UserError(where=", ".join(missing), what="not on PATH", fix=_LOGIN_NODE)
    _check_cluster()


def ask(*command: str) -> str:
    """The output of a command that changes nothing. Raises UserError where it fails."""
    result = _query(*command)
    if result.returncode:
        raise _no_answer(command[0], result.stderr)
    return result.stdout


def _query(*command: str) -> subprocess.CompletedProcess[str]:
    """Run a command that changes nothing, again after a pause where the controller was busy."""
    for pause in PAUSES:
        result = call(*command)
        if not result.returncode or not BUSY.search(result.stderr):
            return result
        time.sleep(pause)
    return call(*command)


def call(*command: str, stdin: str | None = None) -> subprocess.CompletedProcess[str]:
    """Run a command of Slurm, in an environment that changes nothing of its answer.

    `stdin`: None for none, so that a site's wrapper that asks something does not wait unseen.

    Raises UserError where it is missing or too slow.
    """
    _check_cluster()
    try:
        return subprocess.run(
            command,
            input=stdin or "",
            env=_clean_variables(),
            capture_output=True,
            text=True,
            timeout=SECONDS,
        )
    except FileNotFoundError:
        raise UserError(where=command[0], what="not on PATH", fix=_LOGIN_NODE) from None
    except subprocess.TimeoutExpired:
        raise _no_answer(command[0], f"no answer within {SECONDS} s") from None


def _check_cluster() -> None:
    """Raise UserError where the shell chooses a cluster, which some commands would ask alone."""
    if chosen := [name for name in CLUSTERS if os.environ.get(name)]:
        raise UserError(
            where=", ".join(chosen),
            what="names a cluster, and jobs go to the one of this login node",
            fix=f"unset {' '.join(chosen)}, on a login node of that cluster",
        )


def _no_answer(command: str, output: str) -> UserError:
    fix = "the jobs' state is unknown, so nothing was done; try again later"
    # Either there is no cluster here, or the controller that serves its configuration is down.
    if re.search("configuration (source|file)", output):
        fix += ", or go to a login node, or name the cluster's slurm.conf in SLURM_CONF"
    return UserError(where=command, what=last_line(output), fix=fix)
