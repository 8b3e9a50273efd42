"""What a model takes, by arithmetic on its shape: parameters, memory of a GPU in training, operations of a token."""

import json
from pathlib import Path
from typing import Any

from core.cell.identity import Cell
from core.errors import UserError
from core.paths import resolve

CHUNK = 1024  # tokens whose logits exist at once: with Llama's 128,256 words 0.5 GB in fp32
Shape = dict[str, Any]  # the keys of a Hugging Face config.json
# What the recipes train (recipes.model): whether its queries, keys and values have biases.
BIASES = {"LlamaForCausalLM": False, "Qwen2ForCausalLM": True}
# What of it counts here -> the toy's name of it (recipes/tiny_llama.yaml).
NUMBERS = {
    "vocab_size": "vocab_size",
    "hidden_size": "dim",
    "intermediate_size": "ffn_dim",
    "num_hidden_layers": "layers",
    "num_attention_heads": "heads",
    "num_key_value_heads": "kv_heads",
}


def _known(kind: str, tied: bool, *numbers: int) -> Shape:
    about = {"architectures": [kind], "tie_word_embeddings": tied, "dtype": "bfloat16"}
    return dict(zip(NUMBERS, numbers, strict=True)) | about


# By the beginning of their names on Hugging Face, from their config.json: to plan before they are fetched.
KNOWN = {
    "meta-llama/Llama-3.1-8B": _known("LlamaForCausalLM", False, 128_256, 4096, 14336, 32, 32, 8),
    "meta-llama/Llama-3.2-1B": _known("LlamaForCausalLM", True, 128_256, 2048, 8192, 16, 32, 8),
    "meta-llama/Llama-3.2-3B": _known("LlamaForCausalLM", True, 128_256, 3072, 8192, 28, 24, 8),
    "Qwen/Qwen2.5-0.5B": _known("Qwen2ForCausalLM", True, 151_936, 896, 4864, 24, 14, 2),
    "Qwen/Qwen2.5-1.5B": _known("Qwen2ForCausalLM", True, 151_936, 1536, 8960, 28, 12, 2),
    "Qwen/Qwen2.5-3B": _known("Qwen2ForCausalLM", True, 151_936, 2048, 11008, 36, 16, 2),
    "Qwen/Qwen2.5-7B": _known("Qwen2ForCausalLM", False, 152_064, 3584, 18944, 28, 28, 4),
}


def start_model(cell: Cell) -> Cell:
    """The model cell at the beginning of a training, behind the trainings before it."""
    while cell.stage != "model":
        cell = cell.inputs["start"]
    return cell


def shape(cell: Cell) -> Shape:
    """The shape of the model that a training starts from. Raises UserError where it can't be trained here."""
    cell = start_model(cell)
    if "path" not in cell.resources:
        return {name: cell.settings["recipe"][toys] for name, toys in NUMBERS.items()}
    file = resolve(cell.resources["path"]) / "config.json"
    hub = cell.settings.get("source", {}).get("hub", "")
    if not file.exists() and (known := next((k for name, k in KNOWN.items() if hub.startswith(name)), None)):
        return known
    try:
        config: Shape = json.loads(file.read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"{file}: can't be read: {error}; give the folder of a Hugging Face model") from None
    architecture(config, file)
    if lost := sorted(NUMBERS.keys() - config.keys()):
        raise UserError(f"{file}: lacks {', '.join(lost)}; fetch the model again")
    return config


def architecture(config: Shape, file: Path) -> str:
    """The architecture that the config.json `file` names. Raises UserError where no recipe trains it."""
    for name in BIASES:
        if config.get("architectures") == [name]:
            return name
    raise UserError(f"{file}: the model is {config.get('architectures')}; the recipes train {' and '.join(BIASES)}")


def parameters(model: Shape) -> dict[str, int]:
    """Parameters of a model: `embedding`, one `layer`, the `root` (embedding, last norm, output layer), the `total`."""
    d, f, layers = model["hidden_size"], model["intermediate_size"], model["num_hidden_layers"]
    kv = _kv(model)
    embedding, layer = model["vocab_size"] * d, 2 * d * d + 2 * d * kv + 3 * d * f + 2 * d
    if BIASES[model.get("architectures", [*BIASES])[0]]:
        layer += d + 2 * kv
    root = embedding * (1 if model.get("tie_word_embeddings") else 2) + d
    return {"embedding": embedding, "layer": layer, "root": root, "total": root + layers * layer}


