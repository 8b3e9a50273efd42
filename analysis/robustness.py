"""Each primary contrast estimated again with one choice changed at a time."""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from analysis.contrasts import contrast_arms, questions_of, scenarios_of
from analysis.estimates import Arm, Estimate, two_way
from analysis.rows import Row, fields
from analysis.settings import Contrast
from analysis.table import CHECKPOINT, OVERALL, REPLICATE, primary_judge_rows, question_means

NOTHING = 1e-9  # a smaller number has no sign but that of rounding
FIRST = 26  # the paper's questions are the first of the benchmark's


@dataclass(frozen=True)
class Sides:
    """The two arms of a contrast, each at a dose."""

    treatment: tuple[str, int]
    control: tuple[str, int]
    paired: bool  # by seed

    @property
    def arms(self) -> tuple[tuple[str, int], tuple[str, int]]:
        return self.treatment, self.control


@dataclass(frozen=True)
class Data:
    """Both arms' question means.

    The columns of `arms` are `questions`, `scenarios` has theirs; `seeds` are the rows of each arm.
    """

    arms: list[Arm]
    seeds: list[list[int]]
    questions: list[str]
    scenarios: np.ndarray

    def test(self) -> Estimate:
        return two_way(self.arms, self.scenarios)


@dataclass(frozen=True)
class Variant:
    """A contrast under one other choice; `which` is what a range's farthest estimate leaves out."""

    name: str
    estimate: Estimate
    which: str | None = None


def robustness_rows(
    table: pd.DataFrame,
    declared: Sequence[Contrast],
    other_judges: Mapping[str, Sequence[str]],
) -> list[Row]:
    """One row per contrast of the family "primary", benchmark, pair of doses and variant.

    The rows are described and never decide.

    Args:
        table: the long table with the rows of every judge. It may have two more columns:
            `language` of the question and `length` of the response, in any unit.
        declared: the contrasts of the study.
        other_judges: benchmark -> the judges beside the deciding one.

    A row has `name`, `benchmark`, `dose`, `control_dose`, `variant`; `estimate`, `low`, `high`
    (treatment minus control in score units, 95 % of the two-way variance), `p` (unadjusted),
    `questions`, `seeds` (of the trained arm with fewer), `sign_same` (as in `all`; None where a
    sign is unknown or 0), `which`, `reason` (why there is no number, or what limits it). Variants:

    - `all`: as declared;
    - `first 26 questions` by id, which are the paper's, where there are more;
    - `English questions`, or without `language` `one question per scenario`: the first by id;
    - `one question left out`, `one seed left out`: `low` to `high` is the range of all such
      estimates; `estimate` is the one farthest from `all`, which leaves out `which`; `p` is the
      largest;
    - `judge NAME`: this one decides, over what it graded;
    - `length held equal`: scores less slope x (length - mean length), with the slope within arm
      and question as in the analysis of covariance (Fisher, "Statistical methods for research
      workers", 1932), taken as known;
    - `dimensions weigh the same`: the mean of the dimensions' means in place of the overall
      scores.
    """
    primary = primary_judge_rows(table, other_judges)
    rows = []
    for contrast in declared:
        if contrast.family != "primary":
            continue
        for benchmark in contrast.benchmarks:
            part = primary[primary["benchmark"] == benchmark]
            all_judges = table[table["benchmark"] == benchmark]
            for doses in _doses(part, contrast):
                row = {
                    "name": contrast.name,
                    "benchmark": benchmark,
                    "dose": doses and doses[0],
                    "control_dose": doses and doses[1],
                }
                if doses is None:
                    variants = [Variant("all", Estimate(reason="no scores of both arms"))]
                else:
                    treatment, control = zip(contrast.arms, doses, strict=True)
                    sides = Sides(treatment, control, contrast.paired)
                    judges = other_judges[benchmark]
                    variants = list(
                        _variants(_rows_of(part, sides), _rows_of(all_judges, sides), sides, judges)
                    )
                rows += [row | _row(variant, variants[0].estimate) for variant in variants]
    return rows


def natural(question: str) -> list[tuple[int, int, str]]:
    """A sort key of ids that takes their numbers as numbers: 2 before 10, q9 before q10."""
    parts = re.findall(r"\d+|\D+", question)
    return [(0, int(part), "") if part.isdecimal() else (1, 0, part) for part in parts]


