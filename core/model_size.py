"""What a model takes, computed from its shape: parameters, GPU memory, FLOPs a token."""

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from core.cell.identity import Cell
from core.errors import UserError
from core.paths import resolve
from core.recipe import Training

# Tokens whose logits exist at once: with Llama's vocabulary of 128,256 they take 0.5 GB in fp32.
CHUNK = 1024
# Memory of a process beside what is counted here, in bytes: libraries and, with a GPU, CUDA's
# context and pinned buffers.
PROCESS_BYTES = {"gpu": 6e9, "cpu": 1e9}
# Architectures that the recipes train (recipes.model): whether q, k and v projections have biases.
BIASES = {
    "LlamaForCausalLM": False,
    "Qwen2ForCausalLM": True,
    "Qwen3ForCausalLM": False,
    "Olmo3ForCausalLM": False,
}
# Keys of config.json that count here -> the toy's name of them (recipes/tiny_llama.yaml).
CONFIG_KEYS = {
    "vocab_size": "vocab_size",
    "hidden_size": "dim",
    "intermediate_size": "ffn_dim",
    "num_hidden_layers": "layers",
    "num_attention_heads": "heads",
    "num_key_value_heads": "kv_heads",
}


@dataclass(frozen=True)
class ModelShape:
    """The sizes of a model, by their names in a Hugging Face config.json."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    architecture: str = "LlamaForCausalLM"
    tie_word_embeddings: bool = False
    dtype: str | None = None
    """dtype of its weight files, by torch's name. None: not stated."""
    head_dim: int | None = None
    """Size of a head. None: the heads divide the width."""

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "ModelShape":
        """The shape that the content of a config.json gives."""
        return cls(
            **{key: config[key] for key in CONFIG_KEYS},
            architecture=config["architectures"][0],
            tie_word_embeddings=bool(config.get("tie_word_embeddings")),
            dtype=config.get("dtype", config.get("torch_dtype")),
            head_dim=config.get("head_dim"),
        )

    @property
    def q_dim(self) -> int:
        """Width of the queries of all heads."""
        return (self.head_dim or self.hidden_size // self.num_attention_heads) * (
            self.num_attention_heads
        )

    @property
    def kv_dim(self) -> int:
        """Width of the keys, and of the values, of all heads."""
        return self.q_dim // self.num_attention_heads * self.num_key_value_heads


@dataclass(frozen=True)
class ParameterCounts:
    """Numbers of parameters of a model's parts."""

    embedding: int
    layer: int
    """One transformer block."""
    root: int
    """Embedding, last norm and output layer: what FSDP2 holds outside the blocks."""
    total: int


def _llama(*sizes: int, tied: bool) -> ModelShape:
    return _known("LlamaForCausalLM", sizes, tied)


def _qwen2(*sizes: int, tied: bool) -> ModelShape:
    return _known("Qwen2ForCausalLM", sizes, tied)


def _qwen3(*sizes: int, tied: bool) -> ModelShape:
    return replace(_known("Qwen3ForCausalLM", sizes, tied), head_dim=128)


def _olmo3(*sizes: int) -> ModelShape:
    return _known("Olmo3ForCausalLM", sizes, tied=False)


def _known(name: str, sizes: tuple[int, ...], tied: bool) -> ModelShape:
    named: dict[str, Any] = dict(zip(CONFIG_KEYS, sizes, strict=True))
    return ModelShape(**named, architecture=name, tie_word_embeddings=tied, dtype="bfloat16")


# From their config.json, by the beginning of their names on Hugging Face: to plan before a fetch.
# Sizes in the order of CONFIG_KEYS.
KNOWN = {
    "meta-llama/Llama-3.1-8B": _llama(128_256, 4096, 14336, 32, 32, 8, tied=False),
    "meta-llama/Llama-3.2-1B": _llama(128_256, 2048, 8192, 16, 32, 8, tied=True),
    "meta-llama/Llama-3.2-3B": _llama(128_256, 3072, 8192, 28, 24, 8, tied=True),
    "Qwen/Qwen2.5-0.5B": _qwen2(151_936, 896, 4864, 24, 14, 2, tied=True),
    "Qwen/Qwen2.5-1.5B": _qwen2(151_936, 1536, 8960, 28, 12, 2, tied=True),
    "Qwen/Qwen2.5-3B": _qwen2(151_936, 2048, 11008, 36, 16, 2, tied=True),
    "Qwen/Qwen2.5-7B": _qwen2(152_064, 3584, 18944, 28, 28, 4, tied=False),
    "Qwen/Qwen3-0.6B": _qwen3(151_936, 1024, 3072, 28, 16, 8, tied=True),
    "Qwen/Qwen3-1.7B": _qwen3(151_936, 2048, 6144, 28, 16, 8, tied=True),
    "Qwen/Qwen3-4B": _qwen3(151_936, 2560, 9728, 36, 32, 8, tied=True),
    "Qwen/Qwen3-8B": _qwen3(151_936, 4096, 12288, 36, 32, 8, tied=False),
    "allenai/Olmo-3-1025-7B": _olmo3(100_278, 4096, 11008, 32, 32, 32),
    "allenai/Olmo-3-7B": _olmo3(100_278, 4096, 11008, 32, 32, 32),
}


