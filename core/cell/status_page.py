"""status.html in a study's folder: a page of its progress, opened from disk.

It needs no script and no server: it is rewritten whole at each cell's end, and a browser loads it
again every REFRESH_SECONDS. What was planned is read from status_plan.json, which `run` and
`submit` write, all else from the cells' folders: Slurm is not asked.
"""

import json
import sys
from collections import Counter, defaultdict
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from statistics import mean
from typing import Any

from core import html_page, utc
from core.cell.failures import end, explain
from core.cell.manifest import read_manifest
from core.cell.restarts import read_progress
from core.cell.waiting import read_waiting
from core.errors import UserError
from core.files import locked, read_record, read_rows, write_atomically
from core.stages import TRAINING_STAGES

PLAN = "status_plan.json"
PAGE = "status.html"
FINISHED = "status_finished.json"  # facts of finished cells, which are read once
REFRESH_SECONDS = 20
MAX_CURVES = 6
MAX_FAILURES = 4
POINTS = 80  # of a curve; of more, means over as many equal stretches are drawn
OVERALL = "overall"  # the dimension of a score over all
STATES = ("done", "running", "queued", "stopped", "failed", "blocked", "unknown", "to do")
Curve = list[tuple[int, float]]  # (step, loss in nats per token)


@dataclass
class Facts:
    """What the page shows.

    Attributes:
        study: The study's name.
        time: When the page was written (UTC).
        states: State -> number of cells.
        stages: Stage -> the same of its cells.
        spent: `hours` of jobs, `gpu_hours` and `cost` of the finished cells.
        due: What was forecast for these, before anything ran.
        forecast: The same of all cells.
        running: Cells at work: stage, name, progress (done, total, unit; None: not known).
        failures: Cells that have stopped or failed: stage, name, state, lines, cause, fix.
        curves: Unfinished trainings: stage, name, curve.
        scores: (arm, dose) -> benchmark -> the scores of its finished checkpoints (0..1).
        planned: (arm, dose) -> benchmark -> the number of its checkpoints.
    """

    study: str
    time: str
    states: Counter[str] = field(default_factory=Counter)
    stages: dict[str, Counter[str]] = field(default_factory=dict)
    spent: Counter[str] = field(default_factory=Counter)
    due: Counter[str] = field(default_factory=Counter)
    forecast: Counter[str] = field(default_factory=Counter)
    running: list[dict[str, Any]] = field(default_factory=list)
    failures: list[dict[str, Any]] = field(default_factory=list)
    curves: list[dict[str, Any]] = field(default_factory=list)
    scores: dict[tuple[str, int], dict[str, list[float]]] = field(default_factory=dict)
    planned: dict[tuple[str, int], Counter[str]] = field(default_factory=dict)

    @property
    def goes_on(self) -> bool:
        """Whether any cell is unfinished."""
        return self.states["done"] < self.states.total()


def update(base: Path, states: Mapping[str, str] | None = None) -> None:
    """Write the page of the study in `base` anew; nothing where no plan of it is there.

    No error of the page fails a cell: it is printed.

    Args:
        base: The study's folder.
        states: Folder of a cell, relative to `base` -> its state by who has asked Slurm too.
    """
    try:
        if plan := read_record(base / PLAN, study=str, cells=list):
            write_atomically(base / PAGE, render(gather(base, plan, states or {})))
    except Exception as error:
        print(f"{base / PAGE} is not written: {error!r}", file=sys.stderr, flush=True)


