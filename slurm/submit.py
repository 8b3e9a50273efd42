"""Submit what is missing of a study, as one dependency graph of job arrays."""

import contextlib
import io
import shlex
import sys
import time
import uuid
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from submitit import SlurmExecutor
from submitit.core.utils import FailedJobError, FailedSubmissionError

from slurm import arrays as planning
from slurm import ledger, scheduler
from slurm.arrays import Array, Task
from slurm.job import CellJob
from slurm.profile import Profile, Shape, load_profile
from slurm.snapshot import snapshot
from study.cells import Cell, prepare, read_manifest
from study.errors import UserError
from study.references import ROOT

COMPLETING_SECONDS = 30


def submit(cells: list[Cell], base: Path, profile_path: Path) -> dict[str, Any]:
    """Submit the cells (inputs before their users) that are neither finished nor in the queue.

    `base` is the study's folder on a disk that the nodes share. Returns what it did: counts of cells (`cells`,
    `finished`, `queued` before, `submitted`, `left` over by the profile's max_submit), ids `held` in the queue, the
    submitted `jobs` (job, stage, tasks, cells, after) and `code`, the snapshot that they run.

    Raises UserError, with nothing submitted, where the profile or Slurm refuses; a refusal that only shows later says
    what had been submitted by then (it is on record, and the next submission continues).
    """
    profile = load_profile(profile_path)
    scheduler.must_be_here()
    with scheduler.clean_environment(), ledger.locked(base.absolute()) as folder:
        return _Submission(cells, base.absolute(), profile, folder).run()


def parameters(name: str, shape: Shape, profile: Profile, code: Path) -> dict[str, Any]:
    """submitit's settings for jobs of one shape."""
    found: dict[str, Any] = {
        "job_name": name,
        "time": shape.minutes,
        "nodes": shape.nodes,
        "ntasks_per_node": shape.tasks_per_node,
        "cpus_per_task": shape.cpus,
        "array_parallelism": profile.array_parallelism,
        "wckey": None,  # submitit's own is refused where a site keeps a list of them
        # Slurm may signal up to a minute early, and a short limit must leave time to work before the signal.
        "signal_delay_s": min(90, shape.minutes * 60 // 3),
        # Slurm 22.05 and 23.02 don't hand --cpus-per-task on to srun; and one dead rank must end the others.
        "srun_args": [f"--cpus-per-task={shape.cpus}", "--kill-on-bad-exit=1"],
        "additional_parameters": {
            "chdir": str(code),
            "kill-on-invalid-dep": "yes",
            "requeue" if profile.requeue else "no-requeue": True,
        },
        "setup": _setup(profile, code),
    }
    if shape.gpus_per_node:
        found["gpus_per_node"] = shape.gpus_per_node
    if shape.mem_gb:
        found["mem"] = f"{int(shape.mem_gb * 1024)}M"
    return found | {k: v for k in ("partition", "account", "qos", "constraint") if (v := getattr(shape, k))}


def _setup(profile: Profile, code: Path) -> list[str]:
    lines = [*profile.setup, f'export PYTHONPATH={shlex.quote(str(code))}"${{PYTHONPATH:+:$PYTHONPATH}}"']
    # As on one machine: results are then the same wherever a cell runs.
    lines += ['export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"', "export PYTHONUNBUFFERED=1"]
    if profile.scratch:
        lines.append(f'export TMPDIR="{profile.scratch}"')
    if profile.cache:
        for name, place in (("HF_HOME", "huggingface"), ("VLLM_CACHE_ROOT", "vllm"), ("TRITON_CACHE_DIR", "triton")):
            lines.append(f'export {name}="{profile.cache}/{place}"')
    if profile.offline:
        lines += [f"export {name}=1" for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "TRANSFORMERS_OFFLINE")]
    return lines


