"""What missing grades could change.

By hand, the same averages as the study's, and never narrower with less known.
"""

import json
import warnings
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import pytest

from analysis.bounds import contrast_bounds, missing_bounds
from analysis.contrasts import arm_rows, contrast_rows
from analysis.settings import Contrast
from analysis.table import OVERALL, dimension_means, question_means

NAN = float("nan")
CONTRAST = Contrast("A - B", "A", "B", ("ahb",), "primary")


def answers(*rows: tuple[Any, ...], **keys: Any) -> pd.DataFrame:
    """A long table of (arm, seed, question, epoch, {dimension: score}).

    Overall is the mean of the graded dimensions.
    """
    lines = []
    for arm, seed, question, epoch, given in rows:
        overall = {} if OVERALL in given else {OVERALL: pd.Series(given, dtype=float).mean()}
        lines += [
            (arm, seed, question, epoch, name, score) for name, score in (overall | given).items()
        ]
    table = pd.DataFrame(lines, columns=["arm", "seed", "question", "epoch", "dimension", "score"])
    table = table.assign(
        benchmark="ahb", dose=0, judge="main", response="r", scenario=table["question"], **keys
    )
    return table.astype({"seed": "Int64", "score": float}).assign(
        missing=table["score"].isna().map({True: "no"})
    )


