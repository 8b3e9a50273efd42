"""How an advantage erodes under later training.

For each contrast: its change between SFT doses, its half-life, and the doses at which it is gone.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations, pairwise
from math import log

import numpy as np
import pandas as pd

from analysis.estimates import Arm, Estimate, adjusted, two_way
from analysis.looks import of_seeds
from analysis.rows import Row, fields
from analysis.settings import Contrast
from analysis.table import replicates_of

KEYS = ("estimate", "low", "high", "se", "df", "p", "reason")
STEPS = 16  # parts between two doses at whose ends a crossing's bounds are computed; linear within


@dataclass(frozen=True)
class Side:
    """One arm at all doses.

    `scores` has shape (doses, seeds, questions), NaN where nothing was graded. `fixed` marks the
    doses at which the arm is one checkpoint without a training seed: there all seeds have its
    scores, as they began from it. `replicates` is as in `Arm`.
    """

    scores: np.ndarray
    fixed: tuple[bool, ...]
    seeds: tuple[int | None, ...]
    replicates: tuple[int, ...] | None = None

    def arm(self, weights: Mapping[int, float]) -> Arm:
        """The sum of weight x scores over doses (by index), within each seed and question."""
        used = {dose: weight for dose, weight in weights.items() if weight}
        terms = (weight * self.scores[dose] for dose, weight in used.items())
        scores = sum(terms, np.zeros(()))
        fixed = all(self.fixed[dose] for dose in used)
        if fixed:
            return Arm(np.fmax.reduce(scores, keepdims=True), fixed)
        return Arm(scores, replicates=self.replicates)


@dataclass(frozen=True)
class DoseCurve:
    """A contrast on one benchmark at the doses of both arms.

    `clusters` has the number of each question's scenario, shape (questions,). `reason` says why
    there is no erosion to measure.
    """

    doses: list[int]
    sides: tuple[Side, Side]  # treatment, control
    clusters: np.ndarray
    reason: str | None = None

    def test(self, weights: Mapping[int, float]) -> Estimate:
        """The two-way test of the sum over doses (by index) of weight x advantage."""
        return two_way([side.arm(weights) for side in self.sides], self.clusters)


def erosion_rows(
    means: pd.DataFrame,
    contrasts: Sequence[Contrast],
    seeds: Mapping[tuple[str, str], set[int] | None] | None = None,
) -> list[Row]:
    """One row per declared contrast and benchmark, in that order.

    `means` is of analysis.table.question_means. `seeds`: the training seeds that a contrast rests
    on, by its name and benchmark (`looks.seeds_of_curves`); None: all. Contrasts between two doses
    are left out. In a `paired` contrast the arms share their midtraining runs, as one with replay
    and one without, and differences are taken within seeds. Numbers are treatment minus control in
    score units (0..1), doses are rows of SFT data; `doses` are those at which both arms have
    grades, of the ones that the contrast declares.

    - `advantages`: the mean at each dose with interval and unadjusted p
      (analysis.estimates.two_way); `by_seed`: that of each seed, over the questions graded in both
      arms.
    - `changes`: for each two doses (`first`, `second`) the later advantage less the earlier. It is
      paired, as checkpoints of one seed share their midtraining: differences within arm, seed and
      question are tested as two arms' scores are, so that the effect of a seed or question on both
      doses cancels. `p_holm` is over the family's changes, with p = 1 where there is no test.
    - `half`, `zero`, `margin`: where the advantage first falls to half of the first dose's, to
      none, to the margin. Two readings of the point: `dose` takes the advantage as linear between
      neighbouring doses, `constant_rate` as decaying at a constant rate there (None for `zero` and
      where the later advantage is not above 0). `between`: the two doses that the linear one lies
      between. Only cells with all doses count.
      `low`, `high`: trained doses. Where the two-way test at 5 % begins and ends not to tell the
      linear advantage from that level is Fieller's interval (J. R. Stat. Soc. B 16, 1954); it is
      rounded outward to trained doses, since between them the curve is not known: under an
      exponential decay the unrounded interval covers the half-life in 0 to 5 % of studies where it
      is shorter than the first step, the rounded one in 99 %. None: an end is not within the
      doses; nothing is extrapolated.

    A value that doesn't exist is None, and `reason` says why.
    """
    rows = []
    for contrast in contrasts:
        if contrast.treatment_dose is None:
            for name in contrast.benchmarks:
                part = of_seeds(means, (seeds or {}).get((contrast.name, name)))
                rows.append(_erosion_row(part, contrast, name))
    _correct_changes(rows)
    return rows


def _erosion_row(means: pd.DataFrame, contrast: Contrast, benchmark: str) -> Row:
    curve = _dose_curve(means, contrast, benchmark)
    doses = curve.doses
    row = contrast.row() | {
        "family": contrast.family,
        "benchmark": benchmark,
        "paired": contrast.paired,
        "doses": doses,
        "reason": curve.reason,
    }
    row["advantages"] = [
        {"dose": dose, **_numbers(curve.test({k: 1.0})), "by_seed": _by_seed(curve.sides, k)}
        for k, dose in enumerate(doses)
    ]
    row["changes"] = [
        {"first": doses[j], "second": doses[k], **_numbers(curve.test({k: 1.0, j: -1.0}))}
        for j, k in combinations(range(len(doses)), 2)
    ]
    # each level is a share of the first dose's advantage, plus a constant
    levels = {"half": (0.5, 0.0), "zero": (0.0, 0.0), "margin": (0.0, contrast.margin)}
    for name, (share, level) in levels.items():
        if curve.reason or level is None:
            row[name] = _no_crossing(curve.reason or "no margin is declared")
        else:
            row[name] = crossing(curve, share, level)
    return row


def _correct_changes(rows: Sequence[Row]) -> None:
    """Add `p_holm` to the changes, by Holm over those of a family."""
    for family in {row["family"] for row in rows}:
        changes = [change for row in rows if row["family"] == family for change in row["changes"]]
        corrected = adjusted([change["p"] for change in changes], "holm")
        for change, p in zip(changes, corrected, strict=True):
            change["p_holm"] = p


def _dose_curve(means: pd.DataFrame, contrast: Contrast, benchmark: str) -> DoseCurve:
    part = means[(means["benchmark"] == benchmark) & means["score"].notna()]
    questions = part[["question", "scenario"]].drop_duplicates()
    questions = questions.sort_values("question", kind="stable")
    by_arm = [part[part["arm"] == arm] for arm in contrast.arms]
    at_doses = (set(map(int, rows["dose"])) for rows in by_arm)
    doses = [dose for dose, _ in contrast.dose_pairs(*at_doses)]
    ids = questions["question"].tolist()
    treatment, control = (_side(rows, doses, ids) for rows in by_arm)
    if contrast.paired and not any(treatment.fixed + control.fixed):
        seeds = tuple(seed for seed in treatment.seeds if seed in control.seeds)
        first, second = (
            [side.seeds.index(seed) for seed in seeds] for side in (treatment, control)
        )
        differences = treatment.scores[:, first] - control.scores[:, second]
        replicates = treatment.replicates and tuple(treatment.replicates[row] for row in first)
        zeros = np.zeros((len(doses), 1, len(questions)))
        treatment = Side(differences, treatment.fixed, seeds, replicates)
        control = Side(zeros, (True,) * len(doses), (None,))
    clusters = np.unique(questions["scenario"].to_numpy(str), return_inverse=True)[1]
    reasons = {
        0: "no SFT dose has grades of both arms",
        1: "one SFT dose only: erosion needs two",
    }
    return DoseCurve(doses, (treatment, control), clusters, reasons.get(len(doses)))


def _side(part: pd.DataFrame, doses: list[int], questions: list[str]) -> Side:
    part = part[part["dose"].isin(doses)]
    seeds = tuple(int(seed) for seed in sorted(part["seed"].dropna().unique())) or (None,)
    numbered = part.assign(seed=part["seed"].fillna(-1))
    wide = numbered.pivot(index=["dose", "seed"], columns="question", values="score")
    fixed = tuple(bool(part.loc[part["dose"] == dose, "seed"].isna().all()) for dose in doses)
    index = [
        (dose, -1 if is_fixed else seed)
        for dose, is_fixed in zip(doses, fixed, strict=True)
        for seed in seeds
    ]
    scores = wide.reindex(columns=questions).reindex(index).to_numpy(float)
    by_dose = scores.reshape(len(doses), len(seeds), len(questions))
    return Side(by_dose, fixed, seeds, replicates_of(part[part["seed"].notna()]))


def _numbers(test: Estimate) -> Row:
    treatment_seeds, control_seeds = test.seeds or (0, 0)
    return fields(test, KEYS) | {
        "treatment_seeds": treatment_seeds,
        "control_seeds": control_seeds,
        "questions": test.questions,
    }


def _by_seed(sides: tuple[Side, Side], dose: int) -> list[Row]:
    """The advantage of each seed at one dose (by index); a fixed side is the same for all seeds."""
    treatment, control = (
        [None] if side.fixed[dose] else list(dict.fromkeys(side.seeds)) for side in sides
    )
    if None in control:
        seeds = treatment
    elif None in treatment:
        seeds = control
    else:
        seeds = [seed for seed in treatment if seed in control]
    rows = []
    for seed in seeds:
        first, second = (
            side.scores[dose, 0 if side.fixed[dose] else side.seeds.index(seed)] for side in sides
        )
        differences = (first - second)[np.isfinite(first - second)]
        advantage = float(differences.mean()) if len(differences) else None
        rows.append({"seed": seed, "advantage": advantage})
    return rows


def crossing(curve: DoseCurve, share: float, level: float) -> Row:
    """Where the advantage first falls to `share` of the first dose's plus `level`.

    The sign of the first advantage doesn't matter. See `erosion_rows` for the method.
    """
    # a cell that lacks a dose would make the curve jump there
    complete = [np.isfinite(side.scores).all(axis=0) for side in curve.sides]
    treatment, control = (
        replace(side, scores=np.where(has_all, side.scores, np.nan))
        for side, has_all in zip(curve.sides, complete, strict=True)
    )
    curve = replace(curve, sides=(treatment, control))
    if (curve.test({0: 1.0}).estimate or 0.0) < 0:
        curve = replace(curve, sides=(control, treatment))
    start = curve.test({0: 1.0})
    if start.estimate is None:
        return _no_crossing("no question was graded in both arms at all doses")
    if start.low is not None and start.low <= 0:
        return _no_crossing(
            "the advantage at the first dose is not established: its interval includes 0"
        )
    if start.estimate * (1 - share) - level < 1e-9:
        return _no_crossing("the advantage was no larger at the first dose")

    doses = curve.doses
    grid = np.unique([np.linspace(a, b, STEPS + 1) for a, b in pairwise(doses)])
    weights = np.array([np.interp(grid, doses, unit) for unit in np.eye(len(doses))])
    weights[0] -= share
    tests = [curve.test(dict(enumerate(map(float, column)))) for column in weights.T]
    values, lows, highs = (
        np.array([getattr(test, key) for test in tests], float) - level
        for key in ("estimate", "low", "high")
    )
    dose = _first_zero(grid, values)
    row = _no_crossing(None)
    row["dose"] = dose
    if dose is None:
        row["reason"] = "not within the doses trained"
    else:
        row["between"] = next([a, b] for a, b in pairwise(doses) if dose <= b)
        row["constant_rate"] = _at_constant_rate(curve, row["between"], share, level)
    if np.isnan([lows, highs]).any():
        untested = next(test.reason for test in tests if test.low is None)
        return row | {"reason": row["reason"] or untested}
    low = None if lows[0] <= 0 else _first_zero(grid, lows)
    high = None if highs[-1] >= 0 else _first_zero(grid[::-1], -highs[::-1])
    row["low"] = None if low is None else max(dose for dose in doses if dose <= low)
    row["high"] = None if high is None else min(dose for dose in doses if dose >= high)
    if row["reason"] is None and None in (row["low"], row["high"]):
        row["reason"] = "an end of the interval is not within the doses trained"
    return row


def _at_constant_rate(
    curve: DoseCurve, between: list[int], share: float, level: float
) -> float | None:
    """The dose of a crossing if the advantage decays exponentially between two doses."""
    ends = [curve.test({curve.doses.index(dose): 1.0}).estimate for dose in between]
    start = curve.test({0: 1.0}).estimate
    first, second = ends
    if start is None or first is None or second is None:
        return None
    target = share * start + level
    if not (0 < second < target <= first):
        return None
    return between[0] + (between[1] - between[0]) * log(first / target) / log(first / second)


def _first_zero(x: np.ndarray, values: np.ndarray) -> float | None:
    """Where values, above 0 at first and linear between points, first reach 0; None if nowhere."""
    i = int(np.argmax(values <= 0))
    if not i:
        return None
    step = x[i] - x[i - 1]
    return float(x[i] - step * values[i] / (values[i] - values[i - 1]))


def _no_crossing(reason: str | None) -> Row:
    keys = ("dose", "constant_rate", "low", "high", "between")
    return dict.fromkeys(keys) | {"reason": reason}
