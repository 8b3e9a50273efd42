"""What a shakedown measures, and how it is written into the cluster profile."""

import json
import re
import statistics
from pathlib import Path
from typing import Any

from core.cell.identity import Cell
from core.cell.manifest import read_manifest
from core.errors import UserError
from core.model_size import flops_per_token, shape
from core.recipe import Training
from core.stages import STAGE_INFO
from study.commands.shakedown_page import Row


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
    return numbers


def measured(rows: list[dict[str, Any]]) -> dict[str, float]:
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
