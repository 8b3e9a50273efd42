"""How an advantage erodes under later training: its change between SFT doses, its half-life, and what preserves it."""

from dataclasses import dataclass, replace
from itertools import combinations, pairwise
from typing import Any

import numpy as np
import pandas as pd

from analysis.estimates import Arm, Estimate, adjusted, two_way

Row = dict[str, Any]
SIDES = ("of", "against")
NAMES = ("name", *SIDES, "family")
KEYS = ("estimate", "low", "high", "se", "df", "p", "reason")
STEPS = 16  # parts between two doses at whose ends a crossing's bounds are computed; linear within


@dataclass(frozen=True)
class Side:
    """One arm: `scores` has shape (doses, seeds, questions), NaN where nothing was graded.

    Where the arm is one checkpoint without a training seed (`fixed`) all seeds have its scores: they began from it.
    """

    scores: np.ndarray
    fixed: tuple[bool, ...]
    seeds: tuple[int | None, ...]

    def arm(self, weights: dict[int, float]) -> Arm:
        """The sum of weight x scores over doses (by index), within each seed and question."""
        used = {dose: weight for dose, weight in weights.items() if weight}
        scores = sum((weight * self.scores[dose] for dose, weight in used.items()), np.zeros(()))
        fixed = all(self.fixed[dose] for dose in used)
        return Arm(np.fmax.reduce(scores, keepdims=True) if fixed else scores, fixed)


def erosion_rows(means: pd.DataFrame, contrasts: list[Row]) -> list[Row]:
    """One row per declared contrast and benchmark, in that order; `means` as from analysis.table.question_means.

    A contrast is name, of, against, on, family and, if wanted, `margin` (score units, above 0: a difference too small
    to matter) and `paired` (the arms share their midtraining runs, as one with replay and one without: differences are
    taken within seeds); those with an `of_dose` are left out. Numbers are `of` minus `against` in score units
    (0..1), doses SFT rows; `doses` are those at which both arms have grades.

    - `advantages`: the mean at each dose with interval and unadjusted p (analysis.estimates.two_way); `by_seed`: each
      seed's own, over the questions graded in both arms.
    - `changes`: for each two doses (`first`, `second`) the later advantage less the earlier, paired, as checkpoints of
      one seed share their midtraining: differences within arm, seed and question are tested as two arms' scores are, so
      what a seed or question adds at both doses cancels. `p_holm`: over the family's changes, with p = 1 for no test.
    - `half`, `zero`, `margin`: the `dose` at which the advantage first falls to half of the first dose's, to none, to
      the margin, and the doses it lies `between`. The advantage is taken as linear between neighbouring doses: a
      log-linear one has no place for dose 0 or an advantage of 0, and one rule has to serve all three. If it decays at
      a constant rate the dose found is too high, though within its bracket. Only cells with all doses count.
      `low`, `high`: the first and the last dose at which the two-way test at 5 % does not tell the advantage from that
      level (half: of the same seeds and questions): Fieller's interval (J. R. Stat. Soc. B 16, 1954), over seeds and
      question scenarios, without random numbers; resampling so few seeds gives too narrow a one. None: an end is not
      within the doses; nothing is extrapolated.

    What has no value is None, and `reason` says why.
    """
    rows = []
    for contrast in [contrast for contrast in contrasts if contrast.get("of_dose") is None]:
        levels = {"half": (0.5, 0.0), "zero": (0.0, 0.0), "margin": (0.0, contrast.get("margin"))}
        for benchmark in contrast["on"]:
            paired = bool(contrast.get("paired"))
            doses, sides, clusters, why = _curves(means, contrast, benchmark, paired)
            row: Row = {key: contrast[key] for key in NAMES} | {"benchmark": benchmark, "paired": paired}
            row |= {"doses": doses, "reason": why}
            row["advantages"] = [
                {"dose": dose, **_numbers(_test(sides, {k: 1.0}, clusters)), "by_seed": _by_seed(sides, k)}
                for k, dose in enumerate(doses)
            ]
            row["changes"] = [
                {"first": doses[j], "second": doses[k], **_numbers(_test(sides, {k: 1.0, j: -1.0}, clusters))}
                for j, k in combinations(range(len(doses)), 2)
            ]
            for name, (share, level) in levels.items():
                lost = _nothing(why or "no margin is declared")
                row[name] = lost if why or level is None else _crossing(doses, sides, clusters, share, level)
            rows.append(row)
    _holm([(row["family"], change) for row in rows for change in row["changes"]])
    return rows


def _curves(
    means: pd.DataFrame, contrast: Row, benchmark: str, within: bool = False
) -> tuple[list[int], list[Side], np.ndarray, str | None]:
    """Common doses, both sides (`within` seeds: their difference, and zeros), scenarios as numbers, why no erosion."""
    part = means[(means["benchmark"] == benchmark) & means["score"].notna()]
    questions = part[["question", "scenario"]].drop_duplicates().sort_values("question", kind="stable")
    of, against = (set(part.loc[part["arm"] == contrast[side], "dose"]) for side in SIDES)
    doses = sorted(int(dose) for dose in of & against)
    sides = [_side(part[part["arm"] == contrast[side]], doses, questions["question"].tolist()) for side in SIDES]
    if within and not any(any(side.fixed) for side in sides):
        seeds = tuple(seed for seed in sides[0].seeds if seed in sides[1].seeds)
        first, second = (side.scores[:, [side.seeds.index(seed) for seed in seeds]] for side in sides)
        zeros = np.zeros((len(doses), 1, len(questions)))
        sides = [Side(first - second, sides[0].fixed, seeds), Side(zeros, (True,) * len(doses), (None,))]
    clusters = np.unique(questions["scenario"].to_numpy(str), return_inverse=True)[1]
    reasons = {0: "no SFT dose has grades of both arms", 1: "one SFT dose only: erosion needs two"}
    return doses, sides, clusters, reasons.get(len(doses))


