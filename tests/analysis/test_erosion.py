"""Erosion of an advantage.

By hand, paired within seeds and questions, intervals that cover, no extrapolation.
"""

import json
import warnings
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import pytest

from analysis.erosion import DoseCurve, Side, crossing, erosion_rows
from analysis.estimates import Arm, Estimate, two_way
from analysis.settings import Contrast

NAN = float("nan")
DOSES = (0, 100, 400)
CONTRAST = Contrast("A - B", "A", "B", ("ahb",), "primary")
# over 3 seeds and 4 questions, adding nothing to the mean of any
NOISE = np.outer([1, 0, -1], [0.01, -0.01, 0.02, -0.02])
LUCK = np.array([[0.01], [0], [-0.01]])  # of seeds
SAME = np.full((3, 3, 4), 0.5)


def means(arms: dict[str, Any], seeds: Any = None) -> pd.DataFrame:
    """Question means from arrays of shape (doses, seeds, questions), NaN for no grade.

    The doses are 0, 100 and 400.
    """
    rows = [
        (dose, arm, (seeds or {}).get((arm, dose), range(9))[s], f"q{q}", score)
        for arm, scores in arms.items()
        for dose, at in zip(DOSES, scores, strict=False)
        for s, row in enumerate(at)
        for q, score in enumerate(row)
    ]
    table = pd.DataFrame(rows, columns=["dose", "arm", "seed", "question", "score"]).astype(
        {"seed": "Int64"}
    )
    return table.assign(benchmark="ahb", scenario="of " + table["question"])


