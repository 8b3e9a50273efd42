"""Several judges over the same answers: how far they agree, and whether one favours an arm."""

from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations

import numpy as np
import pandas as pd
from scipy import stats
from statsmodels.stats.inter_rater import cohens_kappa

from analysis.estimates import ALPHA, Arm, Estimate, two_way
from analysis.rows import Row
from analysis.settings import Contrast
from analysis.table import OVERALL

RESPONSE = ["dose", "arm", "seed", "question", "epoch"]
SAME = 1e-9  # averages may differ in their last bits


def agreement(table: pd.DataFrame, primary: Mapping[str, str]) -> list[Row]:
    """One row per benchmark with at least two judges and per arm; first for all arms (`arm` None).

    `table` is the long table with the rows of every judge, `primary` maps a benchmark to the judge
    that decides. Grades (0..1) are compared: an answer's score on one dimension, in a benchmark
    without dimensions its overall score. Doses, seeds and epochs are taken together. Nothing here
    is a test.

    - `judges` (the primary first): how many grades each gave (`n`) and their mean, over all that
      it graded;
    - `pairs`: `n` grades that both gave and, of these alone, both means, the share of equal scores
      (`agreement`), Krippendorff's `alpha` of the two and Cohen's `kappa` with the `n_kappa` 0/1
      grades it rests on. An item
      (question and dimension) that any judge scored otherwise than 0 or 1, as an average over
      animals, is left out of kappa in all answers: to leave out only its averaged scores would
      keep the answers on which a judge's grades were all alike;
    - `alpha`: Krippendorff's over all judges, from `units` grades that two or more gave; `level`
      is nominal where all are 0 or 1, otherwise interval.

    An undefined number is None, and `reason` (for alpha `alpha_reason`) says why.
    """
    rows = []
    for benchmark, judges, scores in _judged_benchmarks(table, primary):
        wide = _grades(scores)
        binary = (wide[judges].isin([0, 1]) | wide[judges].isna()).all(axis=1)
        items = [wide["question"], wide["dimension"]]
        wide = wide.assign(binary=binary.groupby(items).transform("all"))
        for arm in [None, *sorted(wide["arm"].unique())]:
            part = wide if arm is None else wide[wide["arm"] == arm]
            row: Row = {"benchmark": benchmark, "primary": judges[0], "arm": arm}
            row["judges"] = [
                {"judge": name, "n": int(part[name].count()), "mean": _mean(part[name])}
                for name in judges
            ]
            row["pairs"] = [_pair_row(part, *pair) for pair in combinations(judges, 2)]
            rows.append(row | _alpha_row(part[judges].to_numpy(float)))
    return rows


def differential_bias(
    table: pd.DataFrame, primary: Mapping[str, str], contrasts: Sequence[Contrast]
) -> list[Row]:
    """Whether a judge favours an arm more than the primary judge does.

    One row per declared contrast, other judge and SFT dose that both arms have; where there are
    several doses, one more with `dose` None for all of them. A contrast of two doses has one row
    for each other judge.

    `estimate` is the judge's difference between the arms (treatment minus control) less the
    primary's, in score units (0..1), over the `n` scores that both judges gave; above 0 the judge
    favours the treatment. The scores are overall scores, or dimensions (`scores`) where the judge
    gave no overall one, as people who label a sample. They are averaged like the contrasts: over
    (dimensions and) epochs, seeds, then questions; a question without both judges' scores in both
    arms is left out.

    `low` and `high` are a 95 % interval for new questions, Student's t over the scenarios (the
    question part of analysis.estimates.two_way), computed without random numbers. It takes the
    checkpoints as given and is not corrected for the number of rows. Numbers are None with a
    `reason` where they don't exist.
    """
    rows = []
    for benchmark, judges, wide in _judged_benchmarks(table, primary):
        for contrast in contrasts:
            if benchmark not in contrast.benchmarks:
                continue
            for judge in judges[1:]:
                for sides in _compared_sides(wide, contrast):
                    (dose,), (control_dose,) = (
                        doses if len(doses) == 1 else [None] for _, doses in sides
                    )
                    row = contrast.row() | {
                        "benchmark": benchmark,
                        "dose": dose,
                        "control_dose": control_dose,
                        "judge": judge,
                        "primary": judges[0],
                    }
                    rows.append(row | _bias_row(wide, sides, judges[0], judge))
    return rows


Side = tuple[str, list[int]]  # an arm at some SFT doses


def _compared_sides(wide: pd.DataFrame, contrast: Contrast) -> list[tuple[Side, Side]]:
    """Treatment and control at each pair of doses that are compared, and at all of them."""
    treatment, control = (
        set(wide.loc[wide["arm"] == arm, "dose"].map(int)) for arm in contrast.arms
    )
    pairs = contrast.dose_pairs(treatment, control)
    choices = [[pair] for pair in pairs] + ([pairs] if len(pairs) > 1 else [])
    return [
        (
            (contrast.treatment, [dose for dose, _ in choice]),
            (contrast.control, [dose for _, dose in choice]),
        )
        for choice in choices
    ]


def krippendorff_alpha(grades: np.ndarray) -> float | None:
    """Krippendorff's alpha for interval data.

    `grades` has shape (units, judges), NaN where a judge gave none. For grades of 0 and 1 it is
    the nominal alpha as well, as their squared difference is 0 or 1. Krippendorff, "Computing
    Krippendorff's alpha-reliability" (2011): 1 - observed / expected disagreement. With squared
    differences these are the mean variance within units, weighted by their grades, and the
    variance of all pairable grades. None if no unit has two grades or all such grades are equal.
    """
    grades = grades[np.isfinite(grades).sum(axis=1) > 1]
    values = grades[np.isfinite(grades)]
    if not len(values) or np.ptp(values) < SAME:
        return None
    within = np.isfinite(grades).sum(axis=1) * np.nanvar(grades, axis=1, ddof=1)
    return 1 - float(within.sum()) / len(values) / float(values.var(ddof=1))


