"""A lesson of half an hour from a study's results: one page to predict, reveal and answer.

The page is one file that needs no network and no script. It is about the first contrast that has a
verdict on a judged benchmark: what one training seed shows of it, what all seeds show, and what a
test over answers finds between trainings of one arm, where there is no effect.
"""

import itertools
import statistics
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy import stats

from analysis.estimates import response_level_p
from analysis.headline import dummy_note, interval, p_value, percent
from analysis.report_tables import verdict_name
from analysis.rows import Results, Row, sides_of
from analysis.table import OVERALL
from core import html_page
from core.errors import UserError

Answers = npt.NDArray[np.float64]  # the scores of a training's answers
FILE = "lesson.html"
LEVEL = 0.05
NULL_STUDIES = 1000
NULL_SEEDS = 3
NULL_ANSWERS = 26 * 30  # of a training
NULL_SD = 0.04
VERDICTS = ("higher", "lower", "inconclusive")


@dataclass(frozen=True)
class Pair:
    """Two trainings of one arm, compared over answers.

    Attributes:
        arm: The arm of both.
        seeds: Of the one with the higher mean, and of the other.
        difference: Of their means, 0 to 1.
        p: Of Welch's t-test over answers (`response_level_p`).
    """

    arm: str
    seeds: tuple[int, int]
    difference: float
    p: float


@dataclass(frozen=True)
class NullStudies:
    """Simulated studies whose two arms are alike.

    Attributes:
        answers_found: Share in which the test over answers finds a difference.
        seeds_found: Share in which a t-test over the seeds' means does.
        example: The means of the trainings of both arms in the first study of the first kind.
        p_answers: Of the example, over answers.
        p_seeds: Of the example, over the seeds' means.
    """

    answers_found: float
    seeds_found: float
    example: tuple[list[float], list[float]]
    p_answers: float
    p_seeds: float


def null_studies() -> NullStudies:
    """NULL_STUDIES studies of NULL_SEEDS trainings an arm; only seeds and answers vary.

    Each training has its own share of passed answers, whose SD over seeds is NULL_SD.
    """
    rng = np.random.default_rng(0)
    shape = (NULL_STUDIES, 2, NULL_SEEDS, 1)
    shares = np.clip(rng.normal(0.4, NULL_SD, shape), 0.05, 0.95)
    answers = (rng.random((*shape[:3], NULL_ANSWERS)) < shares).astype(float)
    tested = [response_level_p(*study.reshape(2, -1)) for study in answers]
    p_answers = [1.0 if p is None else p for p in tested]
    means = answers.mean(axis=3)
    p_seeds = stats.ttest_ind(means[:, 0], means[:, 1], axis=1).pvalue
    first = next(number for number, p in enumerate(p_answers) if p < LEVEL <= p_seeds[number])
    treatment, control = means[first].tolist()
    return NullStudies(
        float(np.mean(np.array(p_answers) < LEVEL)),
        float(np.mean(p_seeds < LEVEL)),
        (treatment, control),
        p_answers[first],
        float(p_seeds[first]),
    )


@dataclass(frozen=True)
class Lesson:
    """What the page shows.

    Attributes:
        contrast: The row of results.json that all of it is about.
        scores: Arm -> seed -> mean score, of the two arms of the contrast.
        p_first: Of the test over answers with the first seed of each arm alone.
        pairs: All pairs of trainings of one arm, the smallest p first.
        questions: Questions with their answers.
    """

    contrast: Row
    scores: dict[str, dict[int, float]]
    p_first: float
    pairs: list[Pair]
    questions: list[tuple[str, str]]

    @property
    def first_seed(self) -> int:
        """The seed that is shown first."""
        return min(self.scores[self.contrast["treatment"]])

    @property
    def num_found(self) -> int:
        """Pairs of one arm between which the test over answers finds a difference."""
        return sum(pair.p < LEVEL for pair in self.pairs)


def make_lesson(results: Results, table: pd.DataFrame) -> Lesson:
    """The lesson of a study.

    `table` holds the scores of results/STUDY/scores.parquet.

    Raises:
        UserError: No contrast compares arms of several seeds.
    """
    contrast = _contrast(results)
    scores: dict[str, dict[int, float]] = {}
    by_seed: dict[tuple[str, int], Answers] = {}
    for arm, dose in sides_of(contrast):
        part = table[
            (table["benchmark"] == contrast["benchmark"])
            & (table["dimension"] == OVERALL)
            & (table["judge"] == contrast["judge"])
            & (table["arm"] == arm)
            & (table["dose"] == dose)
        ]
        for seed, rows in part.groupby("seed"):
            by_seed[arm, int(seed)] = rows["score"].to_numpy()
        scores[arm] = {
            row["seed"]: row["score"]
            for row in results["scores"]
            if (row["arm"], row["dose"], row["benchmark"]) == (arm, dose, contrast["benchmark"])
        }
    treatment, control = (by_seed[arm, min(scores[arm])] for arm in scores)
    pairs = [
        _pair(arm, seeds, scores[arm], by_seed)
        for arm in scores
        for seeds in itertools.combinations(sorted(scores[arm]), 2)
    ]
    pairs.sort(key=lambda pair: pair.p)
    p_first = response_level_p(treatment, control)
    num_found = sum(pair.p < LEVEL for pair in pairs)
    questions = _questions(contrast, scores, num_found, len(pairs))
    return Lesson(contrast, scores, float(p_first or 1.0), pairs, questions)


