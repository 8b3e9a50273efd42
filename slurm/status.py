"""What Slurm says of a study's cells: a hint about what is queued and why a job ended, never about what is done."""

import json
import os
import re
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path

from core.cell.failures import diagnose, end
from core.cell.identity import Cell
from core.errors import UserError
from slurm import ledger, scheduler
from slurm.scheduler import Queued

WAITING = {"PENDING", "REQUEUED", "REQUEUE_FED", "REQUEUE_HOLD", "RESV_DEL_HOLD", "SPECIAL_EXIT"}
# Causes for which a job in the queue never starts by itself.
STUCK = ("held job", "dead dependency", "refused by Slurm")
# Ends of a job that had begun, or that a node couldn't begin.
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
    "None": "Slurm to look at them",
}
# Slurm's and submitit's time is the node's, the kit's own is UTC and ends in Z.
_STAMP = re.compile(r"(\d{4}-\d\d-\d\d)[T ](\d\d:\d\d:\d\d)(?!Z)")


@dataclass(frozen=True)
class Answer:
    """What is on record and in the queue."""

    record: Path
    jobs: dict[str, str]  # identity of a cell -> the job that it was submitted in last
    queued: dict[str, Queued] = field(default_factory=dict)
    submits: str | None = None  # the job that will submit what the limit on jobs left over
    trouble: str | None = None  # why the queue isn't known

    @property
    def cluster(self) -> str | None:
        """The profile of the last submission, as the user named it."""
        for line in reversed(self.record.read_text(encoding="utf-8").splitlines()):
            if line.startswith('{"event": "submission"'):
                return json.loads(line).get("cluster")
        return None


@dataclass(frozen=True)
class Job:
    """The last job of a cell."""

    job: str
    state: str  # running, queued, blocked (never starts by itself), over, or unknown
    reason: str = ""  # Slurm's word: why it waits, how it ended
    logs: tuple[Path, ...] = ()

    @property
    def began(self) -> bool:
        """Whether a job that is over had begun. One that was cancelled before that didn't fail."""
        return bool(self.logs or BROKE.match(self.reason))

    @property
    def waits_for(self) -> str:
        return next((words for sign, words in REASONS.items() if re.match(sign, self.reason)), self.reason)

    def ends(self) -> dict[Path, list[str]]:
        """Log -> its last lines, without those of its lives before it was queued again.

        Only submitit's stdout says when a life began; Slurm's words are in the stderr.
        """
        text = {path: end(path) for path in self.logs}
        began = max((_stamp(lines[0]) for path, lines in text.items() if path.suffix == ".out" and lines), default="")
        for path, lines in text.items():
            old = [number for number, line in enumerate(lines) if "" < _stamp(line) < began]
            if old and path.suffix == ".err":
                text[path] = lines[old[-1] + 1 :]
        return text


def ask(base: Path) -> Answer:
    """What <study>/slurm/jobs.jsonl and squeue say. Where squeue doesn't answer, that is the answer's `trouble`."""
    record = base / "slurm" / "jobs.jsonl"
    groups = ledger.read(record.parent)
    jobs: dict[str, str] = {}
    for group in groups:
        for index, identities in enumerate(group.tasks if group.job else ()):
            job = f"{group.job}_{index}" if len(group.tasks) > 1 else str(group.job)
            jobs |= dict.fromkeys(identities, job)
    if record.stat().st_uid != os.getuid():
        return Answer(record, jobs, trouble=f"the jobs are those of user {record.stat().st_uid}, who must ask")
    try:
        queue = scheduler.queue()
    except UserError as error:
        return Answer(record, jobs, trouble=error.lines[0].split(";")[0])
    queued = ledger.in_queue(groups, queue)
    jobs |= {identity: job.job for identity, job in queued.items()}
    more = ledger.of_kind(groups, queue, "continue")
    return Answer(record, jobs, queued, more[-1].job if more else None)


def jobs(answer: Answer, cells: list[Cell], done: set[str], ends: dict[str, str]) -> dict[str, Job]:
    """Identity -> job, for the cells (inputs before users) not in `done`, which was read after the queue was.

    `ends`: job -> how it ended, as far as it is known; what sacct knows of others is put into it.
    """
    alive = ledger.alive(cells, done, answer.queued)[0]
    left = [cell for cell in cells if cell.identity in answer.jobs and cell.identity not in done]
    over = [
        c for c in left if c.identity not in answer.queued and done.issuperset(i.identity for i in c.inputs.values())
    ]
    if not answer.trouble and (asked := [job for c in over if (job := answer.jobs[c.identity]) not in ends]):
        ends |= _ended(asked, answer.record.parents[1].name)
    logs: dict[str, list[Path]] = defaultdict(list)
    for path in sorted(answer.record.with_name("jobs").glob("*_log.*")):
        logs[path.name.rsplit("_", 2)[0]].append(path)
    found = {}
    for cell in left:
        job = answer.jobs[cell.identity]
        state, reason = "unknown" if answer.trouble else "over", ends.get(job, "")
        if queued := answer.queued.get(cell.identity):
            state, reason = "queued" if queued.state in WAITING else "running", queued.reason
            known = diagnose(f"Slurm: {reason}", 0)
            if cell.identity not in alive:
                state, reason = "blocked", "DependencyNeverSatisfied"
            elif state == "queued" and known and known.name in STUCK:
                state = "blocked"
        found[cell.identity] = Job(job, state, reason, tuple(logs.get(job, ())))
    return found


def _ended(jobs: list[str], study: str) -> dict[str, str]:
    """Job -> its end by sacct, such as TIMEOUT or `CANCELLED by 1000`, for those that sacct knows and tells.

    A job out of memory reads FAILED, and only its step says why. The same id on a cluster that was set up anew, or
    of somebody else, has another name.
    """
    found: dict[str, str] = {}
    bases = sorted({job.split("_")[0] for job in jobs})
    for start in range(0, len(bases), 500):
        command = ("sacct", "--noheader", "--parsable2", "--format=JobID,JobName,State")
        try:
            result = scheduler._call(*command, f"--jobs={','.join(bases[start : start + 500])}")
        except UserError:
            break
        for line in result.stdout.splitlines():
            step, name, state = line.split("|", 2)
            job = step.split(".")[0]
            if step == job and name.startswith(f"{study}-"):
                found[job] = state
            elif job in found and state.startswith("OUT_OF_ME"):
                found[job] = "OUT_OF_MEMORY"
    # sacct lags behind: what it still takes for running or queued it doesn't know the end of.
    return {job: found[job] for job in jobs if job in found and not re.match("PENDING|RUNNING|REQUEUED", found[job])}


def _stamp(line: str) -> str:
    found = _STAMP.search(line)
    return f"{found[1]} {found[2]}" if found else ""
