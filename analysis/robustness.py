"""Whether a contrast hangs on one choice: each primary contrast estimated again with one thing changed at a time."""

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd

from analysis.contrasts import contrast_arms, questions_of, scenarios_of
from analysis.estimates import Arm, Estimate, two_way
from analysis.table import CHECKPOINT, OVERALL, decisive, question_means

Row = dict[str, Any]
Sides = tuple[tuple[str, int], tuple[str, int], bool]  # the two arms, each at a dose of SFT; paired by seed?
NOTHING = 1e-9  # below it a difference has no sign but that of rounding
FIRST = 26  # the paper's questions are the first of the benchmark's


@dataclass(frozen=True)
class Data:
    """Both arms' question means: columns of `arms` are `questions`; `seeds` are the rows of each arm."""

    arms: list[Arm]
    seeds: list[list[int]]
    questions: list[str]
    scenarios: np.ndarray


Found = tuple[str, Estimate, str | None]  # variant, its number, what a range's farthest estimate leaves out


def grid(table: pd.DataFrame, declared: list[Row], settings: Row) -> list[Row]:
    """One row per contrast of the family "primary", benchmark, pair of doses and variant; described, never decides.

    `table` is the whole long table, other judges included; `declared` and `settings` are the analysis' own (of the
    latter, `["benchmarks"][name]["other_judges"]`). Two optional columns of `table`: `language` of the question and
    `length` of the response, in any unit.

    A row has `name`, `benchmark`, `dose`, `against_dose`, `variant`; `estimate`, `low`, `high` (`of` minus `against` in
    score units, 95 % of the two-way variance), `p` (unadjusted), `questions`, `seeds` (of the trained arm with fewer),
    `sign_same` (as in `all`; None where a sign is unknown or 0), `which`, `reason` (why there is no number, or what
    limits it). Variants:

    - `all`: as declared;
    - `first 26 questions` by id, which are the paper's, where there are more;
    - `English questions`, or without `language` `one question per scenario`: the first by id;
    - `one question left out`, `one seed left out`: `low` to `high` is the range of all such estimates; `estimate` is
      the one farthest from `all`, which leaves out `which`; `p` is the largest;
    - `judge NAME`: this one decides, over what it graded;
    - `length held equal`: scores less slope x (length - mean length), with the slope within arm and question as in the
      analysis of covariance (Fisher, "Statistical methods for research workers", 1932), taken as known;
    - `dimensions weigh the same`: the mean of the dimensions' means in place of the overall scores.
    """
    others = {name: benchmark["other_judges"] for name, benchmark in settings["benchmarks"].items()}
    main, rows = decisive(table, others), []
    for contrast in [contrast for contrast in declared if contrast["family"] == "primary"]:
        for benchmark in contrast["on"]:
            part, whole = (scores[scores["benchmark"] == benchmark] for scores in (main, table))
            for doses in _doses(part, contrast):
                row = {"name": contrast["name"], "benchmark": benchmark, "dose": doses and doses[0]}
                row |= {"against_dose": doses and doses[1]}
                if doses is None:
                    none: Found = ("all", Estimate(reason="no scores of both arms"), None)
                    rows.append(row | _row(none, none[1]))
                    continue
                sides = (contrast["of"], doses[0]), (contrast["against"], doses[1]), bool(contrast.get("paired"))
                found = list(_variants(_only(part, sides), _only(whole, sides), sides, others[benchmark]))
                rows += [row | _row(variant, found[0][1]) for variant in found]
    return rows


def natural(question: str) -> list[tuple[int, int, str]]:
    """Sorts ids with their numbers as numbers: 2 before 10, q9 before q10."""
    parts = re.findall(r"\d+|\D+", question)
    return [(0, int(part), "") if part.isdecimal() else (1, 0, part) for part in parts]


