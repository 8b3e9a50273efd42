"""`doctor --shakedown`: every GPU path once, through the queue, and one page of what works.

A shakedown is a study (studies/shakedown.yaml) whose seeds are trained on layouts: seed 0 on one
GPU, seed 1 on the GPUs of one node, seed 2 on two nodes. Its cells are submitted as those of any
study; the page is read from their manifests, and from the table of failures where they have none.
"""

import shlex
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from core.cell.identity import Cell
from core.errors import UserError
from core.model_size import memory, shape
from core.stages import STAGE_INFO, TRAINING_STAGES, VLLM_STAGES
from slurm import status as slurm_status
from slurm.checks import FAILED, Check
from slurm.profile import Profile, load_profile
from slurm.submit import submit
from study.commands.common import parallel_plans
from study.commands.shakedown_models import models_rows
from study.commands.shakedown_page import (
    FAILS,
    LEFT_OUT,
    WORKS,
    Row,
    cell_rows,
    fault_rows,
    left_out_rows,
    make_row,
)
from study.commands.shakedown_rates import measure
from study.commands.shakedown_stops import Stops
from study.commands.status import look
from study.commands.status_rows import Memory
from study.forecast.training_size import is_training, recipe_of
from study.spec import expand
from study.spec.load import load_study

LOOK_SECONDS = 5
FULL_SHARE = 0.95  # of a GPU's memory: CUDA and NCCL take some of it


@dataclass(frozen=True)
class Layout:
    """Where the trainings of one seed run."""

    name: str
    seed: int
    profile: Profile
    parallel: bool = False
    """Whether its models also answer by vLLM on two GPUs (tensor parallel)."""


def training_layouts(profile: Profile) -> list[Layout]:
    """One GPU; all of a node; two nodes. Those that the profile can't tell apart are left out."""
    full = profile.resources("midtrain")
    kind = str(full.gpus_per_node).rpartition(":")[0]
    one_gpu: int | str = (f"{kind}:1" if kind else 1) if full.gpus_per_node else 0
    shapes: dict[str, dict[str, Any]] = {
        "1 task": {"nodes": 1, "tasks_per_node": 1, "gpus_per_node": one_gpu},
        "1 node": {"nodes": 1},
        "2 nodes": {"nodes": 2},
    }
    if full.tasks_per_node == 1:
        del shapes["1 node"]
    answers = profile.resources("generate")
    places = [(r.partition, r.constraint, bool(r.gpus_per_node)) for r in (full, answers)]
    result = []
    for seed, (name, changes) in enumerate(shapes.items()):
        stages: dict[Any, Any] = {
            stage: replace(profile.resources(stage), **changes) for stage in TRAINING_STAGES
        }
        parallel = name == "1 node" and places == [places[0]] * 2 and bool(full.gpus_per_node)
        if parallel:
            stages["generate"] = replace(answers, gpus_per_node=f"{kind}:2" if kind else 2)
        profile_there = replace(profile, stages=profile.stages | stages)
        result.append(Layout(name, seed, profile_there, parallel))
    return result


def training_seed(cell: Cell) -> int:
    """The seed of the trainings behind a cell; 0 where there are none."""
    seed = cell.settings.get("seed", 0) if STAGE_INFO[cell.stage].trains else 0
    return max([seed, *(training_seed(source) for source in cell.inputs.values())])


def shakedown_cells(study_file: Path, layouts: list[Layout]) -> list[Cell]:
    """The study's trainings for every layout, and what follows on those of the first.

    Of a `parallel` layout also the answers, which have the same identities on two GPUs.
    """
    seeds = [layout.seed for layout in layouts]
    plain, parallel = (
        [*expand.in_order(expand.analysis(load_study(study_file, seeds, overrides)))]
        for overrides in ([], ["engine.options.tensor_parallel_size=2"])
    )
    answering = {layout.seed for layout in layouts if layout.parallel}
    cells = []
    for cell, on_two_gpus in zip(plain, parallel, strict=True):
        if cell.stage == "generate" and training_seed(cell) in answering:
            cells.append(on_two_gpus)
        elif cell.stage != "analysis" and (
            training_seed(cell) == 0 or STAGE_INFO[cell.stage].trains
        ):
            cells.append(cell)
    return cells


