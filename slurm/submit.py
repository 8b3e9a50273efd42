"""Submit what is missing of a study, as one dependency graph of job arrays."""

import contextlib
import io
import sys
import time
import uuid
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from submitit.core.utils import FailedJobError, FailedSubmissionError

from core.cell.identity import Cell, create_cell_dir
from core.cell.manifest import read_manifest
from core.errors import UserError
from core.paths import ROOT
from slurm import arrays as planning
from slurm import ledger, scheduler
from slurm.arrays import Array
from slurm.executor import executor, script
from slurm.job import CellJob
from slurm.profile import Profile, Shape
from slurm.snapshot import snapshot

COMPLETING_SECONDS = 30
CONTINUE = "continue"  # the kind of the job that submits what the limit on jobs has left over


@dataclass(frozen=True)
class Target:
    """Where one submission goes: the study's folder, the code that its jobs run, the cluster."""

    base: Path
    code: Path
    profile: Profile

    @property
    def records(self) -> Path:
        return self.base / "slurm"

    def executor(self, kind: str, shape: Shape, **more: Any) -> Any:
        name = f"{self.base.name}-{kind}"
        return executor(name, shape, self.profile, self.code, self.records / "jobs", **more)


@dataclass(frozen=True)
class Continuation:
    """Run as a job once some of the study's jobs are over: submits those `left` of the cells, by the same code.

    Cells that were submitted before and failed are not among them: somebody has to look first.
    """

    cells: list[Cell]
    left: set[str]
    base: Path
    profile: Profile
    code: Path

    def __call__(self) -> dict[str, Any]:
        """Raises UserError where Slurm can't be asked from a compute node; `submit` by hand does the same then."""
        facts = submit(self.cells, self.base, self.profile, self.code, self.left)
        print(f"{facts['submitted']} cells submitted, {facts['left']} left", flush=True)
        return facts


def submit(
    cells: list[Cell], base: Path, profile: Profile, code: Path | None = None, only: set[str] | None = None
) -> dict[str, Any]:
    """Submit the cells (inputs before their users) that are neither finished nor in the queue.

    `base` is the study's folder on a disk that the nodes share; `code` the folder that jobs run from (none: a new
    snapshot of the checkout); `only`: identities of the cells to submit (none: all). What the limit on jobs leaves
    over, a small job submits when some of these have ended.

    Returns what it did: counts of cells (`cells`, `finished`, `queued` before, `submitted`, `left` over), ids `held`
    in the queue, the submitted `jobs` (job, stage, tasks, cells, after), the id of the job that `continues` with the
    rest, and the `code`.

    Raises UserError, with nothing submitted, where the profile or Slurm refuses; a refusal that only shows later says
    what had been submitted by then (it is on record, and the next submission continues).
    """
    scheduler.must_be_here()
    base = base.absolute()
    with scheduler.clean_environment(), ledger.locked(base) as folder:
        # The queue first, then the disk: a job that leaves the queue in between has left its manifest there.
        groups = ledger.read(folder)
        queue = _settled(groups)
        done = {cell.identity for cell in cells if read_manifest(base / cell.relpath)}
        found = ledger.in_queue(groups, queue)
        queued, dead = ledger.alive(cells, done, found)
        scheduler.scancel(dead)
        wanted = [cell for cell in cells if only is None or cell.identity in only]
        todo = planning.tasks(wanted, profile.shape, lambda cell: cell.identity in done, queued)
        continues = next((job.job for job in ledger.of_kind(groups, queue, CONTINUE) if job.state == "PENDING"), None)
        free = _free(profile, len(queue) - len(dead))
        # Where not all may go in, one place is kept for the job that submits the rest, if it has jobs to wait for.
        keep = len(todo) > free >= (1 if queued else 2) and not continues
        now = todo[: free - keep]
        jobs: list[dict[str, Any]] = []
        if todo:
            target = Target(base, code or snapshot(ROOT, folder), profile)
            if now:
                jobs = _send(planning.plan(now, profile.shape, _largest(profile)), target, cells, queued)
            if keep:
                ours = list(dict.fromkeys([*queued.values(), *(job["job"] for job in jobs)]))
                left = {cell.identity for task in todo[len(now) :] for cell in task.cells}
                continues = _continue(Continuation(cells, left, base, profile, target.code), target, ours)
        return {
            "study": base.name,
            "cells": len(cells),
            "finished": len(done),
            "queued": len(queued),
            "submitted": planning.count(now),
            # A node that failed to start a job leaves it held: it waits until somebody says `scontrol release ID`.
            "held": sorted({job.job for job in found.values() if "held" in job.reason.lower()}),
            "left": planning.count(todo) - planning.count(now),
            "jobs": jobs,
            "continues": continues,
            "code": str(target.code) if todo else None,
        }


def _settled(groups: list[ledger.Group]) -> list[scheduler.Queued]:
    """The queue once no job of this study is ending: one that is will run again, or is over, in a moment."""
    deadline = time.monotonic() + COMPLETING_SECONDS
    while True:
        queue = scheduler.queue()
        ours = ledger.in_queue(groups, queue).values()
        if not any(job.state == "COMPLETING" for job in ours) or time.monotonic() > deadline:
            return queue
        time.sleep(1)


def _free(profile: Profile, queued: int) -> int:
    """How many more jobs may be queued, by the profile or else by Slurm's accounts."""
    limit = profile.max_submit or scheduler.submit_limit(profile.shape("default").account)
    return sys.maxsize if limit is None else max(0, limit - queued)


def _largest(profile: Profile) -> int:
    return min(scheduler.largest_array(), profile.max_array or sys.maxsize)