def _doses(part: pd.DataFrame, contrast: Row) -> list[tuple[int, int] | None]:
    of, against = (set(part.loc[part["arm"] == contrast[side], "dose"].map(int)) for side in ("of", "against"))
    pairs: list[tuple[int, int] | None] = [(dose, dose) for dose in sorted(of & against)]
    if contrast.get("of_dose") is not None:
        pair = (contrast["of_dose"], contrast["against_dose"])
        pairs = [pair] if pair[0] in of and pair[1] in against else []
    return pairs or [None]


def _only(table: pd.DataFrame, sides: Sides) -> pd.DataFrame:
    (arm, dose), (other, others_dose) = sides[:2]
    return table[
        (table["arm"] == arm) & (table["dose"] == dose) | (table["arm"] == other) & (table["dose"] == others_dose)
    ]


def _row(found: Found, base: Estimate) -> Row:
    variant, e, which = found
    ends = [base.estimate, *([e.estimate] if which is None else [e.low, e.high])]
    signs = {0 if end is None or abs(end) < NOTHING else 1 if end > 0 else -1 for end in ends}
    row: Row = {"variant": variant} | {key: getattr(e, key) for key in ("estimate", "low", "high", "p", "questions")}
    row |= {"seeds": min((n for n in e.seeds if n), default=0), "which": which, "reason": e.reason}
    return row | {"sign_same": None if 0 in signs else len(signs) == 1}


def _variants(part: pd.DataFrame, whole: pd.DataFrame, sides: Sides, others: list[str]) -> Iterator[Found]:
    data = _data(part, sides)
    base = two_way(data.arms, data.scenarios)
    yield "all", base, None
    order = sorted(range(len(data.questions)), key=lambda n: natural(data.questions[n]))
    yield _some(f"first {FIRST} questions", data, order[:FIRST], f"there are no more than {FIRST} questions")
    if "language" in part:
        language = dict(zip(part["question"], part["language"].astype(str).str.lower(), strict=True))
        english = [n for n in order if language[data.questions[n]].startswith("en")]
        yield _some("English questions", data, english, "all questions are in English")
    else:
        first = {data.scenarios[n]: n for n in reversed(order)}
        yield _some("one question per scenario", data, list(first.values()), "no scenario has two questions")
    yield _range("one question left out", base, _without_question(data))
    yield _range("one seed left out", base, _without_seed(data, sides))
    for judge in others:
        yield f"judge {judge}", _judge(part, whole[whole["judge"] == judge], sides), None
    if not others:
        yield "another judge", Estimate(reason="one judge only graded this benchmark"), None
    yield "length held equal", _length(part, sides), None
    yield "dimensions weigh the same", _dimensions(part, sides), None


def _data(part: pd.DataFrame, sides: Sides) -> Data:
    means, benchmark = question_means(part), part["benchmark"].iloc[0]
    arms, seeds = contrast_arms(means, benchmark, sides[:2], sides[2])
    return Data(arms, seeds, questions_of(means, benchmark)["question"].tolist(), scenarios_of(means, benchmark))


def _some(variant: str, data: Data, kept: list[int], everything: str) -> Found:
    """The contrast over the questions at the places `kept`; `everything` is the reason when that is all of them."""
    if len(kept) == len(data.questions):
        return variant, Estimate(reason=everything), None
    kept = sorted(kept)
    return variant, two_way([replace(a, scores=a.scores[:, kept]) for a in data.arms], data.scenarios[kept]), None


def _without_question(data: Data) -> Iterator[tuple[str, Estimate]]:
    for n, question in enumerate(data.questions):
        less = [replace(arm, scores=np.delete(arm.scores, n, axis=1)) for arm in data.arms]
        yield f"question {question}", two_way(less, np.delete(data.scenarios, n))


