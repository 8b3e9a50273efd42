"""Submit the missing cells of a study as one dependency graph of job arrays."""

import re
import sys
import uuid
from collections import defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from core.cell.identity import Cell, create_cell_dir
from core.cell.manifest import read_manifest
from core.cell.publish import record_start
from core.errors import Problem, UserError
from core.files import named_errors
from core.paths import ROOT
from core.stages import STAGES
from slurm import arrays as array_plan
from slurm import executor as executors
from slurm import queued_jobs, slurm_cli, submissions
from slurm.arrays import Array, Task
from slurm.cluster_limits import Cluster, ask_cluster
from slurm.disk_limit import DiskLimit, allowed
from slurm.job import CellJob
from slurm.job_limits import Places, ask_places, choose
from slurm.login_node import behind_login
from slurm.profile import Profile, Resources
from slurm.request_check import check_requests
from slurm.snapshot import relocated, snapshot, snapshot_path

SUPERSEDED = "the study was started with another study file since"
HELD = re.compile("(?i)held(?!admin)")  # what an administrator holds, only they release


@dataclass(frozen=True)
class Target:
    """Where one submission goes: the study's folder, the code that its jobs run, the cluster."""

    base: Path
    code: Path
    profile: Profile
    cluster: str  # the profile as the user named it

    @property
    def records(self) -> Path:
        return self.base / "slurm"

    def job_name(self, kind: str, label: str = "") -> str:
        """A name for squeue, such as `tiny-sft-base-animal-s0-d80`."""
        return "-".join(filter(None, (self.base.name, kind, label)))

    def executor(self, name: str, resources: Resources, **settings: Any) -> Any:
        """submitit's executor for jobs of one name. `settings`: its group and dependency."""
        logs = self.records / "jobs"
        return executors.executor(name, resources, self.profile, self.code, logs, **settings)


@dataclass(frozen=True)
class Continuation:
    """A job that submits the `remaining` cells once some of the study's jobs have ended.

    It uses the code of the submission that queued it. Cells that were submitted before and failed
    are not among the remaining ones: a person has to look at them first. Where the study was
    started with another study file since, it submits nothing.
    """

    cells: list[Cell]
    remaining: set[str]
    target: Target
    disk: DiskLimit | None = None
    ranks: Mapping[str, int] | None = None

    def __call__(self) -> dict[str, Any]:
        """Submit, and return what `submit` returns; 0 `submitted` after another start.

        Raises UserError where a compute node cannot use Slurm's commands. The user then has to
        call `submit` again.
        """
        target = self.target
        if queued_jobs.is_superseded(target.base, self.cells):
            print(f"{SUPERSEDED}; nothing is submitted", flush=True)
            return {"submitted": 0}
        facts = submit(
            self.cells,
            target.base,
            target.profile,
            target.cluster,
            target.code,
            self.remaining,
            disk=self.disk,
            ranks=self.ranks,
        )
        print(f"{facts['submitted']} cells submitted, {facts['left']} remain", flush=True)
        return facts


def submit(
    cells: list[Cell],
    base: Path,
    profile: Profile,
    cluster: str,
    code: Path | None = None,
    only: set[str] | None = None,
    chain: bool = True,
    stages: Collection[str] = STAGES,
    disk: DiskLimit | None = None,
    ranks: Mapping[str, int] | None = None,
) -> dict[str, Any]:
    """Submit the cells that are neither finished nor in the queue.

    What the limit on jobs leaves over, a small job submits when some of these jobs have ended.

    Args:
        cells: Inputs before their users.
        base: The study's folder, on a disk that the nodes share.
        profile: The cluster profile.
        cluster: The profile as the user named it, for the record.
        code: The folder that jobs run from. None: a new snapshot of the checkout.
        only: Identities of the cells to submit, of a study that was submitted before. None: all.
        chain: Whether such a job is queued; without it the caller submits what is left over.
        stages: Those whose cells are submitted, but for stages with `where: login`.
        disk: Bounds the trainings on their way. None: nothing does.
        ranks: Identity -> rank; cells of smaller ranks come first. None: all have one.

    Returns:
        Counts of cells (`cells`, `finished`, `queued` before, `submitted`, `left` over); the
        `remaining` identities; those of cells that wait for stages on the login node (`behind`) and
        these stages (`login`); a line for each kind of job that `waits` for nodes; the ids of jobs
        `held` in the queue; the submitted `jobs` (job, stage, tasks, cells, after); the id of the
        job that `continues` with the rest; the folder of the `code`; the `orphans`, queued jobs of
        which the study has no cell now (job, cells); the code of the jobs that were queued before
        (`queued_code`, see `queued_jobs.code_rows`).

    Raises:
        UserError: The profile is wrong, Slurm refuses it, the jobs on record are another user's,
            or the disk is full; nothing was submitted. A refusal that shows only later states what
            had been submitted by then: that is on record, and the next submission continues from
            it.
    """
    # Without a chain a person's shell submits, which may itself run in a job.
    noted = submissions.noted(base.absolute(), cluster) if chain else nullcontext()
    with noted:
        return _submit(
            cells, base.absolute(), profile, cluster, code, only, chain, stages, disk, ranks
        )


