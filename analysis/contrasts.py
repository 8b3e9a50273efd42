"""From the long table to rows of results.json: scores, arms, and contrasts with their verdicts."""

from collections.abc import Sequence, Set

import numpy as np
import pandas as pd

from analysis.bounds import WorstCases, worst_cases
from analysis.contrast_details import cohens_d, prediction_interval, question_signs
from analysis.estimates import (
    ALPHA,
    Arm,
    Estimate,
    pair_by_seed,
    response_level_p,
    two_way,
)
from analysis.rows import Row, fields
from analysis.settings import Contrast
from analysis.share_interval import share_interval
from analysis.table import (
    CHECKPOINT,
    OVERALL,
    checkpoint_name,
    dimension_normalized_averages,
    grade_counts,
    replicates_of,
    score_matrix,
)
from analysis.verdicts import decide

# Times that the standard deviations over seeds (or corpora) may differ without a caution, by the
# fewest of an arm. Of 3 seeds of equal spread one contrast in eight is farther apart.
UNEQUAL = {2: 3, 3: 4}


def score_rows(means: pd.DataFrame) -> list[Row]:
    """One row per finished checkpoint and benchmark.

    `score` is the mean over questions of means over epochs, `n` the graded answers, `missing` the
    answers without a grade.
    """
    groups = means.groupby(CHECKPOINT, dropna=False, sort=True)
    aggregates = {"score": ("score", "mean"), "n": ("n", "sum"), "missing": ("missing", "sum")}
    scores = groups.agg(**aggregates).reset_index()
    scores["seed"] = scores["seed"].astype(object).where(scores["seed"].notna(), None)
    return [{str(key): value for key, value in row.items()} for row in scores.to_dict("records")]


def arm_rows(
    table: pd.DataFrame, means: pd.DataFrame, normalized_benchmarks: Set[str] = frozenset()
) -> list[Row]:
    """One row per benchmark, dose and arm: the mean, its interval for new seeds and questions.

    The interval is `share_interval`'s where all scores lie between 0 and 1. `n` counts the graded
    answers, `missing` those without a grade, `grades` and `missing_grades` single grades
    (`table.grade_counts`).

    Args:
        table: the rows of the deciding judges.
        means: `table.question_means` of them.
        normalized_benchmarks: those that have a `dimension_normalized_avg`; None elsewhere.
    """
    keys = ["benchmark", "dose", "arm"]
    counts = means.groupby(keys)[["n", "missing"]].sum().join(grade_counts(table)).reset_index()
    of_benchmarks = [rows["benchmark"].isin(normalized_benchmarks) for rows in (table, means)]
    normalized = dimension_normalized_averages(table[of_benchmarks[0]], means[of_benchmarks[1]])
    rows = []
    for count in counts.to_dict("records"):
        arm = _arm(means, count["benchmark"], count["dose"], count["arm"])
        mean = two_way([arm], scenarios_of(means, count["benchmark"]))
        if ((arm.scores >= 0) & (arm.scores <= 1) | np.isnan(arm.scores)).all():
            mean = share_interval(mean)
        row: Row = {key: count[key] for key in ("arm", "benchmark", "dose")}
        row["mean"] = mean.estimate
        row |= fields(mean, ("low", "high", "se", "df", "seed_se", "question_se"))
        row["seeds"] = mean.seeds[0] if mean.seeds else 0
        row["corpora"] = mean.corpora[0] if mean.corpora else None
        row["fixed"] = arm.fixed
        row["questions"] = mean.questions
        row["scenarios"] = mean.clusters
        row["reason"] = mean.reason
        row |= {key: count[key] for key in ("n", "missing", "grades", "missing_grades")}
        row["dimension_normalized_avg"] = normalized.get(tuple(count[key] for key in keys))
        rows.append(row)
    return rows


