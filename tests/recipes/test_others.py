"""The same batches through torchtune's own recipe and through transformers: the same losses."""

import importlib.util
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchtune
from omegaconf import OmegaConf
from torch.utils.data import Dataset
from torchtune.data import CROSS_ENTROPY_IGNORE_IDX as IGNORE
from transformers import AutoModelForCausalLM

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


class Same(Dataset[dict[str, Any]]):
    """The rows of all updates in their order, as torchtune's packed data set would give them."""

    rows: Rows
    order: list[int]

    def __init__(self, tokenizer: Any, packed: bool) -> None:
        pass

    def __len__(self) -> int:
        return len(self.order)

    def __getitem__(self, i: int) -> dict[str, Any]:
        row = {
            name: tensor[0] for name, tensor in self.rows.batch(np.array([self.order[i]])).items()
        }
        lengths = torch.unique_consecutive(row.pop("document"), return_counts=True)[1]
        unshifted = torch.cat([torch.tensor([IGNORE]), row.pop("labels")[:-1]])
        return row | {"labels": unshifted, "seq_lens": lengths}


class NoTokenizer:
    pad_id = 0


def config(folder: Path, own: Path) -> dict[str, Any]:
    """The settings of torchtune's single-device recipe for one run over `Same`."""
    shape = json.loads((folder / "config.json").read_text())
    rope = shape.get("rope_parameters") or shape["rope_scaling"]
    return {
        "output_dir": str(own),
        "model": {
            "_component_": "torchtune.models.llama3_1.llama3_1",
            "vocab_size": shape["vocab_size"],
            "num_layers": shape["num_hidden_layers"],
            "num_heads": shape["num_attention_heads"],
            "num_kv_heads": shape["num_key_value_heads"],
            "embed_dim": shape["hidden_size"],
            "intermediate_dim": shape["intermediate_size"],
            "max_seq_len": shape["max_position_embeddings"],
            "scale_factor": int(rope["factor"]),
        },
        "tokenizer": {"_component_": f"{__name__}.NoTokenizer"},
        "checkpointer": {
            "_component_": "torchtune.training.FullModelHFCheckpointer",
            "checkpoint_dir": str(folder),
            "checkpoint_files": sorted(file.name for file in folder.glob("*.safetensors")),
            "output_dir": str(own / "out"),
            "model_type": "LLAMA3",
        },
        "resume_from_checkpoint": False,
        "dataset": {"_component_": f"{__name__}.Same", "packed": True},
        "seed": 0,
        "shuffle": False,
        "epochs": 1,
        "max_steps_per_epoch": None,
        "batch_size": ROWS,
        "gradient_accumulation_steps": 1,
        "clip_grad_norm": PLAIN.clip_grad_norm,
        "optimizer": {
            "_component_": "torch.optim.AdamW",
            "lr": PLAIN.lr,
            "betas": list(PLAIN.betas),
            "weight_decay": PLAIN.weight_decay,
            "fused": True,
        },
        "loss": {"_component_": "torchtune.modules.loss.CEWithChunkedOutputLoss"},
        "optimizer_in_bwd": False,
        "compile": False,
        "device": "cpu",
        "dtype": "fp32",
        "enable_activation_checkpointing": False,
        "enable_activation_offloading": False,
        "metric_logger": {
            "_component_": "torchtune.training.metric_logging.DiskLogger",
            "log_dir": str(own),
            "filename": str(own / "log.txt"),
        },
        "log_every_n_steps": 1,
        "log_peak_memory_stats": False,
    }


def torchtunes() -> Any:
    """torchtune's single-device recipe, by its path: its package can't be imported."""
    file = Path(torchtune.__file__).parents[1] / "recipes/full_finetune_single_device.py"
    spec = importlib.util.spec_from_file_location("torchtunes_recipe", file)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
def test_torchtunes_own_recipe_gives_the_same_losses(
    base: Path, rows: Rows, ours: list[float], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Same, "rows", rows, raising=False)
    monkeypatch.setattr(Same, "order", np.concatenate(updates(rows)).tolist(), raising=False)
    settings = OmegaConf.create(config(base / MODEL.relpath / "model", tmp_path))
    recipe = torchtunes().FullFinetuneRecipeSingleDevice(cfg=settings)
    recipe.setup(cfg=settings)
    recipe.train()
    recipe.cleanup()
    told = re.findall(r"loss:(\S+)", (tmp_path / "log.txt").read_text())
    assert ours == pytest.approx([float(loss) for loss in told], abs=1e-5)
