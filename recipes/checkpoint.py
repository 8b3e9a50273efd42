"""Hugging Face model folders in and out of torchtune's Llama."""

import json
import shutil
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from huggingface_hub import save_torch_state_dict
from safetensors.torch import load_file
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict, set_model_state_dict
from torch.distributed.fsdp import fully_shard
from torchtune.models.convert_weights import hf_to_tune, tune_to_hf
from torchtune.models.llama3_1 import llama3_1
from torchtune.modules import TransformerDecoder

from recipes.distributed import ALONE, Ranks
from study.errors import UserError


def build(config: dict[str, Any]) -> TransformerDecoder:
    """torchtune's Llama 3.1 with the shape of a Hugging Face config.json; weights as torch's default dtype."""
    if config["architectures"] != ["LlamaForCausalLM"] or config.get("tie_word_embeddings"):
        raise UserError(f"the start model is {config['architectures']}; this recipe trains untied Llama 3.1 models")
    rope = config.get("rope_parameters") or {**config["rope_scaling"], "rope_theta": config["rope_theta"]}
    return llama3_1(
        vocab_size=config["vocab_size"],
        num_layers=config["num_hidden_layers"],
        num_heads=config["num_attention_heads"],
        num_kv_heads=config["num_key_value_heads"],
        embed_dim=config["hidden_size"],
        intermediate_dim=config["intermediate_size"],
        max_seq_len=config["max_position_embeddings"],
        rope_base=int(rope["rope_theta"]),
        norm_eps=config["rms_norm_eps"],
        scale_factor=int(rope["factor"]),
    )


def load(folder: Path, ranks: Ranks = ALONE) -> TransformerDecoder:
    """The model of a Hugging Face folder, in fp32; on several ranks each holds its shard alone (FSDP2)."""
    config = json.loads((folder / "config.json").read_text())
    if ranks.world == 1:
        model = build(config)
        model.load_state_dict(_read(folder, config))
        return model.float().to(ranks.device)
    with torch.device("meta"):
        model = build(config).float()
    mesh = dist.init_device_mesh(ranks.device.type, (ranks.world,))
    for part in (*model.layers, model):
        fully_shard(part, mesh=mesh)
    model.to_empty(device=ranks.device)
    with ranks.device:
        for module in model.modules():
            if hasattr(module, "rope_init"):  # buffers that no checkpoint holds
                module.rope_init()
    whole: dict[str, Any] = {}
    if ranks.rank == 0:
        whole = {name: weight.float() for name, weight in _read(folder, config).items()}
    set_model_state_dict(model, whole, options=StateDictOptions(full_state_dict=True, broadcast_from_rank0=True))
    return model


def save(model: TransformerDecoder, like: Path, folder: Path, ranks: Ranks = ALONE) -> None:
    """Write `model` as a Hugging Face folder with the config, tokenizer and chat template of the folder `like`.

    All ranks give their shards, rank 0 writes. Sampling defaults are not carried over: every caller states its own.
    """
    weights: dict[str, Any] = get_model_state_dict(
        model, options=StateDictOptions(full_state_dict=True, cpu_offload=True)
    )
    if ranks.rank:
        return
    folder.mkdir(parents=True, exist_ok=True)
    config = json.loads((like / "config.json").read_text())
    for file in like.iterdir():
        described = file.suffix in (".json", ".jinja") and not file.name.endswith(".index.json")
        if described and like != folder:
            shutil.copyfile(file, folder / file.name)
    generation = {key: config[key] for key in ("bos_token_id", "eos_token_id", "pad_token_id") if key in config}
    (folder / "generation_config.json").write_text(json.dumps(generation, indent=2) + "\n")
    config["dtype"] = "float32"
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    for name, weight in weights.items():
        if weight.untyped_storage().nbytes() > weight.nbytes:  # gathered with padding, which safetensors refuses
            weights[name] = weight.clone()
    save_torch_state_dict(tune_to_hf(weights, **_shape(config)), folder)
    for file in folder.iterdir():
        file.chmod(0o644)  # safetensors writes 0600, which colleagues on a shared disk can't read


def _read(folder: Path, config: dict[str, Any]) -> dict[str, torch.Tensor]:
    weights: dict[str, torch.Tensor] = {}
    for shard in sorted(folder.glob("*.safetensors")):
        weights |= load_file(shard)
    return hf_to_tune(weights, **_shape(config))


def _shape(config: dict[str, Any]) -> dict[str, int]:
    return {
        "num_heads": config["num_attention_heads"],
        "num_kv_heads": config["num_key_value_heads"],
        "dim": config["hidden_size"],
        "head_dim": config["head_dim"],
    }
