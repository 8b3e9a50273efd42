"""`doctor --shakedown`: every GPU path once, through the queue, and one page of what works.

A shakedown is a study (studies/shakedown.yaml) whose seeds are trained on layouts: seed 0 on one
GPU, seed 1 on the GPUs of one node, seed 2 on two nodes. Its cells are submitted as those of any
study; the page is read from their manifests, and from the table of failures where they have none.
"""

import json
import re
import shlex
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tabulate import tabulate

from core.cell.failures import KNOWN_FAILURES
from core.cell.identity import Cell
from core.cell.manifest import read_manifest
from core.errors import UserError
from core.model_size import flops_per_token, shape
from core.recipe import Training
from core.stages import STAGE_INFO, TRAINING_STAGES
from slurm.profile import Profile, load_profile
from slurm.submit import submit
from study.commands.status import look
from study.commands.status_rows import Memory
from study.spec import expand
from study.spec.load import load_study

LOOK_SECONDS = 5
WORKS, FAILS, WAITS, NOT_RUN = "works", "fails", "still waits", "not run"
Row = dict[str, Any]


@dataclass(frozen=True)
class Layout:
    """Where the trainings of one seed run."""

    name: str
    seed: int
    profile: Profile


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
    result = []
    for seed, (name, changes) in enumerate(shapes.items()):
        stages: dict[Any, Any] = {
            stage: replace(profile.resources(stage), **changes) for stage in TRAINING_STAGES
        }
        result.append(Layout(name, seed, replace(profile, stages=profile.stages | stages)))
    return result


def training_seed(cell: Cell) -> int:
    """The seed of the trainings behind a cell; 0 where there are none."""
    seed = cell.settings.get("seed", 0) if STAGE_INFO[cell.stage].trains else 0
    return max([seed, *(training_seed(source) for source in cell.inputs.values())])


def shakedown(study_file: Path, cluster: Path, runs: Path, wait: float) -> list[Row]:
    """Submit the study, wait, and return a row for each cell or refused layout.

    Args:
        study_file: Seeds 0, 1 and 2 are the layouts.
        cluster: A profile, as for submit.
        runs: On a disk that the nodes share.
        wait: Seconds. What has not ended then is reported as waiting, and its jobs go on.

    One training on its way gets a SIGTERM, as by a preemption, and must resume.
    """
    profile = load_profile(cluster)
    all_layouts = training_layouts(profile)
    study = load_study(study_file, [layout.seed for layout in all_layouts])
    base = runs / study.study
    cells = [cell for cell in expand.in_order(expand.analysis(study)) if cell.stage != "analysis"]
    # Evaluations are the same on every layout.
    cells = [c for c in cells if training_seed(c) == 0 or STAGE_INFO[c.stage].trains]
    rows = []
    for layout in all_layouts:
        only = {cell.identity for cell in cells if training_seed(cell) == layout.seed}
        try:
            submit(cells, base, layout.profile, shlex.quote(str(cluster)), only=only)
        except UserError as error:
            problem = error.problems[0]
            finding = f"{problem.where}: {problem.what}"
            rows.append(_row(layout.name, "submission", FAILS, finding, problem.fix))
    data = _await(cells, base, shlex.quote(str(study_file)), wait)
    names = {layout.seed: layout.name for layout in all_layouts}
    for cell, state in zip(cells, data["cells"], strict=True):
        layout_name = names[training_seed(cell)] if STAGE_INFO[cell.stage].trains else ""
        rows.append(judge(cell, base, state, layout_name))
    return rows


def _await(cells: list[Cell], base: Path, named: str, wait: float) -> dict[str, Any]:
    """The state of all cells, once none goes on or `wait` seconds have passed."""
    deadline = time.monotonic() + wait
    memory = Memory()
    last = None
    stop_one = True
    while True:
        data = look(cells, base, named, memory)
        counts = {key: value for key, value in data["total"].items() if value}
        if counts != last:
            print(", ".join(f"{key} {value}" for key, value in counts.items()), file=sys.stderr)
            last = counts
        if not data["goes_on"] or time.monotonic() > deadline:
            return data
        if stop_one:
            stop_one = not _stop_a_training(data["cells"], base)
        time.sleep(LOOK_SECONDS)


def _stop_a_training(rows: list[Row], base: Path) -> bool:
    """Send SIGTERM, as a preemption does, to a training that has made steps.

    Returns whether there was one.
    """
    for row in rows:
        metrics = base / row["folder"] / "metrics.jsonl"
        if row["state"] == "running" and row["stage"] in TRAINING_STAGES and metrics.exists():
            subprocess.run(["scancel", "--signal=TERM", row["job"]], check=False)
            return True
    return False