class _Submission:
    """One call of `submit`, under the study's lock."""

    def __init__(self, cells: list[Cell], base: Path, profile: Profile, folder: Path):
        self.cells, self.base, self.profile, self.folder = cells, base, profile, folder
        self.study = base.name
        self.jobs: dict[Array, str] = {}
        self.submitted: list[dict[str, Any]] = []

    def run(self) -> dict[str, Any]:
        # The queue first, then the disk: a job that leaves the queue in between has left its manifest there.
        queue = self._settled()
        self.done = {cell.identity for cell in self.cells if read_manifest(self.base / cell.place)}
        found = ledger.in_queue(ledger.read(self.folder), queue)
        queued, dead = self._alive(found)
        scheduler.scancel(dead)
        self.behind: dict[str, list[Cell]] = {}
        for cell in self.cells:
            if cell.identity in queued:
                self.behind.setdefault(queued[cell.identity], []).append(cell)
        todo = planning.tasks(self.cells, self.profile.shape, self._finished, queued)
        total = sum(len(task.cells) for task in todo)
        if self.profile.max_submit is not None:
            todo = todo[: max(0, self.profile.max_submit - (len(queue) - len(dead)))]
        arrays = planning.plan(todo, self.profile.shape, self._largest()) if todo else []
        code = snapshot(ROOT, self.folder) if arrays else None
        if code:
            self._send(arrays, code)
        sent = sum(len(task.cells) for task in todo)
        return {
            "study": self.study,
            "cells": len(self.cells),
            "finished": len(self.done),
            "queued": len(queued),
            "submitted": sent,
            # A node that failed to start a job leaves it held: it waits until somebody says `scontrol release ID`.
            "held": sorted({job.job for job in found.values() if "held" in job.reason.lower()}),
            "left": total - sent,
            "jobs": self.submitted,
            "code": str(code) if code else None,
        }

    def _settled(self) -> list[scheduler.Queued]:
        """The queue once no job of this study is ending: one that is will run again, or is over, in a moment."""
        groups = ledger.read(self.folder)
        deadline = time.monotonic() + COMPLETING_SECONDS
        while True:
            queue = scheduler.queue()
            ours = ledger.in_queue(groups, queue).values()
            if not any(job.state == "COMPLETING" for job in ours) or time.monotonic() > deadline:
                return queue
            time.sleep(1)

    def _alive(self, found: dict[str, scheduler.Queued]) -> tuple[dict[str, str], list[str]]:
        """Cells whose job will run, and jobs that never can because a job before them is gone."""
        alive: dict[str, str] = {}
        dead = set()
        for cell in self.cells:
            job = found.get(cell.identity)
            if job is None or cell.identity in self.done:
                continue
            waits = [c.identity for c in cell.inputs.values() if c.identity not in self.done]
            lost = job.state == "PENDING" and any(identity not in alive for identity in waits)
            if lost or job.reason == "DependencyNeverSatisfied":
                dead.add(job.job)
            else:
                alive[cell.identity] = job.job
        return {identity: job for identity, job in alive.items() if job not in dead}, sorted(dead)

    def _largest(self) -> int:
        return min(scheduler.largest_array(), self.profile.max_array or sys.maxsize)

    def _finished(self, cell: Cell) -> bool:
        return cell.identity in self.done

    def _send(self, arrays: list[Array], code: Path) -> None:
        self._check(arrays, code)
        ledger.write(self.folder, "submission", code=str(code), profile=asdict(self.profile))
        for array in arrays:
            for task in array.tasks:
                for cell in task.cells:
                    prepare(_relocated(cell, code), self.base)
            # Ids are asked for at the last moment: a dependency on a job that Slurm has forgotten is worth nothing.
            beside, needs = self._still_known(array)
            array.beside, array.needs = beside, needs
            after = planning.dependency(array, self.jobs.__getitem__)
            self.jobs[array] = job = self._sbatch(array, code, after)
            cells = sum(len(task.cells) for task in array.tasks)
            facts = {"job": job, "stage": array.kind, "tasks": len(array.tasks), "cells": cells, "after": after}
            self.submitted.append(facts)

    def _check(self, arrays: list[Array], code: Path) -> None:
        """Ask Slurm about every shape before the first job goes in. Raises UserError with one line per shape."""
        shapes: dict[Shape, str] = {}
        for array in arrays:
            shapes.setdefault(array.shape, array.kind)
        refusals = []
        for shape, kind in shapes.items():
            executor = self._executor(kind, shape, code)
            text = executor._make_submission_file_text("true", "")
            if reason := scheduler.refused(text):
                asked = ", ".join(f"{k} {v}" for k, v in asdict(shape).items() if v)
                refusals.append(f"{kind} jobs: {reason}; asked for {asked}; change the cluster profile")
        if refusals:
            raise UserError(*refusals)

    def _still_known(self, array: Array) -> tuple[Array | None, list[Task | str]]:
        """What of an array's dependencies Slurm still knows. The others must be finished on disk.

        Slurm 22.05 takes an id that it has forgotten for fulfilled, later versions refuse it.
        """
        wanted: dict[str, list[Cell]] = {}
        for need in (*array.needs, *(array.beside.tasks if array.beside else ())):
            if isinstance(need, str):
                wanted[need] = self.behind[need]
            else:
                assert need.array
                wanted[planning.task_id(self.jobs[need.array], need)] = need.cells
        forgotten = set(wanted) - scheduler.known(list(wanted))
        for job in sorted(forgotten):
            missing = [c for c in wanted[job] if not read_manifest(self.base / c.place)]
            if missing:
                raise UserError(
                    f"{missing[0].place}: its job {job} is gone from Slurm without a result; see its log.txt; "
                    f"{self._so_far()}"
                )
        beside = array.beside
        if beside and all(planning.task_id(self.jobs[beside], t) in forgotten for t in beside.tasks):
            beside = None

        def id_of(need: Task | str) -> str:
            return need if isinstance(need, str) else planning.task_id(self.jobs[need.array], need)  # type: ignore[index]

        return beside, [need for need in array.needs if id_of(need) not in forgotten]

    def _sbatch(self, array: Array, code: Path, after: str | None) -> str:
        group = f"{self.study}-{uuid.uuid4().hex[:12]}"
        identities = [[cell.identity for cell in task.cells] for task in array.tasks]
        ledger.write(self.folder, "submitting", group=group, kind=array.kind, tasks=identities, after=after)
        executor = self._executor(array.kind, array.shape, code, comment=group, dependency=after)
        calls = [
            CellJob(str(code), tuple(str(self.base / cell.place) for cell in task.cells), self.profile.interface)
            for task in array.tasks
        ]
        try:
            # submitit prints what sbatch says before it raises; the user gets it once.
            with contextlib.redirect_stderr(io.StringIO()):
                jobs = executor.submit_array(calls)
        except (FailedJobError, FailedSubmissionError) as error:
            ledger.write(self.folder, "refused", group=group, reason=str(error))
            reason = scheduler.last_line(str(error))
            raise UserError(f"{array.kind} jobs: sbatch refused: {reason}; {self._so_far()}") from None
        job = jobs[0].job_id.split("_")[0]
        ledger.write(self.folder, "submitted", group=group, job=job)
        return job

    def _so_far(self) -> str:
        if not self.submitted:
            return "nothing was submitted"
        cells = sum(facts["cells"] for facts in self.submitted)
        return f"{cells} cells were submitted before it; the same command continues"

    def _executor(self, kind: str, shape: Shape, code: Path, **more: Any) -> SlurmExecutor:
        executor = SlurmExecutor(
            self.folder / "jobs", max_num_timeout=self.profile.requeue, python=self.profile.python or sys.executable
        )
        executor.update_parameters(**parameters(f"{self.study}-{kind}", shape, self.profile, code), **more)
        return executor


def _relocated(cell: Cell, code: Path) -> Cell:
    """The cell with the data files of the checkout read from the snapshot."""

    def moved(value: Any) -> Any:
        if isinstance(value, str) and Path(value).is_relative_to(ROOT):
            copy = code / Path(value).relative_to(ROOT)
            return str(copy) if copy.is_file() else value
        return value

    return replace(cell, resources={key: moved(value) for key, value in cell.resources.items()})