def _without_seed(data: Data, sides: Sides) -> Iterator[tuple[str, Estimate]]:
    for place, (arm, seeds) in enumerate(zip(data.arms, data.seeds, strict=True)):
        for n, seed in enumerate(seeds):
            less = [*data.arms]
            less[place] = replace(arm, scores=np.delete(arm.scores, n, axis=0))
            yield f"seed {seed}" if sides[2] else f"{sides[:2][place][0]} seed {seed}", two_way(less, data.scenarios)


def _range(variant: str, base: Estimate, found: Iterator[tuple[str, Estimate]]) -> Found:
    known = [(which, e, e.estimate) for which, e in found if e.estimate is not None]
    if base.estimate is None or not known:
        return variant, Estimate(reason="none can be left out" if base.reason is None else base.reason), None
    middle = base.estimate
    which, farthest, _ = max(known, key=lambda one: abs(one[2] - middle))
    values, ps = [value for _, _, value in known], [e.p for _, e, _ in known if e.p is not None]
    p = max(ps) if len(ps) == len(known) else None
    return variant, replace(farthest, low=min(values), high=max(values), p=p), which


def _judge(part: pd.DataFrame, other: pd.DataFrame, sides: Sides) -> Estimate:
    decided, graded = (int(t.loc[t["dimension"] == OVERALL, "score"].count()) for t in (part, other))
    if not graded:
        return Estimate(reason="this judge gave no overall scores")
    data = _data(other, sides)
    found = two_way(data.arms, data.scenarios)
    if found.reason is None and graded < decided:
        return replace(found, reason=f"graded {graded} answers, the deciding judge {decided}")
    return found


def _length(part: pd.DataFrame, sides: Sides) -> Estimate:
    if "length" not in part:
        return Estimate(reason="the table has no lengths of responses")
    rows = part[(part["dimension"] == OVERALL) & part["score"].notna() & part["length"].notna()]
    both = rows[["score", "length"]].astype(float)
    centered = both - both.groupby([rows["arm"], rows["dose"], rows["question"]]).transform("mean")
    spread = float((centered["length"] ** 2).sum())
    if spread < NOTHING:
        return Estimate(reason="lengths do not vary within arm and question")
    slope = float((centered["length"] * centered["score"]).sum()) / spread
    data = _data(rows.assign(score=both["score"] - slope * (both["length"] - both["length"].mean())), sides)
    return two_way(data.arms, data.scenarios)


def _dimensions(part: pd.DataFrame, sides: Sides) -> Estimate:
    """A question's score becomes the mean of dimension means plus what the question itself moves it by (times the
    number of questions): the mean over questions is exact, and its variance that of the linearized mean."""
    rows = part[(part["dimension"] != OVERALL) & part["score"].notna()]
    question = [*CHECKPOINT, "question", "scenario"]
    cells = rows.groupby([*question, "dimension"], dropna=False)["score"].mean().reset_index()
    # dimensions of a question that one arm lacks would compare arms over different questions
    sided = cells.groupby(["question", "dimension", "arm", "dose"]).size().groupby(level=[0, 1]).size()
    cells = cells[[sided[key] == 2 for key in zip(cells["question"], cells["dimension"], strict=True)]]
    if cells.empty:
        return Estimate(reason="no dimension was graded in both arms")
    checkpoint = cells.groupby(CHECKPOINT, dropna=False)
    same = cells.groupby([*CHECKPOINT, "dimension"], dropna=False)["score"]
    weight = 1 / (checkpoint["dimension"].transform("nunique") * same.transform("count"))
    moved = weight * checkpoint["question"].transform("nunique") * (cells["score"] - same.transform("mean"))
    cells = cells.assign(mean=weight * cells["score"], score=moved)
    cells["mean"] = cells.groupby(CHECKPOINT, dropna=False)["mean"].transform("sum")
    scores = cells.groupby(question, dropna=False).agg(score=("score", "sum"), mean=("mean", "first")).reset_index()
    data = _data(scores.assign(score=scores["score"] + scores["mean"], dimension=OVERALL), sides)
    return two_way(data.arms, data.scenarios)
