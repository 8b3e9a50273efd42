"""Finished cells that a changed study no longer uses: what differs and what they took."""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from tabulate import tabulate

from core.cell.identity import Cell, read_config
from core.cell.manifest import read_manifest
from core.errors import Problem, UserError
from study.forecast.cell_cost import job_size
from study.upkeep.study_file import differing_keys

# `run` and `submit` ask for --yes before they make cells again that took more than these together:
# the sum of API costs, in the prices' currency, and the GPU-hours.
ASK_ABOVE = {"cost": 1.0, "gpu_hours": 1.0}
ANALYSIS = "analysis"  # always cheap, and new with each seed


@dataclass(frozen=True)
class Replaced:
    """A cell that was finished under the same name with another identity.

    Attributes:
        cell: The study's cell of today, which is not finished.
        former: The finished cell's folder, relative to the study's folder.
        settings: Keys of the settings that differ, nested ones with dots.
        inputs: Inputs that differ, as "stage name".
        cost: What the former cell's API calls cost.
        hours: What its run took.
        gpu_hours: The same, times the GPUs of its job.
    """

    cell: Cell
    former: str
    settings: tuple[str, ...]
    inputs: tuple[str, ...]
    cost: float
    hours: float
    gpu_hours: float

    def as_json(self) -> dict[str, Any]:
        """The row of `plan --json`."""
        amounts = {"cost": self.cost, "hours": self.hours, "gpu_hours": self.gpu_hours}
        differs = {"settings": self.settings, "inputs": self.inputs}
        return {"cell": self.cell.relpath, "former": self.former, **differs, **amounts}


def replaced(cells: list[Cell], base: Path, profile: Any = None) -> list[Replaced]:
    """The unfinished cells of a study that were finished with other settings or inputs.

    Args:
        cells: All cells of the study.
        base: The study's folder.
        profile: The cluster profile (slurm.profile) that tells how many GPUs a job holds.
    """
    used = {cell.identity for cell in cells}
    rows = []
    for cell in cells:
        if cell.stage == ANALYSIS or read_manifest(base / cell.relpath):
            continue
        if former := _former(cell, base, used):
            rows.append(_compare(cell, *former, base, profile))
    return rows


def _former(cell: Cell, base: Path, used: set[str]) -> tuple[Path, dict[str, Any]] | None:
    """The folder and manifest of the last finished cell with this stage and name.

    Cells that the study still uses, under whatever name, are not replaced.
    """
    candidates = []
    for folder in (base / cell.stage).glob(f"{cell.name}-????????"):
        manifest = read_manifest(folder)
        if manifest and manifest["name"] == cell.name and manifest["identity"] not in used:
            candidates.append((folder, manifest))
    return max(candidates, key=lambda pair: str(pair[1]["ended"]), default=None)


def _compare(
    cell: Cell, folder: Path, manifest: dict[str, Any], base: Path, profile: Any
) -> Replaced:
    config = read_config(folder)
    before = {role: source["identity"] for role, source in config["inputs"].items()}
    now = {role: source.identity for role, source in cell.inputs.items()}
    labels = {role: f"{source.stage} {source.name}" for role, source in cell.inputs.items()}
    roles = [role for role in {**now, **before} if now.get(role) != before.get(role)]
    ended, started = (datetime.fromisoformat(manifest[key]) for key in ("ended", "started"))
    hours = (ended - started).total_seconds() / 3600
    return Replaced(
        cell,
        str(folder.relative_to(base)),
        tuple(differing_keys(config["settings"], cell.settings)),
        tuple(labels.get(role, role) for role in roles),
        manifest["counts"].get("cost", 0.0),
        hours,
        hours * job_size(cell, profile)[0],
    )


def show(rows: Iterable[Replaced]) -> str:
    """The rows as a table: a cell, what differs from the finished one, what that one took."""
    lines = [
        [row.cell.stage, row.cell.name, _reason(row), row.hours, row.gpu_hours, row.cost]
        for row in rows
    ]
    headers = ["stage", "finished with other settings", "differs in"]
    headers += ["hours", "GPU-hours", "cost"]
    return tabulate(lines, headers=headers, floatfmt=".2f")


def _reason(row: Replaced) -> str:
    return ", ".join([*row.settings, *(f"input {name}" for name in row.inputs)])


def check_replaced(rows: list[Replaced], yes: bool) -> None:
    """Raise UserError where the replaced cells took more than ASK_ABOVE and `yes` is not given."""
    totals = {key: sum(getattr(row, key) for row in rows) for key in ASK_ABOVE}
    if yes or all(totals[key] <= limit for key, limit in ASK_ABOVE.items()):
        return
    causes = [row for row in rows if row.settings] or rows
    problems = [
        Problem(
            f"{row.cell.stage} {row.cell.name}",
            f"is finished with another {_reason(row)}",
            f"{row.former} is kept, and used again when the change is undone",
        )
        for row in causes
    ]
    took = f"{totals['gpu_hours']:,.1f} GPU-hours and {totals['cost']:,.2f} in API costs"
    problems.append(
        Problem(
            "",
            f"{len(rows)} finished cells would be made again; they took {took}",
            "add --yes, or undo the change",
        )
    )
    raise UserError.of(problems)
