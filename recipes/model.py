"""torchtune's Llama or Qwen2 in the shape of a Hugging Face config.json, and how it is laid out over devices."""

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torchtune.models.convert_weights import hf_to_tune, tune_to_hf
from torchtune.models.llama3_1 import llama3_1, lora_llama3_1
from torchtune.models.llama3_2 import llama3_2, lora_llama3_2
from torchtune.models.qwen2 import lora_qwen2, qwen2, qwen2_hf_to_tune, qwen2_tune_to_hf
from torchtune.modules import TransformerDecoder, TransformerSelfAttentionLayer
from torchtune.modules.peft import get_adapter_params, set_trainable_params
from torchtune.training import set_activation_checkpointing

from core.errors import UserError
from core.model_size import architecture
from recipes.attention import take_documents
from recipes.distributed import Ranks

# The paper's seven: with torchtune's apply_lora_to_mlp these four, gate, up and down.
ATTENTION = ["q_proj", "k_proj", "v_proj", "output_proj"]


# torchtune's name of each number -> that of config.json.
SHAPE = {
    "vocab_size": "vocab_size",
    "num_layers": "num_hidden_layers",
    "num_heads": "num_attention_heads",
    "num_kv_heads": "num_key_value_heads",
    "embed_dim": "hidden_size",
    "intermediate_dim": "intermediate_size",
    "max_seq_len": "max_position_embeddings",
    "norm_eps": "rms_norm_eps",
    "rope_base": "rope_theta",
}
ROPE = {"rope_type": "llama3", "low_freq_factor": 1, "high_freq_factor": 4, "original_max_position_embeddings": 8192}
Builder = Callable[..., TransformerDecoder]
Converter = Callable[..., dict[str, Any]]


@dataclass(frozen=True)
class Family:
    """The models of an architecture that torchtune has."""

    names: str
    fixed: dict[str, Any]  # what torchtune does, whatever a config.json says
    shape: dict[str, str]
    builders: tuple[tuple[Builder, Builder], ...]  # whole and with LoRA; the same where the output is the embedding
    from_hf: Converter
    to_hf: Converter


FAMILIES = {
    "LlamaForCausalLM": Family(
        "Llama 3.1 and 3.2",
        {"hidden_act": "silu", "attention_bias": False, "mlp_bias": False, **ROPE},
        SHAPE | {"scale_factor": "factor"},
        ((llama3_1, lora_llama3_1), (llama3_2, lora_llama3_2)),
        hf_to_tune,
        tune_to_hf,
    ),
    "Qwen2ForCausalLM": Family(
        "Qwen2 and 2.5 with plain RoPE and full attention",
        {"hidden_act": "silu", "use_sliding_window": False, "rope_type": "default"},
        SHAPE,
        tuple(
            (partial(qwen2, tie_word_embeddings=tied), partial(lora_qwen2, tie_word_embeddings=tied))
            for tied in (False, True)
        ),
        qwen2_hf_to_tune,
        qwen2_tune_to_hf,
    ),
}


def family(config: dict[str, Any]) -> Family:
    """Of a config that read_config has read."""
    return FAMILIES[config["architectures"][0]]


