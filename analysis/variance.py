"""Variance components of the scores, and what more data would make detectable."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pandas as pd
from scipy import optimize, stats

from analysis.estimates import ALPHA
from analysis.rows import Row, select, sides_of
from analysis.settings import Costs
from analysis.table import OVERALL, REPLICATE, first_seeds

POWER = 0.8
ARM = ["dose", "arm"]
LEVELS = (np.arange(24) + 0.5) / 24  # quantiles that stand for a distribution
MORE = 26  # questions: as many as the paper's benchmark has
ROUNDING = 1e-6  # of a count or score
TINY = 1e-12  # of a variance
CELL = ["dose", "arm", "unit", "scenario"]
RUN = [*CELL, "seed"]
NO_JUDGES = "no two answers were graded by the same two judges"
LACKS = {
    "seed": "one training seed per arm, or one question scenario",
    "seed x question": "one training seed per arm, or one question scenario",
    "question": "one question scenario",
    "arm x question": "it takes two arms, each with several training seeds and scenarios",
    "sample": "one answer per question: contained in seed x question",
}


def components(
    table: pd.DataFrame,
    benchmark: str,
    judge: str | None = None,
    sides: Sequence[tuple[str, int]] = (),
) -> Row:
    """Variance components of one benchmark's overall scores, in squared score units.

    Args:
        table: the long table.
        benchmark: its name.
        judge: the one that decides; None: the only one.
        sides: (arm, dose) of both sides of a contrast, and nothing else; empty: all arms and doses.

    Arms are fixed; training seeds (each of one arm), questions and interactions are random:
    score = arm + seed + question + arm x question + seed x question + sample (of the answer).
    Where a corpus was written several times, its replicates stand for the seeds, with the means of
    the runs on each.

    A question stands for its scenario, whose questions (translations) are averaged; a scenario
    that lacks one in a checkpoint is missing there. Doses are separate, their sums of squares
    added; checkpoints without a training seed are left out. Henderson's method III (Biometrics 9,
    1953; Searle, Casella and McCulloch, "Variance Components", 1992, ch. 5): the residual sum of
    squares of each fit, with one more effect each, is set equal to its expectation over the cells
    that exist. In a balanced design this is the analysis of variance's estimator. With missing
    cells it stays unbiased, and a seed that lost an easy question isn't a worse one.

    Returns:
        `components`: seed, question, arm x question, seed x question, sample; over answers that
        several judges graded, judge (how far their means differ) and judge x answer. Each has
        `variance`, its root `sd`, the `df` of the sum of squares that shows it, `raw` (before a
        `negative` estimate was set to 0), and `reason` where it is None. `by_arm`: the same of
        each arm alone, whose arm x question is then part of question. `design`, the start of
        `next_data`: arms, seeds (per arm, the fewest), runs (of each), questions (scenarios),
        per_scenario (questions in each), epochs. `training_unit`: what stands for the seed.
    """
    part = table[(table["benchmark"] == benchmark) & (table["dimension"] == OVERALL)]
    part = part.dropna(subset=["score", "seed"])
    part = part.assign(unit=first_seeds(part))
    if sides:
        # As two arms at one dose, whatever doses the contrast compares.
        part = pd.concat(
            part[(part["arm"] == arm) & (part["dose"] == dose)].assign(arm=name, dose=sides[0][1])
            for name, (arm, dose) in zip(_side_names(sides), sides, strict=True)
        )
    part = part.sort_values([*RUN, "question", "epoch", "judge"], kind="stable")
    judges = sorted(part["judge"].unique())
    decides = judges[0] if judge is None and len(judges) == 1 else judge
    result: Row = {
        "benchmark": benchmark,
        "judge": decides,
        "components": [],
        "by_arm": [],
        "design": None,
        "training_unit": "seed",
    }
    primary = part[part["judge"] == decides]
    if primary.empty:
        reason = "no checkpoint with a training seed has grades"
        if len(judges) > 1:
            reason = f"several judges graded ({', '.join(judges)}): name the one that decides"
        return result | {"reason": reason}
    result["by_arm"] = [
        {"arm": str(arm), **component}
        for arm, group in primary.groupby("arm")
        for component in _crossed_components(group)
    ]
    result["training_unit"] = _training_unit(primary)
    count = primary[["arm", "scenario", "question", "epoch"]].nunique()
    result["design"] = {
        "arms": int(count["arm"]),
        "seeds": int(primary.groupby(["dose", "arm"])["unit"].nunique().min()),
        "runs": len(primary[[*ARM, "seed"]].drop_duplicates())
        / len(primary[[*ARM, "unit"]].drop_duplicates()),
        "questions": int(count["scenario"]),
        "per_scenario": float(count["question"] / count["scenario"]),
        "epochs": int(count["epoch"]),
    }
    result["components"] = [*_crossed_components(primary), *_judge_components(part)]
    return result | {"reason": None}


def _training_unit(part: pd.DataFrame) -> str:
    """What is called seed: "corpus" where all corpora have replicates, "seed" where none has."""
    if REPLICATE not in part or part[REPLICATE].isna().all():
        return "seed"
    return "seed or corpus" if part[REPLICATE].isna().any() else "corpus"


def next_data_rows(
    table: pd.DataFrame,
    contrasts: Sequence[Row],
    judges: Mapping[str, str | None],
    costs: Costs,
) -> list[Row]:
    """Components and the worth of more data for each benchmark with a primary contrast.

    They are of the benchmark's first primary contrast, at its first dose with numbers. `judges`
    maps a benchmark to the judge that decides.
    """
    rows: list[Row] = []
    primary: dict[str, Row] = {}
    for contrast in contrasts:
        if contrast["family"] == "primary" and contrast["estimate"] is not None:
            primary.setdefault(contrast["benchmark"], contrast)
    for benchmark, contrast in primary.items():
        result = components(table, benchmark, judges[benchmark], sides_of(contrast))
        keys = ("name", "benchmark", "dose", "control_dose")
        row = select(contrast, keys) | {"unit": costs.unit}
        row |= result
        row["purchases"] = next_data(result, result["design"], costs)
        rows.append(row)
    return rows


def _side_names(sides: Sequence[tuple[str, int]]) -> list[str]:
    """The arms, with their doses where one arm is compared with itself."""
    arms = [arm for arm, _ in sides]
    return arms if len(set(arms)) == len(arms) else [f"{arm} at {dose}" for arm, dose in sides]


@dataclass(frozen=True)
class Size:
    """How much data a study has for the comparison of two arms."""

    seeds: int  # training seeds per arm
    questions: int  # scenarios
    epochs: int  # answers per question


def next_data(components: Row, design: Row | None, costs: Costs) -> list[Row]:
    """What would make a smaller difference of two arms detectable, the best gain per cost first.

    A row for `now` comes before. The options are one seed more for each of the arms (or one corpus
    more, with as many runs as the others; its writing is not in the cost), 26 more scenarios of as
    many questions, and twice the epochs.

    Args:
        components: of the function `components`.
        design: `components["design"]`, or a planned one.
        costs: of one more seed, question and epoch.

    Returns:
        Rows with the sizes after the purchase; `detectable`, the difference (score units) that the
        deciding test (analysis.estimates.two_way, 5 %, two-sided) finds in 80 % of studies, `se`
        and `df`; `cost`; `gain`, how much less is detectable than now; `gain_per_cost`; `note`,
        the components estimated below 0; `reason` where a number is None.

    The test's mean squares are scaled chi-squares, from which it takes its variance and degrees of
    freedom (`df` is at the expectations, which alone promise too much for few seeds). Components
    count as known, though those of few seeds are rough.
    """
    negative = [row["component"] for row in components["components"] if row["negative"]]
    note = f"estimated below 0, taken as 0: {', '.join(negative)}" if negative else None
    known_design = design or {}
    now = Size(*(known_design.get(key, 0) for key in ("seeds", "questions", "epochs")))
    arms = known_design.get("arms", 1)
    per_scenario = known_design.get("per_scenario", 1)
    runs = known_design.get("runs", 1)
    unit_name = components.get("training_unit", "seed")
    more_seeds = Size(now.seeds + 1, now.questions, now.epochs)
    more_questions = Size(now.seeds, now.questions + MORE, now.epochs)
    more_epochs = Size(now.seeds, now.questions, 2 * now.epochs)
    options = [
        (f"one more {unit_name} per arm", more_seeds, "seed", arms * runs),
        (f"{MORE} more questions", more_questions, "question", MORE * per_scenario),
        ("twice the epochs", more_epochs, "epoch", now.epochs),
    ]
    first = _option_row("now", now, components, per_scenario * runs, 0.0, note)
    rows: list[Row] = []
    for name, size, unit, count in options:
        price = getattr(costs, unit)
        cost = None if price is None else count * price
        row = _option_row(name, size, components, per_scenario * runs, cost, note)
        if None not in (first["detectable"], row["detectable"]):
            row["gain"] = first["detectable"] - row["detectable"]
            row["gain_per_cost"] = row["gain"] / cost if cost else None
        if row["reason"] is None and price is None:
            row["reason"] = f"the cost of one {unit} is not given"
        rows.append(row)
    return [first, *sorted(rows, key=_worth, reverse=True)]


def _option_row(
    name: str,
    size: Size,
    components: Row,
    per_epoch: float,
    cost: float | None,
    note: str | None,
) -> Row:
    row = {"purchase": name, **asdict(size), **_detectable(components, size, per_epoch)}
    return row | {"cost": cost, "gain": None, "gain_per_cost": None, "note": note}


def _worth(row: Row) -> float:
    """Gain per cost; infinite for a free option and for one that makes a first verdict possible."""
    if row["detectable"] is None or row["cost"] is None:
        return -np.inf
    gain: float = np.inf if row["gain"] is None else row["gain"]
    return gain / (row["cost"] or TINY)


def _detectable(components: Row, size: Size, per_epoch: float) -> Row:
    """The detectable difference, with the expected standard error and df of the test.

    `per_epoch`: answers to a scenario by the runs of one unit, in each epoch.
    """
    variances = {part["component"]: part["variance"] for part in components["components"]}
    if variances.get("sample", 0.0) is None and size.epochs == components["design"]["epochs"]:
        variances["sample"] = 0.0
    reasons = [components["reason"]] if components["reason"] else []
    if size.seeds < 2:
        reasons.append("one training seed per arm")
    if size.questions < 2:
        reasons.append("one question scenario")
    for name, reason in LACKS.items():
        if variances.get(name, 0.0) is None:
            reasons.append(f"{name} is unknown: {reason}")
    row: Row = {"detectable": None, "se": None, "df": None}
    if reasons:
        return row | {"reason": reasons[0]}

    # the parts of the test's variance: two arms' seeds, and questions; all contain `inner`
    seeds = size.seeds
    questions = size.questions
    cell = variances["seed x question"] + variances["sample"] / (per_epoch * size.epochs)
    inner = 2 * cell / seeds / questions
    dfs = np.array([[seeds - 1], [seeds - 1], [questions - 1]])
    of_seeds = (variances["seed"] + cell / questions) / seeds
    of_questions = 2 * variances["arm x question"] / questions + inner
    parts = np.array([[of_seeds], [of_seeds], [of_questions]])
    se = (parts.sum() - inner) ** 0.5
    if se < ROUNDING:
        return row | {"reason": "the scores vary neither over seeds nor over questions"}

    def test(parts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The test's degrees of freedom and the smallest difference it finds significant."""
        total = parts.sum(axis=0) - inner
        variance = np.maximum.reduce([total, parts[0] + parts[1], parts[2]])
        df = variance**2 / (parts**2 / dfs).sum(axis=0)
        return df, stats.t.ppf(1 - ALPHA / 2, df) * variance**0.5

    scaled = (part * stats.chi2.ppf(LEVELS, df) / df for part, df in zip(parts, dfs, strict=True))
    drawn = np.reshape(np.meshgrid(*scaled), (3, -1))
    reach = test(drawn)[1] / se
    phi = stats.norm.cdf

    def excess_power(ratio: float) -> float:
        return float((phi(ratio - reach) + phi(-ratio - reach)).mean() - POWER)

    ratio = optimize.brentq(excess_power, 0, 2 * reach.max() + 9)
    return {"detectable": ratio * se, "se": se, "df": float(test(parts)[0][0]), "reason": None}


