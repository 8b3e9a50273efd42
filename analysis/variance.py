"""Where the scatter of scores comes from (variance components), and what to buy next to see a smaller difference."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from scipy import optimize, stats

from analysis.estimates import ALPHA
from analysis.table import OVERALL

Row = dict[str, Any]
POWER = 0.8
LEVELS = (np.arange(24) + 0.5) / 24  # quantiles that stand for a distribution
MORE = 26  # questions: as many as the paper's benchmark has
ROUNDING, TINY = 1e-6, 1e-12  # of a count or score, of a variance
CELL = ["dose", "arm", "seed", "scenario"]
NO_JUDGES = "no two answers were graded by the same two judges"
LACKS = {
    **dict.fromkeys(("seed", "seed x question"), "one training seed per arm, or one question scenario"),
    "question": "one question scenario",
    "arm x question": "it takes two arms, each with several training seeds and scenarios",
    "sample": "one answer per question: contained in seed x question",
}


def components(
    table: pd.DataFrame, benchmark: str, judge: str | None = None, arms: Sequence[str] = (), dose: int | None = None
) -> Row:
    """Variance components of one benchmark's overall scores, in squared score units, from the long table.

    `judge` is the one that decides (None: the only one); `arms` and `dose` restrict the rows, as to a contrast's. Arms
    are fixed; training seeds (each of one arm), questions and interactions are random: score = arm + seed + question +
    arm x question + seed x question + sample (the answer's own).

    A question stands for its scenario, whose questions (translations) are averaged; a scenario that lacks one in a
    checkpoint is missing there. Doses are kept apart, their sums of squares added; checkpoints without a training seed
    are left out. Henderson's method III (Biometrics 9, 1953; Searle, Casella and McCulloch, "Variance Components",
    1992, ch. 5): what fits without one more effect each leave is set equal to its expectation over the cells that are
    there. Balanced, this is the analysis of variance's estimator; with missing cells it stays unbiased, and a seed that
    lost an easy question isn't a worse one.

    Returns `components`: seed, question, arm x question, seed x question, sample; over answers that several judges
    graded, judge (how far their means differ) and judge x answer. Each has `variance`, its root `sd`, the `df` of the
    sum of squares that shows it, `raw` (before a `negative` estimate was set to 0), `reason` where it is None.
    `by_arm`: the same of each arm alone, whose arm x question is then part of question. `design`, to start from in
    `next_purchase`: arms, seeds (per arm, the fewest), questions (scenarios), per_scenario (questions in each), epochs.
    """
    part = table[(table["benchmark"] == benchmark) & (table["dimension"] == OVERALL)].dropna(subset=["score", "seed"])
    part = part[part["arm"].isin(arms)] if arms else part
    part = part if dose is None else part[part["dose"] == dose]
    part = part.sort_values([*CELL, "question", "epoch", "judge"], kind="stable")
    judges = sorted(part["judge"].unique())
    decides = judges[0] if judge is None and len(judges) == 1 else judge
    row: Row = {"benchmark": benchmark, "judge": decides, "components": [], "by_arm": [], "design": None}
    main = part[part["judge"] == decides]
    if main.empty:
        several = f"several judges graded ({', '.join(judges)}): name the one that decides"
        return row | {"reason": several if len(judges) > 1 else "no checkpoint with a training seed has grades"}
    row["by_arm"] = [{"arm": str(arm), **found} for arm, group in main.groupby("arm") for found in _crossed(group)]
    count = main[["arm", "scenario", "question", "epoch"]].nunique()
    seeds = int(main.groupby(["dose", "arm"])["seed"].nunique().min())
    row["design"] = {"arms": int(count["arm"]), "seeds": seeds, "questions": int(count["scenario"])}
    row["design"] |= {"per_scenario": float(count["question"] / count["scenario"]), "epochs": int(count["epoch"])}
    return row | {"components": [*_crossed(main), *_judges(part)], "reason": None}


def purchase_rows(table: pd.DataFrame, contrasts: list[Row], judges: dict[str, str | None], costs: Row) -> list[Row]:
    """Components and purchases for each benchmark of the first primary contrast, at its first dose with numbers."""
    rows: list[Row] = []
    primary = [row for row in contrasts if row["family"] == "primary" and row["estimate"] is not None]
    for benchmark in dict.fromkeys(row["benchmark"] for row in primary):
        first = next(row for row in primary if row["benchmark"] == benchmark)
        found = components(table, benchmark, judges[benchmark], [first["of"], first["against"]], first["dose"])
        row: Row = {key: first[key] for key in ("name", "benchmark", "dose")} | {"unit": costs["unit"]}
        rows.append(row | found | {"purchases": next_purchase(found, found["design"], costs)})
    return rows


def next_purchase(components: Row, design: Row, costs: Row) -> list[Row]:
    """What would make a smaller difference of two arms detectable, best gain per cost first, after a row for `now`.

    `components` as above, `design` as in it, `costs` in one unit, hours or money: `seed` (one more training of one arm,
    its answers and grades), `question` (one more, asked of all checkpoints), `epoch` (one more answer to every
    question). To buy: one seed more for each of the arms, 26 more scenarios of as many questions, twice the epochs.

    `detectable`: the difference (score units) that the deciding test (analysis.estimates.two_way, 5 %, two-sided) finds
    in 80 % of studies. Their mean squares are scaled chi-squares, from which the test takes its variance and degrees of
    freedom (`df`: at the expectations, which alone promise too much for few seeds). Components count as known; of few
    seeds they are rough. `gain`: how much less than now. None has a `reason`; `note`: components estimated below 0.
    """
    zeros = [row["component"] for row in components["components"] if row["negative"]]
    now = {key: (design or {}).get(key, 0) for key in ("seeds", "questions", "epochs")}
    arms, per_scenario = ((design or {}).get(key, 1) for key in ("arms", "per_scenario"))
    bought = {
        "now": (now, "nothing", 0),
        "one more seed per arm": (now | {"seeds": now["seeds"] + 1}, "seed", arms),
        f"{MORE} more questions": (now | {"questions": now["questions"] + MORE}, "question", MORE * per_scenario),
        "twice the epochs": (now | {"epochs": 2 * now["epochs"]}, "epoch", now["epochs"]),
    }
    rows: list[Row] = []
    for name, (sizes, unit, count) in bought.items():
        row = {"purchase": name, **sizes, **_detectable(components, **sizes, per_scenario=per_scenario)}
        price = costs.get(unit) if rows else 0.0
        row |= {"cost": None if price is None else count * price, "gain": None, "gain_per_cost": None}
        row["note"] = f"estimated below 0, taken as 0: {', '.join(zeros)}" if zeros else None
        if rows and None not in (rows[0]["detectable"], row["detectable"]):
            row["gain"] = rows[0]["detectable"] - row["detectable"]
            row["gain_per_cost"] = row["gain"] / row["cost"] if row["cost"] else None
        row["reason"] = row["reason"] or (f"the cost of one {unit} is not given" if price is None else None)
        rows.append(row)
    # what costs nothing, or makes a first verdict possible, comes before all else
    worth = {row["purchase"]: (np.inf if row["gain"] is None else row["gain"]) / (row["cost"] or TINY) for row in rows}
    worth |= {row["purchase"]: -np.inf for row in rows if None in (row["detectable"], row["cost"])}
    return [rows[0], *sorted(rows[1:], key=lambda row: worth[row["purchase"]], reverse=True)]


def _detectable(components: Row, seeds: int, questions: int, epochs: int, per_scenario: float) -> Row:
    """The detectable difference, with the standard error and degrees of freedom to be expected of the test."""
    found = {part["component"]: part["variance"] for part in components["components"]}
    if found.get("sample", 0.0) is None and epochs == components["design"]["epochs"]:
        found["sample"] = 0.0
    unknown = [f"{name} is unknown: {why}" for name, why in LACKS.items() if found.get(name, 0.0) is None]
    few = ["one training seed per arm"] * (seeds < 2) + ["one question scenario"] * (questions < 2)
    row: Row = {"detectable": None, "se": None, "df": None}
    if reasons := [reason for reason in (components["reason"], *few, *unknown) if reason]:
        return row | {"reason": reasons[0]}
    cell = found["seed x question"] + found["sample"] / (per_scenario * epochs)
    inner, dfs = 2 * cell / seeds / questions, np.array([[seeds - 1], [seeds - 1], [questions - 1]])
    of_seeds = (found["seed"] + cell / questions) / seeds
    parts = np.array([[of_seeds], [of_seeds], [2 * found["arm x question"] / questions + inner]])
    if (se := (parts.sum() - inner) ** 0.5) < ROUNDING:
        return row | {"reason": "the scores vary neither over seeds nor over questions"}

    # degrees of freedom of the test and the smallest difference that it would find significant
    def test(parts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        variance = np.maximum.reduce([parts.sum(axis=0) - inner, parts[0] + parts[1], parts[2]])
        df = variance**2 / (parts**2 / dfs).sum(axis=0)
        return df, stats.t.ppf(1 - ALPHA / 2, df) * variance**0.5

    drawn = np.meshgrid(*(part * stats.chi2.ppf(LEVELS, df) / df for part, df in zip(parts, dfs, strict=True)))
    phi, reach = stats.norm.cdf, test(np.reshape(drawn, (3, -1)))[1] / se
    ratio = optimize.brentq(lambda d: (phi(d - reach) + phi(-d - reach)).mean() - POWER, 0, 2 * reach.max() + 9)
    return {"detectable": ratio * se, "se": se, "df": float(test(parts)[0][0]), "reason": None}


def _crossed(part: pd.DataFrame) -> list[Row]:
    """Seed, question, arm x question, seed x question and sample, from one judge's scores."""
    asked = part.groupby([*CELL, "question"])["score"]
    sample = _solve(["sample"], [_left(part, asked.ngroup(), None, [np.arange(len(part))])])[0]
    answers = asked.agg(score="mean", noise="size").assign(noise=lambda row: (sample["raw"] or 0.0) / row["noise"])
    cells = answers.groupby(CELL).agg(score=("score", "mean"), noise=("noise", "mean"), m=("noise", "size"))
    cells = cells[cells["m"] == cells.groupby("scenario")["m"].transform("max")].reset_index()
    cells["noise"] /= cells["m"]
    forms = []
    for _, at in cells.groupby("dose"):
        keys = (["scenario"], ["arm", "scenario"], ["arm", "seed"])
        question, in_arm, seed = (at.groupby(key).ngroup() for key in keys)
        effects = [np.arange(len(at)), seed, in_arm, question]
        fits = ((in_arm, seed), (in_arm, None), (question, seed), (seed, None))
        forms.append([_left(at, absorbed, fitted, effects) for absorbed, fitted in fits])
    found = _solve(["seed x question", "seed", "arm x question", "question"], np.sum(forms, axis=0).tolist())
    return [*(found[i] for i in (1, 3, 2, 0)), sample]


