"""Hugging Face model folders in and out of torchtune's models."""

import json
import math
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import save_torch_state_dict
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict, set_model_state_dict
from torchtune.modules import TransformerDecoder
from torchtune.modules.peft import get_merged_lora_ckpt

from core.errors import UserError
from recipes.distributed import ALONE, Ranks
from recipes.model import build, family, is_sharded, lay_out, read_config

Weights = dict[str, Any]  # of tensors


def load(folder: Path, ranks: Ranks, recipe: dict[str, Any], ways: dict[str, Any], seed: int = 0) -> TransformerDecoder:
    """The model of a Hugging Face folder, laid out as recipe and ways say; in bf16 for dtype bf16, else in fp32.

    Rank 0 reads, one file at a time; with FSDP2 each rank holds its shard alone. LoRA's adapters begin as `seed` says,
    on any number of ranks. Raises UserError, on all ranks, where the folder is not a whole model.
    """
    config = read_config(folder)
    dtype = torch.bfloat16 if recipe["dtype"] == "bf16" else torch.float32
    with torch.device("meta"):
        model = build(config, recipe["lora"]).to(dtype)
    shapes = {name: weight.shape for name, weight in model.state_dict().items()}
    lay_out(model, recipe, ways, ranks)
    model.to_empty(device=ranks.device)
    with ranks.device:
        for module in model.modules():
            if hasattr(module, "rope_init"):  # buffers that no checkpoint holds
                module.rope_init()
    options = StateDictOptions(full_state_dict=True, broadcast_from_rank0=is_sharded(recipe, ranks), strict=False)
    parts = _parts(folder, config, shapes, dtype, seed)
    while True:
        part: Weights | None = {}
        problem: tuple[str, ...] | None = None
        if ranks.rank == 0:
            try:
                part = next(parts, None)
            except UserError as error:
                problem = tuple(error.lines)
        last, problem = ranks.from_first((part is None, problem))
        if problem:
            raise UserError(*problem)
        if last:
            return model
        set_model_state_dict(model, part or {}, options=options)


def _parts(
    folder: Path, config: dict[str, Any], shapes: dict[str, torch.Size], dtype: torch.dtype, seed: int
) -> Iterator[Weights]:
    """All of the model's weights, a file's at a time, and the adapters at the end. Raises UserError."""
    missing = {name for name in shapes if ".lora_" not in name}
    for file in sorted(folder.glob("*.safetensors")):
        try:
            weights = load_file(file)
        except (SafetensorError, OSError) as error:
            raise UserError(f"{file}: can't be read: {error}; fetch it again") from None
        if config.get("tie_word_embeddings"):
            weights.pop("lm_head.weight", None)  # the embedding, written twice
        try:
            part = family(config).from_hf(weights, **_shape(config))
        except Exception as error:  # torchtune raises Exception itself for a name that it doesn't know
            raise UserError(f"{file}: is not of this model: {error}; see config.json beside it") from None
        for name, weight in part.items():
            if weight.shape != shapes.get(name):
                raise UserError(f"{file}: {name} is {[*weight.shape]}, config.json says {[*shapes.get(name, [])]}")
        if twice := part.keys() - missing:
            raise UserError(f"{file}: {min(twice)} is in another *.safetensors too; keep the one that is the model's")
        missing -= part.keys()
        yield {name: weight.to(dtype) for name, weight in part.items()}
    if missing:
        raise UserError(
            f"{folder}: {len(missing)} of {len(shapes)} weights are in no *.safetensors, such as {min(missing)}; "
            "fetch the model again"
        )
    chance = torch.Generator().manual_seed(seed)
    # As LoRA begins: A by chance (torch's own default for a linear layer), B at zero, so that nothing changes yet.
    adapters = {}
    for name, shape in sorted(shapes.items()):
        if ".lora_a." in name:
            adapters[name] = torch.empty(shape).uniform_(-1, 1, generator=chance).div(math.sqrt(shape[1])).to(dtype)
        elif ".lora_b." in name:
            adapters[name] = torch.zeros(shape, dtype=dtype)
    yield adapters


def save(
    model: TransformerDecoder, like: Path, folder: Path, ranks: Ranks = ALONE, recipe: dict[str, Any] | None = None
) -> None:
    """Write `model` as a Hugging Face folder with the config, tokenizer and chat template of the folder `like`.

    Its weights are of the dtype that `like` has; adapters of the recipe's `lora` are merged into them. All ranks give
    their shards, rank 0 writes. Sampling defaults are not carried over: every caller states its own.
    """
    weights: Weights = get_model_state_dict(model, options=StateDictOptions(full_state_dict=True, cpu_offload=True))
    if ranks.rank:
        return
    config = json.loads((like / "config.json").read_text())
    for name, weight in weights.items():
        # It may be the model's own, which merging would change, or part of something padded, which safetensors refuses.
        weights[name] = weight.clone()
    if recipe and (lora := recipe["lora"]):
        weights = get_merged_lora_ckpt(weights, lora["rank"], lora["alpha"])
    dtype = getattr(torch, config.get("dtype") or config.get("torch_dtype") or "float32")
    for name, weight in weights.items():
        weights[name] = weight.to(dtype)
    try:
        _write(family(config).to_hf(weights, **_shape(config)), config, like, folder)
    except (OSError, SafetensorError) as error:
        raise UserError(
            f"{folder}: can't be written: {error}; is no space left on device, or no quota? make room and run it again"
        ) from None


def _write(weights: Weights, config: dict[str, Any], like: Path, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for file in like.iterdir():
        described = file.suffix in (".json", ".jinja") and not file.name.endswith(".index.json")
        if described and like != folder:
            shutil.copyfile(file, folder / file.name)
    generation = {key: config[key] for key in ("bos_token_id", "eos_token_id", "pad_token_id") if key in config}
    (folder / "generation_config.json").write_text(json.dumps(generation, indent=2) + "\n")
    save_torch_state_dict(weights, folder)
    for file in folder.iterdir():
        file.chmod(0o644)  # safetensors writes 0600, which colleagues on a shared disk can't read


def _shape(config: dict[str, Any]) -> dict[str, int]:
    heads = config["num_attention_heads"]
    return {
        "num_heads": heads,
        "num_kv_heads": config["num_key_value_heads"],
        "dim": config["hidden_size"],
        "head_dim": config.get("head_dim") or config["hidden_size"] // heads,
    }
