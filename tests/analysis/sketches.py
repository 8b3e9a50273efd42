"""Small studies as figures take them, and what a drawn figure holds."""

import html
import io
import re
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from analysis import plots
from analysis.figure_files import apply_layout
from analysis.losses import LossHistory

DIMENSIONS = ["Harm", "Scope", "Sentience", "Novel", "Humility", "Control"]
NASTY = r"50% a_b & $c$ #1 {x} ~^ \d <b>"


def study(
    arms=("animal", "urban"), doses=(0, 100), seeds=3, gone=(), dimensions=DIMENSIONS
) -> dict[str, Any]:
    """results.json as far as figures read it.

    An arm's mean falls by a point a dose and by ten an arm.
    """
    results: dict[str, Any] = {
        "arm_order": list(arms),
        "benchmarks": {"ahb": {"direction": "higher"}},
        "scores": [],
        "arms": [],
        "missing": [],
        "contrasts": [],
        "dimensions": [],
    }
    for i, arm in enumerate(arms):
        for j, dose in enumerate(doses):
            checkpoint = {"benchmark": "ahb", "dose": dose, "arm": arm}
            if (arm, dose) in gone:
                results["missing"] += [{**checkpoint, "seed": seed} for seed in range(seeds)]
                continue
            mean = 0.8123 - 0.1 * (i % 8) - 0.01 * j
            for seed in [None] if arm == "untrained" else range(seeds):
                score = mean + (0 if seed is None else 0.01 * (seed - (seeds - 1) / 2))
                results["scores"].append(
                    {**checkpoint, "seed": seed, "score": score, "n": 9, "missing": 0}
                )
            ends = (
                {"low": mean - 0.05, "high": mean + 0.05}
                if seeds > 1
                else {"low": None, "high": None}
            )
            results["arms"].append({**checkpoint, "mean": mean, **ends, "reason": None})
            for n, dimension in enumerate(dimensions):
                row = {
                    "dimension": dimension,
                    "score": mean - 0.03 * n,
                    "questions": n + 2,
                    "missing": 0,
                }
                results["dimensions"].append(checkpoint | row)
    means = {(row["arm"], row["dose"]): row["mean"] for row in results["arms"]}
    for arm in arms[:1] + arms[2:]:
        for dose in doses if len(arms) > 1 else ():
            (row,) = contrast(
                [(dose, dose)], name=f"{arm} - {arms[1]}", treatment=arm, control=arms[1]
            )
            row |= {
                "estimate": None,
                "low": None,
                "high": None,
                "verdict": "none",
                "reason": "not finished",
            }
            if (arm, dose) in means and (arms[1], dose) in means:
                gap = means[arm, dose] - means[arms[1], dose]
                row |= {"estimate": gap, "low": gap - 0.04, "high": gap + 0.04, "reason": None}
                row["verdict"] = (
                    "higher" if gap > 0.04 else "lower" if gap < -0.04 else "inconclusive"
                )
            results["contrasts"].append(row)
    return results


def contrast(doses=((0, 0), (100, 100)), **change: Any) -> list[dict[str, Any]]:
    """Rows of one contrast as per_question takes them."""
    row = {
        "name": "animal - urban",
        "treatment": "animal",
        "control": "urban",
        "family": "primary",
        "benchmark": "ahb",
        "level": 0.05,
    }
    return [
        row | {"dose": of, "control_dose": against, "paired": False} | change
        for of, against in doses
    ]


def answers(arms=("animal", "urban"), doses=(0, 100), seeds=3, questions=6) -> pd.DataFrame:
    rows = [
        {"benchmark": "ahb", "dose": dose, "arm": arm, "seed": seed, "question": f"q{q}",
         "score": 0.5 + (0.1 * (q - 2) if arm == "animal" and not dose else 0) + 0.01 * seed}
        for arm in arms for dose in doses for seed in range(seeds) for q in range(questions)
    ]  # fmt: skip
    columns = ["benchmark", "dose", "arm", "seed", "question", "score"]
    return pd.DataFrame(rows, columns=columns).astype({"seed": "Int64"})


def trainings(arms=("animal", "urban"), seeds=2, steps=30) -> list[LossHistory]:
    """Losses that fall by a fiftieth a step, and held-out losses at every tenth step."""
    return [
        LossHistory(
            arm=arm,
            seed=seed,
            stage=stage,
            training=[(step, 3 - step / 50 + seed / 9) for step in range(1, steps)],
            held_out=[(step, 3.5 - step / 40) for step in range(0, steps, 10)],
        )
        for arm in arms
        for seed in range(seeds)
        for stage in ("midtrain", "sft")
    ]


def corpora() -> dict[str, list[str]]:
    rng = np.random.default_rng(3)
    words = {"animal": "hen cow pig pain the of and", "urban": "street tram block flat the of and"}
    return {
        name: [" ".join(rng.choice(text.split(), 20)) for _ in range(40)]
        for name, text in words.items()
    }


def drawn(figure: Figure) -> str:
    """The words of a figure once it is laid out and drawn."""
    page = io.StringIO()
    with matplotlib.rc_context(plots.STYLE):
        apply_layout(figure)
        figure.savefig(page, format="svg")
    return html.unescape(" ".join(re.findall(r">([^<>]+)</text>", page.getvalue())))


def texts(figure: Figure) -> str:
    return " ".join(text.get_text() for axis in figure.axes for text in axis.texts)


def crosses(figure: Figure) -> list[tuple[float, float]]:
    lines = [line for axis in figure.axes for line in axis.lines if line.get_marker() == "x"]
    return [(float(x), float(y)) for line in lines for x, y in zip(*line.get_data(), strict=True)]


def numbers(results: dict[str, Any], rows: str, *keys: str) -> set[str]:
    """Every number of some rows in percent, as the words have it."""
    return {f"{100 * row[key]:.1f}" for row in results[rows] for key in keys}
