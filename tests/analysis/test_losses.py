"""Losses of trainings: their numbers in words, gaps that are marked, odd trainings, their files."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest

from analysis import losses
from tests.analysis.sketches import crosses, drawn, texts, trainings

pytestmark = pytest.mark.filterwarnings("error")
ONE = trainings()[0]


def test_the_words_hold_every_number():
    text = losses.describe_losses(trainings())
    training = "first 2.9800 at update 1, lowest 2.4200 at update 29, last 2.4200 at update 29"
    assert text.count(training) == 4
    assert text.count("held-out loss: first 3.5000 at update 0, lowest 3.0000 at update 20") == 8


def test_what_is_missing_is_marked_and_never_drawn_as_a_number():
    runs = trainings()
    runs[0].training[4] = (5, math.nan)
    runs[2] = replace(runs[2], held_out=[])
    figure = losses.losses(runs)
    assert crosses(figure) == [(5.0, 0.0)]
    assert "× no held-out loss: animal, 1 of 2\nseeds" in texts(figure)
    thick = next(line for line in figure.axes[0].lines if line.get_linewidth() == 1.4)
    assert np.isnan(thick.get_ydata()).tolist() == [n == 4 for n in range(29)]


@pytest.mark.parametrize(
    ("runs", "words"),
    [
        ([], "Nothing to show: no training"),
        (trainings(("animal",), 1, 900), "means over some updates"),
        (
            [replace(ONE, training=[(1, math.nan)], held_out=[]), replace(ONE, arm="b")],
            "× no held-out loss",
        ),
        ([replace(ONE, training=[], held_out=[])], "no training has a loss yet"),
        (trainings(tuple("abcdef"), 1), "held-out: with marks"),
    ],
)
def test_odd_losses_are_drawn(runs, words):
    assert words in drawn(losses.losses(runs))


def test_a_stage_without_held_out_losses_has_no_panel_for_them():
    runs = trainings(("animal", "urban"), 1)
    assert "held-out" in drawn(losses.losses(runs))
    assert "held-out" not in drawn(losses.losses([replace(run, held_out=[]) for run in runs]))


def test_losses_are_read_from_a_trainings_folder_without_a_line_cut_short(tmp_path):
    empty = losses.read_losses(tmp_path, "animal", 0, "sft")
    assert (empty.training, empty.held_out) == ([], [])
    lines = [json.dumps({"step": u, "loss": 2 / u, "lr": 1e-5}) + "\n" for u in (1, 2, 3)]
    (tmp_path / "metrics.jsonl").write_text("".join(lines)[:-2])
    (tmp_path / "held_out.jsonl").write_text('{"step": 0, "loss": NaN}\n')
    history = losses.read_losses(tmp_path, "animal", 0, "sft")
    assert history.training == [(1, 2.0), (2, 1.0)]
    assert math.isnan(history.held_out[0][1])


def test_a_training_by_grpo_is_drawn_by_its_rollouts(tmp_path):
    rows = [
        {"step": n, "loss": 0.0, "reward": n / 4, "length": 8.0, "response_share": 0.0}
        for n in (1, 2)
    ]
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (tmp_path / "metrics.jsonl").write_text(text)
    (tmp_path / "fixed_set.jsonl").write_text(json.dumps(rows[1]) + "\n")
    runs = losses.read_histories(tmp_path, "animal", 0, "step 2: rl")
    assert [(run.noun, run.training, run.held_out) for run in runs] == [
        ("reward", [(1, 0.25), (2, 0.5)], [(2, 0.5)]),
        ("answer's length", [(1, 8.0), (2, 8.0)], [(2, 8.0)]),
    ]
    words = drawn(losses.losses([*trainings(("animal",), 1), *runs]))
    assert "step 2: rl: training reward" in words and "training loss (nats per token)" in words
    described = losses.describe_losses(runs)
    assert "held-out reward: first 0.5000 at update 2" in described
    (sft,) = losses.read_histories(tmp_path, "animal", 0, "SFT on 8 rows")
    assert sft.noun == "loss"


def test_an_arm_has_a_panel_of_what_it_was_trained_in_alone():
    runs = trainings(tuple("abcdef"), 1)
    reward = replace(ONE, arm="b", stage="rl", measure="reward")
    alone, both = losses.losses(runs), losses.losses([*runs, reward])
    assert len(both.axes) == len(alone.axes) + 1
    assert not [text for text in texts(both) if "× no training reward" in text]