def _submit(
    cells: list[Cell],
    base: Path,
    profile: Profile,
    cluster: str,
    code: Path | None,
    only: set[str] | None,
    chain: bool,
    stages: Collection[str],
    disk: DiskLimit | None,
    ranks: Mapping[str, int] | None,
) -> dict[str, Any]:
    """`submit`, which also records why a job could not."""
    slurm_cli.require_slurm()
    analysis = queued_jobs.analysis_of(cells)
    with slurm_cli.clean_environment(), submissions.locked(base) as folder:
        if only is not None and queued_jobs.is_superseded(base, cells):
            raise UserError(where=base.name, what=f"{SUPERSEDED}; nothing was submitted")
        # The queue first, then the disk: a job that leaves the queue in between has left its
        # manifest there.
        groups = submissions.read(folder)
        queue = submissions.wait_for_completing(groups)
        done = {cell.identity for cell in cells if read_manifest(base / cell.relpath)}
        in_queue = submissions.in_queue(groups, queue)
        queued, dead = submissions.alive(cells, done, in_queue)
        slurm_cli.scancel(dead)
        selected = [
            cell
            for cell in cells
            if cell.stage in stages
            and not profile.is_on_login(cell.stage)
            and (only is None or cell.identity in only)
        ]
        todo = array_plan.tasks(
            selected, profile.resources, lambda cell: cell.identity in done, queued, ranks
        )
        ready = {cell.identity for task in todo for cell in task.cells}
        login, behind = behind_login(cells, selected, done | queued.keys() | ready, profile)
        listed = queued_jobs.listed(groups, queue)
        continues, outdated = queued_jobs.pending_continuations(listed, cells)
        now: list[Task] = []
        remaining: set[str] = set()
        waits: list[str] = []
        reserved = False
        sent: list[dict[str, Any]] = []
        arrays: list[Array] = []
        target = None
        if todo:
            target = Target(base, code or snapshot(ROOT, folder), profile, cluster)
            limits = ask_cluster()
            requests = [profile.resources(stage) for stage in ("default", *STAGES)]
            places = ask_places(profile, limits, requests, leaving=outdated)
            on_disk = partial(allowed, disk, cells, done, queued)
            now, reserved = _within_limit(
                todo, places, profile, on_disk, bool(queued), chain and not continues
            )
            arrays = array_plan.plan(now, profile.resources, _largest(profile))
            waits = _check(arrays, target, limits) if now else []
        if analysis:
            record_start(base, analysis)
        slurm_cli.scancel(outdated)
        if target:
            submissions.write_submission(folder, cluster, target.code, profile, analysis)
            if now:
                sent = _send(arrays, target, cells, queued)
            chosen = {*now}
            remaining = {c.identity for task in todo if task not in chosen for c in task.cells}
            if reserved:
                jobs = list(dict.fromkeys([*queued.values(), *(facts["job"] for facts in sent)]))
                continues = _continue(Continuation(cells, remaining, target, disk, ranks), jobs)
        orphans = queued_jobs.orphans(listed, cells, done)
        current = target.code if target else code or snapshot_path(ROOT, folder)
        return {
            "study": base.name,
            "cells": len(cells),
            "finished": len(done),
            "queued": len(queued),
            "submitted": array_plan.count(now),
            # Slurm holds a job that a node failed to start, until `scontrol release ID`.
            "held": sorted({j.job for j in in_queue.values() if HELD.search(j.reason)}),
            "waits": waits,
            "left": len(remaining),
            "remaining": sorted(remaining),
            "behind": sorted(behind),
            "login": login,
            "jobs": sent,
            "continues": continues,
            "code": str(target.code) if target else None,
            "orphans": queued_jobs.orphan_rows(
                {job: identities for job, identities in orphans.items() if job not in outdated},
                base,
            ),
            "queued_code": queued_jobs.code_rows(listed, current),
        }