def contrast_rows(
    table: pd.DataFrame,
    means: pd.DataFrame,
    declared: Sequence[Contrast],
    unfinished: Sequence[Row],
    level: float = ALPHA,
) -> list[Row]:
    """One row per declared contrast, benchmark and SFT dose that both arms were planned at.

    `estimate`, `low`, `high` and `se` are in score units (0..1), treatment minus control; the
    interval is at 1 - `level`. `verdict`, `p_holm` and `family_size`: see analysis.verdicts.
    `missing_treatment` and `missing_control` are the shares of each arm's grades that are missing.
    `treatment_corpora` and `control_corpora` have the runs on each replicate of the arm's corpus,
    None where it was written once. `reference` has the terms of the distribution that estimate / se
    is compared with (analysis.reference). `caution`: what the test can't hold here, None where
    nothing. `prediction_low` and `prediction_high`, `cohens_d`, `questions_opposite` and
    `questions_equal`: see analysis.contrast_details. `answers_*` counts each arm's graded answers,
    `grades_*` its single grades (`table.grade_counts`).

    `paired` contrasts are of arms that share their midtraining runs: differences are taken within
    seeds, and `control_seeds` is then `treatment_seeds`.

    Args:
        table: the rows of the deciding judges.
        means: `table.question_means` of them.
        declared: the contrasts of the study.
        unfinished: planned checkpoints without scores (arm, seed, dose, benchmark).
        level: what the tests of a family may reject in error together.
    """
    keys = means[["benchmark", "arm", "dose"]].drop_duplicates()
    planned = {(row["benchmark"], row["arm"], row["dose"]) for row in unfinished}
    planned |= set(keys.itertuples(index=False, name=None))
    worst = worst_cases(table)
    grades = grade_counts(table)["grades"]
    rows = []
    filled = []
    for contrast in declared:
        for benchmark in contrast.benchmarks:
            for doses in _planned_doses(contrast, benchmark, planned):
                sides = [] if doses is None else list(zip(contrast.arms, doses, strict=True))
                row = _contrast_row(table, means, contrast, benchmark, sides, unfinished, level)
                shares = [worst.shares.get((benchmark, *side), 0.0) for side in sides]
                row["missing_treatment"], row["missing_control"] = shares or (None, None)
                of_sides = [int(grades.get((benchmark, dose, arm), 0)) for arm, dose in sides]
                row["grades_treatment"], row["grades_control"] = of_sides or (0, 0)
                rows.append(row)
                filled.append(_filled(contrast, benchmark, sides, worst) if any(shares) else [])
    decide(rows, filled, level)
    return rows


def _filled(
    contrast: Contrast, benchmark: str, sides: Sequence[tuple[str, int]], worst: WorstCases
) -> list[Estimate]:
    """The contrast with its missing grades filled against, and for, the treatment."""
    estimates = []
    for of_sides in ((worst.failed, worst.passed), (worst.passed, worst.failed)):
        arms, _ = contrast_arms(of_sides, benchmark, sides, contrast.paired)
        estimates.append(two_way(arms, scenarios_of(worst.failed, benchmark)))
    return estimates


def _planned_doses(
    contrast: Contrast, benchmark: str, planned: set[tuple[str, str, int]]
) -> list[tuple[int, int] | None]:
    """The doses of treatment and control to compare; [None] where there is no common one."""
    if contrast.doses is not None:
        return [contrast.doses]
    treatment, control = (
        {dose for name, planned_arm, dose in planned if (name, planned_arm) == (benchmark, arm)}
        for arm in contrast.arms
    )
    return [*contrast.dose_pairs(treatment, control)] or [None]


def _contrast_row(
    table: pd.DataFrame,
    means: pd.DataFrame,
    contrast: Contrast,
    benchmark: str,
    sides: Sequence[tuple[str, int]],
    unfinished: Sequence[Row],
    level: float,
) -> Row:
    dose, control_dose = (dose for _, dose in sides) if sides else (None, None)
    waiting = [
        checkpoint
        for checkpoint in unfinished
        if checkpoint["benchmark"] == benchmark and (checkpoint["arm"], checkpoint["dose"]) in sides
    ]
    part = table[(table["benchmark"] == benchmark) & (table["dimension"] == OVERALL)]
    responses = [
        part.loc[(part["arm"] == arm) & (part["dose"] == dose), "score"].to_numpy()
        for arm, dose in sides
    ]
    judge = None
    p_responses = None
    signs: tuple[int | None, int] = (None, 0)
    arms: list[Arm] = []
    if not sides:
        result = Estimate(reason="the two arms were not planned at a common SFT dose")
    elif not all(len(scores) for scores in responses):
        result = Estimate(reason="not finished: " + "; ".join(map(checkpoint_name, waiting)))
    else:
        arms, _ = contrast_arms((means, means), benchmark, sides, contrast.paired)
        result = two_way(arms, scenarios_of(means, benchmark), level)
        signs = question_signs(arms, result.estimate)
        judge = part["judge"].iloc[0]
        p_responses = response_level_p(*responses)

    treatment_seeds, control_seeds = result.seeds or (0, 0)
    treatment_corpora, control_corpora = result.corpora or (None, None)
    if contrast.paired:
        control_seeds, control_corpora = treatment_seeds, treatment_corpora
    row = contrast.row() | {
        "family": contrast.family,
        "paired": contrast.paired,
        "differences": list(contrast.differences),
        "benchmark": benchmark,
        "dose": dose,
        "control_dose": control_dose,
        "p_holm": None,
        "verdict": "none",
        "p_response_level": p_responses,
        "unfinished": len(waiting),
        "judge": judge,
    }
    row |= fields(result, ("estimate", "low", "high", "se", "df", "p"))
    row |= fields(result, ("seed_se", "question_se", "interaction_se", "reason"))
    answers = [int(np.isfinite(scores).sum()) for scores in responses] or [0, 0]
    prediction = prediction_interval(result, arms) or (None, None)
    row |= {
        "prediction_low": prediction[0],
        "prediction_high": prediction[1],
        "cohens_d": cohens_d(result.estimate, responses),
        "questions_opposite": signs[0],
        "questions_equal": signs[1],
        "answers_treatment": answers[0],
        "answers_control": answers[1],
    }
    return row | {
        "reference": result.reference and result.reference.terms,
        "caution": _caution(result),
        # a fixed checkpoint has no training seed to count; the trained arm's are then the study's
        "seeds": min((n for n in (treatment_seeds, control_seeds) if n), default=0),
        "treatment_seeds": treatment_seeds,
        "control_seeds": control_seeds,
        "treatment_corpora": treatment_corpora,
        "control_corpora": control_corpora,
        "questions": result.questions,
        "scenarios": result.clusters,
        "questions_left_out": result.left_out,
    }