def rows(table: pd.DataFrame, *contrasts: Contrast) -> list[dict[str, Any]]:
    """Rows that may warn of nothing and that JSON has to hold."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return json.loads(
            json.dumps(erosion_rows(table, list(contrasts) or [CONTRAST]), allow_nan=False)
        )


def falling(*advantages: float) -> dict[str, np.ndarray]:
    """Means of B + advantage and B, at each dose.

    Their variance over seeds and questions adds nothing to any mean.
    """
    base = 0.4 + (np.arange(4) - 1.5) / 50 + NOISE + LUCK
    return {
        "A": np.stack([base + a for a in advantages]),
        "B": np.stack([0.4 - NOISE for _ in advantages]),
    }


def noisy(
    rng: np.random.Generator, advantages: Any, seeds: int, questions: int = 26
) -> dict[str, np.ndarray]:
    """Scores with effects of seed and question that all doses share.

    Effects of seed and dose, and of question and dose, come on top.
    """
    arms = {}
    for arm, shift in (("A", np.asarray(advantages)), ("B", np.zeros(len(advantages)))):
        lasting = rng.normal(0.4, 0.08, questions) + rng.normal(0, 0.03, (seeds, 1))
        passing = rng.normal(0, 0.02, (len(shift), seeds, 1)) + rng.normal(
            0, 0.04, (len(shift), 1, questions)
        )
        arms[arm] = (
            shift[:, None, None]
            + lasting
            + passing
            + rng.normal(0, 0.05, (len(shift), seeds, questions))
        )
    return arms


def test_advantages_and_changes_by_hand():
    a = [[[0.6, 0.8], [0.8, 0.8]], [[0.5, 0.5], [0.7, 0.9]]]
    b = [[[0.2, 0.2], [0.4, 0.4]], [[0.3, 0.3], [0.3, 0.5]]]
    row = rows(means({"A": a, "B": b}))[0]
    first, second = row["advantages"]
    assert [first["dose"], second["dose"]] == [0, 100] == row["doses"]
    assert (first["estimate"], second["estimate"]) == pytest.approx((0.45, 0.3))
    assert [s["advantage"] for s in first["by_seed"] + second["by_seed"]] == pytest.approx(
        [0.5, 0.4, 0.2, 0.4]
    )
    # A changes by (-.1, -.3) and (-.1, .1), B by (.1, .1) and (-.1, .1)
    a, b = np.array([[-0.1, -0.3], [-0.1, 0.1]]), np.array([[0.1, 0.1], [-0.1, 0.1]])
    paired = two_way([Arm(a), Arm(b)], np.arange(2))
    assert paired.estimate == pytest.approx(-0.15) and paired.seed_se**2 == pytest.approx(
        0.02 / 2 + 0.005 / 2
    )
    (change,) = row["changes"]
    assert all(
        change[k] == pytest.approx(getattr(paired, k)) for k in ("estimate", "se", "df", "low", "p")
    )


@pytest.mark.slow
def test_what_seeds_and_questions_add_at_all_doses_cancels_in_changes():
    arms = noisy(np.random.default_rng(0), [0.3, 0.1, 0.05], 3)
    apart = {
        "A": arms["A"] + np.array([[0.0], [0.1], [-0.1]]) + np.linspace(0, 0.2, 26),
        "B": arms["B"],
    }
    plain, shifted = (rows(means(result))[0] for result in (arms, apart))
    for first_row, other in zip(plain["changes"], shifted["changes"], strict=True):
        assert (first_row["estimate"], first_row["se"], first_row["p"]) == pytest.approx(
            (other["estimate"], other["se"], other["p"])
        )
    assert shifted["advantages"][1]["se"] > 2 * plain["advantages"][1]["se"]


@pytest.mark.slow
def test_where_the_advantage_is_halved_gone_and_within_the_margin_by_hand():
    margin = replace(CONTRAST, margin=0.1)
    swapped = replace(margin, treatment="B", control="A")
    row, behind = rows(means(falling(0.4, 0.25, -0.05)), margin, swapped)
    assert [row[k] for k in ("half", "zero", "margin")] == [
        behind[k] for k in ("half", "zero", "margin")
    ]
    # .2 lies 1/6 of the way from .25 to -.05, .1 half way, 0 at 5/6
    assert [row[k]["dose"] for k in ("half", "margin", "zero")] == pytest.approx([150, 250, 350])
    # the interval's ends lie between doses, and are rounded outward to doses that were trained
    assert row["half"]["between"] == [row["half"]["low"], row["half"]["high"]] == [100, 400]
    assert row["margin"]["constant_rate"] is None  # the later advantage is below 0
    early = rows(means(falling(0.4, 0.1)))[0]
    assert early["half"]["dose"] == pytest.approx(100 * 2 / 3) and early["half"]["between"] == [
        0,
        100,
    ]
    assert early["half"]["constant_rate"] == pytest.approx(50)
    assert early["zero"]["constant_rate"] is None
    keys = ("dose", "constant_rate", "low", "high", "between")
    assert early["margin"] == dict.fromkeys(keys) | {"reason": "no margin is declared"}


def test_the_interval_reaches_from_the_last_dose_that_is_told_apart_to_the_first_one():
    arms = noisy(np.random.default_rng(1), [0.4, 0.25, 0.02], 4)
    half = rows(means(arms))[0]["half"]

    def at(dose: int) -> Estimate:
        """The advantage at a dose less half of the first one, by the two-way test."""
        weights = np.eye(3)[DOSES.index(dose)] - [0.5, 0, 0]
        sides = [Arm(np.tensordot(weights, arms[arm], 1)) for arm in "AB"]
        return two_way(sides, np.array(sorted(map(str, range(26)))))

    assert at(half["low"]).low > 0 > at(half["high"]).high


@pytest.mark.parametrize("half_life", [65, 150])
def test_a_half_life_under_exponential_decay_is_covered(half_life: int):
    """The interval of the linear reading covers the shorter one in 0 to 5 % of studies."""
    rng = np.random.default_rng(half_life)
    covered, readings = 0, []
    for _ in range(40):
        arms = noisy(rng, [0.4, 0.4 * 0.5 ** (200 / half_life)], 5)
        sides = tuple(Side(arms[a], (False, False), tuple(range(5))) for a in "AB")
        result = crossing(DoseCurve([0, 200], sides, np.arange(26)), 0.5, 0.0)
        covered += (result["low"] or 0) <= half_life <= (result["high"] or 200)
        readings.append(result["constant_rate"] or np.nan)
    assert covered == 40
    assert np.nanmedian(readings) == pytest.approx(half_life, rel=0.15)


@pytest.mark.slow
def test_nothing_is_extrapolated():
    row = rows(means(falling(0.4, 0.38, 0.3)), replace(CONTRAST, margin=0.1))[0]
    for result in (row["half"], row["zero"], row["margin"]):
        assert (
            result["reason"] == "not within the doses trained"
            and result["dose"] is result["high"] is None
        )
    grown = rows(means(falling(0.01, 0.2, 0.3)))[0]["half"]
    assert grown["dose"] is None and grown["reason"].startswith(
        "the advantage at the first dose is not established"
    )
    small = rows(means(falling(0.1, 0.2, 0.3)), replace(CONTRAST, margin=0.2))[0]["margin"]
    assert small["reason"] == "the advantage was no larger at the first dose"


@pytest.mark.slow
def test_shuffled_rows_give_the_same():
    table = means(noisy(np.random.default_rng(3), [0.3, 0.1, 0.02], 3))
    table.loc[[3, 50, 200], "score"] = NAN
    for declared in (CONTRAST, replace(CONTRAST, paired=True)):
        assert rows(table, declared) == rows(table.sample(frac=1, random_state=0), declared)


@pytest.mark.parametrize(
    ("arms", "reason"),
    [
        (
            {arm: scores[:, :1] for arm, scores in falling(0.4, 0.3, 0.0).items()},
            "one seed per arm",
        ),
        ({arm: scores[:1] for arm, scores in falling(0.4).items()}, "one SFT dose only"),
        ({"A": SAME, "B": SAME}, "no larger at the first dose"),
        ({"A": SAME * NAN, "B": SAME}, "no SFT dose has grades of both"),
    ],
)
def test_what_the_data_cannot_say_is_none_with_a_reason(arms, reason):
    row = rows(means(arms))[0]
    assert reason in row["half"]["reason"] and row["half"]["low"] is row["half"]["high"] is None
    assert (row["half"]["dose"] is not None) == ("seed" in reason)  # one seed is described
    assert all(change["p"] is None and change["reason"] for change in row["changes"])


@pytest.mark.slow
def test_missing_cells_leave_what_needs_them():
    arms = noisy(np.random.default_rng(4), [0.4, 0.2, 0.0], 3)
    arms["A"][2, 2] = NAN
    row = rows(means(arms))[0]
    assert [a["treatment_seeds"] for a in row["advantages"]] == [3, 3, 2]
    assert [(c["second"], c["treatment_seeds"]) for c in row["changes"]] == [
        (100, 3),
        (400, 2),
        (400, 2),
    ]
    assert row["advantages"][2]["by_seed"][2] == {"seed": 2, "advantage": None}
    assert row["half"] == rows(means({"A": arms["A"][:, :2], "B": arms["B"]}))[0]["half"]
    arms["A"][0, 0, 5] = arms["B"][1, :, 7] = NAN
    assert rows(means(arms))[0]["changes"][0]["questions"] == 25


@pytest.mark.slow
def test_a_checkpoint_without_seed_before_sft_is_every_seeds_start():
    arms = noisy(np.random.default_rng(5), [0.4, 0.2, 0.1], 3)
    arms["B"][0, 1:] = arms["B"][0, 0]
    alone = means(arms, seeds={("B", 0): [None] * 3}).drop_duplicates(
        ["dose", "arm", "seed", "question"]
    )
    result, complete = rows(alone)[0], rows(means(arms))[0]
    first = result["advantages"][0]
    assert first["control_seeds"] == 0 and first["by_seed"] == complete["advantages"][0]["by_seed"]
    assert result["changes"] == complete["changes"]


@pytest.mark.slow
def test_holm_runs_over_the_changes_of_a_family():
    table = means(noisy(np.random.default_rng(6), [0.1, 0.06, 0.02], 3))
    first_row, other = rows(table, CONTRAST, replace(CONTRAST, family="second"))
    least = min(change["p"] for change in first_row["changes"])
    assert (
        min(c["p_holm"] for c in first_row["changes"]) == pytest.approx(3 * least)
        and first_row["changes"] == other["changes"]
    )
    twice = rows(table, CONTRAST, CONTRAST)[0]["changes"]
    assert min(c["p_holm"] for c in twice) == pytest.approx(6 * least)
    assert rows(table, replace(CONTRAST, treatment_dose=0, control_dose=100)) == []


@pytest.mark.slow
def test_arms_of_the_same_midtraining_are_compared_within_seeds_by_hand():
    base = (arms := falling(0.4, 0.2, 0.1))["A"]
    replay = np.stack([base[0], base[1] + 0.15 + LUCK / 2 + NOISE, base[2] + 0.2 - LUCK])
    pair, table = replace(CONTRAST, treatment="R", control="A"), means(arms | {"R": replay})
    paired, apart = (rows(table, replace(pair, paired=on))[0] for on in (True, False))
    for result in (paired, apart):
        assert [at["estimate"] for at in result["advantages"]] == pytest.approx([0, 0.15, 0.2])
        assert [change["estimate"] for change in result["changes"]] == pytest.approx(
            [0.15, 0.2, 0.05]
        )
    # within seeds only the arms' own luck remains, and nothing at the first dose, which is one
    # checkpoint
    difference = two_way(
        [Arm(0.15 + LUCK / 2 + NOISE), Arm(np.zeros((1, 4)), fixed=True)], np.arange(4)
    )
    assert (paired["advantages"][1]["se"], paired["changes"][0]["p"]) == pytest.approx(
        (difference.se, difference.p)
    )
    assert "vary neither" in paired["advantages"][0]["reason"]
    assert apart["advantages"][1]["se"] > paired["advantages"][1]["se"]


def test_changes_are_calibrated_and_half_lives_covered():
    rng = np.random.default_rng(7)
    rejected, covered, studies = 0, 0, 100
    for _ in range(studies):
        arms = noisy(rng, [0.3, 0.3], 3)
        rejected += two_way([Arm(arms[a][1] - arms[a][0]) for a in "AB"], np.arange(26)).p < 0.05
        arms = noisy(rng, [0.3, 0.05], 3)
        sides = tuple(Side(arms[a], (False, False), (0, 1, 2)) for a in "AB")
        result = crossing(DoseCurve([0, 500], sides, np.arange(26)), 0.5, 0.0)
        covered += (result["low"] or 0) <= 300 <= (result["high"] or 500)
    assert rejected / studies <= 0.08 and covered / studies >= 0.92