def start_model(cell: Cell) -> Cell:
    """The model cell at the beginning of a chain of trainings."""
    while cell.stage != "model":
        cell = cell.inputs["run" if "run" in cell.inputs else "start"]
    return cell


def shape(cell: Cell) -> ModelShape:
    """The shape of the model that a training starts from.

    Raises UserError where its config.json can't be read or the recipes can't train it.
    """
    cell = start_model(cell)
    folder = cell.resources.get("files", {}).get("model")
    if not folder:
        recipe = cell.settings["recipe"]
        sizes = {key: recipe[toy_key] for key, toy_key in CONFIG_KEYS.items()}
        return ModelShape(**sizes, dtype="float32" if recipe["pretrain"] else "bfloat16")
    file = resolve(folder) / "config.json"
    hub = cell.settings["files"]["model"].get("hub", "")
    if not file.exists():
        for name, known_shape in KNOWN.items():
            if hub.startswith(name):
                return known_shape
    try:
        config: dict[str, Any] = json.loads(file.read_text())
    except (OSError, ValueError) as error:
        raise UserError(
            where=str(file),
            what=f"can't be read: {error}",
            fix="give the folder of a Hugging Face model",
        ) from None
    architecture(config, file)
    if config.get("num_key_value_heads") is None:  # as transformers takes it
        config["num_key_value_heads"] = config.get("num_attention_heads")
    if missing := sorted(key for key in CONFIG_KEYS if config.get(key) is None):
        raise UserError(
            where=str(file), what=f"lacks {', '.join(missing)}", fix="fetch the model again"
        )
    return ModelShape.from_config(config)


def architecture(config: dict[str, Any], file: Path) -> str:
    """The architecture that the config.json `file` names.

    Raises UserError where no recipe trains it.
    """
    named = config.get("architectures")
    for name in BIASES:
        if named == [name]:
            return name
    raise UserError(
        where=str(file),
        what=f"the model is {named}",
        fix=f"the recipes train {', '.join(BIASES)}",
    )


def parameters(model: ModelShape) -> ParameterCounts:
    """Parameters of a model and of its parts, without adapters."""
    d = model.hidden_size
    embedding = model.vocab_size * d
    attention = 2 * d * model.q_dim + 2 * d * model.kv_dim
    feed_forward = 3 * d * model.intermediate_size
    norms = 2 * d
    layer = attention + feed_forward + norms
    if BIASES[model.architecture]:
        layer += model.q_dim + 2 * model.kv_dim
    if model.architecture == "Qwen3ForCausalLM":
        layer += 2 * model.q_dim // model.num_attention_heads  # norms of queries and keys
    if model.architecture == "Olmo3ForCausalLM":
        layer += model.q_dim + model.kv_dim  # norms of all heads' queries and keys
    root = embedding * (1 if model.tie_word_embeddings else 2) + d
    return ParameterCounts(embedding, layer, root, root + model.num_hidden_layers * layer)


def trained(model: ModelShape, recipe: Training) -> int:
    """Parameters that are trained: all, or LoRA's adapters of seven linear layers a block."""
    if not recipe.lora:
        return parameters(model).total
    d = model.hidden_size
    # Inputs and outputs of q and o; of k and v; of gate, up and down.
    ends = 2 * (d + model.q_dim) + 2 * (d + model.kv_dim) + 3 * (d + model.intermediate_size)
    return model.num_hidden_layers * recipe.lora.rank * ends


