"""tests/small/paper.yaml as its analysis sees it, with made-up scores in place of all cells."""

from pathlib import Path

import numpy as np

from core.cell.context import StageContext
from core.paths import ROOT
from study.spec import expand
from study.spec.load import load_study
from tests.analysis.small_study import scores

DIMENSIONS = ["Harm Minimization", "Scope Sensitivity", "Evidence-Based Capacity Attribution"]


def paper_study(folder: Path) -> StageContext:
    """The analysis cell of the study: its arms, doses, benchmarks, contrasts and claims."""
    cell = expand.analysis(load_study(ROOT / "tests/small/paper.yaml"))
    rng = np.random.default_rng(11)
    levels: dict[str, float] = {}
    inputs = {}
    for row in cell.settings["rows"]:
        if row["role"] in inputs:  # two benchmarks of the same questions share their cells
            continue
        judge = row.get("judge") or cell.settings["benchmarks"][row["benchmark"]]["judge"]
        level = levels.setdefault(row["arm"], rng.uniform(0.3, 0.7))
        dimensions = DIMENSIONS if row["benchmark"] in ("ahb", "anima") else []
        made = scores(rng, level, 8, 1, dimensions)
        inputs[row["role"]] = folder / row["role"]
        inputs[row["role"]].mkdir()
        path = inputs[row["role"]] / "scores.parquet"
        made.assign(judge=judge or "likelihood").to_parquet(path)
    out = folder / "out"
    out.mkdir()
    settings = cell.settings | {"declaration": None}
    return StageContext(out, cell.identity, settings, {}, inputs)
