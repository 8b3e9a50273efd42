"""A contrast estimated again without each of its seeds, questions and scenarios in turn."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from analysis.contrasts import contrast_arms, questions_of, scenarios_of
from analysis.estimates import Arm, Estimate, two_way
from analysis.rows import Row, sides_of
from analysis.verdicts import INCONCLUSIVE, JUDGED, direction


@dataclass(frozen=True)
class Data:
    """Both arms' question means of a contrast.

    The columns of `arms` are `questions`, `scenarios` has theirs; `seeds` are the rows of each arm.
    `names` are those of the arms, empty where their runs are paired.
    """

    arms: list[Arm]
    seeds: list[list[int]]
    names: tuple[str, ...]
    questions: list[str]
    scenarios: np.ndarray

    def test(self) -> Estimate:
        return two_way(self.arms, self.scenarios)


def contrast_data(means: pd.DataFrame, contrast: Row) -> Data:
    """The data of a row of contrasts from `table.question_means`; both its arms have rows there."""
    sides = sides_of(contrast)
    of_sides = [(means["arm"] == arm) & (means["dose"] == dose) for arm, dose in sides]
    benchmark = contrast["benchmark"]
    means = means[(means["benchmark"] == benchmark) & (of_sides[0] | of_sides[1])]
    arms, seeds = contrast_arms((means, means), benchmark, sides, contrast["paired"])
    names = () if contrast["paired"] else tuple(arm for arm, _ in sides)
    questions = questions_of(means, benchmark)["question"].tolist()
    return Data(arms, seeds, names, questions, scenarios_of(means, benchmark))


def without_seed(data: Data) -> Iterator[tuple[str, Estimate]]:
    """The name of each seed, and the estimate without it."""
    for side, (arm, seeds) in enumerate(zip(data.arms, data.seeds, strict=True)):
        for n, seed in enumerate(seeds):
            fewer = [*data.arms]
            fewer[side] = arm.drop_seed(n)
            arm_name = f"{data.names[side]} " if data.names else ""
            yield f"{arm_name}seed {seed}", two_way(fewer, data.scenarios)


def without_question(data: Data) -> Iterator[tuple[str, Estimate]]:
    """The name of each question that both arms have grades of, and the estimate without it."""
    for n in np.flatnonzero(_graded(data)):
        others = np.arange(len(data.questions)) != n
        yield f"question {data.questions[n]}", _with_questions(data, others)


def without_scenario(data: Data) -> Iterator[tuple[str, Estimate]]:
    """The name of each such scenario, and the estimate without its questions."""
    for scenario in np.unique(data.scenarios[_graded(data)]):
        yield f"scenario {scenario}", _with_questions(data, data.scenarios != scenario)


def _graded(data: Data) -> np.ndarray:
    """Which questions have a grade in both arms; shape (questions,)."""
    graded: np.ndarray = np.logical_and.reduce(
        [np.isfinite(arm.scores).any(axis=0) for arm in data.arms]
    )
    return graded


def _with_questions(data: Data, chosen: np.ndarray) -> Estimate:
    arms = [replace(arm, scores=arm.scores[:, chosen]) for arm in data.arms]
    return two_way(arms, data.scenarios[chosen])


def count_holding(contrast: Row, tests: Sequence[Estimate]) -> tuple[int, int] | None:
    """In how many of `tests` the verdict of a row of contrasts holds, and their number.

    The p of a test is held against `p_needed` of the row, so that the other tests of the family
    stay as they are. Tests that could not be made don't count. None where there is no verdict to
    hold, or no test.
    """
    made = [test for test in tests if test.p is not None]
    if contrast["verdict"] not in JUDGED or not made:
        return None
    verdicts = [
        direction(test.estimate or 0.0) if (test.p or 0.0) <= contrast["p_needed"] else INCONCLUSIVE
        for test in made
    ]
    return verdicts.count(contrast["verdict"]), len(made)
