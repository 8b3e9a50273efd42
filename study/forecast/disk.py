"""The weights of a study that go again (`keep`), and how many trainings run at once in a limit."""

import heapq
from collections import defaultdict
from dataclasses import dataclass, field
from typing import Any

from core.cell.identity import Cell
from core.errors import Problem, UserError
from study.forecast.cell_cost import ByIdentity


@dataclass
class Tree:
    """A training whose weights go, those that start from it, and what reads their weights."""

    cells: list[str] = field(default_factory=list)
    """Identities, inputs before their users."""
    gb: float = 0.0
    """What its weights and step checkpoints take, until they go."""
    weights_gb: float = 0.0
    """The weights alone."""
    hours: float = 0.0
    """Along its longest chain of cells that remain; 0: nothing of it remains."""


def trees(cells: list[Cell], planned: ByIdentity, actual: ByIdentity) -> dict[str, Tree]:
    """The trees of a study by the identity of their first training.

    `planned`: what unfinished cells will take. `actual`: what finished cells took.
    """
    going = {
        _run(cell.inputs[role]) for cell in cells for role in cell.resources.get("release", ())
    }
    root: dict[str, str] = {}
    by_root: dict[str, Tree] = defaultdict(Tree)
    ends: dict[str, float] = {}
    for cell in cells:
        read = [used for used in cell.inputs.values() if _run(used) in going]
        if not read and cell.identity not in going:
            continue
        first = root[read[0].identity] if read else cell.identity
        root[cell.identity] = first
        tree = by_root[first]
        tree.cells.append(cell.identity)
        hours, disk_gb, working_gb = 0.0, 0.0, 0.0
        if amounts := planned.get(cell.identity):
            hours, disk_gb, working_gb = (
                amounts[key] for key in ("hours", "disk_gb", "working_gb")
            )
        else:
            disk_gb = actual[cell.identity]["disk_gb"]
        ends[cell.identity] = hours + max([0.0, *(ends[used.identity] for used in read)])
        tree.hours = max(tree.hours, ends[cell.identity])
        tree.gb += working_gb
        if cell.identity in going:
            tree.gb += disk_gb
            tree.weights_gb += disk_gb
    return dict(by_root)


def _run(cell: Cell) -> str:
    """The identity of the training that holds a cell's weights: of a dose, the longer run."""
    return cell.inputs.get("run", cell).identity


@dataclass(frozen=True)
class Forecast:
    """The disk of a study, in GB."""

    end_gb: float
    peak_gb: float
    limit_gb: float | None
    trees: int
    """Those of which something remains."""
    at_once: int
    """Of these, on their way at once."""
    tree_gb: float
    """Of the largest."""
    hours: float
    """By which the limit delays the end of the study."""

    @property
    def fits(self) -> bool:
        """Whether the limit has room for one of them beside what stays."""
        return self.limit_gb is None or self.peak_gb <= self.limit_gb

    def show(self) -> str:
        """One line; empty for a study that keeps all weights, without a limit."""
        if not self.trees:
            return ""
        text = (
            f"keep: {self.trees} groups of trainings whose weights go, {self.tree_gb:,.0f} GB each"
        )
        if self.limit_gb is None:
            return f"{text}; disk_gb of the cluster profile bounds how many run at once"
        if not self.fits:
            return f"{text}; {self.limit_gb:,.0f} GB have no room for one beside what stays"
        return (
            f"{text}; in {self.limit_gb:,.0f} GB {self.at_once} of them run at once, which takes "
            f"{self.hours:,.1f} h more than all at once"
        )


def forecast(
    by_root: dict[str, Tree], written_gb: float, working_gb: float, limit_gb: float | None
) -> Forecast:
    """The disk at the end and at most.

    Args:
        by_root: Of `trees`.
        written_gb: All that the study writes, but step checkpoints.
        working_gb: Step checkpoints of trainings that run at once, of a study that keeps all.
        limit_gb: As many trees run at once as fit in it, one at least. None: all.
    """
    going = sum(tree.weights_gb for tree in by_root.values())
    remaining = sorted((t for t in by_root.values() if t.hours), key=lambda tree: -tree.gb)
    end_gb = max(0.0, written_gb - going)
    sizes = [tree.gb for tree in remaining]
    at_once = len(sizes)
    if limit_gb is not None:
        while at_once > 1 and end_gb + sum(sizes[:at_once]) > limit_gb:
            at_once -= 1
    peak = end_gb + (sum(sizes[:at_once]) if sizes else 0.0)
    if not by_root:
        peak += working_gb
    hours = [tree.hours for tree in remaining]
    longest = max(hours, default=0.0)
    delay = _makespan(hours, at_once) - longest if hours else 0.0
    return Forecast(end_gb, peak, limit_gb, len(remaining), at_once, max(sizes, default=0.0), delay)


def _makespan(hours: list[float], slots: int) -> float:
    """Hours until all are over, each starting when one of `slots` is free."""
    ends = [0.0] * slots
    for length in hours:
        heapq.heappush(ends, heapq.heappop(ends) + length)
    return max(ends)


def disk_limit(by_root: dict[str, Tree], disk: Forecast) -> Any:
    """The limit for `slurm.submit`; None where there is none, or no weights go.

    Raises UserError where not even the weights of one tree fit.
    """
    if disk.limit_gb is None or not disk.trees:
        return None
    if not disk.fits:
        raise UserError.of(
            [
                Problem(
                    f"disk_gb {disk.limit_gb:g}",
                    f"{disk.end_gb:,.1f} GB stay at the end, and the trainings of one arm and seed "
                    f"take {disk.tree_gb:,.1f} GB more on their way",
                    "raise it, or keep fewer weights: keep of the study file",
                )
            ]
        )
    from slurm.disk_limit import DiskLimit

    trees_of = {identity: first for first, tree in by_root.items() for identity in tree.cells}
    sizes = {first: tree.gb for first, tree in by_root.items()}
    return DiskLimit(disk.limit_gb - disk.end_gb, sizes, trees_of)
