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
    waiting = [
        cell for cell in cells if cell.stage != ANALYSIS and not read_manifest(base / cell.relpath)
    ]
    unused = _unused(waiting, cells, base)
    rows = []
    renamed = []
    for cell in waiting:
        same_name = [old for old in unused if old.label == (cell.stage, cell.name)]
        if same_name:
            rows.append(_compare(cell, max(same_name, key=lambda old: old.ended), base, profile))
        else:
            renamed.append(cell)
    # Of cells whose name the study no longer has, each goes with the new cell that is most like it.
    names = {(cell.stage, cell.name) for cell in cells}
    gone = [old for old in unused if old.label not in names]
    for cell in renamed:
        # A few: each comparison reads a file, and a stage can have hundreds of cells.
        alike = [old for old in gone if old.label[0] == cell.stage][:20]
        if alike:
            rows.append(min((_compare(cell, old, base, profile) for old in alike), key=_distance))
            gone.remove(next(old for old in alike if rows[-1].former == old.relpath))
    order = {cell.identity: position for position, cell in enumerate(cells)}
    return sorted(rows, key=lambda row: order[row.cell.identity])


@dataclass(frozen=True)
class _Finished:
    """A finished cell of the study's folder that the study does not use, under whatever name."""

    relpath: str
    manifest: dict[str, Any]

    @property
    def label(self) -> tuple[str, str]:
        return self.manifest["stage"], self.manifest["name"]

    @property
    def ended(self) -> str:
        return str(self.manifest["ended"])


def _unused(waiting: list[Cell], cells: list[Cell], base: Path) -> list[_Finished]:
    """The unused finished cells of the stages of `waiting`."""
    used = {cell.identity for cell in cells}
    unused = []
    for stage in sorted({cell.stage for cell in waiting}):
        for folder in sorted((base / stage).glob("*-????????")):
            manifest = read_manifest(folder)
            if manifest and manifest["identity"] not in used:
                unused.append(_Finished(str(folder.relative_to(base)), manifest))
    return unused


def _distance(row: Replaced) -> int:
    return len(row.settings) + len(row.inputs)


def _compare(cell: Cell, old: _Finished, base: Path, profile: Any) -> Replaced:
    config, manifest = read_config(base / old.relpath), old.manifest
    before = {role: source["identity"] for role, source in config["inputs"].items()}
    now = {role: source.identity for role, source in cell.inputs.items()}
    labels = {role: f"{source.stage} {source.name}" for role, source in cell.inputs.items()}
    roles = [role for role in {**now, **before} if now.get(role) != before.get(role)]
    ended, started = (datetime.fromisoformat(manifest[key]) for key in ("ended", "started"))
    hours = (ended - started).total_seconds() / 3600
    return Replaced(
        cell,
        old.relpath,
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