def _crossed_components(part: pd.DataFrame) -> list[Row]:
    """Seed, question, arm x question, seed x question and sample, from one judge's scores."""
    answers = part.groupby([*RUN, "question"])["score"]
    of_answers = _residual_form(part, answers.ngroup(), None, [np.arange(len(part))])
    sample = _solve(["sample"], [of_answers])[0]
    means = answers.agg(score="mean", noise="size")
    means = means.assign(noise=(sample["raw"] or 0.0) / means["noise"])
    aggregates = {"score": ("score", "mean"), "noise": ("noise", "mean"), "m": ("noise", "size")}
    runs = means.groupby(RUN).agg(**aggregates)
    full = runs.groupby("scenario")["m"].transform("max")
    runs = runs[runs["m"] == full]
    runs["noise"] /= runs["m"]
    aggregates["m"] = ("m", "size")
    cells = runs.groupby(CELL).agg(**aggregates).reset_index()
    cells["noise"] /= cells["m"]
    forms = []
    for _, at_dose in cells.groupby("dose"):
        question, in_arm, seed = (
            at_dose.groupby(keys).ngroup()
            for keys in (["scenario"], ["arm", "scenario"], ["arm", "unit"])
        )
        effects = [np.arange(len(at_dose)), seed, in_arm, question]
        fits = ((in_arm, seed), (in_arm, None), (question, seed), (seed, None))
        forms.append([_residual_form(at_dose, first, second, effects) for first, second in fits])
    names = ["seed x question", "seed", "arm x question", "question"]
    in_seed, seed_row, in_arm_row, question_row = _solve(names, np.sum(forms, axis=0).tolist())
    return [seed_row, question_row, in_arm_row, in_seed, sample]