def trained(model: Shape, recipe: dict[str, Any]) -> int:
    """Parameters that are trained: all, or LoRA's adapters of the seven linear layers of every block."""
    if not recipe["lora"]:
        return parameters(model)["total"]
    d, f, kv = model["hidden_size"], model["intermediate_size"], _kv(model)
    ends = 2 * (d + d) + 2 * (d + kv) + 3 * (d + f)  # q, o; k, v; gate, up, down
    return int(model["num_hidden_layers"] * recipe["lora"]["rank"] * ends)


def rows_per_update(recipe: dict[str, Any]) -> int:
    """Rows of one update over all ranks. That tokens fill whole rows is seen to when a recipe is read."""
    return int(recipe["rows_per_update"] or recipe["tokens_per_update"] // recipe["seq_len"])


def rows_at_once(recipe: dict[str, Any], ways: dict[str, Any], ranks: int) -> int:
    """Rows that a rank runs at the same time, at most."""
    share = -(-rows_per_update(recipe) // ranks)
    return min(ways["rows_per_rank"] or share, share)


def memory(model: Shape, recipe: dict[str, Any], ways: dict[str, Any], ranks: int, within: int) -> dict[str, float]:
    """GB on one of `ranks` GPUs, `within` of them on a node: `state`, `gathered`, `activations`, and their `total`.

    state: weights, gradients and moments of the optimizer, a shard of each (exact). gathered: what FSDP2 holds whole at
    the worst moment, the root and two layers (on one GPU all layers, kept between the batches of an update), and the
    gradients of the root and of one layer where they are trained, in the dtype of the products. activations: an input
    for each layer and all of one layer's with activation checkpointing, else all of all (8 times the width, 4 times
    the feed-forward and 3 times the key-value width a token), and the logits of a chunk. After the last layer
    activations are gone, but the root's gradient is there two times, once in fp32 to be summed over ranks: `gathered`
    is at least what lets `total` hold that.
    Not in it: what CUDA and NCCL take for themselves, 1 to 2 GB.
    """
    n, shards = parameters(model), within if ways["sharding"] == "hybrid" else ranks
    weight = 2 if recipe["dtype"] == "bf16" else 4
    moments = 2 if recipe["optimizer"] == "adamw_8bit" else 2 * weight
    state = (n["total"] * weight + trained(model, recipe) * (weight + moments)) / shards
    product = 4 if recipe["dtype"] == "fp32" else 2
    tokens = rows_at_once(recipe, ways, ranks) * recipe["seq_len"]
    d = model["hidden_size"]
    layer = tokens * product * (8 * d + 4 * model["intermediate_size"] + 3 * _kv(model))
    layers = model["num_hidden_layers"]
    kept = layers * tokens * d * product + layer if ways["activation_checkpointing"] else layers * layer
    activations = kept + 2 * 4 * min(tokens, CHUNK) * model["vocab_size"]
    gathered = 0
    if ranks > 1 or recipe["dtype"] == "mixed":  # FSDP2 holds it
        gradients, sums = (0, 0) if recipe["lora"] else (n["root"] + n["layer"], n["root"] * (2 * product + 4))
        copies = n["root"] + 2 * n["layer"] if ranks > 1 else n["total"]
        gathered = max((copies + gradients) * product, sums - activations)
    found = {"state": state / 1e9, "gathered": gathered / 1e9, "activations": activations / 1e9}
    return found | {"total": sum(found.values())}


def flops_per_token(model: Shape, recipe: dict[str, Any]) -> float:
    """Floating-point operations of training on one token, as recipes.model counts them."""
    n, adapters = parameters(model), trained(model, recipe) if recipe["lora"] else 0
    products = n["total"] - (0 if model.get("tie_word_embeddings") else n["embedding"])
    attention = 12 * model["num_hidden_layers"] * model["hidden_size"] * recipe["seq_len"]
    return (4 * products + 6 * adapters if recipe["lora"] else 6 * products) + attention


def _kv(model: Shape) -> int:
    return int(model["hidden_size"] // model["num_attention_heads"] * model["num_key_value_heads"])
