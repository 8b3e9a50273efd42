"""What a shakedown measures, and how it is written into the cluster profile."""

import json
import re
import statistics
import tempfile
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

_MEASURED = re.compile(r"^measured:[ \t]*\{[^{}\n]*\}[ \t]*(?P<comment>#[^\r\n]*)?", re.MULTILINE)
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


def with_measured(path: Path, rates: dict[str, float]) -> str:
    """The text of the profile in `path` with these rates in `measured`; the rest of it stays.

    Raises UserError, before anything is written, where the file can't be written or would not read
    so: then the line is a person's to write.
    """
    try:
        with path.open("r+", newline="") as file:
            text = file.read()
    except OSError as error:
        what = f"can't be written: {error.strerror}"
        fix = "make it writable, or leave out --write"
        raise UserError(where=str(path), what=what, fix=fix) from None
    before = {key: value for key, value in vars(load_profile(path).measured).items() if value}
    values = {key: f"{value:.3e}" for key, value in (before | rates).items()}
    line = f"measured: {{{', '.join(f'{key}: {value}' for key, value in values.items())}}}"
    end = "\r\n" if "\r\n" in text else "\n"
    comment = "# by doctor --shakedown"
    changed, count = _MEASURED.subn(lambda match: f"{line}   {match['comment'] or comment}", text)
    if not count:
        gap = "" if text.endswith("\n") else end
        changed = f"{text}{gap}{line}   {comment}{end}"
    if not _reads_as(changed, {key: float(value) for key, value in values.items()}):
        what = "its `measured` can't be set by a program"
        raise UserError(where=str(path), what=what, fix=f"write there: {line}")
    return changed


def _reads_as(text: str, rates: dict[str, float]) -> bool:
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "profile.yaml"
        copy.write_text(text)
        try:
            loaded = vars(load_profile(copy).measured)
        except UserError:
            return False
    return {key: value for key, value in loaded.items() if value} == rates


def write_measured(path: Path, rates: dict[str, float]) -> None:
    """Set rates in `measured` of the profile in `path`. Raises UserError as `with_measured`."""
    text = with_measured(path, rates)
    with path.open("w", newline="") as file:
        file.write(text)
