"""The record of what was submitted: one line per event in <study>/slurm/jobs.jsonl, append-only.

An array is recorded before its sbatch, under a group name that its jobs carry as their comment.
So a submission that was killed between sbatch and its answer is still found in the queue.

The functions `write_...` are the only writers of this file, and `read`, `last_cluster`,
`login_stages`, `excluded_nodes` and `broken_chain` its only readers.
"""

import json
import os
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from core import files, utc
from core.cell.identity import Cell
from core.errors import Problem, UserError
from core.stages import STAGES
from slurm import slurm_cli
from slurm.profile import Profile
from slurm.slurm_cli import Queued

FILE = "jobs.jsonl"
CACHED_SECONDS = 600  # how old the copy may be from which a site answers squeue
COMPLETING_SECONDS = 30
# Events -> the keys that each has for sure. Earlier versions recorded less of a submission.
KEYS: dict[str, set[str]] = {
    "submission": set(),
    "submitting": {"group", "kind", "tasks", "after", "time"},
    "submitted": {"group", "job", "time"},
    "refused": {"group", "reason"},
    "not_submitted": {"job", "reason"},
    "cancelled": {"jobs"},
}
CONTINUE = "continue"  # the kind of the job that submits what the limit on jobs left over


@dataclass(frozen=True)
class Group:
    """One array on record. `job` is None where sbatch's answer is not on record."""

    name: str
    kind: str
    tasks: list[list[str]]  # identities of each task's cells
    job: str | None = None
    time: str = ""  # of the last event, UTC
    after: str | None = None  # the text of --dependency
    code: str | None = None  # the folder that its jobs run from
    analysis: str | None = None  # identity of the analysis that its submission leads to

    def task_ids(self, base: str | None) -> list[str]:
        """The ids of the tasks of job `base`. An array of one task is a plain job."""
        if len(self.tasks) == 1:
            return [str(base)]
        return [f"{base}_{index}" for index in range(len(self.tasks))]

    def in_queue(self, queue: list[Queued]) -> dict[int, Queued]:
        """Index of a task -> its job, for the jobs that have not ended."""
        own = {job.job: job for job in queue if self.has(job)}
        bases = dict.fromkeys(job.split("_")[0] for job in own)
        base = self.job if self.job in bases else next(iter(bases), None)
        return {index: own[job] for index, job in enumerate(self.task_ids(base)) if job in own}

    def has(self, job: Queued) -> bool:
        """Whether a job is of this group: its comment or its script has the group's name.

        Some sites replace comments, and run another script than the one that they are given. Then
        its recorded id and its name decide. An id alone proves nothing: a cluster that was set up
        anew counts from 1 again.
        """
        if self.name in job.comment or self.name in job.command:
            return True
        job_name = f"{self.name.rpartition('-')[0]}-{self.kind}"
        return job.job.split("_")[0] == self.job and job_name in job.name


@contextmanager
def locked(base: Path) -> Iterator[Path]:
    """Create <study>/slurm and hold its lock, so that submissions run one after the other.

    `base`: the study's folder. Raises UserError where it cannot be written, or holds jobs of
    another user, which `squeue --me` does not list and scancel does not cancel.
    """
    folder = base / "slurm"
    check_owner(base)
    with ExitStack() as stack:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            stack.enter_context(files.locked(folder / ".lock"))
        except OSError as error:
            is_refused = isinstance(error, PermissionError)
            user = f" (it is of user {files.owner(folder)})" if is_refused else ""
            raise UserError(
                where=str(folder),
                what=f"cannot be written: {error.strerror}{user}",
                fix="make room, or give a folder of yours with --runs",
            ) from None
        yield folder


def check_owner(base: Path) -> None:
    """Raise UserError where the jobs on record of the study in `base` are another user's."""
    if user := other_user(base / "slurm"):
        raise UserError(
            where=str(base / "slurm" / FILE),
            what=f"these are the jobs of user {user}, who alone can submit or cancel them",
            fix="`status` and `plan` show the study; for jobs of yours give a folder of yours: "
            "--runs DIR",
        )


def other_user(folder: Path) -> str | None:
    """The name of the user who submitted the jobs on record, where that is another one."""
    record = folder / FILE
    if record.exists() and record.stat().st_uid != os.getuid():
        return files.owner(record)
    return None


