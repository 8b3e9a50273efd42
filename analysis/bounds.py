"""What the missing grades could change: the means and contrasts had all of them failed, or all passed."""

from typing import Any

import pandas as pd

from analysis.table import CHECKPOINT, OVERALL

Row = dict[str, Any]
ARM = ["benchmark", "judge", "dose", "arm"]
RESPONSE = [*CHECKPOINT, "judge", "question", "epoch"]
VALUES = ["score", "low", "high"]


def missing_bounds(table: pd.DataFrame) -> list[Row]:
    """One row per benchmark, judge, SFT dose, arm and dimension, the arm's mean ("overall") first.

    `grades` and how many of them are `missing`, their `share`; `mean` as graded (the missing left out; None if nothing
    was graded); `low` and `high`, the mean if every missing grade had been 0, or 1. All in score units (0..1) and
    averaged like the study's own numbers: over epochs, then seeds, then questions. No assumption is made about why
    grades are missing: these are the worst-case bounds of Manski, "Nonparametric bounds on treatment effects",
    Am. Econ. Rev. 80 (1990).

    Where an answer's overall score is the mean of its graded dimensions, its bounds come from all dimensions of its
    question; where it is something else (as the wholly graded answers of the benchmark tell), any missing grade leaves
    it between 0 and 1. The grades of the overall mean are those of the dimensions, in a benchmark without dimensions
    the overall scores. A dimension that is graded once per animal counts as graded if one of these grades is there:
    the table does not tell how many are.
    """
    units = _units(table)
    counts = units.groupby([*ARM, "dimension"])[["grades", "missing"]].sum()
    means = _question_means(units).groupby([*ARM, "dimension"])[VALUES].mean()
    rows = counts.join(means).reset_index().to_dict("records")
    rows.sort(key=lambda row: (*(row[key] for key in ARM), row["dimension"] != OVERALL, row["dimension"]))
    return [
        {str(key): row[key] for key in (*ARM, "dimension")}
        | {"grades": int(row["grades"]), "missing": int(row["missing"]), "share": row["missing"] / row["grades"]}
        | {"mean": None if pd.isna(row["score"]) else row["score"], "low": row["low"], "high": row["high"]}
        for row in rows
    ]


def contrast_bounds(table: pd.DataFrame, contrasts: list[Row]) -> list[Row]:
    """One row per declared contrast, benchmark, judge and SFT dose that both arms have: `of` minus `against`.

    `estimate` as graded, over the questions graded in both arms; `low` is `of` with all its missing grades failed minus
    `against` with all of its passed, `high` the other way round, over all `questions` that both arms answered. So
    where a whole question is ungraded the estimate, which leaves it out, may lie outside. With `low` > 0 or `high` < 0
    the sign of the difference does not hang on the missing grades.
    """
    means = _question_means(_units(table)).reset_index()
    means = means[means["dimension"] == OVERALL]
    rows = []
    for contrast in contrasts:
        sides = [means[means["arm"] == contrast[side]].drop(columns="arm") for side in ("of", "against")]
        paired = sides[0].merge(sides[1], on=["benchmark", "judge", "dose", "question"], suffixes=("", "_against"))
        paired = paired[paired["benchmark"].isin(contrast["on"])]
        for (benchmark, judge, dose), part in paired.groupby(["benchmark", "judge", "dose"]):
            estimate = (part["score"] - part["score_against"]).mean()
            rows.append(
                {key: contrast[key] for key in ("name", "of", "against")}
                | {"benchmark": benchmark, "judge": judge, "dose": int(dose), "questions": len(part)}
                | {"estimate": None if pd.isna(estimate) else float(estimate)}
                | {"low": float((part["low"] - part["high_against"]).mean())}
                | {"high": float((part["high"] - part["low_against"]).mean())}
            )
    return rows


def _units(table: pd.DataFrame) -> pd.DataFrame:
    """Every score with what it could have been (`low`, `high`) and the grades behind it (`grades`, `missing`)."""
    rows = table.assign(seed=table["seed"].fillna(-1))[[*RESPONSE, "dimension", "score"]]
    rows = rows.sort_values([*RESPONSE, "dimension"], ignore_index=True)
    overall, single = rows[rows["dimension"] == OVERALL], rows[rows["dimension"] != OVERALL]
    # a scorer may name no dimensions where it graded none of them
    asked = single[["benchmark", "question", "dimension"]].drop_duplicates()
    expected = overall[RESPONSE].merge(asked, on=["benchmark", "question"])
    single = expected.merge(single, how="outer", on=[*RESPONSE, "dimension"])
    single = single.assign(grades=1, missing=single["score"].isna().astype(int))
    single = single.assign(low=single["score"].fillna(0.0), high=single["score"].fillna(1.0))

    groups = single.groupby(RESPONSE)
    behind = groups[["grades", "missing"]].sum().join(groups[["low", "high"]].mean())
    overall = overall.merge(behind.reset_index(), how="left", on=RESPONSE)
    missing = overall["missing"].fillna(overall["score"].isna().astype(int))
    known = overall["score"].notna() & (missing == 0)
    other = known & overall["low"].notna() & ((overall["score"] - overall["low"]).abs() > 1e-9)
    averaged = ~overall["benchmark"].isin(overall.loc[other, "benchmark"])
    low = overall["low"].where(averaged).fillna(0.0).where(~known, overall["score"])
    high = overall["high"].where(averaged).fillna(1.0).where(~known, overall["score"])
    overall = overall.assign(grades=overall["grades"].fillna(1), missing=missing, low=low, high=high)
    return pd.concat([overall, single], ignore_index=True)


def _question_means(units: pd.DataFrame) -> pd.DataFrame:
    """Means over epochs, then seeds; indexed by `ARM`, dimension and question."""
    keys = [*ARM, "dimension", "question"]
    return units.groupby([*keys, "seed"])[VALUES].mean().groupby(keys).mean()