def _caution(result: Estimate) -> str | None:
    """A warning where few seeds (or corpora) leave the test more rejections than its level.

    No method holds the level where an arm of 2 or 3 has another spread than the other arm: at 4
    times its standard deviation the test rejects up to 11 % of true null hypotheses at .05. Nor
    where both arms have 2, at the small levels of Holm's correction (benchmarks.error_rates).
    """
    sds = [sd for sd in result.seed_sds if sd is not None]
    sides = zip(result.seeds, result.corpora, strict=True)
    units = [seeds if runs is None else len(runs) for seeds, runs in sides]
    if len(sds) < 2:
        return None
    fewest = min(units)
    unit = "seeds" if result.corpora[units.index(fewest)] is None else "corpora"
    if fewest in UNEQUAL and max(sds) > UNEQUAL[fewest] * min(sds):
        first, second = (f"{100 * sd:.1f}" for sd in sds)
        return (
            f"an arm has {fewest} {unit}, and the spread over {unit} is unequal ({first} and "
            f"{second} points): the test may reject too often; add {unit}"
        )
    if max(units) == 2:
        return f"both arms have 2 {unit}: in a family the test may reject too often; add {unit}"
    return None


def contrast_arms(
    means: tuple[pd.DataFrame, pd.DataFrame],
    benchmark: str,
    sides: Sequence[tuple[str, int]],
    paired: bool,
) -> tuple[list[Arm], list[list[int]]]:
    """Both sides (arm, dose) of a contrast for `two_way`, and the seeds of their rows.

    `means` are the `table.question_means` that each side is taken from. With `paired` the sides are
    paired by seed where both have seeds.
    """
    arms = []
    seeds = []
    for of_side, (arm, dose) in zip(means, sides, strict=True):
        arms.append(_arm(of_side, benchmark, dose, arm))
        part = of_side[(of_side["benchmark"] == benchmark) & of_side["seed"].notna()]
        part = part[(part["arm"] == arm) & (part["dose"] == dose)]
        seeds.append(sorted(part["seed"].unique()))
    return pair_by_seed(arms, seeds) if paired and all(seeds) else (arms, seeds)


def questions_of(means: pd.DataFrame, benchmark: str) -> pd.DataFrame:
    """The questions of a benchmark by id, with their scenarios."""
    part = means.loc[means["benchmark"] == benchmark, ["question", "scenario"]]
    return part.drop_duplicates().sort_values("question", kind="stable")


def scenarios_of(means: pd.DataFrame, benchmark: str) -> np.ndarray:
    """The scenario of each question of `questions_of`; shape (questions,)."""
    return questions_of(means, benchmark)["scenario"].to_numpy(str)


def _arm(means: pd.DataFrame, benchmark: str, dose: int, arm: str) -> Arm:
    part = means[
        (means["benchmark"] == benchmark) & (means["dose"] == dose) & (means["arm"] == arm)
    ]
    questions = questions_of(means, benchmark)["question"].tolist()
    scores = score_matrix(means, benchmark, dose, arm, questions)
    return Arm(scores, bool(part["seed"].isna().all()), replicates_of(part))
