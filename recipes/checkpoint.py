"""Hugging Face model folders in and out of torchtune's Llama."""

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import save_torch_state_dict
from safetensors.torch import load_file
from torchtune.models.convert_weights import hf_to_tune, tune_to_hf
from torchtune.models.llama3_1 import llama3_1
from torchtune.modules import TransformerDecoder

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


def load(folder: Path) -> TransformerDecoder:
    """The model of a Hugging Face folder, in fp32."""
    config = json.loads((folder / "config.json").read_text())
    model = build(config)
    weights: dict[str, torch.Tensor] = {}
    for shard in sorted(folder.glob("*.safetensors")):
        weights |= load_file(shard)
    model.load_state_dict(hf_to_tune(weights, **_shape(config)))
    return model.float()


def save(model: TransformerDecoder, like: Path, folder: Path) -> None:
    """Write `model` as a Hugging Face folder with the config, tokenizer and chat template of the folder `like`.

    Sampling defaults are not carried over: every caller states its own.
    """
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
    save_torch_state_dict(tune_to_hf(model.state_dict(), **_shape(config)), folder)
    for file in folder.iterdir():
        file.chmod(0o644)  # safetensors writes 0600, which colleagues on a shared disk can't read


def _shape(config: dict[str, Any]) -> dict[str, int]:
    return {
        "num_heads": config["num_attention_heads"],
        "num_kv_heads": config["num_key_value_heads"],
        "dim": config["hidden_size"],
        "head_dim": config["head_dim"],
    }
