"""Scores and advantages over doses: their numbers in words, gaps that are marked, odd studies."""

import math
import re

import pytest

from analysis import curves
from tests.analysis.sketches import NASTY, crosses, drawn, numbers, study

pytestmark = pytest.mark.filterwarnings("error")


def test_the_words_hold_every_number():
    results = study()
    text = curves.describe_erosion(results, "ahb")
    for n in numbers(results, "arms", "mean", "low", "high") | numbers(results, "scores", "score"):
        assert n in text
    assert all(n in text for n in numbers(results, "contrasts", "estimate", "low", "high"))


def test_what_is_missing_is_marked_and_never_drawn_as_a_number():
    results = study(gone=[("urban", 100)])
    # urban and its seeds, the advantage over it
    assert crosses(curves.erosion(results, "ahb")).count((100.0, 0.0)) == 2 * (1 + 3)
    assert "not finished" in curves.describe_erosion(results, "ahb")


def test_the_advantage_is_the_declared_contrast_whichever_way_round():
    results = study(arms=("animal", "urban", "qa"))
    results["contrasts"][-1] |= {"treatment": "urban", "control": "qa"}
    results["contrasts"].append(
        results["contrasts"][0] | {"control_dose": 0, "estimate": 0.99, "dose": 100}
    )
    lines = curves._lines(results, "urban")
    flipped, plain = (results["contrasts"][n]["estimate"] for n in (-2, 0))
    assert lines["advantage", "qa"][100].mean == pytest.approx(-100 * flipped)
    assert lines["advantage", "animal"][100].mean == pytest.approx(
        100 * results["contrasts"][1]["estimate"]
    )
    assert lines["advantage", "animal"][0].seeds[2] == pytest.approx(100 * plain + 1)


@pytest.mark.slow
@pytest.mark.parametrize(
    "results",
    [
        study(arms=()),
        study(arms=("animal", "untrained"), seeds=1),
        study(gone=[(arm, dose) for arm in ("animal", "urban") for dose in (0, 100)]),
        study(arms=(NASTY, "b"), doses=(0, 100, 5000)),
        study(
            tuple(f"a very long name of an arm, written by model {n}, revised" for n in range(12)),
            (0,),
            10,
        ),
    ],
)
def test_odd_studies_are_drawn(results):
    words, text = drawn(curves.erosion(results, "ahb")), curves.describe_erosion(results, "ahb")
    assert text.endswith(".") and ("Nothing to show" in words) == ("Nothing to show" in text)


@pytest.mark.parametrize("nan", [None, math.nan])
def test_numbers_that_are_none_are_drawn(nan):
    results = study()
    for row in [*results["scores"], *results["arms"], *results["contrasts"]]:
        row |= {key: nan for key in ("score", "mean", "estimate", "low", "high") if key in row}
    drawn(curves.erosion(results, "ahb"))
    text = curves.describe_erosion(results, "ahb")
    assert "no number" in text and "nan" not in text and not re.search(r"\d %", text)