def write_submission(
    folder: Path, cluster: str, code: Path, profile: Profile, analysis: str | None
) -> None:
    """Record the start of a submission.

    `cluster`: the profile as the user named it, in words of a shell. `analysis`: identity of the
    analysis that the study's cells lead to; None without one.
    """
    login = [stage for stage in STAGES if profile.is_on_login(stage)]
    facts = {"cluster": cluster, "code": str(code), "analysis": analysis, "login": login}
    _write(folder, "submission", **facts, profile=asdict(profile))


def write_submitting(
    folder: Path, group: str, kind: str, tasks: list[list[str]], after: str | None
) -> None:
    """Record an array before its sbatch.

    `tasks`: identities of each task's cells. `after`: the text of --dependency.
    """
    _write(folder, "submitting", group=group, kind=kind, tasks=tasks, after=after)


def write_submitted(folder: Path, group: str, job: str) -> None:
    """Record the job id that sbatch gave to an array."""
    _write(folder, "submitted", group=group, job=job)


def write_refused(folder: Path, group: str, reason: str) -> None:
    """Record that sbatch refused an array."""
    _write(folder, "refused", group=group, reason=reason)


def write_not_submitted(folder: Path, cluster: str, job: str, reason: str) -> None:
    """Record that a job could not submit what it should have."""
    _write(folder, "not_submitted", cluster=cluster, job=job, reason=reason)


@contextmanager
def noted(base: Path, cluster: str) -> Iterator[None]:
    """In a job, record why a submission fails: `status` shows it, the job's log nobody reads."""
    try:
        yield
    except UserError as error:
        if job := os.environ.get("SLURM_JOB_ID"):
            with suppress(OSError):
                (base / "slurm").mkdir(parents=True, exist_ok=True)
                problem = error.problems[0]
                reason = str(Problem(problem.where, problem.what))
                write_not_submitted(base / "slurm", cluster, job, reason)
        raise


def write_cancelled(folder: Path, jobs: list[str]) -> None:
    """Record the jobs that the user cancelled."""
    _write(folder, "cancelled", jobs=jobs)


def _write(folder: Path, event: str, **facts: Any) -> None:
    now = utc.text()
    files.append_line(folder / FILE, json.dumps({"event": event, "time": now, **facts}))


def read(folder: Path) -> list[Group]:
    """Every array that was or may have been submitted, in order."""
    groups: dict[str, Group] = {}
    submission: dict[str, Any] = {}
    for event in _events(folder):
        if event["event"] == "submission":
            submission = event
        elif event["event"] == "submitting":
            groups[event["group"]] = Group(
                event["group"],
                event["kind"],
                event["tasks"],
                time=event["time"],
                after=event["after"],
                code=submission.get("code"),
                analysis=submission.get("analysis"),
            )
        elif event["event"] == "submitted" and (group := groups.get(event["group"])):
            groups[group.name] = replace(group, job=event["job"], time=event["time"])
        elif event["event"] == "refused":
            groups.pop(event["group"], None)
    return list(groups.values())


def last_cluster(folder: Path) -> str | None:
    """The profile of the last submission, as the user named it.

    None where nothing was submitted, or only by a version that did not record it.
    """
    kinds = ("submission", "not_submitted")
    names = [event.get("cluster") for event in _events(folder) if event["event"] in kinds]
    return names[-1] if names else None


def login_stages(folder: Path) -> list[str]:
    """The stages that the last submission left to the login node."""
    stages = [e.get("login", []) for e in _events(folder) if e["event"] == "submission"]
    return stages[-1] if stages else []


def excluded_nodes(folder: Path) -> set[str]:
    """The nodes that every job of the last submission leaves out, by `sbatch: exclude`."""
    profiles = [e.get("profile", {}) for e in _events(folder) if e["event"] == "submission"]
    exclude = profiles[-1].get("sbatch", {}).get("exclude", []) if profiles else []
    return set(exclude if isinstance(exclude, list) else str(exclude).split(","))