def read_config(folder: Path) -> dict[str, Any]:
    """The config.json of a model of the FAMILIES. Raises UserError where there is none, or it is another model's."""
    file = folder / "config.json"
    try:
        config = json.loads(file.read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"{file}: can't be read: {error}; fetch the model again") from None
    kind, numbers = FAMILIES[architecture(config, file)], _numbers(config)
    lost = kind.shape.values() - numbers.keys()
    other = [f"{key} is {numbers[key]}" for key, value in kind.fixed.items() if numbers.get(key, value) != value]
    if not lost and numbers.get("head_dim") not in (None, config["hidden_size"] // config["num_attention_heads"]):
        other.append(f"head_dim is {config['head_dim']}")
    if other:
        raise UserError(f"{file}: {', '.join(other)}; this recipe trains {kind.names}")
    if lost:
        raise UserError(f"{file}: lacks {', '.join(sorted(lost))}; fetch the model again")
    return config


def build(config: dict[str, Any], lora: dict[str, Any] | None = None) -> TransformerDecoder:
    """torchtune's model of the config's family, with random weights of torch's default dtype.

    With `lora` (rank, alpha, dropout) only its adapters are trainable.
    """
    kind, numbers = family(config), _numbers(config)
    shape = {ours: numbers[theirs] for ours, theirs in kind.shape.items()}
    whole, adapted = kind.builders[bool(config.get("tie_word_embeddings"))]
    if lora:
        shape |= {"lora_rank": lora["rank"], "lora_alpha": lora["alpha"], "lora_dropout": lora["dropout"]}
        model = adapted(ATTENTION, apply_lora_to_mlp=True, **shape)
        for layer in model.layers:  # Qwen2's have a table of positions each, alike: some GB of a 7B
            layer.attn.pos_embeddings = model.layers[0].attn.pos_embeddings
        set_trainable_params(model, get_adapter_params(model))
    else:
        model = whole(**shape)
    take_documents(model)
    return model


def _numbers(config: dict[str, Any]) -> dict[str, Any]:
    """The config with RoPE's numbers among the others; transformers has moved and renamed them."""
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    return {**config, "rope_type": rope.get("type", "default"), **rope}


def lay_out(model: TransformerDecoder, recipe: dict[str, Any], ways: dict[str, Any], ranks: Ranks) -> None:
    """Compiled, checkpointed and sharded as the recipe and the ways of running say; in place, on the meta device."""
    # In this order: torch.compile leaves flex attention out, and gives up a checkpointed block with a part left out.
    if ways["compile"]:
        for layer in model.layers:
            layer.compile()
    if ways["activation_checkpointing"]:
        set_activation_checkpointing(model, {TransformerSelfAttentionLayer})
    if is_sharded(recipe, ranks):
        shard(model, recipe, ways["sharding"], ranks)


def is_sharded(recipe: dict[str, Any], ranks: Ranks) -> bool:
    """Whether FSDP2 holds the model: it also makes the bf16 copies of fp32 weights, so on one rank too."""
    return ranks.world > 1 or recipe["dtype"] == "mixed"


def shard(model: TransformerDecoder, recipe: dict[str, Any], sharding: str, ranks: Ranks) -> None:
    """FSDP2, a group of parameters for each layer and one for the rest, which is whole between forward and backward.

    Alone, a rank has nobody to share with: what it has copied to bf16 it keeps until `forget_copies`.
    """
    if sharding == "hybrid":
        within = _on_a_node(ranks)
        mesh = dist.init_device_mesh(
            ranks.device.type, (ranks.world // within, within), mesh_dim_names=("replicate", "shard")
        )
    else:
        mesh = dist.init_device_mesh(ranks.device.type, (ranks.world,))
    compute = torch.bfloat16 if recipe["dtype"] == "mixed" else None
    reduce = None if recipe["dtype"] == "fp32" else torch.float32
    policy = MixedPrecisionPolicy(param_dtype=compute, reduce_dtype=reduce)
    for part in (*model.layers, model):
        fully_shard(part, mesh=mesh, mp_policy=policy, reshard_after_forward=False if ranks.world == 1 else None)
    if ranks.world == 1:
        model.set_reshard_after_backward(False)


def forget_copies(model: TransformerDecoder) -> None:
    """Give up what FSDP2 holds beside this rank's shards; to be called before the weights change or are saved."""
    for part in (*model.layers, model):
        if isinstance(part, FSDPModule):
            part.reshard()


def shard_of(sharding: str, ranks: Ranks) -> int:
    """The number of the shard that this rank holds; with hybrid, every node has all of them."""
    return ranks.rank % _on_a_node(ranks) if sharding == "hybrid" else ranks.rank


def _on_a_node(ranks: Ranks) -> int:
    return int(os.environ.get("LOCAL_WORLD_SIZE", ranks.world))


def flops_per_token(model: TransformerDecoder, seq_len: int) -> float:
    """Floating-point operations of one token, forward and backward, as PaLM counts them (arXiv 2204.02311, appendix B).

    6 for each trained weight in a matrix product, 4 for each frozen one (LoRA: no gradient of the weight itself), and
    attention over whole rows of `seq_len`, though packed documents see less. Looking up an embedding costs nothing.
    """
    embedding = model.tok_embeddings.weight
    tied = hasattr(model.output, "tied_module")
    weights = [p for p in model.parameters() if p is not embedding or tied]
    layers = len(model.layers)
    attention = 12 * layers * model.head_dim * model.num_heads * seq_len
    return sum((6 if p.requires_grad else 4) * p.numel() for p in weights) + attention


# Dense bf16, as the makers state it; the first that the device's name contains.
PEAKS = {"H200": 989e12, "H100 PCIe": 756e12, "H100": 989e12, "A100": 312e12, "B200": 2250e12, "L40S": 362e12}


def peak_flops(device: torch.device) -> float | None:
    """What this GPU can do a second at most; None for a CPU or a GPU that is not listed."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else ""
    return next((peak for word, peak in PEAKS.items() if word in name), None)