def judge(cell: Cell, base: Path, state: Row, layout: str) -> Row:
    """What one cell shows. `state`: its row of `status`."""
    what = f"{cell.stage} {state['cell']}"
    if state["state"] == "done":
        return _row(layout, what, WORKS, "", "") | measure(cell, base)
    if state["state"] == "failed":
        lines = [line.strip() for line in state["last_lines"] if line.strip()] or ["no log"]
        patterns = [
            failure.pattern for failure in KNOWN_FAILURES if failure.name == state.get("cause")
        ]
        telling = [line for line in lines for pattern in patterns if pattern.search(line)]
        line = (telling or lines)[-1]
        cause = f"{state['cause']}: " if "cause" in state else ""
        fix = state.get("fix", f"see {state.get('log', 'its log')}")
        return _row(layout, what, FAILS, f"{cause}{line}", fix)
    if "behind" in state or state["state"] in ("blocked", "to do"):
        return _row(layout, what, NOT_RUN, f"behind {state.get('behind', 'a failed cell')}", "")
    finding = f"{state['state']}: {state.get('reason', state.get('progress', ''))}"
    return _row(layout, what, WAITS, finding, "the same command again waits for it")


def _row(layout: str, what: str, state: str, finding: str, fix: str) -> Row:
    return {"layout": layout, "what": what, "state": state, "finding": finding, "fix": fix}


def measure(cell: Cell, base: Path) -> Row:
    """The rates of a finished training, of one rank; empty for other cells."""
    folder = base / cell.relpath
    manifest = read_manifest(folder)
    assert manifest
    numbers: Row = {}
    if STAGE_INFO[cell.stage].trains:
        speed = [json.loads(line) for line in (folder / "speed.jsonl").read_text().splitlines()]
        recipe = Training.from_settings(cell.settings["recipe"], cell.resources)
        counts = manifest["counts"]
        rate = counts["tokens_per_second"] / counts["ranks"]
        numbers["tokens_per_second"] = rate
        numbers["flops"] = rate * flops_per_token(shape(cell), recipe)
        numbers["compiled"] = recipe.compile and not recipe.lora
        for key in ("mfu", "peak_gb"):
            if values := [line[key] for line in speed if key in line]:
                numbers[key] = statistics.median(values)
        if "resumes after step" in (folder / "log.txt").read_text(errors="replace"):
            numbers["finding"] = "stopped and resumed"
    return numbers


def show(rows: list[Row]) -> str:
    """The page: failures first, each with its fix, then what works with its numbers."""
    order = (FAILS, NOT_RUN, WAITS, WORKS)
    lines = []
    for row in sorted(rows, key=lambda row: order.index(row["state"])):
        if row["state"] == WORKS:
            continue
        words = " ".join(filter(None, [row["what"], row["layout"]]))
        lines.append(f"{row['state']:<12} {words}: {row['finding']}")
        if row["fix"]:
            lines.append(f"{'':<12} {row['fix']}")
    columns = {
        "tokens/s a rank": lambda row: f"{row['tokens_per_second']:,.0f}",
        "TFLOP/s": lambda row: f"{row['flops'] / 1e12:.3g}",
        "MFU": lambda row: f"{row['mfu']:.1%}",
        "GB": lambda row: f"{row['peak_gb']:.1f}",
    }
    keys = ("tokens_per_second", "flops", "mfu", "peak_gb")
    table = [
        [
            row["what"],
            row["layout"],
            *(
                text(row) if key in row else ""
                for key, text in zip(keys, columns.values(), strict=True)
            ),
            row["finding"],
        ]
        for row in rows
        if row["state"] == WORKS
    ]
    if table:
        lines += ["", tabulate(table, headers=["works", "on", *columns, ""])]
    counts = [f"{sum(row['state'] == state for row in rows)} {state}" for state in reversed(order)]
    return "\n".join([*lines, "", ", ".join(counts)])


def measured(rows: list[Row]) -> dict[str, float]:
    """What `measured` of a cluster profile takes of the rows."""
    flops = [
        row["flops"]
        for row in rows
        if row.get("compiled") and row["what"].startswith("midtrain") and row["layout"] == "1 task"
    ]
    return {"training_flops": statistics.median(flops)} if flops else {}


def write_measured(path: Path, rates: dict[str, float]) -> None:
    """Set `measured` of the profile in `path`, whose other lines stay as they are.

    Raises UserError where the file spreads `measured` over several lines.
    """
    text = path.read_text()
    values = ", ".join(f"{key}: {value:.3e}" for key, value in rates.items())
    line = f"measured: {{{values}}}   # by doctor --shakedown\n"
    written, count = re.subn(r"^measured: \{[^{}\n]*\}.*\n", line, text, flags=re.MULTILINE)
    if not count and re.search(r"^measured:", text, re.MULTILINE):
        raise UserError(where=str(path), what="measured takes several lines", fix=line.strip())
    path.write_text(written if count else text.rstrip("\n") + "\n" + line)