def broken_chain(folder: Path, groups: list[Group], queue: list[Queued]) -> str | None:
    """Which job should have submitted the remaining cells and did not, and why.

    None where none failed to, or something was submitted later.
    """
    refusal = None
    for event in _events(folder):
        if event["event"] == "not_submitted":
            refusal = f"job {event['job']} could not submit: {event['reason']}"
        elif event["event"] == "submitted":
            refusal = None
    last = groups[-1] if groups else None
    if refusal or last is None or last.kind != CONTINUE or last.job is None:
        return refusal
    if last.in_queue(queue) or any(
        event["event"] == "submission" and event.get("time", "") > last.time
        for event in _events(folder)
    ):
        return None
    return f"job {last.job} ended without submitting: see {FILE[:-6]}/{last.job}_0_log.err"


def _events(folder: Path) -> list[dict[str, Any]]:
    path = folder / FILE
    try:
        facts = path.stat()
    except FileNotFoundError:
        return []
    return _parsed(path, (facts.st_ino, facts.st_size, facts.st_mtime_ns))


@lru_cache(maxsize=4)
def _parsed(path: Path, version: tuple[int, ...]) -> list[dict[str, Any]]:
    """The events in a file; `version` tells it from the file of before."""
    damaged: list[Problem] = []  # cut short by a kill or a full disk; the queue has those jobs
    return [event for _, event in files.read_rows(path, damaged) if _is_event(event)]


def _is_event(row: dict[str, Any]) -> bool:
    """Whether a row was written here, and not by a hand or by a program that misused the file."""
    keys = KEYS.get(str(row.get("event")))
    return keys is not None and keys <= row.keys()


def ask_queue(groups: list[Group]) -> list[Queued]:
    """The user's jobs that have not ended, those of `groups` for sure.

    What was submitted in the last minutes and squeue does not list is looked up in the controller.

    Raises UserError where Slurm does not answer.
    """
    queue = slurm_cli.queue()
    since = utc.text(time.time() - CACHED_SECONDS)
    unlisted = [group for group in groups if group.time > since and not group.in_queue(queue)]
    ids = dict.fromkeys(group.job for group in unlisted)
    jobs = slurm_cli.controllers_jobs(ids)
    if None in ids:  # sbatch gave no id; all jobs of the cluster were asked for
        jobs = [job for job in jobs if any(group.has(job) for group in unlisted)]
    return queue + jobs


def wait_for_completing(groups: list[Group]) -> list[Queued]:
    """The queue, once no job of this study is completing.

    A completing job leaves the queue, or is pending again, after a moment.
    """
    deadline = time.monotonic() + COMPLETING_SECONDS
    while True:
        queue = ask_queue(groups)
        jobs = in_queue(groups, queue).values()
        if not any(job.state == "COMPLETING" for job in jobs) or time.monotonic() > deadline:
            return queue
        time.sleep(1)


def in_queue(groups: list[Group], queue: list[Queued]) -> dict[str, Queued]:
    """Identity of a cell -> its job that has not ended."""
    jobs: dict[str, Queued] = {}
    for group in groups:
        for index, job in group.in_queue(queue).items():
            jobs |= dict.fromkeys(group.tasks[index], job)
    return jobs


def of_kind(groups: list[Group], queue: list[Queued], kind: str) -> list[Queued]:
    """The jobs of one kind that have not ended."""
    return [job for group in groups if group.kind == kind for job in group.in_queue(queue).values()]


def alive(
    cells: list[Cell], done: set[str], queued: dict[str, Queued]
) -> tuple[dict[str, str], list[str]]:
    """Split the `queued` jobs into those that will run and those that never can.

    A pending job can never run if it waits for a cell that is neither in `done` nor in a job that
    will run. `cells`: inputs before their users.

    Returns identity of a cell -> its job that will run, and the ids of the dead jobs.
    """
    will_run: dict[str, str] = {}
    dead: set[str] = set()
    for cell in cells:
        job = queued.get(cell.identity)
        if job is None or cell.identity in done:
            continue
        inputs = [i.identity for i in cell.inputs.values() if i.identity not in done]
        lost = job.state == "PENDING" and any(identity not in will_run for identity in inputs)
        if lost or job.reason == "DependencyNeverSatisfied":
            dead.add(job.job)
        else:
            will_run[cell.identity] = job.job
    will_run = {identity: job for identity, job in will_run.items() if job not in dead}
    return will_run, sorted(dead)
