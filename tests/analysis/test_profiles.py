"""By question and by dimension: numbers in words, intervals by hand, marked gaps."""

import math
import re
from dataclasses import astuple

import pytest

from analysis import profiles
from tests.analysis.sketches import (
    DIMENSIONS,
    NASTY,
    answers,
    contrast,
    crosses,
    drawn,
    numbers,
    study,
)

pytestmark = pytest.mark.filterwarnings("error")
GONE = [(arm, dose) for arm in ("animal", "urban") for dose in (0, 100)]


def test_the_words_hold_every_number():
    results = study()
    radar = profiles.describe_radar(results, "ahb", 100)
    last = {**results, "rows": [row for row in results["dimensions"] if row["dose"] == 100]}
    assert all(n in radar for n in numbers(last, "rows", "score")) and "SFT dose 100" in radar
    assert "animal: Harm 80.2 %" in radar and "Harm 81.2 %" in profiles.describe_radar(
        results, "ahb", 0
    )
    text = profiles.describe_per_question(answers(), contrast())
    assert "before SFT: mean +5.0, 3 questions above 0, 2 below, 1 equal, 0 not" in text
    assert re.findall(r"q\d [+-]\d+\.0", text)[:6] == [
        f"q{q} {10 * (q - 2):+.1f}" for q in (5, 4, 3, 2, 1, 0)
    ]
    assert "q5 +30.0 [+27.7, +32.3]" in text


def test_what_is_missing_is_marked_and_never_drawn_as_a_number():
    results = study(gone=[("urban", 100)])
    radar = profiles.radar(results, "ahb", 100)
    assert "urban (× no scores)" in [text.get_text() for text in radar.legends[0].get_texts()]
    assert not crosses(radar)
    assert "urban: Harm no number" in profiles.describe_radar(results, "ahb", 100)
    results = study()
    results["dimensions"][7]["score"] = None
    assert crosses(profiles.radar(results, "ahb", 100)) == [(pytest.approx(2 * math.pi / 6), 105)]
    assert "Scope no number" in profiles.describe_radar(results, "ahb", 100)
    means = answers()
    means.loc[
        (means["question"] == "q1") & (means["arm"] == "urban") & (means["dose"] == 0), "score"
    ] = math.nan
    assert crosses(profiles.per_question(means, contrast())) == [
        (0.03, 3.0)
    ]  # sorted by what is known after SFT
    assert "1 equal, 1 not graded in both arms" in profiles.describe_per_question(means, contrast())


def test_a_difference_of_rounding_is_none() -> None:
    """.1 + .2 + .3 is not .3 + .2 + .1 in floating point."""
    same = profiles.seed_difference({0: 0.1, 1: 0.2, 2: 0.3}, {0: 0.3, 1: 0.2, 2: 0.1}, False)
    assert same.value == 0


def numbers_of(treatment, control, paired=False) -> tuple[float, float, float]:
    return astuple(profiles.seed_difference(treatment, control, paired))


def test_an_interval_over_seeds_is_welchs_and_none_where_seeds_cannot_tell():
    of, fixed = {0: 50.0, 1: 60.0}, {None: 40.0}
    assert numbers_of(of, fixed) == pytest.approx((15, 15 - 63.53, 15 + 63.53), abs=0.01)
    for against in ({0: 40.0}, {0: 40.0, 1: 40.0}):
        assert math.isnan(profiles.seed_difference({0: 50.0, 1: 50.0}, against, False).low)
    assert math.isnan(profiles.seed_difference(of, {0: 40.0}, False).low)
    assert all(map(math.isnan, numbers_of(of, {})))


def test_a_paired_interval_is_of_differences_within_the_seeds_of_both():
    of, against = {0: 50.0, 1: 60.0, 2: 90.0}, {1: 40.0, 0: 40.0}
    expected = pytest.approx((15, 15 - 63.53, 15 + 63.53), abs=0.01)
    assert numbers_of(of, against, True) == expected
    assert numbers_of(of, {None: 40.0}, True) == numbers_of(of, {None: 40.0})
    assert all(map(math.isnan, numbers_of(of, {3: 40.0}, True)))


def test_panels_are_the_contrasts_doses():
    two = contrast([(0, 100)], control="animal")
    assert list(profiles.differences(answers(), two)) == ["before SFT against SFT dose 100"]
    assert profiles.differences(answers(), two)["before SFT against SFT dose 100"][
        "q4"
    ].value == pytest.approx(20)
    assert list(profiles.differences(answers(), contrast([(100, 100)]))) == ["SFT dose 100"]
    assert profiles.differences(answers(), contrast([(None, None)])) == {}


@pytest.mark.parametrize(
    "results",
    [
        study(arms=()),
        study(arms=("animal", "untrained"), seeds=1),
        study(gone=GONE),
        study(arms=(NASTY, "b"), dimensions=DIMENSIONS[:3]),
        study(
            tuple(f"a very long name of an arm, written by model {n}, revised" for n in range(12)),
            (0,),
            10,
        ),
    ],
)
def test_odd_studies_are_drawn(results):
    words, text = (
        drawn(profiles.radar(results, "ahb", 0)),
        profiles.describe_radar(results, "ahb", 0),
    )
    assert text.endswith(".") and ("Nothing to show" in words) == ("Nothing to show" in text)


def test_dimensions_without_numbers_are_drawn():
    results = study(doses=(0,))
    for row in results["dimensions"]:
        row["score"] = None
    assert drawn(profiles.radar(results, "ahb", 0)).count("(× no scores)") == 2
    assert "%" not in profiles.describe_radar(results, "ahb", 0)


@pytest.mark.parametrize(
    ("means", "words"),
    [
        (answers(arms=()), "Nothing to show: no question"),
        (answers(arms=("animal",)), "not graded in both arms"),
        (answers(seeds=1, questions=131), "percentage points"),
    ],
)
def test_odd_answers_are_drawn(means, words):
    assert words in drawn(profiles.per_question(means, contrast()))
