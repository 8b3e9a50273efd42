"""Several judges over the same answers: how far they agree, and whether one of them favours an arm."""

from collections.abc import Iterator
from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats
from statsmodels.stats.inter_rater import cohens_kappa

from analysis.estimates import ALPHA, Arm, two_way
from analysis.table import OVERALL

Row = dict[str, Any]
SIDES = ("of", "against")
RESPONSE = ["dose", "arm", "seed", "question", "epoch"]
SAME = 1e-9  # averages may differ in their last bits


def agreement(table: pd.DataFrame, primary: dict[str, str]) -> list[Row]:
    """One row per benchmark with at least two judges and per arm; first for all arms together (`arm` None).

    `table` is the long table with the rows of every judge, `primary` maps a benchmark to the judge that decides. What
    is compared are grades (0..1): an answer's score on one dimension, in a benchmark without dimensions its overall
    score; doses, seeds and epochs are taken together. Nothing here is a test.

    - `judges` (the primary first): how many grades each gave (`n`) and their mean, over all that it graded;
    - `pairs`: `n` grades that both gave and, of these alone, both means, the share of equal scores (`agreement`) and
      Cohen's `kappa` with the `n_kappa` 0/1 grades it rests on. An item (question and dimension) that any judge scored
      otherwise than 0 or 1, as an average over animals, is left out of kappa in all answers: to leave out only its
      averaged scores would keep the answers on which a judge was of one mind;
    - `alpha`: Krippendorff's over all judges, from `units` grades that two or more gave; `level` is nominal where all
      are 0 or 1, otherwise interval.

    What is undefined is None, and `reason` (for alpha `alpha_reason`) says why.
    """
    rows = []
    for benchmark, judges, wide in _several(table, primary):
        wide = _grades(wide)
        yes_no = (wide[judges].isin([0, 1]) | wide[judges].isna()).all(axis=1)
        wide = wide.assign(yes_no=yes_no.groupby([wide["question"], wide["dimension"]]).transform("all"))
        for arm in [None, *sorted(wide["arm"].unique())]:
            part = wide if arm is None else wide[wide["arm"] == arm]
            row: Row = {"benchmark": benchmark, "primary": judges[0], "arm": arm}
            row["judges"] = [
                {"judge": name, "n": int(part[name].count()), "mean": _mean(part[name])} for name in judges
            ]
            row["pairs"] = [_pair(part, *pair) for pair in combinations(judges, 2)]
            rows.append(row | _alpha(part[judges].to_numpy(float)))
    return rows


def differential_bias(table: pd.DataFrame, primary: dict[str, str], contrasts: list[Row]) -> list[Row]:
    """Whether a judge favours an arm more than the primary judge does: one row per declared contrast, other judge and
    SFT dose that both arms have; where there are several doses, one more with `dose` None for all of them.

    `estimate` is the judge's difference between the arms (`of` minus `against`) less the primary's, in score units
    (0..1), over the `n` scores that both judges gave; above 0 the judge favours `of`. The scores are overall scores, or
    dimensions (`scores`) where the judge gave no overall one, as people who label a sample. Averaged like the contrasts
    themselves: over (dimensions and) epochs, seeds, then questions; a question without both judges' scores in both arms
    is left out. `low` and `high` are a 95 % interval for new questions, Student's t over the scenarios (the question
    part of analysis.estimates.two_way), computed without random numbers. It takes the checkpoints as given and is not
    corrected for the number of rows. None with a `reason` where there is no such number.
    """
    rows = []
    for benchmark, judges, wide in _several(table, primary):
        for contrast in [contrast for contrast in contrasts if benchmark in contrast["on"]]:
            of, against = (set(wide.loc[wide["arm"] == contrast[side], "dose"]) for side in SIDES)
            common = sorted(of & against)
            for judge in judges[1:]:
                for doses in [*([dose] for dose in common), *([common] if len(common) > 1 else [])]:
                    row = {key: contrast[key] for key in ("name", *SIDES)} | {"benchmark": benchmark}
                    row |= {"dose": int(doses[0]) if len(doses) == 1 else None, "judge": judge, "primary": judges[0]}
                    rows.append(row | _bias(wide[wide["dose"].isin(doses)], row, judges[0], judge))
    return rows


def krippendorff_alpha(grades: np.ndarray) -> float | None:
    """Krippendorff's alpha for interval data, shape (units, judges), NaN where a judge gave none.

    For grades of 0 and 1 it is the nominal alpha as well, as their squared difference is 0 or 1. Krippendorff,
    "Computing Krippendorff's alpha-reliability" (2011): 1 - observed / expected disagreement; with squared differences
    these are the mean variance within units, weighted by their grades, and the variance of all pairable grades.
    None if no unit has two grades or all such grades are the same.
    """
    grades = grades[np.isfinite(grades).sum(axis=1) > 1]
    values = grades[np.isfinite(grades)]
    if not len(values) or np.ptp(values) < SAME:
        return None
    within = np.isfinite(grades).sum(axis=1) * np.nanvar(grades, axis=1, ddof=1)
    return 1 - float(within.sum()) / len(values) / float(values.var(ddof=1))