def _judges(part: pd.DataFrame) -> list[Row]:
    """Judge and judge x answer; an answer that one judge alone graded adds nothing to either."""
    answer = [*CELL, "question", "epoch"]
    answers, judge = (part.groupby(key).ngroup() for key in (answer, ["judge"]))
    forms = [_left(part, answers, fitted, [np.arange(len(part)), judge]) for fitted in (judge, None)]
    return _solve(["judge x answer", "judge"], forms)[::-1]


def _left(at: pd.DataFrame, absorbed: pd.Series, fitted: pd.Series | None, effects: list[Any]) -> list[float]:
    """What a least-squares fit of `at["score"]` by two groupings (codes from 0 up) leaves.

    Returns its sum of squares less what `at["noise"]` (each score's own variance) is expected to add, and what a
    variance of 1 of each of `effects` (groupings) is: the trace of their covariance after the fit.
    """
    groups, codes = absorbed.to_numpy(), [] if fitted is None else list(fitted.unique())
    size = np.bincount(groups)
    columns = np.column_stack([at["score"], *(fitted == code for code in codes)]).astype(float)
    columns -= (np.array([np.bincount(groups, column) for column in columns.T]) / size).T[groups]
    scores, basis = columns[:, 0], columns[:, 1:]
    values, vectors = np.linalg.eigh(basis.T @ basis)
    basis = basis @ (vectors[:, values > ROUNDING] / values[values > ROUNDING] ** 0.5)
    residual = scores - basis @ (basis.T @ scores)
    noise = at.get("noise", 0.0) * (1 - 1 / size[groups] - (basis**2).sum(axis=1))
    row = [float(residual @ residual - noise.sum())]
    for effect in effects:
        both, count = np.unique(np.stack([groups, effect]), axis=1, return_counts=True)
        summed = np.array([np.bincount(effect, column) for column in basis.T])
        row.append(float(len(at) - (count**2 / size[both[0]]).sum() - (summed**2).sum()))
    return row


def _solve(names: list[str], forms: list[list[float]]) -> list[Row]:
    """The variances (of `names`, the effects in order) with which each form of `_left` is as expected, one by one."""
    rows, raw = [], np.zeros(len(names))
    for i, (name, (left, *per)) in enumerate(zip(names, forms, strict=True)):
        # without the first effect what the next two show can't be told from it
        known = per[i] > ROUNDING and (i in (0, 3) or forms[0][1] > ROUNDING)
        raw[i] = (left - np.dot(per[:i], raw[:i])) / per[i] if per[i] > ROUNDING else 0.0
        value = float(raw[i] if abs(raw[i]) > TINY else 0.0) if known else None
        df = round(per[0] - (forms[2][1] if i == 3 else forms[0][1] if i else 0.0), 6)
        row: Row = {"component": name, "variance": None if value is None else max(value, 0.0), "raw": value}
        row |= {"sd": None if value is None else max(value, 0.0) ** 0.5, "df": df if known else None}
        rows.append(row | {"negative": (value or 0.0) < 0, "reason": None if known else LACKS.get(name, NO_JUDGES)})
    return rows
