"""What missing grades could change: means and contrasts had all of them failed, or all passed."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from analysis.rows import Row
from analysis.settings import Contrast
from analysis.table import CHECKPOINT, OVERALL, REPLICATE, question_means

ARM = ["benchmark", "judge", "dose", "arm"]
RESPONSE = [*CHECKPOINT, "judge", "question", "epoch"]
VALUES = ["score", "low", "high"]


@dataclass(frozen=True)
class WorstCases:
    """`table.question_means` with every missing grade failed, and with every one passed.

    Of benchmarks with missing grades alone. `shares`: (benchmark, arm, dose) -> the share of its
    grades that are missing.
    """

    failed: pd.DataFrame
    passed: pd.DataFrame
    shares: dict[tuple[str, str, int], float]


def worst_cases(table: pd.DataFrame) -> WorstCases:
    """The worst cases of the deciding judges' rows."""
    benchmarks = set(table.loc[table["score"].isna(), "benchmark"])
    part = table[table["benchmark"].isin(benchmarks)]
    if part.empty:
        return WorstCases(part, part, {})
    units = _units(part)
    overall = units[units["dimension"] == OVERALL]
    counts = overall.groupby(["benchmark", "arm", "dose"])[["missing", "grades"]].sum()
    keys = [(str(bench), str(arm), int(dose)) for bench, arm, dose in counts.index]
    shares = dict(zip(keys, counts["missing"] / counts["grades"], strict=True))
    scenarios = part[["benchmark", "question", "scenario"]].drop_duplicates()
    overall = overall.merge(scenarios, on=["benchmark", "question"])
    overall["seed"] = overall["seed"].astype("Int64").mask(overall["seed"] < 0)
    if REPLICATE in part:
        checkpoints = part[[*CHECKPOINT, REPLICATE]].drop_duplicates()
        overall = overall.merge(checkpoints, how="left", on=CHECKPOINT)
    failed, passed = (question_means(overall.assign(score=overall[end])) for end in ("low", "high"))
    return WorstCases(failed, passed, shares)


def missing_bounds(table: pd.DataFrame) -> list[Row]:
    """One row per benchmark, judge, SFT dose, arm and dimension, the arm's mean ("overall") first.

    `grades` and how many of them are `missing`, their `share`; `mean` as graded (the missing left
    out; None if nothing was graded); `low` and `high`, the mean if every missing grade had been 0,
    or 1. All in score units (0..1) and averaged like the study's own numbers: over epochs, then
    seeds, then questions. Nothing is assumed about why grades are missing: these are the
    worst-case bounds of Manski, "Nonparametric bounds on treatment effects", Am. Econ. Rev. 80
    (1990).

    Where an answer's overall score is the mean of its graded dimensions, its bounds come from all
    dimensions of its question. Where it is something else (as the fully graded answers of the
    benchmark show), any missing grade leaves it between 0 and 1. The grades of the overall mean
    are those of the dimensions; in a benchmark without dimensions they are the overall scores. A
    dimension that is graded once per animal counts as graded if one of these grades exists: the
    table does not tell how many do.
    """
    units = _units(table)
    counts = units.groupby([*ARM, "dimension"])[["grades", "missing"]].sum()
    means = _question_means(units).groupby([*ARM, "dimension"])[VALUES].mean()
    rows: list[Row] = [
        {str(key): value for key, value in row.items()}
        for row in counts.join(means).reset_index().to_dict("records")
    ]
    rows.sort(key=_arm_order)
    return [
        {
            **{key: row[key] for key in (*ARM, "dimension")},
            "grades": int(row["grades"]),
            "missing": int(row["missing"]),
            "share": row["missing"] / row["grades"],
            "mean": None if pd.isna(row["score"]) else row["score"],
            "low": row["low"],
            "high": row["high"],
        }
        for row in rows
    ]


def _arm_order(row: Row) -> tuple[Any, ...]:
    return (*(row[key] for key in ARM), row["dimension"] != OVERALL, row["dimension"])


