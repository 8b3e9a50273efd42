"""What is reported beside a contrast's verdict: by hand, by simulation, and in every output."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml

from analysis.contrast_details import cohens_d, prediction_interval, question_signs
from analysis.estimates import Arm, adjusted, pair_by_seed, two_way
from analysis.flow import flow_rows
from analysis.results import NORMALIZED_TASKS
from analysis.settings import AnalysisSettings
from analysis.table import (
    OVERALL,
    dimension_normalized_averages,
    grade_counts,
    question_means,
)
from analysis.verdicts import decide
from tests.analysis.small_study import drop, edit, results_of, study
from tests.analysis.test_robustness import table

ROOT = Path(__file__).parents[2]
SD = {"question": 0.1, "arm_question": 0.05, "seed": 0.06, "seed_question": 0.05}


def arms_and_new_runs(rng: np.random.Generator, seeds: tuple[int, int]) -> tuple[list[Arm], float]:
    """Two arms without a difference, and the difference between one new run of each.

    A new run's difference is over all questions, so that the questions' effects are not in it.
    """
    question = rng.normal(0, SD["question"], 30)
    arms = []
    new_runs = []
    for n in seeds:
        scores = question + rng.normal(0, SD["arm_question"], 30)
        scores = scores + rng.normal(0, SD["seed_question"], (n or 1, 30))
        if n:
            scores += rng.normal(0, SD["seed"], (n, 1))
        arms.append(Arm(scores, fixed=not n))
        new_runs.append(rng.normal(0, SD["seed"]) if n else 0.0)
    return arms, new_runs[0] - new_runs[1]


@pytest.mark.parametrize("seeds", [(3, 3), (5, 5), (4, 0)])
def test_one_new_run_lies_in_the_prediction_interval(seeds: tuple[int, int]) -> None:
    covered, narrow = 0, 0
    studies = 400
    for number in range(studies):
        arms, difference = arms_and_new_runs(np.random.default_rng(number), seeds)
        result = two_way(arms, np.arange(30))
        interval = prediction_interval(result, arms)
        assert interval is not None and result.low is not None and result.high is not None
        assert interval[0] < result.low and interval[1] > result.high
        covered += interval[0] <= difference <= interval[1]
        narrow += result.low <= difference <= result.high
    # of 400 studies, .95 has a standard error of .011
    assert covered / studies > 0.93
    assert narrow / studies < 0.9, "the interval of the mean is none for a run"


def test_prediction_of_a_paired_contrast_by_hand() -> None:
    """Without question effects the interval is t(2) x sd x root(1 + 1/3) of the differences."""
    shift = np.array([[0.1], [0.2], [0.4]])
    arms, _ = pair_by_seed(
        [Arm(0.3 + shift + np.zeros(4)), Arm(np.full((3, 4), 0.3))], [[0, 1, 2]] * 2
    )
    result = two_way(arms, np.arange(4))
    low, high = prediction_interval(result, arms) or (0.0, 0.0)
    assert (high - low) / 2 == pytest.approx(4.302653 * shift.std(ddof=1) * (4 / 3) ** 0.5)
    assert (high + low) / 2 == pytest.approx(0.7 / 3)
    one_seed = [Arm(shift.T)] * 2
    assert prediction_interval(two_way(one_seed, np.arange(3)), one_seed) is None


def test_prediction_is_of_one_run_where_a_corpus_has_several() -> None:
    """Three corpora of two runs each, whose means are .1, .3, .5 and which are .1 from them."""
    means = np.array([0.0, 0.2, 0.2, 0.4, 0.4, 0.6])
    arm = Arm(means[:, None] + np.zeros(4), replicates=(0, 0, 1, 1, 2, 2))
    fixed = Arm(np.zeros((1, 4)), fixed=True)
    low, high = prediction_interval(two_way([arm, fixed], np.arange(4)), [arm, fixed]) or (0.0, 0.0)
    # over corpora .04, and half of the .02 between two runs of one
    of_run = 0.04 + 0.02 / 2
    assert (high - low) / 2 == pytest.approx(4.302653 * (of_run + 0.04 / 3) ** 0.5)


def test_cohens_d_and_signs_by_hand() -> None:
    treatment, control = np.array([1.0, 1.0, 0.0, 0.0, np.nan]), np.array([0.0, 0.0, 0.0, 1.0])
    sd = ((1 / 3 + 1 / 4) / 2) ** 0.5
    assert cohens_d(0.25, [treatment, control]) == pytest.approx(0.25 / sd)
    assert cohens_d(None, []) is None
    assert cohens_d(0.1, [np.ones(3), np.zeros(3)]) is None
    first = Arm(np.array([[0.5, 0.2, 0.3, np.nan], [0.7, 0.2, 0.3, np.nan]]))
    second = Arm(np.array([[0.1, 0.4, 0.3, 0.1]]))
    assert question_signs([first, second], 0.1) == (1, 1)
    assert question_signs([first, second], -0.1) == (1, 1)
    assert question_signs([second, Arm(first.scores - 0.2)], -0.1) == (2, 0)


def test_the_p_that_holm_needs_is_where_it_decides() -> None:
    rng = np.random.default_rng(0)
    for number in range(10):
        level = (0.05, 0.0114)[number % 2]
        ps = (10 ** rng.uniform(-4, 0, rng.integers(1, 9))).tolist()
        rows = [
            {"family": "f", "p": p, "estimate": 1.0, "treatment": "a", "unfinished": 0} for p in ps
        ]
        decide(rows, [[] for _ in rows], level)
        for n, row in enumerate(rows):
            needed = row["p_needed"]
            assert (ps[n] <= needed) == (row["verdict"] == "higher")
            for p, is_decided in ((needed * 0.999, True), (needed * 1.001, False)):
                holm = adjusted([*ps[:n], p, *ps[n + 1 :]], "holm")[n]
                assert holm is not None and (holm <= level) == is_decided


def test_dimensions_and_grades_by_hand() -> None:
    """Two dimensions of two questions and one; one grade is missing."""
    rows = [
        ("A", 0, "q0", {OVERALL: 0.5, "Harm": 1.0, "Scope": 0.0}),
        ("A", 0, "q1", {OVERALL: 0.0, "Harm": 0.0}),
        ("A", 1, "q0", {OVERALL: 1.0, "Harm": 1.0, "Scope": np.nan}),
        ("A", 1, "q1", {OVERALL: 1.0, "Harm": 1.0}),
    ]
    data = table(*rows)
    counts = grade_counts(data).loc[("ahb", 0, "A")]
    assert (counts["grades"], counts["missing_grades"]) == (5, 1)
    # the first run's dimensions have means .5 and 0, the second's one dimension has 1
    average = dimension_normalized_averages(data, question_means(data))
    assert average["ahb", 0, "A"] == pytest.approx((0.25 + 1) / 2)
    # a benchmark whose dimensions do not weigh the same has no number
    data.loc[0, "score"] = 0.75
    assert dimension_normalized_averages(data, question_means(data)).empty
    without = data[data["dimension"] == OVERALL]
    assert grade_counts(without).loc[("ahb", 0, "A"), "grades"] == 4


def test_official_averages_are_of_the_tasks_that_anima_grades() -> None:
    files = sorted((ROOT / "eval/benchmarks").glob("*.yaml"))
    tasks = [
        file.stem for file in files if yaml.safe_load(file.read_text()).get("scorer") == "anima"
    ]
    assert tasks == [*NORMALIZED_TASKS]


def test_flow_from_planned_to_analysed(tmp_path: Path) -> None:
    """Of three runs one is not trained, and one trained but not evaluated."""
    context = study(tmp_path, doses=(0,))
    for role in ("animal-1-0-ahb", "animal-2-0-ahb"):
        drop(context, role)
    base = tmp_path / "runs/small"
    folder = base / "sft/animal-11111111"
    folder.mkdir(parents=True)
    (folder / "manifest.json").write_text(json.dumps({"identity": "1" * 64}))
    trained = {"cell": "sft/animal-11111111", "identity": "1" * 64}
    context.resources["unfinished"][0]["weights"] = trained
    settings = AnalysisSettings.parse(context.settings)
    scores = pd.read_parquet(context.inputs["animal-0-0-ahb"] / "scores.parquet")
    scores.loc[scores["question"] == "q001", "score"] = np.nan
    rows = flow_rows(
        scores.assign(benchmark="ahb", arm="animal"),
        settings,
        context.resources["unfinished"],
        base,
    )
    (row,) = (row for row in rows if (row["arm"], row["benchmark"]) == ("animal", "ahb"))
    checkpoints = [row[stage] for stage in ("planned", "trained", "evaluated", "graded")]
    assert checkpoints == [3, 2, 1, 1]
    assert (row["answers"], row["excluded"], row["ungraded"], row["analysed"]) == (24, 0, 2, 22)


@pytest.mark.slow
def test_everything_a_referee_asks_for_is_in_every_output(tmp_path: Path, undrawn: None) -> None:
    context = study(tmp_path)
    other = "second judge"
    context.settings["benchmarks"]["ahb"]["other_judges"] = [other]
    for row in [row for row in context.settings["rows"] if row["benchmark"] == "ahb"]:
        role = f"{row['role']}-other"
        context.inputs[role] = tmp_path / role
        context.inputs[role].mkdir()
        scores = pd.read_parquet(context.inputs[row["role"]] / "scores.parquet")
        scores.assign(judge=other).to_parquet(context.inputs[role] / "scores.parquet")
        context.settings["rows"].append(row | {"role": role, "judge": other})
    edit(context, "animal-0-0-ahb", lambda frame: frame)
    results = results_of(context)
    row = results["contrasts"][0]
    assert row["holds"]["judge"] == [1, 1] and row["holds"]["seed"][1] == 6
    assert row["prediction_low"] < row["low"] < row["high"] < row["prediction_high"]
    assert (row["answers_treatment"], row["grades_treatment"]) == (72, 144)
    arm = next(row for row in results["arms"] if row["benchmark"] == "ahb")
    assert arm["dimension_normalized_avg"] == pytest.approx(arm["mean"], abs=1e-5)
    tables = context.folder / "tables"
    contrasts = (tables / "contrasts.tex").read_text()
    assert (
        "primary (4 tests)" in contrasts
        and f"{row['df']:.1f}" in contrasts
        and "& df &" in contrasts
    )
    held = f"{row['holds']['seed'][0]} of 6"
    assert held.replace(" of ", "/") in (tables / "contrast_details.tex").read_text()
    assert ",Planned,Trained,Evaluated,Graded," in (tables / "flow.csv").read_text()
    page = (context.folder / "report.html").read_text()
    assert "From planned to analysed" in page and held in page and "Cohen’s d" in page
    macros = (context.folder / "macros.tex").read_text()
    assert "\\TinyCohensDAnimalMinusUrbanAhbDoseZero}" in macros
    assert f"\\TinyHoldsWithoutSeedAnimalMinusUrbanAhbDoseZero}}{{{held}}}" in macros
