"""Each contrast estimated again with one choice changed at a time."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import pandas as pd

from analysis.estimates import Estimate, two_way
from analysis.leave_one_out import (
    Data,
    contrast_data,
    count_holding,
    without_question,
    without_scenario,
    without_seed,
)
from analysis.looks import tables_of_looks
from analysis.rows import Row, fields, select, sides_of
from analysis.table import CHECKPOINT, OVERALL, REPLICATE, primary_judge_rows, question_means

NOTHING = 1e-9  # a smaller number has no sign but that of rounding
FIRST = 26  # the paper's questions are the first of the benchmark's
PLACE = ("name", "benchmark", "dose", "control_dose")
LEFT_OUT = {kind: f"one {kind} left out" for kind in ("seed", "question", "scenario")}
JUDGE = "judge "  # begins the variant of another judge


@dataclass(frozen=True)
class Variant:
    """A contrast under one other choice.

    `tests` are the estimates that each leave out one thing, where `estimate` is the one of them
    that is farthest from the contrast's, and `which` the thing that it leaves out.
    """

    name: str
    estimate: Estimate
    which: str | None = None
    tests: tuple[Estimate, ...] = ()


def robustness_rows(
    table: pd.DataFrame,
    contrasts: Sequence[Row],
    other_judges: Mapping[str, Sequence[str]],
    seeds: Sequence[int],
) -> list[Row]:
    """A row per variant of each row of contrasts.

    The rows are described and never decide. Each rests on the seeds that its contrast rests on.

    Args:
        table: the long table with the rows of every judge. It may have two more columns:
            `language` of the question and `length` of the response, in any unit.
        contrasts: the rows of analysis.contrasts.
        other_judges: benchmark -> the judges beside the deciding one.
        seeds: the planned training seeds, in the order in which they are run.

    A row has `name`, `benchmark`, `dose`, `control_dose`, `variant`; `estimate`, `low`, `high`
    (treatment minus control in score units, 95 % of the two-way variance), `p` (unadjusted),
    `questions`, `seeds` (of the trained arm with fewer), `sign_same` (as in `all`; None where a
    sign is unknown or 0), `which`, `reason` (why there is no number, or what limits it), `holds`
    (in how many estimates the verdict of the contrast holds, and their number: see
    leave_one_out.count_holding; None where there is no verdict). Variants:

    - `all`: as declared;
    - `first 26 questions` by id, which are the paper's, where there are more;
    - `English questions`, or without `language` `one question per scenario`: the first by id;
    - `one seed left out`, `one question left out`, and `one scenario left out` where a scenario has
      several questions: `low` to `high` is the range of all such estimates; `estimate` is the one
      farthest from `all`, which leaves out `which`; `p` is the largest;
    - `judge NAME`: this one decides, over what it graded;
    - `length held equal`: scores less slope x (length - mean length), with the slope within arm
      and question as in the analysis of covariance (Fisher, "Statistical methods for research
      workers", 1932), taken as known;
    - `dimensions weigh the same`: the mean of the dimensions' means in place of the overall
      scores.

    Contrasts of other families than "primary" have those that leave out one thing, and the judges.
    """
    of_looks = tables_of_looks(table, contrasts, seeds)
    primary = {
        look: primary_judge_rows(part, other_judges)
        for look, part in of_looks.items()
        if any(row["family"] == "primary" and row["look"] == look for row in contrasts)
    }
    means = {look: _means_by_judge(part, other_judges) for look, part in of_looks.items()}
    rows = []
    for contrast in contrasts:
        look = contrast["look"]
        variants = _variants(contrast, means[look], other_judges[contrast["benchmark"]])
        if contrast["family"] == "primary" and contrast["estimate"] is not None:
            part = primary[look]
            part = _rows_of(part[part["benchmark"] == contrast["benchmark"]], contrast)
            variants += _primary_variants(contrast, part, means[look][""])
        base = variants[0].estimate
        row = select(contrast, PLACE)
        rows += [row | _row(variant, base, contrast) for variant in variants]
    return rows


def holds_of(contrast: Row, rows: Sequence[Row]) -> Row:
    """In how many estimates without one seed, question, scenario or judge the verdict holds.

    `seed`, `question`, `scenario`, `judge`: [how many, of how many], or None where nothing can be
    left out or there is no verdict. Without its judge a contrast is decided by each other one.
    Scenarios of one question each are left out with their questions.

    Args:
        contrast: a row of contrasts.
        rows: `robustness_rows`.
    """
    of_contrast = [row for row in rows if select(row, PLACE) == select(contrast, PLACE)]
    holds = {row["variant"]: row["holds"] for row in of_contrast}
    result: Row = {kind: holds.get(variant) for kind, variant in LEFT_OUT.items()}
    if LEFT_OUT["scenario"] not in holds:
        result["scenario"] = result["question"]
    judged = [of for variant, of in holds.items() if variant.startswith(JUDGE) and of]
    result["judge"] = [sum(of[0] for of in judged), len(judged)] if judged else None
    return result


def natural(question: str) -> list[tuple[int, int, str]]:
    """A sort key of ids that takes their numbers as numbers: 2 before 10, q9 before q10."""
    parts = re.findall(r"\d+|\D+", question)
    return [(0, int(part), "") if part.isdecimal() else (1, 0, part) for part in parts]


def _means_by_judge(
    table: pd.DataFrame, other_judges: Mapping[str, Sequence[str]]
) -> dict[str, pd.DataFrame]:
    """`table.question_means` of each other judge's rows; of the deciding ones' under ""."""
    overall = table[table["dimension"] == OVERALL]
    names = sorted({judge for judges in other_judges.values() for judge in judges})
    means = {judge: question_means(overall[overall["judge"] == judge]) for judge in names}
    return {"": question_means(primary_judge_rows(overall, other_judges))} | means


def _rows_of(table: pd.DataFrame, contrast: Row) -> pd.DataFrame:
    (arm, dose), (control, control_dose) = sides_of(contrast)
    treated = (table["arm"] == arm) & (table["dose"] == dose)
    return table[treated | (table["arm"] == control) & (table["dose"] == control_dose)]


def _row(variant: Variant, base: Estimate, contrast: Row) -> Row:
    """The row of a variant; `base` is the estimate as declared."""
    result = variant.estimate
    ends = [result.low, result.high] if variant.tests else [result.estimate]
    signs = {_sign(end) for end in [base.estimate, *ends]}
    row: Row = {"variant": variant.name}
    row |= fields(result, ("estimate", "low", "high", "p", "questions"))
    row["seeds"] = min((n for n in result.seeds if n), default=0)
    row["which"] = variant.which
    row["reason"] = result.reason
    row["sign_same"] = None if 0 in signs else len(signs) == 1
    row["holds"] = count_holding(contrast, variant.tests or [result])
    return row


def _sign(value: float | None) -> int:
    if value is None or abs(value) < NOTHING:
        return 0
    return 1 if value > 0 else -1


def _variants(
    contrast: Row, means: Mapping[str, pd.DataFrame], judges: Sequence[str]
) -> list[Variant]:
    """The variants of any contrast, `all` first. `means` are by judge; `judges` the other ones."""
    if contrast["estimate"] is None:
        return [Variant("all", Estimate(reason=contrast["reason"]))]
    data = contrast_data(means[""], contrast)
    base = data.test()
    variants = [
        Variant("all", base),
        _range(LEFT_OUT["seed"], base, without_seed(data)),
        _range(LEFT_OUT["question"], base, without_question(data)),
    ]
    if len(set(data.scenarios)) < len(data.questions):
        variants.append(_range(LEFT_OUT["scenario"], base, without_scenario(data)))
    graded = _rows_of(means[""], contrast)
    graded = graded[graded["benchmark"] == contrast["benchmark"]]
    for judge in judges:
        other = _rows_of(means[judge], contrast)
        other = other[other["benchmark"] == contrast["benchmark"]]
        variants.append(Variant(JUDGE + judge, _by_other_judge(graded, other, contrast)))
    if not judges and contrast["family"] == "primary":
        reason = "one judge only graded this benchmark"
        variants.append(Variant("another judge", Estimate(reason=reason)))
    return variants


def _primary_variants(contrast: Row, part: pd.DataFrame, means: pd.DataFrame) -> list[Variant]:
    """The further variants of a primary contrast.

    `part` has the deciding judge's rows of its benchmark and arms.
    """
    data = contrast_data(means, contrast)
    order = sorted(range(len(data.questions)), key=lambda n: natural(data.questions[n]))
    reason = f"there are no more than {FIRST} questions"
    variants = [_subset(f"first {FIRST} questions", data, order[:FIRST], reason)]
    if "language" in part:
        names = part["language"].astype(str).str.lower()
        language = dict(zip(part["question"], names, strict=True))
        english = [n for n in order if language[data.questions[n]].startswith("en")]
        variants.append(_subset("English questions", data, english, "all questions are in English"))
    else:
        first = {data.scenarios[n]: n for n in reversed(order)}
        reason = "no scenario has two questions"
        chosen = list(first.values())
        variants.append(_subset("one question per scenario", data, chosen, reason))
    return [
        *variants,
        Variant("length held equal", _length_held_equal(part, contrast)),
        Variant("dimensions weigh the same", _dimensions_weighed_equally(part, contrast)),
    ]


def _subset(name: str, data: Data, indices: Sequence[int], reason: str) -> Variant:
    """The contrast over some questions (by index); `reason` is given when these are all."""
    if len(indices) == len(data.questions):
        return Variant(name, Estimate(reason=reason))
    columns = sorted(indices)
    arms = [replace(arm, scores=arm.scores[:, columns]) for arm in data.arms]
    return Variant(name, two_way(arms, data.scenarios[columns]))


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
    range_of_all = replace(farthest, low=min(values), high=max(values), p=p)
    return Variant(name, range_of_all, which, tuple(test for _, test, _ in defined))


def _by_other_judge(graded: pd.DataFrame, other: pd.DataFrame, contrast: Row) -> Estimate:
    """The contrast by another judge's question means, of the same arms as the deciding `graded`."""
    answers, other_answers = int(graded["n"].sum()), int(other["n"].sum())
    if not other_answers:
        return Estimate(reason="this judge gave no overall scores")
    result = contrast_data(other, contrast).test()
    if result.reason is None and other_answers < answers:
        reason = f"graded {other_answers} answers, the deciding judge {answers}"
        return replace(result, reason=reason)
    return result


def _length_held_equal(part: pd.DataFrame, contrast: Row) -> Estimate:
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
    return contrast_data(question_means(rows.assign(score=held)), contrast).test()


def _dimensions_weighed_equally(part: pd.DataFrame, contrast: Row) -> Estimate:
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
    return contrast_data(question_means(scores), contrast).test()
