"""torchtune's own single-device recipe, over rows of the kit.

For benchmarks.training and tests/recipes/test_others.py. Needs no pytest, which environments for
GPUs do not have.
"""

import importlib.util
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torchtune
from torch.utils.data import Dataset
from torchtune.data import CROSS_ENTROPY_IGNORE_IDX as IGNORE

from core.recipe import Training
from recipes.rows import Rows


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
    """`Same` has token ids already."""

    pad_id = 0


def settings_of(folder: Path, output: Path, recipe: Training, rows: int) -> dict[str, Any]:
    """The settings of torchtune's single-device recipe for one run over `Same`, in fp32 on a CPU.

    folder: a Llama as a Hugging Face folder. recipe: for AdamW and the clipping of gradients.
    rows: of a batch.
    """
    shape = json.loads((folder / "config.json").read_text())
    rope = shape.get("rope_parameters") or shape["rope_scaling"]
    return {
        "output_dir": str(output),
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
            "output_dir": str(output / "out"),
            "model_type": "LLAMA3",
        },
        "resume_from_checkpoint": False,
        "dataset": {"_component_": f"{__name__}.Same", "packed": True},
        "seed": 0,
        "shuffle": False,
        "epochs": 1,
        "max_steps_per_epoch": None,
        "batch_size": rows,
        "gradient_accumulation_steps": 1,
        "clip_grad_norm": recipe.clip_grad_norm,
        "optimizer": {
            "_component_": "torch.optim.AdamW",
            "lr": recipe.lr,
            "betas": list(recipe.betas),
            "weight_decay": recipe.weight_decay,
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
            "log_dir": str(output),
            "filename": str(output / "log.txt"),
        },
        "log_every_n_steps": 1,
        "log_peak_memory_stats": False,
    }


def recipe_module() -> Any:
    """torchtune's single-device recipe, by its path: its package can't be imported."""
    file = Path(torchtune.__file__).parents[1] / "recipes/full_finetune_single_device.py"
    spec = importlib.util.spec_from_file_location("torchtunes_recipe", file)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
