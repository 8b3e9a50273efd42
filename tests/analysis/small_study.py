"""A small finished study on disk, ready to be analyzed, and changes of it."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from analysis.run import run
from core.cell.context import StageContext
from core.declaration import content_sha256, write_declaration

COLUMNS = ["question", "scenario", "dimension", "epoch", "judge", "score", "missing", "response"]


def scores(
    rng: np.random.Generator, level: float, questions: int, epochs: int, dimensions: list[str]
) -> pd.DataFrame:
    """The scores.parquet of one checkpoint.

    One row per answer and dimension, and the overall score.
    """
    rows: list[tuple[Any, ...]] = []
    difficulty = np.random.default_rng(7).normal(0, 0.15, questions)
    for question in range(questions):
        for epoch in range(1, epochs + 1):
            grades = (
                rng.random(max(len(dimensions), 1))
                < np.clip(level + difficulty[question], 0.02, 0.98)
            ).astype(float)
            named = [*zip(dimensions, grades, strict=False), ("overall", grades.mean())]
            for dimension, score in named:
                name = f"q{question:03d}"
                rows.append((name, name, dimension, epoch, "dummy", score, None, f"{name}/{epoch}"))
    return pd.DataFrame(rows, columns=COLUMNS)


LEVELS = {"untrained": 0.3, "animal": 0.6, "urban": 0.35}


def study(
    folder: Path, seeds: int = 3, doses: tuple[int, ...] = (0, 200), swap: bool = False
) -> StageContext:
    """A small finished study on disk.

    Arms untrained (no seed), animal and urban, on two benchmarks.
    """
    settings: dict[str, Any] = {
        "study": "tiny",
        "seeds": [*range(seeds)],
        "looks": [],
        "declaration": None,
        "rows": [],
        "missing": [],
        "contrasts": [
            {
                "name": "animal - urban",
                "treatment": "animal",
                "control": "urban",
                "benchmarks": ["ahb", "concern"],
                "family": "primary",
            }
        ],
        "benchmarks": {
            "ahb": {
                "task": "anima",
                "title": "Animal Harm Benchmark (ANIMA)",
                "direction": "higher",
                "judge": "dummy",
                "other_judges": [],
                "dummy": True,
                "exclude": [],
            },
            "concern": {
                "task": "concern",
                "title": None,
                "direction": "higher",
                "judge": None,
                "other_judges": [],
                "dummy": False,
                "exclude": [],
            },
        },
        "labels": {},
        "claim_roles": {},
        "costs": {"unit": "GPU-hours", "seed": 2.0, "question": None, "epoch": 0.5},
        "writers": [{"corpus": "animal", "model": "dummy", "dummy": True, "matched_to": None}],
    }
    if swap:
        settings["contrasts"][0] |= {"treatment": "urban", "control": "animal"}
    inputs = {}
    rng = np.random.default_rng(5)
    plan = [("untrained", None, 0)] + [
        (arm, s, d) for arm in ("animal", "urban") for s in range(seeds) for d in doses
    ]
    for arm, seed, dose in plan:
        for benchmark in ("ahb", "concern"):
            role = f"{arm}-{seed}-{dose}-{benchmark}"
            judged = benchmark == "ahb"
            data = scores(
                rng,
                LEVELS[arm],
                12 if judged else 30,
                2 if judged else 1,
                ["Harm", "Scope"] if judged else [],
            )
            inputs[role] = folder / role
            inputs[role].mkdir(parents=True)
            data.assign(judge="dummy" if judged else "likelihood").to_parquet(
                inputs[role] / "scores.parquet"
            )
            row = {
                "arm": arm,
                "seed": seed,
                "dose": dose,
                "benchmark": benchmark,
                "checkpoint": f"sft/{arm}-{seed}",
            }
            settings["rows"].append({"role": role, **row})
    out = folder / "out"
    out.mkdir()
    return StageContext(out, "identity", settings, {}, inputs)


def declared_study(folder: Path, differences: Sequence[str] = ()) -> StageContext:
    """A `study` in a folder of its own with a declaration, from which its file differs so."""
    context = study(folder)
    context.folder = folder / "runs/tiny/analysis/tiny"
    context.folder.mkdir(parents=True)
    content = {"seeds": context.settings["seeds"]}
    write_declaration(folder / "runs/tiny", content)
    declaration = {"sha256": content_sha256(content), "differences": [*differences]}
    context.settings["declaration"] = declaration
    return context


def edit(context: StageContext, role: str, change: Any) -> None:
    """Rewrite one checkpoint's score file as `change(frame)` returns it."""
    path = context.inputs[role] / "scores.parquet"
    change(pd.read_parquet(path)).to_parquet(path)


def drop(context: StageContext, role: str) -> dict[str, Any]:
    """Turn a finished checkpoint of the study into a planned one.

    Returns its entry in `missing`.
    """
    row = next(row for row in context.settings["rows"] if row["role"] == role)
    context.settings["rows"].remove(row)
    entry = {key: row[key] for key in ("arm", "seed", "dose", "benchmark")}
    context.settings["missing"].append(entry)
    cell = {"cell": "sft/none-00000000", "identity": "0" * 64}
    needed = {"weights": cell, "answers": cell}
    context.resources.setdefault("unfinished", []).append(needed)
    return entry


def results_of(context):
    counts = run(context)
    results = json.loads((context.folder / "results.json").read_text())
    assert counts["checkpoints"] == len(results["scores"])
    return results
