"""Curves over doses and updates: their numbers in words, gaps that are marked, and odd studies."""

import json
import math
import re

import numpy as np
import pytest

from analysis import curves
from tests.analysis.sketches import NASTY, crosses, drawn, numbers, study, texts, trainings

pytestmark = pytest.mark.filterwarnings("error")


def test_the_words_hold_every_number():
    results = study()
    text = curves.describe_erosion(results)
    for n in numbers(results, "arms", "mean", "low", "high") | numbers(results, "scores", "score"):
        assert n in text
    assert all(n in text for n in numbers(results, "contrasts", "estimate", "low", "high"))
    text = curves.describe_losses(trainings())
    assert text.count("first 2.9800 at update 1, lowest 2.4200 at update 29, last 2.4200 at update 29") == 4
    assert text.count("held-out loss: first 3.5000 at update 0, lowest 3.0000 at update 20") == 8


def test_what_is_missing_is_marked_and_never_drawn_as_a_number():
    results = study(gone=[("urban", 100)])
    # urban and its seeds, the advantage over it
    assert crosses(curves.erosion(results)).count((100.0, 0.0)) == 2 * (1 + 3)
    assert "not finished" in curves.describe_erosion(results)
    runs = trainings()
    runs[0]["points"][4] = (5, math.nan)
    runs[2]["held_out"] = []
    figure = curves.losses(runs)
    assert crosses(figure) == [(5.0, 0.0)]
    assert "× no held-out loss: animal, 1 of 2\nseeds" in texts(figure)
    thick = next(line for line in figure.axes[0].lines if line.get_linewidth() == 1.4)
    assert np.isnan(thick.get_ydata()).tolist() == [n == 4 for n in range(29)]


def test_the_advantage_is_the_declared_contrast_whichever_way_round():
    results = study(arms=("animal", "urban", "qa"))
    results["contrasts"][-1] |= {"of": "urban", "against": "qa"}
    results["contrasts"].append(results["contrasts"][0] | {"against_dose": 0, "estimate": 0.99, "dose": 100})
    lines = curves._lines(results)
    flipped, plain = (results["contrasts"][n]["estimate"] for n in (-2, 0))
    assert lines["advantage", "ahb", "qa"][100]["mean"] == pytest.approx(-100 * flipped)
    assert lines["advantage", "ahb", "animal"][100]["mean"] == pytest.approx(100 * results["contrasts"][1]["estimate"])
    assert lines["advantage", "ahb", "animal"][0]["seeds"][2] == pytest.approx(100 * plain + 1)


@pytest.mark.parametrize(
    "results",
    [
        study(arms=()),
        study(arms=("animal", "untrained"), seeds=1),
        study(gone=[(arm, dose) for arm in ("animal", "urban") for dose in (0, 100)]),
        study(arms=(NASTY, "b"), doses=(0, 100, 5000)),
        study(tuple(f"a very long name of an arm, written by model {n}, revised" for n in range(12)), (0,), 10),
    ],
)
def test_odd_studies_are_drawn(results):
    words, text = drawn(curves.erosion(results)), curves.describe_erosion(results)
    assert text.endswith(".") and ("Nothing to show" in words) == ("Nothing to show" in text)


@pytest.mark.parametrize("nan", [None, math.nan])
def test_numbers_that_are_none_are_drawn(nan):
    results = study()
    for row in [*results["scores"], *results["arms"], *results["contrasts"]]:
        row |= {key: nan for key in ("score", "mean", "estimate", "low", "high") if key in row}
    drawn(curves.erosion(results))
    text = curves.describe_erosion(results)
    assert "no number" in text and "nan" not in text and not re.search(r"\d %", text)


@pytest.mark.parametrize(
    ("runs", "words"),
    [
        ([], "Nothing to show: no training"),
        (trainings(("animal",), 1, 900), "means over some updates"),
        (
            [trainings()[0] | {"points": [(1, math.nan)], "held_out": []}, trainings()[0] | {"arm": "b"}],
            "× no held-out loss",
        ),
        ([trainings()[0] | {"points": [], "held_out": []}], "no training has a loss yet"),
        (trainings(tuple("abcdef"), 1), "held-out: with marks"),
    ],
)
def test_odd_losses_are_drawn(runs, words):
    assert words in drawn(curves.losses(runs))


def test_a_stage_without_held_out_losses_has_no_panel_for_them():
    runs = trainings(("animal", "urban"), 1)
    assert "held-out" in drawn(curves.losses(runs))
    assert "held-out" not in drawn(curves.losses([run | {"held_out": []} for run in runs]))


def test_losses_are_read_from_a_trainings_folder(tmp_path):
    assert curves.read_losses(tmp_path) == {"points": [], "held_out": []}
    lines = [json.dumps({"update": u, "loss": 2 / u, "lr": 1e-5}) + "\n" for u in (1, 2, 3)]
    (tmp_path / "metrics.jsonl").write_text("".join(lines)[:-2])
    (tmp_path / "held_out.jsonl").write_text('{"update": 0, "loss": NaN}\n')
    found = curves.read_losses(tmp_path)
    assert found["points"] == [(1, 2.0), (2, 1.0)] and math.isnan(found["held_out"][0][1])
