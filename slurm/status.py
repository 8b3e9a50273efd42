"""What Slurm knows of a study's cells: what is queued, and why a job ended.

It is a hint. Whether a cell is finished is decided by its manifest alone.
"""

import re
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path

from core.cell.failures import diagnose, end
from core.cell.identity import Cell
from core.errors import Problem, UserError
from slurm import driver, slurm_cli, submissions
from slurm.slurm_cli import Queued

WAITING = {"PENDING", "REQUEUED", "REQUEUE_FED", "REQUEUE_HOLD", "RESV_DEL_HOLD", "SPECIAL_EXIT"}
SUSPENDED = {"SUSPENDED", "STOPPED"}  # it keeps its memory, and Slurm resumes it
# Names of known failures (core.cell.failures) after which a queued job never starts by itself.
STUCK = (
    *("held by an administrator", "hours used up"),
    *("held job", "dead dependency", "refused by Slurm"),
)
# States of jobs that ended after they had begun, or that a node could not begin.
BROKE = re.compile(r"FAILED|TIMEOUT|NODE_FAIL|BOOT_FAIL|OUT_OF_ME|PREEMPTED|DEADLINE")
# What a queued job waits for, by how Slurm's reason begins.
REASONS = {
    "Dependency": "the cells before them",
    "Resources": "free nodes",
    "Priority": "jobs ahead of them",
    "BeginTime": "a moment, to start again",
    "JobArrayTaskLimit": "others of their array (array_parallelism)",
    "ReqNodeNotAvail|Node|Partition(Down|Inactive)|Reservation": "nodes that are down or reserved",
    "QOS|Assoc|Max": "a limit of the account or QOS",
    "Suspended": "Slurm to resume them, which has suspended them",
    "None": "Slurm to look at them",
}
# Slurm and submitit write local time, the kit writes UTC, which ends in Z.
_LOCAL_TIME = re.compile(r"(\d{4}-\d\d-\d\d)[T ](\d\d:\d\d:\d\d)(?!Z)")
_NOT_ENDED = re.compile("PENDING|RUNNING|REQUEUED")
_SACCT_IDS = 500  # per call


@dataclass(frozen=True)
class QueueState:
    """What is on record and in the queue."""

    record: Path  # <study>/slurm/jobs.jsonl
    jobs: dict[str, str]  # identity of a cell -> the job that it was submitted in last
    queued: dict[str, Queued] = field(default_factory=dict)  # identity -> job that has not ended
    submits: str | None = None  # the job that will submit what the limit on jobs left over
    broken: str | None = None  # the job that should have submitted it, and why it did not
    trouble: str | None = None  # why the queue is not known
    user: str | None = None  # the user whose jobs these are, where that is another one
    driver: str | None = None  # the job of study.sbatch, which will submit the study


@dataclass(frozen=True)
class Job:
    """The last job of a cell."""

    job: str
    state: str  # running, queued, blocked (never starts by itself), over, or unknown
    reason: str = ""  # from Slurm: why it waits, or how it ended
    logs: tuple[Path, ...] = ()

    @property
    def began(self) -> bool:
        """Whether a job that has ended had begun. One cancelled before that did not fail."""
        return bool(self.logs or BROKE.match(self.reason))

    @property
    def waits_for(self) -> str:
        """Slurm's reason in words."""
        for pattern, words in REASONS.items():
            if re.match(pattern, self.reason):
                return words
        return self.reason

    def ends(self) -> dict[Path, list[str]]:
        """Log -> its last lines, without those written before the job was last requeued.

        Only submitit's stdout shows when the job last started; Slurm's messages are in stderr.
        """
        tails = {path: end(path) for path in self.logs}
        starts = [
            _local_time(lines[0])
            for path, lines in tails.items()
            if path.suffix == ".out" and lines
        ]
        started = max(starts, default="")
        for path, lines in tails.items():
            old = [i for i, line in enumerate(lines) if "" < _local_time(line) < started]
            if old and path.suffix == ".err":
                tails[path] = lines[old[-1] + 1 :]
        return tails


