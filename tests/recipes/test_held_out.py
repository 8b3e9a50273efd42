"""The held-out loss: what it is, what it decides, and that a killed training decides the same."""

import json
import math
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from transformers import AutoModelForCausalLM, AutoTokenizer

from core.cell.context import StageContext
from core.cell.manifest import read_manifest
from core.cell.run import run_cell
from core.recipe import Training, split_recipe
from recipes import finetune, prepare, step_checkpoint
from recipes.distributed import SINGLE_PROCESS
from recipes.held_out import EvalHistory
from recipes.rows import Rows
from tests.recipes.toy import (
    HELD_OUT,
    assert_same,
    ends,
    in_process,
    lines,
    make_recipe,
    on_ranks,
    start_ranks,
    training,
    until,
)

pytestmark = pytest.mark.multiprocess

# At this rate the toy soon knows its few texts by heart, and the held-out loss turns.
LOOKING: dict[str, Any] = {"eval_every": 3, "lr": 1e-2, "load_best_checkpoint": True}


@pytest.fixture(scope="module")
def looked(base: Path) -> Path:
    """A training that looks every third update and ends with its best weights."""
    folder = training(base, "looked", recipe=LOOKING)
    run_cell(folder)
    return folder


def looks(folder: Path) -> list[tuple[int, float]]:
    told = [json.loads(line) for line in (folder / "held_out.jsonl").read_text().splitlines()]
    return [(line["step"], line["loss"]) for line in told]


def loss_by_transformers(model: Path) -> float:
    """Mean nats a token of the held-out texts, each by itself."""
    theirs, tokenizer = (
        AutoModelForCausalLM.from_pretrained(model).eval(),
        AutoTokenizer.from_pretrained(model),
    )
    total, count = 0.0, 0
    for text in HELD_OUT:
        ids = tokenizer(text, add_special_tokens=False).input_ids
        ids = torch.tensor([[tokenizer.bos_token_id, *ids, tokenizer.eos_token_id]])
        with torch.no_grad():
            total += theirs(ids, labels=ids).loss.item() * (ids.shape[1] - 1)
        count += ids.shape[1] - 1
    return total / count


def test_it_looks_before_at_intervals_and_at_the_end_and_keeps_the_best(looked: Path) -> None:
    seen = looks(looked)
    assert [update for update, _ in seen] == [0, *range(3, 20, 3), 20]
    best, lowest = min(seen, key=lambda look: look[1])
    assert best not in (0, 20), "else nothing is chosen here"
    assert lowest == pytest.approx(loss_by_transformers(looked / "model"), abs=1e-5)
    assert not (looked / "best").exists() and not (looked / "steps").exists()
    manifest = read_manifest(looked)
    assert manifest and manifest["counts"]["best_held_out_loss"] == round(lowest, 6)


def test_the_time_of_looks_is_in_the_speed_file(looked: Path) -> None:
    speed = [json.loads(line) for line in (looked / "speed.jsonl").read_text().splitlines()]
    timed = {line["step"]: line["eval_seconds"] for line in speed if "eval_seconds" in line}
    assert [*timed] == [1, *range(3, 20, 3), 20], "the start model's look is in the first line"
    manifest = read_manifest(looked)
    assert manifest and manifest["counts"]["eval_seconds"] == pytest.approx(
        sum(timed.values()), abs=1e-3
    )


def test_it_looks_at_no_more_rows_than_the_recipe_says(base: Path) -> None:
    def evaluated(rows: int) -> Rows:
        context = in_process(training(base, f"rows{rows}", recipe=LOOKING | {"eval_rows": rows}))
        recipe = Training.from_settings(context.settings["recipe"], context.resources)
        held_out = prepare.prepare_rows(context, recipe, SINGLE_PROCESS)[1]
        assert held_out
        return held_out

    every, first = evaluated(256), evaluated(1)
    assert len(every) > 1 == len(first)
    assert first.batch(np.array([0]))["tokens"].equal(every.batch(np.array([0]))["tokens"])


def test_the_number_of_rows_is_identity_only_where_it_looks() -> None:
    def settings(**changes: Any) -> dict[str, Any]:
        return split_recipe(asdict(make_recipe(**changes)))[0]

    assert settings(eval_rows=1) == settings(eval_rows=2)
    assert settings(eval_rows=1, eval_every=3) != settings(eval_rows=2, eval_every=3)