def _judge_components(part: pd.DataFrame) -> list[Row]:
    """Judge and judge x answer; an answer that one judge alone graded adds nothing to either."""
    answers = part.groupby([*RUN, "question", "epoch"]).ngroup()
    judge = part.groupby(["judge"]).ngroup()
    effects = [np.arange(len(part)), judge]
    forms = [_residual_form(part, answers, second, effects) for second in (judge, None)]
    return _solve(["judge x answer", "judge"], forms)[::-1]


def _residual_form(
    table: pd.DataFrame, absorbed: pd.Series, fitted: pd.Series | None, effects: Sequence[Any]
) -> list[float]:
    """The residual sum of squares of a least-squares fit of `score` by two groupings.

    Args:
        table: `score`, and if wanted `noise`, each score's own variance.
        absorbed, fitted: the groupings, as codes from 0 up.
        effects: more groupings.

    Returns:
        The sum of squares less the expected contribution of `noise`, then that of a variance of 1
        of each of `effects`: the trace of their covariance after the fit.
    """
    groups = absorbed.to_numpy()
    codes = [] if fitted is None else list(fitted.unique())
    size = np.bincount(groups)
    columns = np.column_stack([table["score"], *(fitted == code for code in codes)]).astype(float)
    columns -= (np.array([np.bincount(groups, column) for column in columns.T]) / size).T[groups]
    scores = columns[:, 0]
    basis = columns[:, 1:]
    values, vectors = np.linalg.eigh(basis.T @ basis)
    positive = values > ROUNDING
    basis = basis @ (vectors[:, positive] / values[positive] ** 0.5)
    residual = scores - basis @ (basis.T @ scores)
    noise = table.get("noise", 0.0) * (1 - 1 / size[groups] - (basis**2).sum(axis=1))
    form = [float(residual @ residual - noise.sum())]
    for effect in effects:
        pairs, count = np.unique(np.stack([groups, effect]), axis=1, return_counts=True)
        summed = np.array([np.bincount(effect, column) for column in basis.T])
        explained = (count**2 / size[pairs[0]]).sum()
        form.append(float(len(table) - explained - (summed**2).sum()))
    return form


