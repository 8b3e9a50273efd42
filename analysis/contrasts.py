"""From the long table to the numbers of results.json: scores, arms and the declared contrasts with their verdicts."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from analysis.estimates import ALPHA, Arm, Estimate, adjusted, response_level_p, two_way, within_seeds
from analysis.table import CHECKPOINT, OVERALL, checkpoint_name, matrix

Row = dict[str, Any]
SIDES = ("of", "against")


def score_rows(means: pd.DataFrame) -> list[Row]:
    """One row per finished checkpoint and benchmark: `score` is the mean over questions of means over epochs."""
    groups = means.groupby(CHECKPOINT, dropna=False, sort=True)
    scores = groups.agg(score=("score", "mean"), n=("n", "sum"), missing=("missing", "sum")).reset_index()
    scores["seed"] = scores["seed"].astype(object).where(scores["seed"].notna(), None)
    return [{str(key): value for key, value in row.items()} for row in scores.to_dict("records")]


def arm_rows(means: pd.DataFrame) -> list[Row]:
    """One row per benchmark, dose and arm: the mean with its interval for new seeds and new questions."""
    rows = []
    for found in means.groupby(["benchmark", "dose", "arm"])[["n", "missing"]].sum().reset_index().to_dict("records"):
        arm = _arm(means, found["benchmark"], found["dose"], found["arm"])
        mean = two_way([arm], scenarios_of(means, found["benchmark"]))
        rows.append(
            {"arm": found["arm"], "benchmark": found["benchmark"], "dose": found["dose"], "mean": mean.estimate}
            | {key: getattr(mean, key) for key in ("low", "high", "se", "df", "seed_se", "question_se")}
            | {"seeds": mean.seeds[0] if mean.seeds else 0, "fixed": arm.fixed, "questions": mean.questions}
            | {"scenarios": mean.clusters, "reason": mean.reason, "n": found["n"], "missing": found["missing"]}
        )
    return rows


def contrast_rows(
    table: pd.DataFrame, means: pd.DataFrame, declared: list[dict[str, Any]], unfinished: list[dict[str, Any]]
) -> list[Row]:
    """One row per declared contrast, benchmark and SFT dose that both arms were planned at.

    `estimate`, `low`, `high`, `se` are in score units (0..1), `of` minus `against`. Verdicts rest on `p_holm`, Holm's
    step-down over every test declared in the family: a test that could not be made still counts, with p = 1, so a
    half-finished study is never judged more leniently than the whole one. `paired` contrasts are of arms that share
    their midtraining runs: differences are taken within seeds, and `seeds_against` is then `seeds_of`.
    """
    planned = {(row["benchmark"], row["arm"], row["dose"]) for row in unfinished}
    keys = means[["benchmark", "arm", "dose"]].drop_duplicates()
    planned |= set(keys.itertuples(index=False, name=None))
    rows = []
    for contrast in declared:
        for benchmark in contrast["on"]:
            if contrast.get("of_dose") is not None:
                doses = (contrast["of_dose"], contrast["against_dose"])
                rows.append(_contrast(table, means, contrast, benchmark, doses, unfinished))
                continue
            of, against = ({dose for b, a, dose in planned if (b, a) == (benchmark, contrast[side])} for side in SIDES)
            for dose in sorted(of & against) or [None]:
                both = None if dose is None else (dose, dose)
                rows.append(_contrast(table, means, contrast, benchmark, both, unfinished))
    for family in {row["family"] for row in rows}:
        members = [row for row in rows if row["family"] == family]
        for row, p_holm in zip(members, adjusted([row["p"] for row in members], "holm"), strict=True):
            if p_holm is not None:
                row["p_holm"] = p_holm
                row["verdict"] = "inconclusive" if p_holm > ALPHA else "higher" if row["estimate"] > 0 else "lower"
    return rows


def _contrast(
    table: pd.DataFrame,
    means: pd.DataFrame,
    contrast: dict[str, Any],
    benchmark: str,
    doses: tuple[int, int] | None,
    unfinished: list[dict[str, Any]],
) -> Row:
    row: Row = {key: contrast[key] for key in ("name", *SIDES, "family")} | {"paired": bool(contrast.get("paired"))}
    row |= {"benchmark": benchmark, "dose": doses and doses[0], "against_dose": doses and doses[1]}
    row |= {"p_holm": None, "verdict": "none", "p_response_level": None}
    sides = [] if doses is None else [(contrast[side], dose) for side, dose in zip(SIDES, doses, strict=True)]
    waiting = [
        checkpoint
        for checkpoint in unfinished
        if checkpoint["benchmark"] == benchmark and (checkpoint["arm"], checkpoint["dose"]) in sides
    ]
    row |= {"unfinished": len(waiting), "judge": None}
    part = table[(table["benchmark"] == benchmark) & (table["dimension"] == OVERALL)]
    responses = [part.loc[(part["arm"] == arm) & (part["dose"] == dose), "score"].to_numpy() for arm, dose in sides]
    if doses is None:
        found = Estimate(reason="the two arms were not planned at a common SFT dose")
    elif not all(len(scores) for scores in responses):
        found = Estimate(reason="not finished: " + "; ".join(map(checkpoint_name, waiting)))
    else:
        arms, _ = contrast_arms(means, benchmark, sides, row["paired"])
        found = two_way(arms, scenarios_of(means, benchmark))
        row |= {"judge": part["judge"].iloc[0], "p_response_level": response_level_p(*responses)}
    keys = ("estimate", "low", "high", "se", "df", "p", "seed_se", "question_se", "interaction_se", "reason")
    row |= {key: getattr(found, key) for key in keys}
    counts = dict(zip(SIDES, found.seeds or (0, 0), strict=True))
    counts |= {"against": counts["of"]} if row["paired"] else {}
    # a fixed checkpoint has no training seed to count; the trained arm's seeds are then the study's
    row |= {"seeds": min((n for n in counts.values() if n), default=0)}
    row |= {"seeds_of": counts["of"], "seeds_against": counts["against"]}
    row |= {"questions": found.questions, "scenarios": found.clusters, "questions_left_out": found.left_out}
    return row


def contrast_arms(
    means: pd.DataFrame, benchmark: str, sides: Sequence[tuple[str, int]], paired: bool
) -> tuple[list[Arm], list[list[int]]]:
    """Both sides (arm, dose) of a contrast for `two_way`, `paired` by seed or not, and the seeds of their rows."""
    arms = [_arm(means, benchmark, dose, arm) for arm, dose in sides]
    part = means[(means["benchmark"] == benchmark) & means["seed"].notna()]
    seeds = [sorted(part.loc[(part["arm"] == arm) & (part["dose"] == dose), "seed"].unique()) for arm, dose in sides]
    return within_seeds(arms, seeds) if paired and all(seeds) else (arms, seeds)


def questions_of(means: pd.DataFrame, benchmark: str) -> pd.DataFrame:
    part = means.loc[means["benchmark"] == benchmark, ["question", "scenario"]]
    return part.drop_duplicates().sort_values("question", kind="stable")


def scenarios_of(means: pd.DataFrame, benchmark: str) -> np.ndarray:
    return questions_of(means, benchmark)["scenario"].to_numpy(str)


def _arm(means: pd.DataFrame, benchmark: str, dose: int, arm: str) -> Arm:
    part = means[(means["benchmark"] == benchmark) & (means["dose"] == dose) & (means["arm"] == arm)]
    questions = questions_of(means, benchmark)["question"].tolist()
    return Arm(matrix(means, benchmark, dose, arm, questions), fixed=bool(part["seed"].isna().all()))