def _send(arrays: list[Array], target: Target, cells: list[Cell], queued: dict[str, str]) -> list[dict[str, Any]]:
    """Submit the arrays in order. `queued`: identity of a cell -> its job of an earlier submission."""
    _check(arrays, target)
    ledger.write(target.records, "submission", code=str(target.code), profile=asdict(target.profile))
    jobs: dict[Array, str] = {}
    sent: list[dict[str, Any]] = []
    for array in arrays:
        for task in array.tasks:
            for cell in task.cells:
                create_cell_dir(_relocated(cell, target.code), target.base)
        # Ids are asked for at the last moment: a dependency on a job that Slurm has forgotten is worth nothing.
        needed = _needed(array, jobs, cells, queued)
        forgotten = set(needed) - scheduler.known(list(needed))
        for job in sorted(forgotten):
            if missing := [c for c in needed[job] if not read_manifest(target.base / c.relpath)]:
                raise UserError(
                    f"{missing[0].relpath}: its job {job} is gone from Slurm without a result; see its log.txt; "
                    f"{_so_far(sent)}"
                )
        after = planning.dependency(array, jobs, forgotten)
        calls = [
            CellJob(str(target.code), tuple(str(target.base / c.relpath) for c in task.cells), target.profile.interface)
            for task in array.tasks
        ]
        identities = [[cell.identity for cell in task.cells] for task in array.tasks]
        try:
            jobs[array] = _sbatch(array.kind, array.shape, calls, identities, target, after)
        except UserError as error:
            raise UserError(f"{error.lines[0]}; {_so_far(sent)}") from None
        facts = {"job": jobs[array], "stage": array.kind, "tasks": len(array.tasks)}
        sent.append(facts | {"cells": planning.count(array.tasks), "after": after})
    return sent


def _check(arrays: list[Array], target: Target) -> None:
    """Ask Slurm about every shape before the first job goes in. Raises UserError with one line per shape."""
    shapes: dict[Shape, str] = {}
    for array in arrays:
        shapes.setdefault(array.shape, array.kind)
    if not scheduler.has_accounts() and (named := sorted({a for s in shapes if (a := s.account or s.qos)})):
        raise UserError(
            f"{', '.join(named)}: this cluster keeps no accounts and would ignore it; delete account and qos from the "
            "cluster profile"
        )
    refusals = []
    for shape, kind in shapes.items():
        if reason := scheduler.refused(script(target.executor(kind, shape))):
            asked = ", ".join(f"{k} {v}" for k, v in asdict(shape).items() if v)
            cure = "change the cluster profile"
            if scheduler.asleep(shape.partition):
                cure = "no node of that partition answers now (sinfo): submit again when one does"
            refusals.append(f"{kind} jobs: {reason}; asked for {asked}; {cure}")
    if refusals:
        raise UserError(*refusals)


def _needed(array: Array, jobs: dict[Array, str], cells: list[Cell], queued: dict[str, str]) -> dict[str, list[Cell]]:
    """The id of every job that an array waits for -> its cells."""
    found: dict[str, list[Cell]] = {}
    for need in (*array.needs, *(array.beside.tasks if array.beside else ())):
        if isinstance(need, str):
            found[need] = [cell for cell in cells if queued.get(cell.identity) == need]
        else:
            found[planning.task_id(jobs, need)] = need.cells
    return found


def _sbatch(
    kind: str, shape: Shape, calls: Sequence[Any], identities: list[list[str]], target: Target, after: str | None
) -> str:
    """Submit one array, on record before and after. Returns its id; raises UserError with Slurm's reason."""
    group = f"{target.base.name}-{uuid.uuid4().hex[:12]}"
    ledger.write(target.records, "submitting", group=group, kind=kind, tasks=identities, after=after)
    try:
        # submitit prints what sbatch says before it raises; the user gets it once.
        with contextlib.redirect_stderr(io.StringIO()):
            submitted = target.executor(kind, shape, comment=group, dependency=after).submit_array(calls)
    except (FailedJobError, FailedSubmissionError) as error:
        ledger.write(target.records, "refused", group=group, reason=str(error))
        raise UserError(f"{kind} jobs: sbatch refused: {scheduler.last_line(str(error))}") from None
    job = submitted[0].job_id.split("_")[0]
    ledger.write(target.records, "submitted", group=group, job=job)
    return job


def _continue(call: Continuation, target: Target, jobs: list[str]) -> str | None:
    """Submit the job that continues once half of these `jobs` are over. None: Slurm has no place for it."""
    shape = replace(target.profile.shape("default"), nodes=1, tasks_per_node=1, gpus_per_node=0, cpus=1)
    after = f"afterany:{':'.join(jobs[: (len(jobs) + 1) // 2])}"
    try:
        return _sbatch(CONTINUE, shape, [call], [[]], target, after)
    except UserError:
        return None  # the caller says how many are left


def _so_far(sent: list[dict[str, Any]]) -> str:
    if not sent:
        return "nothing was submitted"
    return f"{sum(facts['cells'] for facts in sent)} cells were submitted before it; the same command continues"


def _relocated(cell: Cell, code: Path) -> Cell:
    """The cell with the data files of the checkout read from the snapshot."""

    def moved(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: moved(one) for key, one in value.items()}
        if isinstance(value, list):
            return [moved(one) for one in value]
        if isinstance(value, str) and Path(value).is_relative_to(ROOT):
            copy = code / Path(value).relative_to(ROOT)
            return str(copy) if copy.is_file() else value
        return value

    return replace(cell, resources=moved(cell.resources))