def _within_limit(
    todo: list[Task],
    places: Places,
    profile: Profile,
    on_disk: Callable[[], Callable[[Task], bool]],
    queued: bool,
    continues: bool,
) -> tuple[list[Task], bool]:
    """The tasks to submit now, and whether a place is reserved for a continuation.

    A continuation needs jobs to wait for: `queued` ones, or at least one submitted now.
    `on_disk`: of `slurm.disk_limit`, to begin anew. `continues`: whether what remains is to be
    submitted by a continuation.
    """
    reserving = places.copy()
    now = choose(todo, places, profile.resources, on_disk())
    if continues and len(now) < len(todo) and reserving.take(profile.resources("default")):
        fewer = choose(todo, reserving, profile.resources, on_disk())
        if fewer or queued:
            return fewer, True
    return now, False


def _largest(profile: Profile) -> int:
    return min(slurm_cli.largest_array(), profile.max_array or sys.maxsize)


def _send(
    arrays: list[Array], target: Target, cells: list[Cell], queued: dict[str, str]
) -> list[dict[str, Any]]:
    """Submit the arrays in order. `queued`: identity of a cell -> its job that will run."""
    jobs: dict[Array, str] = {}
    sent: list[dict[str, Any]] = []
    for array in arrays:
        try:
            jobs[array], after = _send_array(array, jobs, target, cells, queued)
        except (UserError, OSError) as error:
            problem = _problem(error, target.base)
            fix = "; ".join(filter(None, (problem.fix, _so_far(sent))))
            raise UserError(where=problem.where, what=problem.what, fix=fix) from None
        facts = {
            "job": jobs[array],
            "stage": array.kind,
            "tasks": len(array.tasks),
            "cells": array_plan.count(array.tasks),
            "after": after,
        }
        sent.append(facts)
    return sent


def _send_array(
    array: Array, jobs: dict[Array, str], target: Target, cells: list[Cell], queued: dict[str, str]
) -> tuple[str, str | None]:
    """Submit one array. `jobs`: the ids of those before it. Returns its id and its dependency."""
    for task in array.tasks:
        for cell in task.cells:
            create_cell_dir(relocated(cell, target.code), target.base)
    # As late as possible: Slurm may forget an id that a dependency names.
    needed = _needed(array, jobs, cells, queued)
    forgotten = set(needed) - slurm_cli.known_job_ids(list(needed))
    _check_forgotten(forgotten, needed, target.base)
    after = array_plan.dependency_option(array, jobs, forgotten)
    calls = [_job(task, target) for task in array.tasks]
    identities = [[cell.identity for cell in task.cells] for task in array.tasks]
    name = target.job_name(array.kind, array_plan.label(array))
    return _sbatch(array.kind, name, array.resources, calls, identities, target, after), after


def _problem(error: UserError | OSError, base: Path) -> Problem:
    if isinstance(error, UserError):
        return error.problems[0]
    fix = "make room, or choose another folder with --runs"
    return Problem(str(error.filename or base), str(error.strerror), fix)


def _job(task: Task, target: Target) -> CellJob:
    folders = tuple(str(target.base / cell.relpath) for cell in task.cells)
    name = target.job_name(task.kind, array_plan.task_label(task))
    profile = target.profile
    return CellJob(str(target.code), folders, profile.interface, name, profile.notify)


def _check(arrays: list[Array], target: Target, cluster: Cluster) -> list[str]:
    """Ask Slurm about each kind of request before the first job goes in.

    Returns a line for each kind of job that waits for nodes. Raises UserError with one problem per
    refused request.
    """
    kinds: dict[Resources, str] = {}
    tasks: dict[Resources, int] = defaultdict(int)
    for array in arrays:
        kinds.setdefault(array.resources, array.kind)
        tasks[array.resources] = max(tasks[array.resources], len(array.tasks))

    def script(resources: Resources) -> str:
        executor = target.executor(target.job_name(kinds[resources]), resources)
        return executors.script(executor, tasks=tasks[resources])

    return check_requests(kinds, cluster, script)