def _side(part: pd.DataFrame, doses: list[int], questions: list[str]) -> Side:
    part = part[part["dose"].isin(doses)]
    seeds = tuple(int(seed) for seed in sorted(part["seed"].dropna().unique())) or (None,)
    wide = part.assign(seed=part["seed"].fillna(-1)).pivot(index=["dose", "seed"], columns="question", values="score")
    fixed = tuple(bool(part.loc[part["dose"] == dose, "seed"].isna().all()) for dose in doses)
    rows = [(dose, -1 if alone else seed) for dose, alone in zip(doses, fixed, strict=True) for seed in seeds]
    scores = wide.reindex(columns=questions).reindex(rows).to_numpy(float)
    return Side(scores.reshape(len(doses), len(seeds), len(questions)), fixed, seeds)


def _test(sides: list[Side], weights: dict[int, float], clusters: np.ndarray) -> Estimate:
    return two_way([side.arm(weights) for side in sides], clusters)


def _numbers(found: Estimate) -> Row:
    seeds = dict(zip(("seeds_of", "seeds_against"), found.seeds or (0, 0), strict=True))
    return {key: getattr(found, key) for key in KEYS} | seeds | {"questions": found.questions}


def _by_seed(sides: list[Side], dose: int) -> list[Row]:
    own = [dict.fromkeys([None] if s.fixed[dose] else s.seeds) for s in sides]
    seeds = own[0] if None in own[1] else own[1] if None in own[0] else [seed for seed in own[0] if seed in own[1]]
    rows = []
    for seed in seeds:
        of, against = (s.scores[dose, 0 if s.fixed[dose] else s.seeds.index(seed)] for s in sides)
        paired = (of - against)[np.isfinite(of - against)]
        rows.append({"seed": seed, "advantage": float(paired.mean()) if len(paired) else None})
    return rows


def _crossing(doses: list[int], sides: list[Side], clusters: np.ndarray, share: float, level: float) -> Row:
    """The dose at which the advantage first falls to `share` of the first dose's plus `level`, either way of sign."""
    # a cell that lacks a dose would make the curve jump there
    sides = [replace(s, scores=np.where(np.isfinite(s.scores).all(axis=0), s.scores, np.nan)) for s in sides]
    if (_test(sides, {0: 1.0}, clusters).estimate or 0.0) < 0:
        sides = sides[::-1]
    start = _test(sides, {0: 1.0}, clusters)
    if start.estimate is None:
        return _nothing("no question was graded in both arms at all doses")
    if start.low is not None and start.low <= 0:
        return _nothing("the advantage at the first dose is not established: its interval includes 0")
    if start.estimate * (1 - share) - level < 1e-9:
        return _nothing("the advantage was no larger at the first dose")
    at = np.unique([np.linspace(a, b, STEPS + 1) for a, b in pairwise(doses)])
    weights = np.array([np.interp(at, doses, one) for one in np.eye(len(doses))])
    weights[0] -= share
    found = [_test(sides, dict(enumerate(map(float, column))), clusters) for column in weights.T]
    values, lows, highs = (np.array([getattr(f, key) for f in found], float) - level for key in KEYS[:3])
    dose = _reached(at, values)
    bracket = None if dose is None else next([a, b] for a, b in pairwise(doses) if dose <= b)
    row = _nothing("not within the doses trained" if dose is None else None) | {"dose": dose, "between": bracket}
    if np.isnan([lows, highs]).any():
        return row | {"reason": row["reason"] or next(f.reason for f in found if f.low is None)}
    row["low"] = None if lows[0] <= 0 else _reached(at, lows)
    row["high"] = None if highs[-1] >= 0 else _reached(at[::-1], -highs[::-1])
    open_end = "an end of the interval is not within the doses trained" if None in (row["low"], row["high"]) else None
    return row | {"reason": row["reason"] or open_end}


def _reached(at: np.ndarray, values: np.ndarray) -> float | None:
    """Where values, above 0 at first and linear between points, first reach 0; None if nowhere."""
    i = int(np.argmax(values <= 0))
    return float(at[i] - (at[i] - at[i - 1]) * values[i] / (values[i] - values[i - 1])) if i else None


def _nothing(reason: str | None) -> Row:
    return {"dose": None, "low": None, "high": None, "between": None, "reason": reason}


def _holm(tests: list[tuple[str, Row]]) -> None:
    for family in {family for family, _ in tests}:
        rows = [row for name, row in tests if name == family]
        for row, p in zip(rows, adjusted([row["p"] for row in rows], "holm"), strict=True):
            row["p_holm"] = p
