"""Other methods beside the deciding test, for the primary contrasts and those with a margin; nothing here decides."""

from typing import Any

import numpy as np
import pandas as pd

from analysis.contrasts import contrast_arms, questions_of, scenarios_of
from analysis.estimates import two_way
from analysis.inference import benjamini_hochberg, equivalence, hierarchical_bootstrap, permutation
from analysis.mixed import sensitivity
from analysis.table import OVERALL, question_means

Row = dict[str, Any]
RESAMPLES = 10_000
SHARED = "arms of one seed share their midtraining, so seeds can't be exchanged between them"


def opinion_rows(
    table: pd.DataFrame, means: pd.DataFrame, contrasts: list[Row], margins: dict[str, float]
) -> list[Row]:
    """One row per contrast row (analysis.contrasts) of the family "primary" or with a margin, where it has a number.

    `bootstrap` (se, low, high, percentile_low, percentile_high), `permutation` (p, smallest_p), `mixed` (estimate, low,
    high, p, at_zero), `equivalence` (margin, p, equivalent, low, high: of 90 %), each with its `reason` where it has no
    number: see analysis.inference and analysis.mixed. `margins`: contrast name -> score units.
    """
    rows = []
    for row in contrasts:
        margin = margins.get(row["name"])
        if row["estimate"] is None or not (row["family"] == "primary" or margin):
            continue
        (of, against), _ = contrast_arms(means, row["benchmark"], _sides(row), row["paired"])
        scenarios, fixed = scenarios_of(means, row["benchmark"]), (of.fixed, against.fixed)
        first, second = of.scores[..., None], against.scores[..., None]
        if not row["paired"]:
            asked = questions_of(means, row["benchmark"])["question"].tolist()
            first, second = (_answers(table, row["benchmark"], *side, asked) for side in _sides(row))
        boot = hierarchical_bootstrap(first, second, scenarios, RESAMPLES, 0, fixed)
        fit = sensitivity(of.scores, against.scores, scenarios, fixed)
        exchanged = permutation(of.scores, against.scores)
        found: Row = {key: row[key] for key in ("name", "family", "benchmark", "dose", "against_dose")}
        found["bootstrap"] = {
            k: getattr(boot, k) for k in ("se", "low", "high", "percentile_low", "percentile_high", "reason")
        }
        found["permutation"] = {k: getattr(exchanged, k) for k in ("p", "smallest_p", "reason")}
        if row["paired"]:
            found["permutation"] = {"p": None, "smallest_p": None, "reason": SHARED}
        found["mixed"] = {k: getattr(fit, k) for k in ("estimate", "low", "high", "p", "at_zero", "reason")}
        if margin:
            same = equivalence(row["estimate"], row["se"], row["df"], margin)
            keys = ("p", "equivalent", "low", "high", "smallest_margin", "reason")
            found["equivalence"] = {"margin": margin} | {k: getattr(same, k) for k in keys}
        else:
            found["equivalence"] = None
        rows.append(found)
    return rows


def dimension_rows(table: pd.DataFrame, contrasts: list[Row]) -> list[Row]:
    """Each primary contrast dimension by dimension: the two-way test, and `q`, p adjusted for the false discovery rate.

    Benjamini and Hochberg's, over the dimensions of one contrast, benchmark and dose.
    """
    rows = []
    for row in contrasts:
        part = table[(table["benchmark"] == row["benchmark"]) & (table["dimension"] != OVERALL)]
        if row["family"] != "primary" or row["estimate"] is None or part.empty:
            continue
        found = []
        for dimension, scores in part.groupby("dimension", sort=True):
            means = question_means(scores.assign(dimension=OVERALL))
            graded = {(arm, dose) for arm, dose in zip(means["arm"], means["dose"], strict=True)}
            if not {*_sides(row)} <= graded:
                continue
            arms, _ = contrast_arms(means, row["benchmark"], _sides(row), row["paired"])
            test = two_way(arms, scenarios_of(means, row["benchmark"]))
            one: Row = {key: row[key] for key in ("name", "benchmark", "dose", "against_dose")} | {
                "dimension": dimension
            }
            found.append(one | {k: getattr(test, k) for k in ("estimate", "low", "high", "p", "questions", "reason")})
        for one, q in zip(found, benjamini_hochberg([one["p"] for one in found]), strict=True):
            rows.append(one | {"q": q})
    return rows


def _sides(row: Row) -> list[tuple[str, int]]:
    return [(row["of"], row["dose"]), (row["against"], row["against_dose"])]


def _answers(table: pd.DataFrame, benchmark: str, arm: str, dose: int, questions: list[str]) -> np.ndarray:
    """Overall scores of shape (seeds, questions, epochs), NaN where there is none."""
    part = table[(table["benchmark"] == benchmark) & (table["dimension"] == OVERALL)]
    part = part[(part["arm"] == arm) & (part["dose"] == dose)]
    seeds = part["seed"].fillna(-1)
    axes = [np.unique(seeds, return_inverse=True)[1], pd.Index(questions).get_indexer(pd.Index(part["question"]))]
    axes.append(np.unique(part["epoch"], return_inverse=True)[1])
    scores = np.full((axes[0].max() + 1, len(questions), axes[2].max() + 1), np.nan)
    scores[tuple(axes)] = part["score"]
    return scores
