"""Agreement of judges: published examples, cases by hand, reasons for undefined numbers."""

import json
import warnings
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import pytest

from analysis.contrasts import contrast_rows
from analysis.judges import agreement, differential_bias, krippendorff_alpha
from analysis.rows import to_jsonable
from analysis.settings import Contrast
from analysis.table import question_means

NAN = float("nan")
CONTRAST = Contrast("A - B", "A", "B", ("ahb",), "primary")


def long(*rows: tuple[Any, ...], seed: int | None = 0, dose: int = 0) -> pd.DataFrame:
    """A long table of (judge, arm, question, dimension, score).

    The scenario of a question is its id without the last letter.
    """
    columns = ["judge", "arm", "question", "dimension", "score"]
    table = pd.DataFrame(rows, columns=columns).assign(
        benchmark="ahb", dose=dose, seed=seed, epoch=1, response="r"
    )
    table["scenario"] = table["question"].str[:-1]
    return table.astype({"seed": "Int64", "score": float}).assign(
        missing=table["score"].isna().map({True: "no"})
    )


def graded(first: list[float], second: list[float], arm: str = "A") -> pd.DataFrame:
    """Two judges, main and other, over one arm's answers to as many questions, on one dimension."""
    pairs = {"main": first, "other": second}
    return long(
        *(
            (j, arm, f"q{i:02d}x", "Harm", s)
            for j, scores in pairs.items()
            for i, s in enumerate(scores)
        )
    )