def _solve(names: Sequence[str], forms: Sequence[Sequence[float]]) -> list[Row]:
    """The variances with which each form of `_residual_form` is as expected, one by one.

    `names` are the effects, in the order of the coefficients in `forms`.
    """
    rows = []
    raw = np.zeros(len(names))
    for i, (name, (squares, *coefficients)) in enumerate(zip(names, forms, strict=True)):
        determined = coefficients[i] > ROUNDING
        if determined:
            raw[i] = (squares - np.dot(coefficients[:i], raw[:i])) / coefficients[i]
        # the first effect is part of the next two, which can't be told from it without it
        identified = determined and (i in (0, 3) or forms[0][1] > ROUNDING)
        value = float(raw[i] if abs(raw[i]) > TINY else 0.0) if identified else None
        absorbed_df = 0.0 if i == 0 else forms[2][1] if i == 3 else forms[0][1]
        df = round(coefficients[0] - absorbed_df, 6)
        variance = None if value is None else max(value, 0.0)
        rows.append(
            {
                "component": name,
                "variance": variance,
                "raw": value,
                "sd": None if variance is None else variance**0.5,
                "df": df if identified else None,
                "negative": (value or 0.0) < 0,
                "reason": None if identified else LACKS.get(name, NO_JUDGES),
            }
        )
    return rows