def _check_forgotten(
    forgotten: set[str],
    needed: dict[str, list[Cell]],
    base: Path,
) -> None:
    """Raises UserError where Slurm has forgotten a needed job that left no result.

    Slurm 22.05 would start the next job at once.
    """
    for job in sorted(forgotten):
        unfinished = [cell for cell in needed[job] if not read_manifest(base / cell.relpath)]
        if unfinished:
            raise UserError(
                where=unfinished[0].relpath,
                what=f"its job {job} is gone from Slurm without a result",
                fix="see its log.txt",
            )


def _needed(
    array: Array, jobs: dict[Array, str], cells: list[Cell], queued: dict[str, str]
) -> dict[str, list[Cell]]:
    """The id of every job that an array waits for -> its cells."""
    by_job: dict[str, list[Cell]] = {}
    parent = array.aftercorr_parent
    for need in (*array.needs, *(parent.tasks if parent else ())):
        if isinstance(need, str):
            by_job[need] = [cell for cell in cells if queued.get(cell.identity) == need]
        else:
            by_job[array_plan.task_id(jobs, need)] = need.cells
    return by_job


def _sbatch(
    kind: str,
    name: str,
    resources: Resources,
    calls: Sequence[Any],
    identities: list[list[str]],
    target: Target,
    after: str | None,
) -> str:
    """Submit one array, with a record before and after.

    `name`: in squeue. `calls`: one picklable callable per task. Returns the job's id; raises
    UserError with Slurm's reason.
    """
    group = f"{target.base.name}-{uuid.uuid4().hex[:12]}"
    submissions.write_submitting(target.records, group, kind, identities, after)
    job, is_unsure = None, True
    executor = target.executor(name, resources, group=group, dependency=after)
    try:
        with named_errors(target.records):
            result = executors.submit(executor, calls)
        job, said = slurm_cli.submitted_id(result), result.stderr + result.stdout
        is_unsure = slurm_cli.may_be_queued(result)
    except UserError as error:  # no answer in time
        said = error.problems[0].what
    # The queue decides: sites put wrappers around sbatch, and after a time-out the job may be in.
    with suppress(UserError) if job else nullcontext():  # without its answer the id counts
        listed = submissions.Group(group, kind, identities, job).in_queue(slurm_cli.queue())
        job = next((queued.job.split("_")[0] for queued in listed.values()), job)
    if job is None:
        reason = slurm_cli.reason(said)
        if is_unsure:  # it stays on record: if it comes in later, the next submission finds it
            fix = "it may be queued all the same; the same command in a minute finds out"
            raise UserError(where=f"{kind} jobs", what=f"sbatch: {reason}", fix=fix)
        submissions.write_refused(target.records, group, reason)
        raise UserError(where=f"{kind} jobs", what=f"sbatch refused: {reason}")
    submissions.write_submitted(target.records, group, job)
    return job


def continuation_resources(profile: Profile) -> Resources:
    """What a continuation requests."""
    resources = profile.resources("default")
    return replace(resources, nodes=1, tasks_per_node=1, gpus_per_node=0, cpus=1)


def _continue(call: Continuation, jobs: list[str]) -> str | None:
    """Submit the continuation, to start once half of these `jobs` have ended.

    Returns its id, or None where Slurm refuses it or the disk is full. The caller reports how many
    cells remain.
    """
    resources = continuation_resources(call.target.profile)
    after = f"afterany:{':'.join(jobs[: (len(jobs) + 1) // 2])}"
    try:
        kind = submissions.CONTINUE
        name = call.target.job_name(kind)
        return _sbatch(kind, name, resources, [call], [[]], call.target, after)
    except (UserError, OSError):
        return None


def _so_far(sent: list[dict[str, Any]]) -> str:
    if not sent:
        return "nothing was submitted"
    cells = sum(facts["cells"] for facts in sent)
    return f"{cells} cells were submitted before it; the same command continues"
