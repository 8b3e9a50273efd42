"""Variance components of the scores, with their upper limits."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from analysis.planned_test import Kind
from analysis.rows import Row
from analysis.table import OVERALL, REPLICATE, first_seeds

ARM = ["dose", "arm"]
ROUNDING = 1e-6  # of a count
UPPER = 0.95  # one-sided level of the upper limits
NO_SEED = -1  # stands for the training seed of a fixed checkpoint
TINY = 1e-12  # of a variance
CELL = ["dose", "arm", "unit", "scenario"]
RUN = [*CELL, "seed"]
NO_JUDGES = "no two answers were graded by the same two judges"
NOT_PAIRED = "no answer has grades in both arms for one training seed"
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
    kind: Kind = "free",
) -> Row:
    """Variance components of one benchmark's overall scores, in squared score units.

    Args:
        table: the long table.
        benchmark: its name.
        judge: the one that decides; None: the only one.
        sides: (arm, dose) of both sides of a contrast, and nothing else; empty: all arms and doses.
        kind: of the contrast. With `fixed` the side without a training seed counts as an arm with
            one. With `paired` the components are those of the difference within seeds, halved: of
            one side, without what both sides share.

    Arms are fixed; training seeds (each of one arm), questions and interactions are random:
    score = arm + seed + question + arm x question + seed x question + sample (of the answer).
    Where a corpus was written several times, its replicates stand for the seeds, with the means of
    the runs on each.

    A question stands for its scenario, whose questions (translations) are averaged; a scenario that
    lacks one in a checkpoint is missing there. Doses are separate, their sums of squares added;
    other checkpoints without a training seed are left out. Henderson's method III (Biometrics 9,
    1953; Searle, Casella and McCulloch, "Variance Components", 1992, ch. 5): the residual sum of
    squares of each fit, with one more effect each, is set equal to its expectation over the cells
    that exist. In a balanced design this is the analysis of variance's estimator. With missing
    cells it stays unbiased, and a seed that lost an easy question isn't a worse one.

    Returns:
        `components`: seed, question, arm x question, seed x question, sample; over answers that
        several judges graded, judge (how far their means differ) and judge x answer. Each has
        `variance`, its root `sd`, the `df` of the sum of squares that shows it, `raw` (before a
        `negative` estimate was set to 0), `upper` (its one-sided 95 % limit: `_upper_limit`) and
        `reason` where it is None. `by_arm`: the same of
        each arm alone, whose arm x question is then part of question. `design`, the start of
        `next_data`: arms, seeds (per arm, the fewest), runs (of each), questions (scenarios),
        per_scenario (questions in each), epochs. `training_unit`: what stands for the seed.
    """
    part = table[(table["benchmark"] == benchmark) & (table["dimension"] == OVERALL)]
    part = part.dropna(subset=["score"])
    if kind == "fixed":
        part = part.assign(seed=part["seed"].fillna(NO_SEED))
    part = part.dropna(subset=["seed"])
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
        "kind": kind,
        "components": [],
        "by_arm": [],
        "design": None,
        "training_unit": "seed",
    }
    primary = part[part["judge"] == decides]
    trained = primary[primary["seed"] != NO_SEED]
    if trained.empty:
        reason = "no checkpoint with a training seed has grades"
        if len(judges) > 1:
            reason = f"several judges graded ({', '.join(judges)}): name the one that decides"
        return result | {"reason": reason}
    result["by_arm"] = [
        {"arm": str(arm), **component}
        for arm, group in trained.groupby("arm")
        for component in _crossed_components(group)
    ]
    result["training_unit"] = _training_unit(trained)
    count = trained[["arm", "scenario", "question", "epoch"]].nunique()
    result["design"] = {
        "arms": int(count["arm"]),
        "seeds": int(trained.groupby(ARM)["unit"].nunique().min()),
        "runs": len(trained[[*ARM, "seed"]].drop_duplicates())
        / len(trained[[*ARM, "unit"]].drop_duplicates()),
        "questions": int(count["scenario"]),
        "per_scenario": float(count["question"] / count["scenario"]),
        "epochs": int(count["epoch"]),
    }
    if kind == "paired":
        differences = _differences(primary)
        if differences.empty:
            return result | {"reason": NOT_PAIRED}
        result["components"] = [*_paired_components(differences), *_judge_components(part)]
    else:
        result["components"] = [*_crossed_components(primary), *_judge_components(part)]
    return result | {"reason": None}


def _training_unit(part: pd.DataFrame) -> str:
    """What is called seed: "corpus" where all corpora have replicates, "seed" where none has."""
    if REPLICATE not in part or part[REPLICATE].isna().all():
        return "seed"
    return "seed or corpus" if part[REPLICATE].isna().any() else "corpus"


def _side_names(sides: Sequence[tuple[str, int]]) -> list[str]:
    """The arms, with their doses where one arm is compared with itself."""
    arms = [arm for arm, _ in sides]
    return arms if len(set(arms)) == len(arms) else [f"{arm} at {dose}" for arm, dose in sides]


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
    noise = float(cells["noise"].mean())
    summed = np.sum(forms, axis=0).tolist()
    in_seed, seed_row, in_arm_row, question_row = _solve(names, summed, noise)
    return [seed_row, question_row, in_arm_row, in_seed, sample]


def _differences(part: pd.DataFrame) -> pd.DataFrame:
    """The difference of two arms within seeds, over the root of 2, as the scores of one arm."""
    answer = ["seed", "scenario", "question", "epoch"]
    first, second = (group.set_index(answer)["score"] for _, group in part.groupby("arm"))
    differences = ((first - second) / 2**0.5).dropna().rename("score").reset_index()
    # A seed is trained on the same replicate of a corpus in both arms.
    units = part.groupby("seed")["unit"].min()
    return differences.assign(arm="difference", dose=0, unit=differences["seed"].map(units))


def _paired_components(differences: pd.DataFrame) -> list[Row]:
    """Components from `_differences`, in which the question's own effect cancels."""
    seed, question, in_arm, in_seed, sample = _crossed_components(differences)
    cancelled = in_arm | {"component": "question", "reason": "cancels within seeds"}
    return [seed, cancelled, question | {"component": "arm x question"}, in_seed, sample]


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