def _judged_benchmarks(
    table: pd.DataFrame, primary: Mapping[str, str]
) -> Iterator[tuple[str, list[str], pd.DataFrame]]:
    """Benchmarks with several judges.

    Yields the name, the judges (the primary first), and scores with a column for each judge.
    """
    by_benchmark = table.dropna(subset="judge").groupby("benchmark")["judge"].unique()
    for name, graders in by_benchmark.items():
        if len(graders) < 2:
            continue
        benchmark = str(name)
        judges = [primary[benchmark], *sorted(set(graders) - {primary[benchmark]})]
        part = table[table["benchmark"] == benchmark]
        part = part.assign(seed=part["seed"].fillna(-1))
        wide = part.pivot(index=[*RESPONSE, "dimension"], columns="judge", values="score")
        wide = wide.reindex(columns=judges).astype(float).reset_index()
        scenarios = part.drop_duplicates("question").set_index("question")["scenario"]
        yield benchmark, judges, wide.assign(scenario=wide["question"].map(scenarios))


def _grades(wide: pd.DataFrame) -> pd.DataFrame:
    """The scores on single dimensions, in a benchmark without dimensions the overall scores."""
    single = wide[wide["dimension"] != OVERALL]
    return single if len(single) else wide


def _pair_row(part: pd.DataFrame, judge: str, other: str) -> Row:
    common = part.dropna(subset=[judge, other])
    binary = common[common["binary"]]
    counts = [
        [int(((binary[judge] == a) & (binary[other] == b)).sum()) for b in (0, 1)] for a in (0, 1)
    ]
    reason = None
    if not len(common):
        reason = "no answer was graded by both"
    elif not len(binary):
        reason = "no kappa: every item was scored otherwise than 0 or 1"
    elif len(binary) in (counts[0][0], counts[1][1]):
        reason = "no kappa: both judges gave one and the same grade throughout"
    equal = (abs(common[judge] - common[other]) < SAME).astype(float)
    return {
        "judge": judge,
        "other": other,
        "n": len(common),
        "n_kappa": len(binary),
        "reason": reason,
        "mean_judge": _mean(common[judge]),
        "mean_other": _mean(common[other]),
        "agreement": _mean(equal),
        "alpha": krippendorff_alpha(part[[judge, other]].to_numpy(float)),
        "kappa": None if reason else float(cohens_kappa(counts, return_results=False)),
    }


def _alpha_row(grades: np.ndarray) -> Row:
    units = int((np.isfinite(grades).sum(axis=1) > 1).sum())
    binary = np.isin(grades[np.isfinite(grades)], (0, 1)).all()
    alpha = krippendorff_alpha(grades)
    reason = "all grades are the same" if units else "no answer was graded by two judges"
    return {
        "alpha": alpha,
        "level": "nominal" if binary else "interval",
        "units": units,
        "alpha_reason": reason if alpha is None else None,
    }


def _bias_row(wide: pd.DataFrame, sides: tuple[Side, Side], primary: str, judge: str) -> Row:
    # An arm compared with itself at another dose is two sides, so sides are numbered.
    parts = [
        wide[(wide["arm"] == arm) & wide["dose"].isin(doses)].assign(side=side)
        for side, (arm, doses) in enumerate(sides)
    ]
    part = pd.concat(parts)
    overall = part[part["dimension"] == OVERALL]
    has_overall = bool(overall[judge].count())
    common = (overall if has_overall else _grades(part)).dropna(subset=[primary, judge])
    common = common.assign(difference=common[judge] - common[primary])
    bias, primary_difference, judge_difference = (
        _difference(common, column) for column in ("difference", primary, judge)
    )
    row: Row = {
        "estimate": bias.estimate,
        "low": None,
        "high": None,
        "reason": None,
        "n": len(common),
        "primary_difference": primary_difference.estimate,
        "judge_difference": judge_difference.estimate,
        "scores": OVERALL if has_overall else "dimensions",
        "questions": bias.questions,
        "scenarios": bias.clusters,
        "questions_left_out": bias.left_out,
    }
    if bias.estimate is None:
        return row | {"reason": "no question has scores of both judges in both arms"}
    if bias.question_se is None:
        return row | {"reason": "no interval: one scenario only"}
    if bias.question_se < SAME:
        return row | {"reason": "no interval: the judges differ by the same in every scenario"}
    half = float(stats.t.ppf(1 - ALPHA / 2, bias.clusters - 1)) * bias.question_se
    return row | {"low": bias.estimate - half, "high": bias.estimate + half}


def _difference(scores: pd.DataFrame, column: str) -> Estimate:
    """Side 0 minus side 1 of one column, averaged over epochs, then as `two_way` does."""
    means = scores.groupby(["side", "dose", "seed", "question", "epoch"])[column].mean()
    means = means.groupby(["side", "dose", "seed", "question"]).mean()
    questions = scores.drop_duplicates("question").set_index("question")["scenario"].sort_index()
    arms = []
    for side in (0, 1):
        of_side = means.loc[means.index.isin([side], level="side")]
        wide = of_side.unstack("question").reindex(columns=questions.index)
        arms.append(Arm(wide.to_numpy(float)))
    return two_way(arms, questions.to_numpy(str))


def _mean(scores: pd.Series) -> float | None:
    return float(scores.mean()) if scores.count() else None