def shakedown(
    study_file: Path, cluster: Path, runs: Path, wait: float, report: Sequence[Check] = ()
) -> list[Row]:
    """Submit the study, wait, and return a row for each fault, refused layout, cell and stop.

    Args:
        study_file: Seeds 0, 1 and 2 are the layouts.
        cluster: A profile, as for submit.
        runs: On a disk that the nodes share.
        wait: Seconds. What has not ended then is reported as waiting, and its jobs go on.
        report: Of the short checks. Cells that would fail as one of them did are not submitted.

    One training on its way is stopped and one is killed: both must resume.
    """
    profile = load_profile(cluster)
    all_layouts = training_layouts(profile)
    base = runs / load_study(study_file).study
    cells = shakedown_cells(study_file, all_layouts)
    cells, rows = fitting(cells, all_layouts)
    rows = fault_rows(report) + rows
    left_out = _left_out(cells, report)
    for layout in all_layouts:
        only = {cell.identity for cell in cells if training_seed(cell) == layout.seed}
        try:
            if only := only - left_out.keys():
                submit(cells, base, layout.profile, shlex.quote(str(cluster)), only=only)
        except UserError as error:
            problem = error.problems[0]
            finding = f"{problem.where}: {problem.what}"
            rows.append(make_row(layout.name, "submission", FAILS, finding, problem.fix))
    stops = Stops(base, profile)
    deadline = time.monotonic() + wait
    pause = partial(time.sleep, LOOK_SECONDS)
    states = _await(cells, base, shlex.quote(str(study_file)), deadline, stops)
    names = {layout.seed: layout.name for layout in all_layouts}
    jobs = slurm_status.ask(base).jobs
    shared = Counter(jobs.values())
    shown = cell_rows(states, [_shown_layout(cell, names) for cell in cells])
    for cell, row in zip(cells, shown, strict=True):
        if row["state"] == WORKS:
            left_out.pop(cell.identity, None)  # of an earlier call
            job = jobs.get(cell.identity)
            row |= measure(cell, base, job if job and shared[job] == 1 else None)
        if cell.identity not in left_out:
            rows.append(row)
    likelihoods = [
        cell
        for cell, state in zip(cells, states, strict=True)
        if cell.stage == "likelihood" and state["state"] == "done"
    ]
    if any(cell.stage == "likelihood" and cell.identity not in left_out for cell in cells):
        rows += models_rows(likelihoods, base, profile, deadline, pause)
    rows += left_out_rows(left_out.values())
    if len(left_out) < len(cells):
        rows += stops.rows(states)
    return rows


def _shown_layout(cell: Cell, names: dict[int, str]) -> str:
    """A cell's layout on the page. `names`: by the seeds of layouts."""
    if STAGE_INFO[cell.stage].trains:
        return names[training_seed(cell)]
    return "2 GPUs" if training_seed(cell) else ""


def fitting(cells: list[Cell], layouts: list[Layout]) -> tuple[list[Cell], list[Row]]:
    """The cells without trainings that a GPU's memory doesn't hold, with what is behind these and
    what is made for them alone; and a row for each such training."""
    by_seed = {layout.seed: layout for layout in layouts}
    fit: dict[str, Cell] = {}
    rows = []
    for cell in cells:  # inputs before their users
        layout = by_seed[training_seed(cell)]
        if any(source.identity not in fit for source in cell.inputs.values()):
            continue
        if finding := _too_large(cell, layout):
            rows.append(make_row(layout.name, f"{cell.stage} {cell.name}", LEFT_OUT, finding))
        else:
            fit[cell.identity] = cell
    inputs = {source.identity for cell in cells for source in cell.inputs.values()}
    used: set[str] = set()
    remaining: list[Cell] = []
    for cell in reversed(fit.values()):  # users before their inputs
        if cell.identity in used or cell.identity not in inputs or STAGE_INFO[cell.stage].trains:
            remaining.insert(0, cell)
            used |= {source.identity for source in cell.inputs.values()}
    return remaining, rows


def _too_large(cell: Cell, layout: Layout) -> str | None:
    if not is_training(cell):
        return None
    plan = parallel_plans(layout.profile)[cell.stage]
    needed = memory(shape(cell), recipe_of(cell), plan.ranks, plan.per_node)["total"]
    if not plan.gpu_memory_gb or needed <= FULL_SHARE * plan.gpu_memory_gb:
        return None
    return f"needs about {needed:.0f} GB of each GPU, which has {plan.gpu_memory_gb:g}"


def _left_out(cells: list[Cell], report: Sequence[Check]) -> dict[str, str]:
    """Identity of each cell that would fail as a short check did -> the name of that check."""
    failed = [check.name for check in report if check.state == FAILED]
    left_out: dict[str, str] = {}
    for cell in cells:  # inputs before their users
        reasons = [left_out[c.identity] for c in cell.inputs.values() if c.identity in left_out]
        reasons += [name for name in failed if _concerns(name, cell)]
        if reasons:
            left_out[cell.identity] = reasons[0]
    return left_out


def _concerns(check: str, cell: Cell) -> bool:
    """Whether a cell would fail as a short check did. The check's name says what it tried."""
    what = check.rpartition(": ")[2]
    if what == "all-reduce":
        return training_seed(cell) > 0  # seed 0 is trained by one process
    return what != "vLLM" or cell.stage in VLLM_STAGES


def _await(
    cells: list[Cell], base: Path, named: str, deadline: float, stops: Stops
) -> list[dict[str, Any]]:
    """The states of all cells, once none goes on or the deadline (time.monotonic) has passed."""
    memory = Memory()
    last = None
    while True:
        data = look(cells, base, named, memory)
        states: list[Row] = data["cells"]
        counts = {key: value for key, value in data["total"].items() if value}
        if counts != last:
            print(", ".join(f"{key} {value}" for key, value in counts.items()), file=sys.stderr)
            last = counts
        if not data["goes_on"] or time.monotonic() > deadline:
            return states
        stops.send(states)
        time.sleep(LOOK_SECONDS)