def _doses(part: pd.DataFrame, contrast: Contrast) -> list[tuple[int, int] | None]:
    """The pairs of doses with scores of both arms; [None] where there is none."""
    treatment, control = (
        set(part.loc[part["arm"] == arm, "dose"].map(int)) for arm in contrast.arms
    )
    return [*contrast.dose_pairs(treatment, control)] or [None]


def _rows_of(table: pd.DataFrame, sides: Sides) -> pd.DataFrame:
    (arm, dose), (control, control_dose) = sides.arms
    treated = (table["arm"] == arm) & (table["dose"] == dose)
    return table[treated | (table["arm"] == control) & (table["dose"] == control_dose)]


def _row(variant: Variant, base: Estimate) -> Row:
    """The row of a variant; `base` is the estimate as declared."""
    result = variant.estimate
    ends = [result.estimate] if variant.which is None else [result.low, result.high]
    signs = {_sign(end) for end in [base.estimate, *ends]}
    row: Row = {"variant": variant.name}
    row |= fields(result, ("estimate", "low", "high", "p", "questions"))
    row["seeds"] = min((n for n in result.seeds if n), default=0)
    row["which"] = variant.which
    row["reason"] = result.reason
    row["sign_same"] = None if 0 in signs else len(signs) == 1
    return row


def _sign(value: float | None) -> int:
    if value is None or abs(value) < NOTHING:
        return 0
    return 1 if value > 0 else -1


def _variants(
    part: pd.DataFrame, all_judges: pd.DataFrame, sides: Sides, judges: Sequence[str]
) -> Iterator[Variant]:
    """The variants of one contrast at one pair of doses, `all` first.

    `part` has the rows of the deciding judge, `all_judges` those of every judge; `judges` are the
    other ones.
    """
    data = _data(part, sides)
    base = data.test()
    yield Variant("all", base)
    order = sorted(range(len(data.questions)), key=lambda n: natural(data.questions[n]))
    reason = f"there are no more than {FIRST} questions"
    yield _subset(f"first {FIRST} questions", data, order[:FIRST], reason)
    if "language" in part:
        names = part["language"].astype(str).str.lower()
        language = dict(zip(part["question"], names, strict=True))
        english = [n for n in order if language[data.questions[n]].startswith("en")]
        yield _subset("English questions", data, english, "all questions are in English")
    else:
        first = {data.scenarios[n]: n for n in reversed(order)}
        reason = "no scenario has two questions"
        yield _subset("one question per scenario", data, list(first.values()), reason)
    yield _range("one question left out", base, _without_question(data))
    yield _range("one seed left out", base, _without_seed(data, sides))
    for judge in judges:
        graded = all_judges[all_judges["judge"] == judge]
        yield Variant(f"judge {judge}", _by_other_judge(part, graded, sides))
    if not judges:
        yield Variant("another judge", Estimate(reason="one judge only graded this benchmark"))
    yield Variant("length held equal", _length_held_equal(part, sides))
    yield Variant("dimensions weigh the same", _dimensions_weighed_equally(part, sides))


def _data(part: pd.DataFrame, sides: Sides) -> Data:
    means = question_means(part)
    benchmark = part["benchmark"].iloc[0]
    arms, seeds = contrast_arms((means, means), benchmark, sides.arms, sides.paired)
    questions = questions_of(means, benchmark)["question"].tolist()
    return Data(arms, seeds, questions, scenarios_of(means, benchmark))


def _subset(name: str, data: Data, indices: Sequence[int], reason: str) -> Variant:
    """The contrast over some questions (by index); `reason` is given when these are all."""
    if len(indices) == len(data.questions):
        return Variant(name, Estimate(reason=reason))
    columns = sorted(indices)
    arms = [replace(arm, scores=arm.scores[:, columns]) for arm in data.arms]
    return Variant(name, two_way(arms, data.scenarios[columns]))


def _without_question(data: Data) -> Iterator[tuple[str, Estimate]]:
    for n, question in enumerate(data.questions):
        fewer = [replace(arm, scores=np.delete(arm.scores, n, axis=1)) for arm in data.arms]
        yield f"question {question}", two_way(fewer, np.delete(data.scenarios, n))