def _contrast(results: Results) -> Row:
    """The first contrast on a judged benchmark between two arms of several seeds each."""
    for row in results["contrasts"]:
        seeds = min(row["treatment_seeds"] or 0, row["control_seeds"] or 0)
        if seeds > 1 and row["p_response_level"] is not None and row["verdict"] != "none":
            return dict(row)
    raise UserError(
        where=f"results of {results['study']}",
        what="no contrast between two arms of several seeds has a verdict",
        fix="python -m study run studies/class.yaml",
    )


def _pair(
    arm: str,
    seeds: tuple[int, int],
    scores: dict[int, float],
    by_seed: dict[tuple[str, int], Answers],
) -> Pair:
    high, low = sorted(seeds, key=lambda seed: scores[seed], reverse=True)
    p = response_level_p(by_seed[arm, high], by_seed[arm, low])
    return Pair(arm, (high, low), scores[high] - scores[low], 1.0 if p is None or p != p else p)


def _questions(
    contrast: Row, scores: dict[str, dict[int, float]], num_found: int, num_pairs: int
) -> list[tuple[str, str]]:
    """Questions about the study, each with its answer from results.json."""
    treatment, control = scores
    spread = {arm: max(by.values()) - min(by.values()) for arm, by in scores.items()}
    widest = max(spread, key=lambda arm: spread[arm])
    overlap = max(scores[control].values()) >= min(scores[treatment].values())
    deviations = [statistics.stdev(by.values()) for by in scores.values()]
    sources = {
        "training seeds": contrast["seed_se"] or 0.0,
        "questions": contrast["question_se"] or 0.0,
    }
    larger = max(sources, key=lambda name: sources[name])
    return [
        (
            "How far apart are the arms over all seeds, in points?",
            f"{treatment} minus {control}: {percent(contrast['estimate'], '+')}, "
            f"interval {interval(contrast, '+')}.",
        ),
        (
            "Does the best training of one arm overlap with the worst of the other?",
            f"{'Yes' if overlap else 'No'}. {control} reaches "
            f"{percent(max(scores[control].values()))}, {treatment} goes down to "
            f"{percent(min(scores[treatment].values()))}.",
        ),
        (
            "By how many points do trainings of one arm differ that differ in their seed alone?",
            f"By up to {percent(spread[widest])} ({widest}). The standard deviations over seeds "
            f"are {' and '.join(percent(value) for value in deviations)}.",
        ),
        (
            "Which adds more to the standard error of the difference: the seeds or the questions?",
            f"The {larger}: {percent(sources['training seeds'])} points by training seeds, "
            f"{percent(sources['questions'])} by questions.",
        ),
        (
            "On how many questions does the difference point the other way?",
            f"On {contrast['questions_opposite']} of {contrast['questions']}; on "
            f"{contrast['questions_equal']} the arms are equal.",
        ),
        (
            "The test over answers gives one p, the test over seeds and questions another. Which "
            "are they, and which one answers whether a new training would differ?",
            f"Over answers {p_value(contrast['p_response_level'])}, over seeds and questions "
            f"{p_value(contrast['p'])}. The second: a new training is a new seed.",
        ),
        (
            "How many pairs of one arm may a test at 5 % tell apart, and how many does this one?",
            f"About {LEVEL * num_pairs:.0f} of {num_pairs} pairs. The test over answers finds "
            f"{num_found}.",
        ),
    ]


def lesson_page(results: Results, lesson: Lesson) -> str:
    """The page as HTML."""
    everything = [score for by in lesson.scores.values() for score in by.values()]
    margin = 0.15 * (max(everything) - min(everything) or 0.1)
    null = null_studies()
    return html_page.render(
        Path(__file__).with_name("lesson.html.j2"),
        results=results,
        lesson=lesson,
        contrast=lesson.contrast,
        verdicts=VERDICTS,
        verdict=verdict_name(lesson.contrast),
        low=max(0.0, min(everything) - margin),
        high=min(1.0, max(everything) + margin),
        percent=percent,
        p_value=p_value,
        interval=interval,
        dummy=dummy_note(results),
        level=LEVEL,
        null=null,
        null_scores=[", ".join(map(percent, scores)) for scores in null.example],
        null_seeds=NULL_SEEDS,
        null_sd=NULL_SD,
    )