def ask(base: Path, study_file: Path | None = None) -> QueueState:
    """Combine <study>/slurm/jobs.jsonl with squeue.

    Where squeue does not answer, the reason is in the result's `trouble`. `study_file`: that whose
    driver is looked for.
    """
    record = base / "slurm" / submissions.FILE
    groups = submissions.read(record.parent)
    jobs: dict[str, str] = {}
    for group in groups:
        if group.job:
            for job, identities in zip(group.task_ids(group.job), group.tasks, strict=True):
                jobs |= dict.fromkeys(identities, job)
    if user := submissions.other_user(record.parent):
        trouble = f"the jobs are those of user {user}, who must ask"
        return QueueState(record, jobs, trouble=trouble, user=user)
    try:
        queue = submissions.ask_queue(groups)
    except UserError as error:
        problem = error.problems[0]
        return QueueState(record, jobs, trouble=str(Problem(problem.where, problem.what)))
    queued = submissions.in_queue(groups, queue)
    jobs |= {identity: job.job for identity, job in queued.items()}
    continuations = submissions.of_kind(groups, queue, submissions.CONTINUE)
    submits = continuations[-1].job if continuations else None
    broken = None if submits else submissions.broken_chain(record.parent, groups, queue)
    submitter = driver.driver_in(queue, study_file, base.parent) if study_file else None
    return QueueState(record, jobs, queued, submits, broken, driver=submitter)


def jobs(
    queue: QueueState, cells: list[Cell], done: set[str], ends: dict[str, str]
) -> dict[str, Job]:
    """Identity -> last job, for the submitted cells that are not done.

    `cells`: inputs before their users. `done`: identities, read after the queue was. `ends`: job ->
    how it ended, as far as it is known; what sacct knows of other jobs is added to it.
    """
    will_run, _ = submissions.alive(cells, done, queue.queued)
    submitted = [c for c in cells if c.identity in queue.jobs and c.identity not in done]
    if not submitted:
        return {}
    if not queue.trouble:
        ended = [
            queue.jobs[cell.identity]
            for cell in submitted
            if cell.identity not in queue.queued
            and done.issuperset(i.identity for i in cell.inputs.values())
        ]
        if unexplained := [job for job in ended if job not in ends]:
            ends |= _ended(unexplained, queue.record.parents[1].name)
    logs: dict[str, list[Path]] = defaultdict(list)
    for path in sorted(queue.record.with_name("jobs").glob("*_log.*")):
        logs[path.name.rsplit("_", 2)[0]].append(path)
    by_cell = {}
    for cell in submitted:
        job = queue.jobs[cell.identity]
        state = "unknown" if queue.trouble else "over"
        reason = ends.get(job, "")
        if reason.startswith("FAILED") and not logs.get(job):
            # Slurm makes the log before it starts anything of the job.
            reason += f" without a log in {queue.record.with_name('jobs')}"
        if queued := queue.queued.get(cell.identity):
            state = _queued_state(queued, cell.identity in will_run)
            reason = "Suspended" if queued.state in SUSPENDED else queued.reason
            reason = reason if cell.identity in will_run else "DependencyNeverSatisfied"
        by_cell[cell.identity] = Job(job, state, reason, tuple(logs.get(job, ())))
    return by_cell


def _queued_state(job: Queued, will_run: bool) -> str:
    """running, queued or blocked."""
    if not will_run:
        return "blocked"
    if job.state in SUSPENDED:
        return "queued"
    if job.state not in WAITING:
        return "running"
    failure = diagnose(f"Slurm: {job.reason}", 0)
    return "blocked" if failure and failure.name in STUCK else "queued"


def _ended(jobs: list[str], study: str) -> dict[str, str]:
    """Job -> its end by sacct, such as TIMEOUT or `CANCELLED by 1000`, where sacct knows it.

    A job that ran out of memory reads FAILED, and only its step shows why. A job with the same id
    on a cluster that was set up anew, or of another user, is recognized by its name and left out.
    """
    ends: dict[str, str] = {}
    bases = sorted({job.split("_")[0] for job in jobs})
    for start in range(0, len(bases), _SACCT_IDS):
        ids = ",".join(bases[start : start + _SACCT_IDS])
        command = ("sacct", "--noheader", "--parsable2", "--format=JobID,JobName,State")
        try:
            result = slurm_cli.call(*command, f"--jobs={ids}")
        except UserError:
            break
        rows = (line.split("|") for line in result.stdout.splitlines())
        # Other lines are a site's greeting.
        for step, name, state in (row for row in rows if len(row) == 3):
            job = step.split(".")[0]
            if step == job and name.startswith(f"{study}-"):
                ends[job] = state
            elif job in ends and state.startswith("OUT_OF_ME"):
                ends[job] = "OUT_OF_MEMORY"
    # sacct lags behind: it does not know the end of a job that it calls queued or running.
    return {job: ends[job] for job in jobs if job in ends and not _NOT_ENDED.match(ends[job])}


def _local_time(line: str) -> str:
    """The local time in a line of a log; empty where there is none."""
    match = _LOCAL_TIME.search(line)
    return f"{match[1]} {match[2]}" if match else ""