def rows_of(table: pd.DataFrame) -> dict[tuple[str, str], dict[str, Any]]:
    """`missing_bounds` by arm and dimension; it may not warn, and JSON has to hold it."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        rows = json.loads(json.dumps(missing_bounds(table), allow_nan=False))
    return {(row["arm"], row["dimension"]): row for row in rows}


def numbers(row: dict[str, Any]) -> tuple[Any, ...]:
    return tuple(row[key] for key in ("grades", "missing", "mean", "low", "high"))


def test_one_missing_dimension_by_hand():
    """Two answers: dimensions 1, 0 and one missing, so 1/3 to 2/3 (1/2 as graded); then 1, 1, 1."""
    table = answers(
        ("A", 0, "q1", 1, {"Harm": 1, "Scope": 0, "Trade": NAN}),
        ("A", 0, "q2", 1, {"Harm": 1, "Scope": 1, "Trade": 1}),
    )
    result = rows_of(table)
    assert numbers(result["A", OVERALL]) == pytest.approx((6, 1, 3 / 4, 2 / 3, 5 / 6))
    assert result["A", OVERALL]["share"] == pytest.approx(1 / 6)
    assert (
        numbers(result["A", "Trade"]) == (2, 1, 1, 0.5, 1) and result["A", "Trade"]["share"] == 0.5
    )
    assert numbers(result["A", "Scope"]) == (2, 0, 0.5, 0.5, 0.5)
    assert next(iter(result)) == ("A", OVERALL)


def test_epochs_then_seeds_then_questions():
    """Seed 0 has two answers to q1 of which one is ungraded, seed 1 one.

    q2 was asked once, of seed 0.
    """
    table = answers(
        ("A", 0, "q1", 1, {"Harm": 1}),
        ("A", 0, "q1", 2, {"Harm": NAN}),
        ("A", 1, "q1", 1, {"Harm": 0}),
        ("A", 0, "q2", 1, {"Harm": 1}),
    )
    # q1: seeds (1 or .5 or 1) and 0; q2: 1
    assert numbers(rows_of(table)["A", OVERALL]) == pytest.approx((4, 1, 0.75, 0.625, 0.75))
    assert numbers(rows_of(table)["A", "Harm"]) == pytest.approx((4, 1, 0.75, 0.625, 0.75))


def test_a_benchmark_without_dimensions_uses_its_overall_scores():
    table = answers(("A", None, "q1", 1, {OVERALL: 0.4}), ("A", None, "q2", 1, {OVERALL: NAN}))
    assert {key: numbers(row) for key, row in rows_of(table).items()} == {
        ("A", OVERALL): (2, 1, 0.4, 0.2, 0.7)
    }


def test_an_answer_without_any_grade_may_lack_its_dimensions():
    """Some scorers name no dimensions where they graded none.

    Those grades are missing all the same.
    """
    table = answers(
        ("A", 0, "q1", 1, {"Harm": 1, "Scope": 1}),
        ("A", 0, "q1", 2, {OVERALL: NAN}),
    )
    result = rows_of(table)
    assert numbers(result["A", OVERALL]) == (4, 2, 1, 0.5, 1) and numbers(result["A", "Harm"]) == (
        2,
        1,
        1,
        0.5,
        1,
    )


def test_an_overall_score_that_is_no_mean_can_be_anything():
    """As StrongREJECT's: a missing dimension leaves it between 0 and 1.

    Fully graded answers keep their score.
    """
    table = answers(
        ("A", 0, "q1", 1, {OVERALL: 0.0, "Harm": 1, "Scope": 1}),
        ("A", 0, "q2", 1, {OVERALL: 0.2, "Harm": 0.5, "Scope": NAN}),
    )
    assert numbers(rows_of(table)["A", OVERALL]) == (4, 1, 0.1, 0, 0.5)


def test_nothing_graded_is_no_mean_and_no_bound():
    result = rows_of(answers(("A", 0, "q1", 1, {"Harm": NAN, "Scope": NAN})))
    assert numbers(result["A", OVERALL]) == (2, 2, None, 0, 1)


def test_difference_by_hand():
    table = answers(
        ("A", 0, "q1", 1, {"Harm": 1, "Scope": NAN}),
        ("A", 0, "q2", 1, {"Harm": 1, "Scope": 1}),
        ("B", 0, "q1", 1, {"Harm": 0, "Scope": 0}),
        ("B", 0, "q2", 1, {"Harm": NAN, "Scope": 0}),
        ("B", 0, "q3", 1, {"Harm": 1, "Scope": 1}),  # A was not asked
    )
    [row] = contrast_bounds(
        table,
        [CONTRAST, replace(CONTRAST, benchmarks=("concern",)), replace(CONTRAST, treatment="C")],
    )
    # A: (.5 to 1), 1; B: 0, (0 to .5)
    assert (row["estimate"], row["low"], row["high"], row["questions"]) == (1, 0.5, 1, 2)
    assert (row["name"], row["benchmark"], row["judge"], row["dose"]) == ("A - B", "ahb", "main", 0)
    [turned] = contrast_bounds(table, [replace(CONTRAST, treatment="B", control="A")])
    assert (turned["low"], turned["high"]) == (-row["high"], -row["low"])


def study(seed: int, lost: float, epochs: int = 2) -> pd.DataFrame:
    """Two arms, three seeds, five questions, three dimensions.

    A share `lost` of the grades is missing.
    """
    rng = np.random.default_rng(seed)
    rows = []
    for arm in "AB":
        for train in range(3):
            for question in range(5):
                for epoch in range(epochs):
                    grades = rng.integers(0, 2, 3).astype(float)
                    grades[rng.random(3) < lost] = NAN
                    rows.append(
                        (
                            arm,
                            train,
                            f"q{question}",
                            epoch,
                            dict(zip(("d1", "d2", "d3"), grades, strict=True)),
                        )
                    )
    return answers(*rows)


@pytest.mark.slow
@pytest.mark.parametrize("lost", [0.0, 0.3])
def test_means_are_those_of_the_report(lost):
    table = study(1, lost)
    result = rows_of(table)
    means = question_means(table)
    for row in arm_rows(table, means):
        assert result[row["arm"], OVERALL]["mean"] == pytest.approx(row["mean"])
    for row in dimension_means(table).to_dict("records"):
        assert result[row["arm"], row["dimension"]]["mean"] == pytest.approx(row["score"])
        assert result[row["arm"], row["dimension"]]["missing"] == row["missing"]
    [contrast], [bounds] = (
        contrast_rows(table, means, [CONTRAST], []),
        contrast_bounds(table, [CONTRAST]),
    )
    assert bounds["estimate"] == pytest.approx(contrast["estimate"])
    if not lost:
        assert all(
            row["low"] == row["high"] == pytest.approx(row["mean"]) for row in result.values()
        )
        assert bounds["low"] == bounds["high"] == pytest.approx(bounds["estimate"])


@pytest.mark.parametrize("seed", range(5))
def test_every_filling_of_the_gaps_lies_within_and_less_is_never_narrower(seed):
    table = study(seed, 0.3)
    result, [contrast] = rows_of(table), contrast_bounds(table, [CONTRAST])
    rng = np.random.default_rng(seed)
    gaps = table["score"].isna() & (table["dimension"] != OVERALL)
    for chance in (0.0, 0.5, 1.0):
        filled = table.assign(
            score=table["score"].where(~gaps, rng.random(len(table)) < chance).astype(float)
        )
        single = filled[filled["dimension"] != OVERALL]
        keys = ["arm", "seed", "question", "epoch"]
        overall = filled[filled["dimension"] == OVERALL].drop(columns="score")
        overall = overall.merge(single.groupby(keys)["score"].mean().reset_index(), on=keys)
        complete = pd.concat([single, overall])
        for key, row in rows_of(complete).items():
            assert result[key]["low"] - 1e-12 <= row["mean"] <= result[key]["high"] + 1e-12
            if chance in (0.0, 1.0):
                assert row["mean"] == pytest.approx(result[key]["high" if chance else "low"])
        [row] = contrast_bounds(complete, [CONTRAST])
        assert contrast["low"] <= row["estimate"] <= contrast["high"]
    harder = table.assign(
        score=table["score"].where((rng.random(len(table)) > 0.2) | (table["dimension"] == OVERALL))
    )
    single = harder[harder["dimension"] != OVERALL]
    mean = (
        single.groupby(["arm", "seed", "question", "epoch"])["score"]
        .mean()
        .rename("new")
        .reset_index()
    )
    harder = harder.merge(mean)
    harder["score"] = harder["score"].where(harder["dimension"] != OVERALL, harder.pop("new"))
    for key, row in rows_of(harder).items():
        assert (
            row["low"] <= result[key]["low"] + 1e-12 and row["high"] >= result[key]["high"] - 1e-12
        )
        assert row["low"] - 1e-12 <= row["mean"] <= row["high"] + 1e-12


def test_judges_and_doses_stand_apart_and_the_order_of_rows_does_not_matter():
    table = pd.concat(
        [study(1, 0.3, 5), study(2, 0.3).assign(judge="other"), study(3, 0.3).assign(dose=200)]
    )
    labels = study(4, 0.3).assign(judge="human").query("dimension == 'd1' and question == 'q1'")
    table = pd.concat([table, labels])
    rows = missing_bounds(table)
    assert [row for row in rows if row["judge"] == "main" and row["dose"] == 0] == missing_bounds(
        study(1, 0.3, 5)
    )
    # people label single dimensions: what they were not shown is not missing
    assert [(row["dimension"], row["grades"]) for row in rows if row["judge"] == "human"] == [
        ("d1", 6),
        ("d1", 6),
    ]
    shuffled = table.sample(frac=1, random_state=1)
    assert missing_bounds(shuffled) == rows
    rows = contrast_bounds(table, [CONTRAST])
    assert contrast_bounds(shuffled, [CONTRAST]) == rows and rows[:1] == contrast_bounds(
        study(1, 0.3, 5), [CONTRAST]
    )
    assert [(row["judge"], row["dose"]) for row in rows] == [
        ("main", 0), ("main", 200), ("other", 0),
    ]  # fmt: skip