def as_looked(base: Path, name: str, looked: Path, **recipe: Any) -> StageContext:
    """Another recipe with the seeds of `looked`, which follow from its identity."""
    context = in_process(training(base, name, recipe=LOOKING | recipe, checkpoint_minutes=0.0))
    return replace(context, identity=in_process(looked).identity)


def test_without_load_best_it_ends_with_the_last(base: Path, looked: Path) -> None:
    context = as_looked(base, "last", looked, load_best_checkpoint=False)
    finetune.run(context)
    assert looks(context.folder) == looks(looked) and lines(context.folder) == lines(looked)
    assert loss_by_transformers(context.folder / "model") == pytest.approx(
        looks(looked)[-1][1], abs=1e-5
    )


def test_looking_changes_nothing(base: Path, looked: Path) -> None:
    context = as_looked(base, "blind", looked, eval_every=None, load_best_checkpoint=False)
    finetune.run(context)
    assert not looks(context.folder) and lines(context.folder) == lines(looked)


def test_it_stops_when_patience_ends_also_when_run_again_after_the_last_look(
    base: Path, looked: Path
) -> None:
    context = as_looked(base, "patient", looked, patience=2)
    best = min(looks(looked), key=lambda look: look[1])[0]

    def killed(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    for _ in range(2):
        with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(finetune.Trainer, "finalize", killed)
            finetune.run(context)
        assert (
            len(lines(context.folder)) == best + 6
            and looks(context.folder) == looks(looked)[: len(looks(context.folder))]
        )
    finetune.run(context)
    assert (context.folder / "model/model.safetensors").read_bytes() == (
        looked / "model/model.safetensors"
    ).read_bytes()


def test_killed_at_any_update_it_keeps_the_same_best(base: Path, looked: Path) -> None:
    folder = training(base, "looked_killed", recipe=LOOKING, checkpoint_minutes=0.0)
    for update in (4, 8, 13, 17):
        processes = start_ranks(folder, 1)
        until(lambda update=update: len(lines(folder)) >= update, processes)
        processes[0].kill()
        assert ends(processes) == [-9]
    run_cell(training(base, "looked_killed", recipe=LOOKING))
    assert_same(folder, looked)
    assert looks(folder) == looks(looked)


def test_two_ranks_see_the_same_loss(base: Path, looked: Path) -> None:
    folder = on_ranks(training(base, "looked_by_two", recipe=LOOKING), 2)
    for (update, mine), (same, theirs) in zip(looks(folder), looks(looked), strict=True):
        assert update == same and mine == pytest.approx(theirs, abs=1e-5)


def test_the_curves_are_in_tensorboard(looked: Path) -> None:
    board = EventAccumulator(str(looked / "tensorboard"))
    board.Reload()
    assert [e.step for e in board.Scalars("metrics/loss")] == [
        line["step"] for line in lines(looked)
    ]
    assert [e.value for e in board.Scalars("held_out/loss")] == pytest.approx(
        [loss for _, loss in looks(looked)]
    )
    assert all(e.value > 0 for e in board.Scalars("speed/tokens_per_second"))


def test_the_best_step_and_when_to_stop() -> None:
    seen = EvalHistory(patience=2)
    assert not seen.add(0, 1.0) and seen.best() is None and not seen.should_stop(), (
        "the start model is no candidate"
    )
    assert seen.add(3, 2.0) and seen.add(6, 1.5) and not seen.add(9, 1.5)
    assert seen.best() == 6 and not seen.should_stop()
    assert not seen.add(12, math.inf) and seen.should_stop()
    assert not EvalHistory(None, [(0, 1.0), (1, 1.0), (2, 2.0), (3, 3.0), (4, 4.0)]).should_stop()


def test_only_two_candidates_are_kept(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, kept = training(base, "candidates", recipe=LOOKING | {"eval_every": 1}), []
    monkeypatch.setattr(
        finetune.Trainer,
        "finalize",
        lambda _: kept.extend(step_checkpoint.list_checkpoints(folder / "best")),
    )
    finetune.run(in_process(folder))
    assert len(kept) == 2 and kept[-1] == min(looks(folder)[1:], key=lambda look: look[1])[0]