def _several(table: pd.DataFrame, primary: dict[str, str]) -> Iterator[tuple[str, list[str], pd.DataFrame]]:
    """Benchmarks with several judges: name, judges (primary first), and scores with a column for each judge."""
    for name, found in table.dropna(subset="judge").groupby("benchmark")["judge"].unique().items():
        benchmark = str(name)
        if len(found) > 1:
            part, found = table[table["benchmark"] == benchmark], set(found)
            judges = [primary[benchmark], *sorted(found - {primary[benchmark]})]
            part = part.assign(seed=part["seed"].fillna(-1))
            wide = part.pivot(index=[*RESPONSE, "dimension"], columns="judge", values="score")
            wide = wide.reindex(columns=judges).astype(float).reset_index()
            scenarios = part.drop_duplicates("question").set_index("question")["scenario"]
            yield benchmark, judges, wide.assign(scenario=wide["question"].map(scenarios))


def _grades(wide: pd.DataFrame) -> pd.DataFrame:
    single = wide[wide["dimension"] != OVERALL]
    return single if len(single) else wide


def _pair(part: pd.DataFrame, judge: str, other: str) -> Row:
    both = part.dropna(subset=[judge, other])
    kept = both[both["yes_no"]]
    counts = [[int(((kept[judge] == a) & (kept[other] == b)).sum()) for b in (0, 1)] for a in (0, 1)]
    reason = None
    if not len(both):
        reason = "no answer was graded by both"
    elif not len(kept):
        reason = "no kappa: every item was scored otherwise than 0 or 1"
    elif len(kept) in (counts[0][0], counts[1][1]):
        reason = "no kappa: both judges gave one and the same grade throughout"
    row = {"judge": judge, "other": other, "n": len(both), "n_kappa": len(kept), "reason": reason}
    row |= {"mean_judge": _mean(both[judge]), "mean_other": _mean(both[other])}
    row["agreement"] = _mean((abs(both[judge] - both[other]) < SAME).astype(float))
    return row | {"kappa": None if reason else float(cohens_kappa(counts, return_results=False))}


def _alpha(grades: np.ndarray) -> Row:
    units = int((np.isfinite(grades).sum(axis=1) > 1).sum())
    level = "nominal" if np.isin(grades[np.isfinite(grades)], (0, 1)).all() else "interval"
    alpha = krippendorff_alpha(grades)
    reason = "all grades are the same" if units else "no answer was graded by two judges"
    return {"alpha": alpha, "level": level, "units": units, "alpha_reason": reason if alpha is None else None}


def _bias(part: pd.DataFrame, contrast: Row, primary: str, judge: str) -> Row:
    overall = part[part["dimension"] == OVERALL]
    whole = bool(overall[judge].count())
    both = (overall if whole else _grades(part)).dropna(subset=[primary, judge])
    both = both[both["arm"].isin([contrast[side] for side in SIDES])]
    both = both.assign(difference=both[judge] - both[primary])
    means = both.groupby(["arm", "dose", "seed", "question", "epoch"])[["difference", primary, judge]].mean()
    means = means.groupby(["arm", "dose", "seed", "question"]).mean()
    asked = both.drop_duplicates("question").set_index("question")["scenario"].sort_index()
    found = []
    for value in ("difference", primary, judge):
        arms = [means.loc[means.index.isin([contrast[side]], level="arm"), value] for side in SIDES]
        scores = [arm.unstack("question").reindex(columns=asked.index).to_numpy(float) for arm in arms]
        found.append(two_way([Arm(arm) for arm in scores], asked.to_numpy(str)))
    bias = found[0]
    row: Row = {"estimate": bias.estimate, "low": None, "high": None, "reason": None, "n": len(both)}
    row |= {"primary_difference": found[1].estimate, "judge_difference": found[2].estimate}
    row |= {"scores": OVERALL if whole else "dimensions", "questions": bias.questions}
    row |= {"scenarios": bias.clusters, "questions_left_out": bias.left_out}
    if bias.estimate is None:
        return row | {"reason": "no question has scores of both judges in both arms"}
    if bias.question_se is None:
        return row | {"reason": "no interval: one scenario only"}
    if bias.question_se < SAME:
        return row | {"reason": "no interval: the judges differ by the same in every scenario"}
    half = float(stats.t.ppf(1 - ALPHA / 2, bias.clusters - 1)) * bias.question_se
    return row | {"low": bias.estimate - half, "high": bias.estimate + half}


def _mean(scores: pd.Series) -> float | None:
    return float(scores.mean()) if scores.count() else None
