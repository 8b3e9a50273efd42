"""What was submitted: one line per event in <study>/slurm/jobs.jsonl, only ever appended to.

An array is written down before its sbatch, with a group name that its jobs carry as their comment, so that even a
submission killed between sbatch and the answer is found again in the queue.
"""

import json
import os
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from core import files
from core.cell.identity import Cell
from core.errors import UserError
from slurm.scheduler import Queued


@dataclass(frozen=True)
class Group:
    """One array on record. `job` is None where sbatch's answer is not on record."""

    name: str
    kind: str
    tasks: list[list[str]]  # identities of each task's cells
    job: str | None = None

    def in_queue(self, queue: list[Queued]) -> dict[int, Queued]:
        """Number of a task -> its job, for those not over.

        An id alone proves nothing: a cluster that was set up anew counts from 1 again. The comment does, but some
        sites drop it.
        """
        base = self.job or next((q.job.split("_")[0] for q in queue if q.comment == self.name), None)
        ours = {q.job: q for q in queue if q.comment in (self.name, "", "(null)")}
        ids = [base] if len(self.tasks) == 1 else [f"{base}_{index}" for index in range(len(self.tasks))]
        return {index: ours[job] for index, job in enumerate(ids) if job in ours}


@contextmanager
def locked(base: Path) -> Iterator[Path]:
    """<study>/slurm, made and held: two submissions at once work one after the other."""
    folder = base / "slurm"
    with ExitStack() as stack:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            stack.enter_context(files.locked(folder / ".lock"))
        except OSError as error:
            raise UserError(
                where=str(folder),
                what=f"cannot be written: {error.strerror}",
                fix="give a folder of yours with --runs",
            ) from None
        yield folder


def write(folder: Path, event: str, **facts: Any) -> None:
    """Append one event."""
    line = json.dumps({"event": event, "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), **facts})
    with open(folder / "jobs.jsonl", "a", encoding="utf-8") as file:
        file.write(line + "\n")
        file.flush()
        os.fsync(file.fileno())


def read(folder: Path) -> list[Group]:
    """Every array that was or may have been submitted, in order."""
    try:
        lines = (folder / "jobs.jsonl").read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        return []
    found: dict[str, Group] = {}
    for line in lines:
        try:
            event = json.loads(line)
        except json.JSONDecodeError:
            continue  # cut short by a kill or a full disk: what it would say is asked of the queue
        if event["event"] == "submitting":
            found[event["group"]] = Group(event["group"], event["kind"], event["tasks"])
        elif event["event"] == "submitted" and (group := found.get(event["group"])):
            found[group.name] = Group(group.name, group.kind, group.tasks, event["job"])
        elif event["event"] == "refused":
            found.pop(event["group"], None)
    return list(found.values())


def in_queue(groups: list[Group], queue: list[Queued]) -> dict[str, Queued]:
    """Identity of a cell -> its job that is not over."""
    found: dict[str, Queued] = {}
    for group in groups:
        for index, job in group.in_queue(queue).items():
            found |= {identity: job for identity in group.tasks[index]}
    return found


def of_kind(groups: list[Group], queue: list[Queued], kind: str) -> list[Queued]:
    """The jobs of one kind that are not over."""
    return [job for group in groups if group.kind == kind for job in group.in_queue(queue).values()]


def alive(cells: list[Cell], done: set[str], found: dict[str, Queued]) -> tuple[dict[str, str], list[str]]:
    """Of the jobs `found` in the queue: identity of a cell -> its job that will run, and the jobs that never can.

    A job never can that waits for a cell which is neither in `done` nor behind a job that will run. `cells`: inputs
    before their users.
    """
    will: dict[str, str] = {}
    dead = set()
    for cell in cells:
        job = found.get(cell.identity)
        if job is None or cell.identity in done:
            continue
        waits = [c.identity for c in cell.inputs.values() if c.identity not in done]
        lost = job.state == "PENDING" and any(identity not in will for identity in waits)
        if lost or job.reason == "DependencyNeverSatisfied":
            dead.add(job.job)
        else:
            will[cell.identity] = job.job
    return {identity: job for identity, job in will.items() if job not in dead}, sorted(dead)