def _without_seed(data: Data, sides: Sides) -> Iterator[tuple[str, Estimate]]:
    for side, (arm, seeds) in enumerate(zip(data.arms, data.seeds, strict=True)):
        for n, seed in enumerate(seeds):
            fewer = [*data.arms]
            fewer[side] = arm.drop_seed(n)
            name = f"seed {seed}" if sides.paired else f"{sides.arms[side][0]} seed {seed}"
            yield name, two_way(fewer, data.scenarios)


def _range(name: str, base: Estimate, tests: Iterable[tuple[str, Estimate]]) -> Variant:
    """The range of estimates that each leave out one thing."""
    defined = [(which, test, test.estimate) for which, test in tests if test.estimate is not None]
    if base.estimate is None or not defined:
        reason = "none can be left out" if base.reason is None else base.reason
        return Variant(name, Estimate(reason=reason))
    middle = base.estimate
    which, farthest, _ = max(defined, key=lambda test: abs(test[2] - middle))
    values = [value for _, _, value in defined]
    ps = [test.p for _, test, _ in defined if test.p is not None]
    p = max(ps) if len(ps) == len(defined) else None
    return Variant(name, replace(farthest, low=min(values), high=max(values), p=p), which)


def _by_other_judge(part: pd.DataFrame, other: pd.DataFrame, sides: Sides) -> Estimate:
    decided, graded = (
        int(rows.loc[rows["dimension"] == OVERALL, "score"].count()) for rows in (part, other)
    )
    if not graded:
        return Estimate(reason="this judge gave no overall scores")
    result = _data(other, sides).test()
    if result.reason is None and graded < decided:
        reason = f"graded {graded} answers, the deciding judge {decided}"
        return replace(result, reason=reason)
    return result


def _length_held_equal(part: pd.DataFrame, sides: Sides) -> Estimate:
    if "length" not in part:
        return Estimate(reason="the table has no lengths of responses")
    graded = part["score"].notna() & part["length"].notna()
    rows = part[(part["dimension"] == OVERALL) & graded]
    values = rows[["score", "length"]].astype(float)
    groups = values.groupby([rows["arm"], rows["dose"], rows["question"]])
    centered = values - groups.transform("mean")
    spread = float((centered["length"] ** 2).sum())
    if spread < NOTHING:
        return Estimate(reason="lengths do not vary within arm and question")
    slope = float((centered["length"] * centered["score"]).sum()) / spread
    held = values["score"] - slope * (values["length"] - values["length"].mean())
    return _data(rows.assign(score=held), sides).test()


def _dimensions_weighed_equally(part: pd.DataFrame, sides: Sides) -> Estimate:
    """The contrast of the means of dimension means.

    A question's score becomes the mean of dimension means plus the question's own contribution to
    it (times the number of questions). The mean over questions is then exact, and its variance
    that of the linearized mean.
    """
    rows = part[(part["dimension"] != OVERALL) & part["score"].notna()]
    replicate = [REPLICATE] if REPLICATE in rows else []
    question = [*CHECKPOINT, *replicate, "question", "scenario"]
    cells = rows.groupby([*question, "dimension"], dropna=False)["score"].mean().reset_index()
    # dimensions of a question that one arm lacks would compare arms over different questions
    sided = cells.groupby(["question", "dimension", "arm", "dose"]).size()
    sided = sided.groupby(level=[0, 1]).size()
    keys = zip(cells["question"], cells["dimension"], strict=True)
    cells = cells[[sided[key] == 2 for key in keys]]
    if cells.empty:
        return Estimate(reason="no dimension was graded in both arms")
    checkpoint = cells.groupby(CHECKPOINT, dropna=False)
    dimension = cells.groupby([*CHECKPOINT, "dimension"], dropna=False)["score"]
    weight = 1 / (checkpoint["dimension"].transform("nunique") * dimension.transform("count"))
    deviation = cells["score"] - dimension.transform("mean")
    influence = weight * checkpoint["question"].transform("nunique") * deviation
    cells = cells.assign(mean=weight * cells["score"], score=influence)
    cells["mean"] = cells.groupby(CHECKPOINT, dropna=False)["mean"].transform("sum")
    by_question = cells.groupby(question, dropna=False)
    scores = by_question.agg(score=("score", "sum"), mean=("mean", "first")).reset_index()
    scores = scores.assign(score=scores["score"] + scores["mean"], dimension=OVERALL)
    return _data(scores, sides).test()