def _solve(names: Sequence[str], forms: Sequence[Sequence[float]], noise: float = 0.0) -> list[Row]:
    """The variances with which each form of `_residual_form` is as expected, one by one.

    `names` are the effects, in the order of the coefficients in `forms`; `noise` is the variance
    that each score has besides, whose expectation the forms leave out.
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
        upper = None
        if value is not None and df >= 1:
            subtracted, subtracted_df = _subtracted(i, forms, noise)
            weight = df / coefficients[i]
            upper = weight * _upper_limit(value / weight, subtracted, df, subtracted_df)
        rows.append(
            {
                "component": name,
                "variance": variance,
                "raw": value,
                "sd": None if variance is None else variance**0.5,
                "upper": upper,
                "df": df if identified else None,
                "negative": (value or 0.0) < 0,
                "reason": None if identified else LACKS.get(name, NO_JUDGES),
            }
        )
    return rows


def _subtracted(i: int, forms: Sequence[Sequence[float]], noise: float) -> tuple[float, float]:
    """The mean square that effect `i` is estimated over, and its degrees of freedom.

    It is that of the first effect, but for the last of four that of the third. The first effect is
    estimated over the noise, which many more degrees of freedom show: it counts as known.
    """
    if i == 0:
        return noise, np.inf
    residual, df = forms[0][0], forms[0][1]
    more_df = forms[2][1] - df if i == 3 else 0.0
    if more_df > ROUNDING:
        return max((forms[2][0] - residual) / more_df + noise, 0.0), more_df
    return (max(residual / df + noise, 0.0), df) if df > ROUNDING else (noise, np.inf)


def _upper_limit(difference: float, subtracted: float, df: float, subtracted_df: float) -> float:
    """The one-sided 95 % upper limit of the difference of two expected mean squares, at least 0.

    `difference` of the mean squares estimates it; `subtracted` is the second of them. Modified
    large-sample limit of Ting, Burdick, Graybill, Jeyaratnam and Lu (J. Stat. Comput. Simul. 35,
    1990); Burdick and Graybill, "Confidence Intervals on Variance Components" (1992), 3.3. It is
    exact where the second is known, and for one mean square alone that of the chi-squared
    distribution.
    """
    first = max(difference + subtracted, 0.0)
    of_first = df / stats.chi2.ppf(1 - UPPER, df) - 1
    if np.isinf(subtracted_df):
        return float(max(difference + of_first * first, 0.0))
    of_second = 1 - subtracted_df / stats.chi2.isf(1 - UPPER, subtracted_df)
    ratio = stats.f.ppf(1 - UPPER, df, subtracted_df)
    crossed = ((1 - ratio) ** 2 - (of_first * ratio) ** 2 - of_second**2) / ratio
    squares = (of_first * first) ** 2 + (of_second * subtracted) ** 2
    root = max(squares + crossed * first * subtracted, 0.0) ** 0.5
    return max(float(difference + root), 0.0)
