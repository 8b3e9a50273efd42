"""Training rows, order and updates: what a silent mistake would spoil without a crash."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from core.cell.context import StageContext
from core.errors import UserError
from core.model_folder.tokenizer import load_tokenizer
from recipes import checkpoint, tokenization
from recipes.distributed import SINGLE_PROCESS
from recipes.finetune import Trainer, check_size
from recipes.preemption import SignalGuard
from recipes.schedule import batch_indices, learning_rate
from tests.recipes.toy import RECIPE, TEXTS, make_model, make_recipe


def make_context(folder: Path, identity: str = "a", **more: Any) -> StageContext:
    folder.mkdir(parents=True, exist_ok=True)
    return StageContext(
        folder,
        identity,
        more.pop("settings", {}),
        more.pop("resources", {}),
        more.pop("inputs", {}),
    )


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cell folder with a tiny untrained checkpoint in model/."""
    folder = tmp_path_factory.mktemp("start")
    make_model(folder / "model")
    return folder


def test_order_differs_between_seeds_and_epochs_and_repeats() -> None:
    def rows(seed: int, epochs: int = 2) -> list[int]:
        recipe = make_recipe(epochs=epochs, global_batch_size=8)
        return np.concatenate(list(batch_indices(50, recipe, seed))).tolist()

    assert rows(1) == rows(1)
    assert rows(1) != rows(2)
    assert rows(1)[:50] != rows(1)[50:], "each epoch must have an order of its own"
    assert sorted(rows(1)[:50]) == sorted(rows(1)[50:]) == list(range(50))
    assert rows(1, epochs=3)[:100] == rows(1)


def test_warm_up_has_no_dead_step_and_cosine_ends_low() -> None:
    rates = [learning_rate(u, 10, RECIPE) for u in range(1, 11)]
    assert rates[0] == RECIPE.lr / 2 and max(rates) == rates[1] == rates[2] == RECIPE.lr
    assert 0 < rates[-1] < 0.1 * RECIPE.lr
    assert learning_rate(10, 10, make_recipe(schedule="constant")) == RECIPE.lr


def trained(start: Path, folder: Path, identity: str) -> dict[str, torch.Tensor]:
    context = make_context(folder, identity)
    rows = tokenization.pack_documents(folder / "rows", TEXTS, load_tokenizer(start / "model"), 32)
    trainer = Trainer(context, RECIPE, rows, start / "model")
    trainer.resume_or_init(lambda: checkpoint.load(start / "model", SINGLE_PROCESS, RECIPE))
    trainer.train(SignalGuard())
    return trainer.model.state_dict()


@pytest.mark.slow
def test_two_cells_differ_one_repeats_and_weights_move(start: Path, tmp_path: Path) -> None:
    before = checkpoint.load(start / "model", SINGLE_PROCESS, RECIPE).state_dict()
    first, again = (
        trained(start, tmp_path / "1", "seed 0"),
        trained(start, tmp_path / "2", "seed 0"),
    )
    other = trained(start, tmp_path / "3", "seed 1")
    for name, weight in first.items():
        assert torch.equal(weight, again[name]), f"{name}: the same cell must give the same weights"
        assert not torch.equal(weight, before[name]), f"{name} did not move"
    assert any(not torch.equal(first[name], other[name]) for name in first)
    losses = [
        json.loads(line)["loss"] for line in (tmp_path / "1/metrics.jsonl").read_text().splitlines()
    ]
    assert losses[-1] < losses[0] - 0.5


def test_few_updates_warn_and_none_is_refused(start: Path, tmp_path: Path) -> None:
    rows = tokenization.pack_documents(
        tmp_path / "rows", TEXTS, load_tokenizer(start / "model"), 32
    )
    context = make_context(tmp_path / "a")
    check_size(context, rows, RECIPE)
    assert any("under 100" in warning for warning in context.warnings)
    with pytest.raises(UserError, match="no optimizer step at all"):
        check_size(make_context(tmp_path / "b"), rows.first(0), RECIPE)


def test_a_saved_checkpoint_is_the_same_model_for_transformers(start: Path, tmp_path: Path) -> None:
    model = checkpoint.load(start / "model", SINGLE_PROCESS, RECIPE).eval()
    like = shutil.copytree(start / "model", tmp_path / "like")
    (like / "generation_config.json").write_text(
        '{"do_sample": true, "temperature": 0.6, "top_p": 0.9}'
    )
    checkpoint.save(model, like, tmp_path / "model")
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "model").eval()
    ids = torch.randint(
        0, theirs.config.vocab_size, (2, 300), generator=torch.Generator().manual_seed(0)
    )
    with torch.no_grad():
        torch.testing.assert_close(model(ids), theirs(ids).logits, atol=2e-5, rtol=0)
    generation = json.loads((tmp_path / "model/generation_config.json").read_text())
    assert not {"temperature", "top_p", "top_k", "do_sample"} & set(generation)
