"""The same batches through torchtune's own recipe and through transformers: the same losses."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from torchtune.data import CROSS_ENTROPY_IGNORE_IDX as IGNORE
from transformers import AutoModelForCausalLM

from benchmarks.torchtune_recipe import Same, recipe_module, settings_of
from core.cell.context import StageContext
from core.model_folder.tokenizer import load_tokenizer
from recipes import checkpoint, tokenization
from recipes.distributed import SINGLE_PROCESS
from recipes.finetune import Trainer
from recipes.preemption import SignalGuard
from recipes.rows import Rows
from recipes.schedule import batch_indices
from tests.recipes.toy import MODEL, TEXTS, lines, make_recipe

UPDATES = 30
PLAIN = make_recipe(schedule="constant", warmup_steps=0, epochs=100, max_steps=UPDATES)
ROWS = 5  # an update


class Uncrossed(Rows):
    """Rows whose last token is untrained: torchtune's recipe loses it when it shifts labels."""

    def batch(self, which: np.ndarray) -> dict[str, torch.Tensor]:
        batch = super().batch(which)
        batch["labels"][:, -1] = IGNORE
        return batch

    def num_trained(self, which: np.ndarray) -> int:
        return int((self.batch(which)["labels"] != IGNORE).sum())


@pytest.fixture(scope="module")
def rows(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Rows:
    """Packed rows, several documents in each."""
    tokenizer = load_tokenizer(base / MODEL.relpath / "model")
    rows = tokenization.pack_documents(tmp_path_factory.mktemp("rows"), TEXTS, tokenizer, 32)
    object.__setattr__(rows, "__class__", Uncrossed)
    return rows


@pytest.fixture(scope="module")
def ours(base: Path, rows: Rows, tmp_path_factory: pytest.TempPathFactory) -> list[float]:
    folder = tmp_path_factory.mktemp("ours")
    start = base / MODEL.relpath / "model"
    context = StageContext(folder, "others", {}, {}, {})
    trainer = Trainer(context, PLAIN, rows, start)
    trainer.resume_or_init(lambda: checkpoint.load(start, SINGLE_PROCESS, PLAIN))
    trainer.train(SignalGuard())
    assert len(lines(folder)) == UPDATES
    return [line["loss"] for line in lines(folder)]


def updates(rows: Rows) -> list[np.ndarray]:
    return list(
        batch_indices(len(rows), PLAIN, StageContext(Path(), "others", {}, {}, {}).seed("order"))
    )


def test_transformers_gives_the_same_losses(base: Path, rows: Rows, ours: list[float]) -> None:
    model = AutoModelForCausalLM.from_pretrained(
        base / MODEL.relpath / "model", attn_implementation="sdpa"
    ).train()
    adamw = torch.optim.AdamW(
        model.parameters(), PLAIN.lr, tuple(PLAIN.betas), weight_decay=PLAIN.weight_decay
    )
    losses = []
    for which in updates(rows):
        batch = rows.batch(which)
        same = batch["document"][:, None, :, None] == batch["document"][:, None, None, :]
        mask = same & torch.ones(same.shape[-2:], dtype=torch.bool).tril()
        logits = model(batch["tokens"], attention_mask=mask, position_ids=batch["input_pos"]).logits
        loss = torch.nn.functional.cross_entropy(
            logits.flatten(0, 1), batch["labels"].flatten(), ignore_index=IGNORE
        )
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), PLAIN.clip_grad_norm)
        adamw.step()
        adamw.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 0.5
    assert ours == pytest.approx(losses, abs=1e-5)


@pytest.mark.slow
def test_torchtunes_own_recipe_gives_the_same_losses(
    base: Path, rows: Rows, ours: list[float], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Same, "rows", rows, raising=False)
    monkeypatch.setattr(Same, "order", np.concatenate(updates(rows)).tolist(), raising=False)
    settings = OmegaConf.create(settings_of(base / MODEL.relpath / "model", tmp_path, PLAIN, ROWS))
    recipe = recipe_module().FullFinetuneRecipeSingleDevice(cfg=settings)
    recipe.setup(cfg=settings)
    recipe.train()
    recipe.cleanup()
    told = re.findall(r"loss:(\S+)", (tmp_path / "log.txt").read_text())
    assert ours == pytest.approx([float(loss) for loss in told], abs=1e-5)
