"""What a shakedown measures, and how it is written into the cluster profile."""

import json
import re
import statistics
import time
from calendar import timegm
from collections.abc import Iterable
from pathlib import Path

from core.cell.identity import Cell
from core.cell.manifest import read_manifest
from core.errors import UserError
from core.model_size import flops_per_token, parameters, shape
from core.recipe import Training
from core.stages import STAGE_INFO
from slurm.checks import Check
from slurm.profile import load_profile
from study.commands.shakedown_page import Row

# How submitit logs, in local time, that the Python of a job has started.
_STARTED = re.compile(r"\((\d{4}-\d\d-\d\d \d\d:\d\d:\d\d),\d+\) - Starting with JobEnvironment")


def measure(cell: Cell, base: Path, job: str | None = None) -> Row:
    """What a finished cell shows of speeds: a training's, of one rank, or vLLM's, of one GPU.

    Empty for other cells.

    Args:
        cell: A finished one.
        base: The study's folder.
        job: Its job, where that had no other cell.
    """
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
        plain = not recipe.lora and not recipe.float8 and recipe.activation_checkpointing == "none"
        numbers["compiled"] = recipe.compile and plain
        for key in ("mfu", "peak_gb"):
            if values := [line[key] for line in speed if key in line]:
                numbers[key] = statistics.median(values)
        log = base / f"slurm/jobs/{job}_0_log.out"
        if (seconds := _start_seconds(manifest["started"], log)) is not None:
            numbers["start_seconds"] = seconds
    elif (work := manifest.get("work")) and work["seconds"]:
        # 2 operations for each parameter and token, as the forecast counts them.
        model = parameters(shape(cell.inputs["checkpoint"])).total
        scale = 2 * model / manifest["engine"]["devices"]
        numbers["read_flop"], numbers["write_flop"] = scale * work["read"], scale * work["written"]
        numbers["engine_seconds"] = work["seconds"]
    return numbers


def _start_seconds(started: str, log: Path) -> float | None:
    """From the start of Python in a job to that of its cell, whose imports come before.

    Args:
        started: Of the cell's manifest.
        log: submitit's, of the job.
    """
    if not log.exists():
        return None
    begins = _STARTED.findall(log.read_text(errors="replace"))
    if len(begins) != 1:  # it was queued again
        return None
    of_python = time.mktime(time.strptime(begins[0], "%Y-%m-%d %H:%M:%S"))
    of_cell = timegm(time.strptime(started, "%Y-%m-%dT%H:%M:%SZ"))
    return max(1.0, of_cell - of_python)


def measured(rows: list[Row], report: Iterable[Check] = ()) -> dict[str, float]:
    """What `measured` of a cluster profile takes of the rows and of the short checks.

    Of what several nodes or ranks were asked, it is the smallest.
    """
    rates: dict[str, float] = {}
    flops = [
        row["flops"]
        for row in rows
        if row.get("compiled") and row["what"].startswith("midtrain") and row["layout"] == "1 task"
    ]
    if flops:
        rates["training_flops"] = statistics.median(flops)
    asked = {
        stage: [
            row
            for row in rows
            if "engine_seconds" in row and row["what"].startswith(stage) and not row["layout"]
        ]
        for stage in ("likelihood", "generate")
    }
    if reading := [row["read_flop"] / row["engine_seconds"] for row in asked["likelihood"]]:
        prefill = rates["prefill_flops"] = statistics.median(reading)
        # What writes answers reads its prompts first, at that rate.
        writing = [
            row["write_flop"] / seconds
            for row in asked["generate"]
            if (seconds := row["engine_seconds"] - row["read_flop"] / prefill) > 0
        ]
        if writing:
            rates["decode_flops"] = statistics.median(writing)
    for check in report:
        for name, rate in check.measured.items():
            rates[name] = min(rate, rates.get(name, rate))
    if starts := [row["start_seconds"] for row in rows if "start_seconds" in row]:
        rates["start_seconds"] = statistics.median(starts)
    return rates


def write_measured(path: Path, rates: dict[str, float]) -> None:
    """Set rates in `measured` of the profile in `path`; its other lines and rates stay.

    Raises UserError where the file spreads `measured` over several lines.
    """
    text = path.read_text()
    before = {key: value for key, value in vars(load_profile(path).measured).items() if value}
    values = ", ".join(f"{key}: {value:.3e}" for key, value in (before | rates).items())
    line = f"measured: {{{values}}}   # by doctor --shakedown\n"
    written, count = re.subn(r"^measured: \{[^{}\n]*\}.*\n", line, text, flags=re.MULTILINE)
    if not count and re.search(r"^measured:", text, re.MULTILINE):
        raise UserError(where=str(path), what="measured takes several lines", fix=line.strip())
    path.write_text(written if count else text.rstrip("\n") + "\n" + line)