def quiet(table: pd.DataFrame, **primary: str) -> list[dict[str, Any]]:
    """`agreement` that may not warn, as the JSON that the results will hold."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return json.loads(
            json.dumps(to_jsonable(agreement(table, primary or {"ahb": "main"})), allow_nan=False)
        )


def biases(table: pd.DataFrame) -> list[dict[str, Any]]:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return json.loads(
            json.dumps(differential_bias(table, {"ahb": "main"}, [CONTRAST]), allow_nan=False)
        )


def test_kappa_of_a_published_example():
    """Wikipedia, "Cohen's kappa", simple example: 50 proposals, two readers, kappa .4.

    20 are yes by both, 5 by the first alone, 10 by the second alone, 15 no by both.
    """
    counts = {(1, 1): 20, (1, 0): 5, (0, 1): 10, (0, 0): 15}
    first, second = zip(*(pair for pair, n in counts.items() for _ in range(n)), strict=True)
    [everything, arm] = quiet(graded(list(first), list(second)))
    [pair] = everything["pairs"]
    assert (pair["n"], pair["n_kappa"], pair["reason"]) == (50, 50, None)
    assert (pair["agreement"], pair["kappa"]) == pytest.approx((0.7, 0.4))
    assert (pair["mean_judge"], pair["mean_other"]) == pytest.approx((0.5, 0.6))
    assert everything["arm"] is None and arm["arm"] == "A" and arm["pairs"] == everything["pairs"]


# Krippendorff, "Computing Krippendorff's alpha-reliability" (2011): example A (two observers,
# binary) has alpha .095; examples C and D (four observers, missing values) .849 with the interval
# metric.
BINARY = [[0, 1, 0, 0, 0, 0, 0, 0, 1, 0], [1, 1, 1, 0, 0, 1, 0, 0, 0, 0]]
FOUR = [
    [1, 2, 3, 3, 2, 1, 4, 1, 2, NAN, NAN, NAN],
    [1, 2, 3, 3, 2, 2, 4, 1, 2, 5, NAN, 3],
    [NAN, 3, 3, 3, 2, 3, 4, 2, 2, 5, 1, NAN],
    [1, 2, 3, 3, 2, 4, 4, 1, 2, 5, 1, NAN],
]


def test_alpha_of_published_examples():
    assert krippendorff_alpha(np.array(FOUR).T) == pytest.approx(0.849, abs=5e-4)
    assert krippendorff_alpha(np.array(BINARY, float).T) == pytest.approx(0.095, abs=5e-4)
    [row, _] = quiet(graded(*BINARY))
    assert (row["alpha"], row["level"], row["units"]) == (
        pytest.approx(1 - 19 * 4 / (14 * 6), rel=1e-5),
        "nominal",
        10,
    )
    [row, _] = quiet(graded([0.5, 1, 0, NAN], [0.5, 1, 1, 0]))
    assert (row["level"], row["units"], row["alpha_reason"]) == ("interval", 3, None)


def test_items_scored_as_averages_count_in_agreement_but_never_in_kappa():
    """q0 is an average somewhere, so its 0/1 grades in arm B say nothing for kappa either."""
    table = pd.concat(
        [graded([0.5, 1, 0, 1], [0.5, 1, 0, 0]), graded([1, 1, 0, 0], [0, 1, 0, 1], "B")]
    )
    everything, a, b = quiet(table)
    assert [row["pairs"][0]["n"] for row in (everything, a, b)] == [8, 4, 4]
    assert [row["pairs"][0]["n_kappa"] for row in (everything, a, b)] == [6, 3, 3]
    assert a["pairs"][0]["agreement"] == 0.75
    # main 1, 0, 1 and other 1, 0, 0: 2/3 agree, 4/9 expected
    assert a["pairs"][0]["kappa"] == pytest.approx((2 / 3 - 4 / 9) / (5 / 9), rel=1e-5)


def test_overall_scores_stand_for_grades_only_where_there_are_no_dimensions():
    table = graded([1, 0, 1], [1, 1, 1])
    overall = table.assign(dimension="overall", score=0.25)
    assert quiet(pd.concat([table, overall])) == quiet(table)
    assert quiet(overall)[0]["judges"] == [
        {"judge": judge, "n": 3, "mean": 0.25} for judge in ("main", "other")
    ]


@pytest.mark.parametrize(
    ("first", "second", "reason", "alpha_reason"),
    [
        (
            [1, 1],
            [1, 1],
            "no kappa: both judges gave one and the same grade throughout",
            "all grades are the same",
        ),
        ([1, NAN], [NAN, 0], "no answer was graded by both", "no answer was graded by two judges"),
        ([0.5, 0.25], [0.5, 1], "no kappa: every item was scored otherwise than 0 or 1", None),
        ([NAN, NAN], [1, 0], "no answer was graded by both", "no answer was graded by two judges"),
        ([1, 1], [1, 0], None, None),
    ],
)
def test_undefined_numbers_are_none_with_a_reason(first, second, reason, alpha_reason):
    [row, _] = quiet(graded(first, second))
    [pair] = row["pairs"]
    assert (pair["reason"], row["alpha_reason"]) == (reason, alpha_reason)
    assert (pair["kappa"] is None) == (reason is not None) and (row["alpha"] is None) == (
        alpha_reason is not None
    )
    assert (pair["agreement"] is None) == (pair["n"] == 0)


def test_a_pair_is_compared_on_what_both_graded():
    [row, _] = quiet(graded([1, 0, 1, NAN], [1, 1, NAN, 0]))
    assert [(judge["n"], round(judge["mean"], 3)) for judge in row["judges"]] == [
        (3, 0.667),
        (3, 0.667),
    ]
    assert (row["pairs"][0]["mean_judge"], row["pairs"][0]["mean_other"]) == (0.5, 1)


def test_one_judge_is_nothing_to_compare():
    table = graded([1, 0], [1, 1])
    alone = table[table["judge"] == "main"]
    assert agreement(alone, {}) == differential_bias(alone, {}, [CONTRAST]) == []
    other = graded([1, 0], [1, 1]).assign(benchmark="concern")
    assert {
        row["benchmark"] for row in agreement(pd.concat([alone, other]), {"concern": "other"})
    } == {"concern"}


def test_a_primary_judge_that_has_not_graded_yet():
    [row, _] = quiet(graded([1, 0], [1, 1]), ahb="later")
    assert [judge["n"] for judge in row["judges"]] == [0, 2, 2] and row["judges"][0]["mean"] is None
    assert [pair["reason"] for pair in row["pairs"]] == ["no answer was graded by both"] * 2 + [
        None
    ]
    rows = differential_bias(two_arms([0.3, 0.1]), {"ahb": "later"}, [CONTRAST])
    assert [row["reason"] for row in rows] == [
        "no question has scores of both judges in both arms"
    ] * 2


def test_every_pair_and_the_primary_first():
    table = graded([1, 0, 1, 0], [1, 1, 1, 0])
    third = table[table["judge"] == "main"].assign(judge="human", score=[NAN, 0, NAN, 0])
    [row, _] = quiet(pd.concat([third, table]), ahb="other")
    assert [judge["judge"] for judge in row["judges"]] == ["other", "human", "main"]
    assert [judge["n"] for judge in row["judges"]] == [4, 2, 4] and row["judges"][1]["mean"] == 0
    assert [(pair["judge"], pair["other"], pair["n"]) for pair in row["pairs"]] == [
        ("other", "human", 2), ("other", "main", 4), ("human", "main", 2),
    ]  # fmt: skip
    assert row["units"] == 4 and row["primary"] == "other"


def two_arms(shift: list[float], dimension: str = "Harm", **keys: Any) -> pd.DataFrame:
    """Judge other adds `shift` to main's grade of arm A's answer.

    It does so question by question, and adds nothing in arm B.
    """
    rows = []
    for i, extra in enumerate(shift):
        for judge, arm, score in (
            ("main", "A", 0.4),
            ("main", "B", 0.2),
            ("other", "A", 0.4 + extra),
            ("other", "B", 0.2),
        ):
            rows.append((judge, arm, f"q{i}x", dimension, score))
    return long(*rows, **keys)


def test_differential_bias_by_hand():
    [row] = biases(two_arms([0.3, 0.1, 0.2], seed=None))
    assert (row["judge"], row["primary"], row["dose"], row["n"], row["scores"]) == (
        "other",
        "main",
        0,
        6,
        "dimensions",
    )
    assert (row["questions"], row["scenarios"], row["questions_left_out"], row["reason"]) == (
        3,
        3,
        0,
        None,
    )
    assert row["estimate"] == pytest.approx(0.2)
    assert (row["primary_difference"], row["judge_difference"]) == pytest.approx((0.2, 0.4))
    # standard deviation .1 over three scenarios; Student's t with 2 degrees of freedom: 4.302653
    assert (
        row["high"] - 0.2
        == pytest.approx(4.302653 * 0.1 / 3**0.5)
        == pytest.approx(0.2 - row["low"])
    )


def test_a_contrast_counts_only_on_its_benchmarks():
    elsewhere = replace(CONTRAST, benchmarks=("concern",))
    assert differential_bias(two_arms([0.3, 0.1]), {"ahb": "main"}, [elsewhere]) == []


def test_repeating_every_question_in_another_language_adds_no_certainty():
    table = two_arms([0.3, 0.1, 0.2])
    twice = pd.concat([table, table.assign(question=table["question"].str[:-1] + "y")])
    [once], [twice_row] = biases(table), biases(twice)
    assert twice_row["questions"] == 6 and twice_row["scenarios"] == 3
    assert (twice_row["low"], twice_row["high"]) == pytest.approx((once["low"], once["high"]))


def test_bias_rests_only_on_what_both_judges_scored():
    """A person labelled q0 and q1 in both arms and q2 in A alone.

    q2 is left out, so that its 0.9 changes nothing.
    """
    table = two_arms([0.3, 0.1, 0.9])
    table = table[
        ~((table["judge"] == "other") & (table["arm"] == "B") & (table["question"] == "q2x"))
    ]
    [row] = biases(table)
    assert (row["estimate"], row["questions"], row["questions_left_out"]) == (
        pytest.approx(0.2),
        2,
        1,
    )
    assert row["n"] == 5


def test_every_dose_and_all_of_them():
    rows = biases(pd.concat([two_arms([0.3, 0.1], dose=0), two_arms([0.1, 0.1], dose=200)]))
    assert [(row["dose"], round(row["estimate"], 9)) for row in rows] == [
        (0, 0.2),
        (200, 0.1),
        (None, 0.15),
    ]
    assert (
        biases(pd.concat([two_arms([0.3, 0.1]), two_arms([0.2], dose=5).query("arm == 'A'")]))[-1][
            "dose"
        ]
        == 0
    )


@pytest.mark.parametrize(
    ("table", "reason"),
    [
        (two_arms([0.3]), "no interval: one scenario only"),
        (two_arms([0.0, 0.0]), "no interval: the judges differ by the same in every scenario"),
        (
            two_arms([0.3, 0.1]).query("judge == 'main' or arm == 'A'"),
            "no question has scores of both judges in both arms",
        ),
        (two_arms([NAN, NAN]), "no question has scores of both judges in both arms"),
    ],
)
def test_no_interval_without_a_reason(table, reason):
    [row] = biases(table)
    assert (row["low"], row["high"], row["reason"]) == (None, None, reason)


def noisy(seed: int) -> pd.DataFrame:
    """Two judges and two arms, three seeds, two epochs, two dimensions.

    A tenth of the dimension grades is missing.
    """
    rng = np.random.default_rng(seed)
    parts = []
    for train in range(3):
        names = [
            (judge, arm, f"q{number}{translation}", dimension)
            for judge in ("main", "other")
            for arm in "AB"
            for number in range(6)
            for translation in "xy"
            for dimension in ("Harm", "Scope")
        ]
        for epoch in (1, 2):
            scores = np.where(rng.random(len(names)) < 0.1, NAN, rng.integers(0, 2, len(names)))
            part = long(
                *((*name, score) for name, score in zip(names, scores, strict=True)), seed=train
            )
            mean = part.groupby(["judge", "arm", "question"], as_index=False).agg(
                {"score": "mean", "scenario": "first"}
            )
            mean = mean.assign(
                dimension="overall", benchmark="ahb", dose=0, seed=train, response="r", missing=None
            )
            parts.append(pd.concat([part, mean]).assign(epoch=epoch))
    return pd.concat(parts, ignore_index=True)


@pytest.mark.slow
def test_bias_is_the_difference_of_the_contrasts_when_both_judges_scored_all():
    table = noisy(1)
    table.loc[table["score"].isna(), "score"] = 0.0
    [row] = biases(table)
    assert row["scores"] == "overall"
    result = {}
    for judge, part in table.groupby("judge"):
        [result[judge]] = contrast_rows(part, question_means(part), [CONTRAST], [])
    assert row["primary_difference"] == pytest.approx(result["main"]["estimate"])
    assert row["estimate"] == pytest.approx(
        result["other"]["estimate"] - result["main"]["estimate"]
    )


def test_the_order_of_rows_does_not_matter():
    table = noisy(2)
    shuffled = table.sample(frac=1, random_state=3)
    assert quiet(shuffled) == quiet(table) and biases(shuffled) == biases(table)