def contrast_bounds(table: pd.DataFrame, contrasts: Sequence[Contrast]) -> list[Row]:
    """One row per declared contrast, benchmark, judge and SFT dose that both arms have.

    A contrast of two doses has one row for both: `dose` of the treatment, `control_dose`.

    Numbers are treatment minus control in score units. `estimate` is as graded, over the questions
    graded in both arms. `low` is the treatment with all its missing grades failed minus the
    control with all of its passed, `high` the other way round, both over all `questions` that
    both arms answered. Where a whole question is ungraded, the estimate leaves it out and may
    therefore lie outside. With `low` > 0 or `high` < 0 the sign of the difference does not depend
    on the missing grades.
    """
    means = _question_means(_units(table)).reset_index()
    means = means[means["dimension"] == OVERALL]
    rows = []
    for contrast in contrasts:
        treatment, control = (
            means[means["arm"] == arm].drop(columns="arm").assign(of_dose=means["dose"])
            for arm in contrast.arms
        )
        # Rows are paired by a dose that both sides have: that of the treatment.
        pairs = contrast.dose_pairs(set(treatment["dose"]), set(control["dose"]))
        of_treatment = {second: first for first, second in pairs}
        treatment = treatment[treatment["dose"].isin(of_treatment.values())]
        control = control[control["dose"].isin(of_treatment)]
        control = control.assign(dose=control["dose"].map(of_treatment))
        keys = ["benchmark", "judge", "dose", "question"]
        paired = treatment.merge(control, on=keys, suffixes=("", "_control"))
        paired = paired[paired["benchmark"].isin(contrast.benchmarks)]
        dose: Any
        for (benchmark, judge, dose), part in paired.groupby(["benchmark", "judge", "dose"]):
            estimate = (part["score"] - part["score_control"]).mean()
            rows.append(
                contrast.row()
                | {
                    "benchmark": benchmark,
                    "judge": judge,
                    "dose": int(dose),
                    "control_dose": int(part["of_dose_control"].iloc[0]),
                    "questions": len(part),
                    "estimate": None if pd.isna(estimate) else float(estimate),
                    "low": float((part["low"] - part["high_control"]).mean()),
                    "high": float((part["high"] - part["low_control"]).mean()),
                }
            )
    return rows


def _units(table: pd.DataFrame) -> pd.DataFrame:
    """Every score with its bounds (`low`, `high`) and its counts of `grades` and `missing` ones."""
    columns = [*RESPONSE, "dimension", "score"]
    scores = table.assign(seed=table["seed"].fillna(-1))[columns]
    scores = scores.sort_values([*RESPONSE, "dimension"], ignore_index=True)
    overall = scores[scores["dimension"] == OVERALL]
    single = _dimension_units(scores[scores["dimension"] != OVERALL], overall)

    groups = single.groupby(RESPONSE)
    behind = groups[["grades", "missing"]].sum().join(groups[["low", "high"]].mean())
    overall = overall.merge(behind.reset_index(), how="left", on=RESPONSE)
    missing = overall["missing"].fillna(overall["score"].isna().astype(int))
    graded = overall["score"].notna() & (missing == 0)
    # benchmarks with a fully graded answer whose overall score is not the mean of its dimensions
    differs = (overall["score"] - overall["low"]).abs() > 1e-9
    differs &= graded & overall["low"].notna()
    averaged = ~overall["benchmark"].isin(overall.loc[differs, "benchmark"])
    low = overall["low"].where(averaged).fillna(0.0).where(~graded, overall["score"])
    high = overall["high"].where(averaged).fillna(1.0).where(~graded, overall["score"])
    grades = overall["grades"].fillna(1)
    overall = overall.assign(grades=grades, missing=missing, low=low, high=high)
    return pd.concat([overall, single], ignore_index=True)


def _dimension_units(single: pd.DataFrame, overall: pd.DataFrame) -> pd.DataFrame:
    """The scores on single dimensions, with a row for each dimension that an answer lacks."""
    # a scorer may name no dimensions where it graded none of them
    asked = single[["benchmark", "question", "dimension"]].drop_duplicates()
    expected = overall[RESPONSE].merge(asked, on=["benchmark", "question"])
    single = expected.merge(single, how="outer", on=[*RESPONSE, "dimension"])
    return single.assign(
        grades=1,
        missing=single["score"].isna().astype(int),
        low=single["score"].fillna(0.0),
        high=single["score"].fillna(1.0),
    )


def _question_means(units: pd.DataFrame) -> pd.DataFrame:
    """Means over epochs, then seeds; indexed by `ARM`, dimension and question."""
    keys = [*ARM, "dimension", "question"]
    return units.groupby([*keys, "seed"])[VALUES].mean().groupby(keys).mean()