def rows_at_once(recipe: Training, ranks: int) -> int:
    """Rows that a rank runs at the same time, at most."""
    share = -(-recipe.rows_per_step // ranks)
    return min(recipe.micro_batch_size or share, share)


def memory(model: ModelShape, recipe: Training, ranks: int, within: int) -> dict[str, float]:
    """GB on one of `ranks` GPUs, `within` of them on a node.

    state: weights, gradients and the optimizer's moments, a shard of each (exact). Of all weights
        also the start's, for l2_to_start and for kl_to_start.
    gathered: what FSDP2 holds unsharded at the worst moment: the root and two layers (on one GPU
        all layers, kept between the micro-batches of a step), and the gradients of the root and of
        one layer where they are trained, in the dtype of the products; with gradient_sync: step
        the gradients of all weights, in fp32.
    activations: with full activation checkpointing an input for each layer and everything of one
        layer, with selective also the results of each layer's products and attention, else
        everything of all layers (a token takes 5 times the width, 3 times the queries' width, 4
        times the feed-forward width and 3 times the key-value width), and the logits of a chunk.
    total: their sum.

    After the last layer the activations are gone, but the root's gradient exists twice, once in
    fp32 to be summed over the ranks: `gathered` is at least what lets `total` hold that. The 1 to 2
    GB that CUDA and NCCL take are not included.
    """
    counts = parameters(model)
    shards = within if recipe.sharding == "hybrid" else ranks
    weight_bytes = 2 if recipe.dtype == "bf16" else 4
    moment_bytes = 2 if recipe.optimizer == "adamw_8bit" else 2 * weight_bytes
    trained_bytes = trained(model, recipe) * (weight_bytes + moment_bytes)
    copies_of_start = 0 if recipe.lora else bool(recipe.l2_to_start) + bool(recipe.kl_to_start)
    state = ((1 + copies_of_start) * counts.total * weight_bytes + trained_bytes) / shards

    product_bytes = 4 if recipe.dtype == "fp32" else 2
    tokens = rows_at_once(recipe, ranks) * recipe.seq_len
    d = model.hidden_size
    widths = 5 * d + 3 * model.q_dim + 4 * model.intermediate_size + 3 * model.kv_dim
    layer = tokens * product_bytes * widths
    layers = model.num_hidden_layers
    # A layer's input; the results of q, k, v, attention, o, gate, up and down.
    products = 3 * d + 2 * (model.q_dim + model.kv_dim + model.intermediate_size)
    saved = {"full": d, "selective": products}
    if recipe.activation_checkpointing in saved:
        widths = saved[recipe.activation_checkpointing]
        activations = layers * tokens * widths * product_bytes + layer
    else:
        activations = layers * layer
    chunks = 4 if recipe.kl_to_start else 2  # the start's logits and predictions too
    activations += chunks * 4 * min(tokens, CHUNK) * model.vocab_size

    gathered = 0
    if ranks > 1 or recipe.dtype == "mixed":  # FSDP2 holds the model
        gradients = 0 if recipe.lora else counts.root + counts.layer
        root_sums = 0 if recipe.lora else counts.root * (2 * product_bytes + 4)
        copies = counts.root + 2 * counts.layer if ranks > 1 else counts.total
        start_copies = copies if recipe.kl_to_start and not recipe.lora else 0
        gathered = max((copies + start_copies + gradients) * product_bytes, root_sums - activations)
        if recipe.gradient_sync == "step" and ranks > 1:
            gathered += 4 * trained(model, recipe)  # unsharded, in fp32
    gb = {"state": state / 1e9, "gathered": gathered / 1e9, "activations": activations / 1e9}
    return gb | {"total": sum(gb.values())}


def host_memory(
    model: ModelShape, recipe: Training, ranks: int, within: int, on_gpu: bool = True
) -> dict[str, float]:
    """GB of a node's memory at the worst moment of a training, with `within` of its ranks there.

    processes: of libraries and CUDA, for each rank.
    checkpoint: the copy of a step checkpoint that is being written, of this node's shards: the
        weights that are trained and the optimizer's moments. torchao's 8-bit moments are not
        copied.
    export: rank 0 gathers the whole model in the dtype of its weights.
    training: without GPUs, what `memory` says.
    total: their sum. The start takes less than the export: rank 0 reads the model file by file.
    """
    shards = within if recipe.sharding == "hybrid" else ranks
    weight_bytes = 2 if recipe.dtype == "bf16" else 4
    copied = 0 if recipe.optimizer == "adamw_8bit" else 3 * weight_bytes
    gb = {
        "processes": within * PROCESS_BYTES["gpu" if on_gpu else "cpu"] / 1e9,
        "checkpoint": within * trained(model, recipe) * copied / shards / 1e9,
        "export": parameters(model).total * weight_bytes / 1e9,
        "training": 0 if on_gpu else within * memory(model, recipe, ranks, within)["total"],
    }
    return gb | {"total": sum(gb.values())}


def flops_per_token(model: ModelShape, recipe: Training) -> float:
    """Floating-point operations of training on one token, counted as by recipes.model.

    With kl_to_start the forward pass of the start model is among them.
    """
    forward = forward_flops_per_token(model, recipe)
    if recipe.kl_to_start:
        return forward + flops_per_token(model, replace(recipe, kl_to_start=None))
    if recipe.lora:  # no gradient of the frozen weights themselves
        attention = _attention_flops(model, recipe)
        return 2 * (forward - attention) + 2 * trained(model, recipe) + 3 * attention
    return 3 * forward


def forward_flops_per_token(model: ModelShape, recipe: Training) -> float:
    """Those of the forward pass alone: an evaluation's."""
    counts = parameters(model)
    products = counts.total - (0 if model.tie_word_embeddings else counts.embedding)
    adapters = trained(model, recipe) if recipe.lora else 0
    return 2 * (products + adapters) + _attention_flops(model, recipe)


def _attention_flops(model: ModelShape, recipe: Training) -> float:
    """Of the forward pass over full rows."""
    return 4 * model.num_hidden_layers * model.q_dim * recipe.seq_len
