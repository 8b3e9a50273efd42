"""Other methods beside the deciding test, for primary contrasts and those with a margin.

Nothing here decides.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from analysis.contrasts import contrast_arms, questions_of, scenarios_of
from analysis.estimates import two_way
from analysis.inference import benjamini_hochberg, equivalence, hierarchical_bootstrap, permutation
from analysis.looks import tables_of_looks
from analysis.mixed import mixed_model
from analysis.reference import Reference
from analysis.rows import Row, fields, select, sides_of
from analysis.table import OVERALL, by_corpus, question_means

RESAMPLES = 10_000
FEW_SCENARIOS = 5
SHARED = "arms of one seed share their midtraining, so seeds can't be exchanged between them"
PLACE = ("benchmark", "dose", "control_dose")


def sensitivity_rows(
    table: pd.DataFrame,
    means: pd.DataFrame,
    contrasts: Sequence[Row],
    margins: Mapping[str, float],
    seeds: Sequence[int],
) -> list[Row]:
    """One row per contrast row of the family "primary" or with a margin, where it has a number.

    A row has `bootstrap` (se, low, high, percentile_low, percentile_high), `permutation` (p,
    smallest_p), `mixed` (estimate, low, high, p, at_zero) and `equivalence` (margin, p,
    equivalent, low, high: of 90 %), each with its `reason` where it has no number: see
    analysis.inference and analysis.mixed. Each rests on the seeds that its contrast rests on.

    Args:
        table: the rows of the deciding judges.
        means: `table.question_means` of them.
        contrasts: the rows of analysis.contrasts.
        margins: contrast name -> equivalence margin in score units.
        seeds: the planned training seeds, in the order in which they are run.
    """
    tables = tables_of_looks(table, contrasts, seeds)
    means_of = tables_of_looks(means, contrasts, seeds)
    rows = []
    for contrast in contrasts:
        margin = margins.get(contrast["name"])
        if contrast["estimate"] is None or not (contrast["family"] == "primary" or margin):
            continue
        parts = tables[contrast["look"]], means_of[contrast["look"]]
        row = select(contrast, ("name", "family", *PLACE)) | _methods(*parts, contrast)
        row["equivalence"] = None
        if margin:
            reference = Reference.of_row(contrast)
            test = equivalence(contrast["estimate"], contrast["se"], reference, margin)
            keys = ("p", "equivalent", "low", "high", "smallest_margin", "reason")
            row["equivalence"] = {"margin": margin} | fields(test, keys)
        rows.append(row)
    return rows


def _methods(table: pd.DataFrame, means: pd.DataFrame, contrast: Row) -> Row:
    """One contrast by bootstrap, permutation and mixed model."""
    benchmark = contrast["benchmark"]
    (treatment, control), _ = contrast_arms(
        (means, means), benchmark, sides_of(contrast), contrast["paired"]
    )
    scenarios = scenarios_of(means, benchmark)
    fixed = (treatment.fixed, control.fixed)
    scores = treatment.of_corpora(), control.of_corpora()
    if contrast["paired"]:
        first, second = (side[..., None] for side in scores)
    else:
        questions = questions_of(means, benchmark)["question"].tolist()
        first, second = (
            _answers(by_corpus(table), benchmark, arm, dose, questions)
            for arm, dose in sides_of(contrast)
        )
    bootstrap = hierarchical_bootstrap(first, second, scenarios, RESAMPLES, 0, fixed)
    mixed = mixed_model(*scores, scenarios, fixed)
    exchange = fields(permutation(*scores), ("p", "smallest_p", "reason"))
    if contrast["paired"]:
        exchange = {"p": None, "smallest_p": None, "reason": SHARED}
    intervals = ("se", "low", "high", "percentile_low", "percentile_high", "reason")
    return {
        "bootstrap": fields(bootstrap, intervals),
        "permutation": exchange,
        "mixed": fields(mixed, ("estimate", "low", "high", "p", "at_zero", "reason")),
    }


def dimension_rows(
    table: pd.DataFrame, contrasts: Sequence[Row], seeds: Sequence[int]
) -> list[Row]:
    """Each primary contrast dimension by dimension, by the two-way test over its own seeds.

    `q` is p adjusted for the false discovery rate by Benjamini and Hochberg's method, over the
    dimensions of one contrast, benchmark and dose. A dimension of fewer than FEW_SCENARIOS has no
    interval: it would be wider than any difference can be.
    """
    tables = tables_of_looks(table[table["dimension"] != OVERALL], contrasts, seeds)
    rows: list[Row] = []
    for contrast in contrasts:
        part = tables[contrast["look"]]
        part = part[part["benchmark"] == contrast["benchmark"]]
        if contrast["family"] != "primary" or contrast["estimate"] is None or part.empty:
            continue
        tests = []
        sides = sides_of(contrast)
        for dimension, scores in part.groupby("dimension", sort=True):
            means = question_means(scores.assign(dimension=OVERALL))
            graded = set(zip(means["arm"], means["dose"], strict=True))
            if not {*sides} <= graded:
                continue
            benchmark = contrast["benchmark"]
            arms, _ = contrast_arms((means, means), benchmark, sides, contrast["paired"])
            test = two_way(arms, scenarios_of(means, benchmark))
            row = select(contrast, ("name", *PLACE)) | {"dimension": dimension}
            row |= fields(test, ("estimate", "low", "high", "p", "questions", "reason"))
            if test.se is not None and test.clusters < FEW_SCENARIOS:
                reason = f"no interval: {test.clusters} scenarios, fewer than {FEW_SCENARIOS}"
                row |= {"low": None, "high": None, "p": None, "reason": reason}
            tests.append(row)
        qs = benjamini_hochberg([row["p"] for row in tests])
        rows += [row | {"q": q} for row, q in zip(tests, qs, strict=True)]
    return rows


def _answers(
    table: pd.DataFrame, benchmark: str, arm: str, dose: int, questions: list[str]
) -> np.ndarray:
    """Overall scores of shape (seeds, questions, epochs), NaN where there is none."""
    part = table[(table["benchmark"] == benchmark) & (table["dimension"] == OVERALL)]
    part = part[(part["arm"] == arm) & (part["dose"] == dose)]
    seed = np.unique(part["seed"].fillna(-1), return_inverse=True)[1]
    question = pd.Index(questions).get_indexer(pd.Index(part["question"]))
    epoch = np.unique(part["epoch"], return_inverse=True)[1]
    scores = np.full((seed.max() + 1, len(questions), epoch.max() + 1), np.nan)
    scores[seed, question, epoch] = part["score"]
    return scores