def gather(base: Path, plan: dict[str, Any], states: Mapping[str, str]) -> Facts:
    """What the files of a study say.

    Args:
        base: The study's folder.
        plan: `study` and `cells`: identity, stage, name, cell (its folder), gpus, `forecast`
            (hours, gpu_hours, cost), and of those with scores that decide arm, benchmark and dose.
        states: As of `update`.
    """
    facts = Facts(plan["study"], utc.text())
    before = read_record(base / FINISHED) or {}
    finished: dict[str, Any] = {}
    scores: dict[tuple[str, int], dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for cell in plan["cells"]:
        folder = base / cell["cell"]
        row = before.get(cell["identity"]) or _finished(folder, cell)
        state = "done" if row else states.get(cell["cell"]) or _state(folder)
        facts.states[state] += 1
        facts.forecast.update(cell["forecast"])
        facts.stages.setdefault(cell["stage"], Counter())[state] += 1
        if "arm" in cell:
            key = cell["arm"], cell["dose"]
            facts.planned.setdefault(key, Counter())[cell["benchmark"]] += 1
        if row:
            finished[cell["identity"]] = row
            facts.spent.update(row["spent"])
            facts.due.update(cell["forecast"])
            if row["score"] is not None:
                scores[cell["arm"], cell["dose"]][cell["benchmark"]].append(row["score"])
        elif state not in ("to do", "queued", "blocked"):
            _add_unfinished(facts, folder, cell, state)
    facts.scores = {key: dict(scores[key]) for key in facts.planned if key in scores}
    if finished.keys() != before.keys():
        write_atomically(base / FINISHED, json.dumps(finished))
    return facts


def _finished(folder: Path, cell: dict[str, Any]) -> dict[str, Any] | None:
    """What a finished cell took, and its mean score; None of an unfinished one."""
    manifest = read_manifest(folder)
    if not manifest or manifest["identity"] != cell["identity"]:
        return None
    start, stop = (datetime.fromisoformat(manifest[key]) for key in ("started", "ended"))
    hours = (stop - start).total_seconds() / 3600
    cost = manifest["counts"].get("paid_cost", 0.0)
    spent = {"hours": hours, "gpu_hours": hours * cell["gpus"], "cost": cost}
    score = None
    if "arm" in cell:
        with suppress(OSError, ValueError, KeyError, UserError):
            rows = (row for _, row in read_rows(folder / "scores.parquet"))
            scores = [row["score"] for row in rows if row["dimension"] == OVERALL]
            score = mean(value for value in scores if value is not None)
    return {"spent": spent, "score": score}


def _state(folder: Path) -> str:
    """The state of an unfinished cell by its files alone."""
    if not (folder / "log.txt").exists() and not (folder / "progress.json").exists():
        return "to do"
    try:
        with locked(folder / ".lock", shared=True, wait=False) as is_free:
            if is_free and read_waiting(folder):
                return "to do"
            return "stopped" if is_free else "running"
    except (OSError, UserError):
        return "stopped"


def _add_unfinished(facts: Facts, folder: Path, cell: dict[str, Any], state: str) -> None:
    named = {"stage": cell["stage"], "name": cell["name"]}
    if state == "running":
        facts.running.append(named | {"progress": read_progress(folder)})
    else:
        failure, line = explain([lines := end(folder / "log.txt")])
        shown = dict.fromkeys([*([line] if line else []), *lines[-2:]])
        causes = {"cause": failure.name, "fix": failure.fix} if failure else {}
        facts.failures.append(named | {"state": state, "lines": [*shown]} | causes)
    if cell["stage"] in TRAINING_STAGES and (curve := read_curve(folder / "metrics.jsonl")):
        facts.curves.append(named | {"curve": curve})


def read_curve(path: Path) -> Curve:
    """The losses of a training that may be at work, as at most POINTS means."""
    try:
        rows = [(row["step"], row["loss"]) for _, row in read_rows(path, skip_torn_line=True)]
    except (OSError, UserError, KeyError):
        return []
    width = -(-len(rows) // POINTS) or 1
    parts = [rows[start : start + width] for start in range(0, len(rows), width)]
    return [(part[-1][0], mean(loss for _, loss in part)) for part in parts]


def render(facts: Facts) -> str:
    """The page as HTML."""
    return html_page.render(
        Path(__file__).with_name("status_page.html.j2"),
        facts=facts,
        refresh=REFRESH_SECONDS,
        states=[state for state in STATES if facts.states[state]],
        benchmarks=sorted({name for row in facts.planned.values() for name in row}),
        failures=facts.failures[:MAX_FAILURES],
        curves=facts.curves[:MAX_CURVES],
        polyline=polyline,
        mean=mean,
    )


def polyline(curve: Curve, width: int, height: int) -> str:
    """The points of a curve in a box with its origin at the top left, as SVG has them."""
    steps, losses = zip(*curve, strict=True)
    low, high = min(losses), max(losses)
    across = (steps[-1] - steps[0]) or 1
    return " ".join(
        f"{width * (step - steps[0]) / across:.1f},"
        f"{height * (high - loss) / ((high - low) or 1):.1f}"
        for step, loss in curve
    )
