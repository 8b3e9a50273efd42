"""A model of torchtune's parts by a Hugging Face config.json, and its parallel layout."""

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.utils.checkpoint import create_selective_checkpoint_contexts
from torchtune.models.convert_weights import hf_to_tune, tune_to_hf
from torchtune.models.llama3_1 import llama3_1, lora_llama3_1
from torchtune.models.llama3_2 import llama3_2, lora_llama3_2
from torchtune.models.qwen2 import lora_qwen2, qwen2, qwen2_hf_to_tune, qwen2_tune_to_hf
from torchtune.modules import TransformerDecoder, TransformerSelfAttentionLayer
from torchtune.modules.peft import get_adapter_params, set_trainable_params
from torchtune.training import set_activation_checkpointing

from core.gpu_specs import find_gpu
from core.model_folder.config import effective
from core.recipe import Lora, Training
from recipes import float8, olmo3, qwen3
from recipes.attention import patch_attention
from recipes.distributed import Ranks
from recipes.token_rows import add_token_rows

# The paper's seven adapted layers are these four and gate, up, down.
ADAPTED: dict[str, Any] = {
    "lora_attn_modules": ["q_proj", "k_proj", "v_proj", "output_proj"],
    "apply_lora_to_mlp": True,
}

# torchtune's argument -> the key of config.json.
CONFIG_KEYS = {
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
Builder = Callable[..., TransformerDecoder]
Converter = Callable[..., dict[str, Any]]


@dataclass(frozen=True)
class Builders:
    """Functions that build a model of torchtune's parts."""

    full: Builder
    lora: Builder
    """Takes lora_rank, lora_alpha and lora_dropout besides."""


@dataclass(frozen=True)
class Family:
    """The models of an architecture."""

    config_keys: dict[str, str]
    untied: Builders
    tied: Builders
    """Those whose output layer is the embedding."""
    from_hf: Converter
    to_hf: Converter


def _lora_qwen2(**sizes: Any) -> TransformerDecoder:
    model: TransformerDecoder = lora_qwen2(**ADAPTED, **sizes)
    # Each layer has a table of positions, all alike: some GB of a 7B model.
    for layer in model.layers:
        layer.attn.pos_embeddings = model.layers[0].attn.pos_embeddings
    return model


FAMILIES = {
    "LlamaForCausalLM": Family(
        config_keys=CONFIG_KEYS | {"scale_factor": "factor"},
        untied=Builders(llama3_1, partial(lora_llama3_1, **ADAPTED)),
        tied=Builders(llama3_2, partial(lora_llama3_2, **ADAPTED)),
        from_hf=hf_to_tune,
        to_hf=tune_to_hf,
    ),
    "Qwen2ForCausalLM": Family(
        config_keys=CONFIG_KEYS,
        untied=Builders(
            partial(qwen2, tie_word_embeddings=False),
            partial(_lora_qwen2, tie_word_embeddings=False),
        ),
        tied=Builders(
            partial(qwen2, tie_word_embeddings=True),
            partial(_lora_qwen2, tie_word_embeddings=True),
        ),
        from_hf=qwen2_hf_to_tune,
        to_hf=qwen2_tune_to_hf,
    ),
    "Qwen3ForCausalLM": Family(
        config_keys=CONFIG_KEYS | {"head_dim": "head_dim"},
        untied=Builders(*[partial(qwen3.qwen3, tie_word_embeddings=False)] * 2),
        tied=Builders(*[partial(qwen3.qwen3, tie_word_embeddings=True)] * 2),
        from_hf=qwen3.from_hf,
        to_hf=qwen3.to_hf,
    ),
    "Olmo3ForCausalLM": Family(
        config_keys={
            argument: key
            for argument, key in CONFIG_KEYS.items()
            if argument not in ("num_layers", "rope_base")
        }
        | {"layer_types": "layer_types", "rope": "rope"},
        untied=Builders(*[partial(olmo3.olmo3, tie_word_embeddings=False)] * 2),
        tied=Builders(*[partial(olmo3.olmo3, tie_word_embeddings=True)] * 2),
        from_hf=olmo3.from_hf,
        to_hf=olmo3.to_hf,
    ),
}


def family(config: dict[str, Any]) -> Family:
    """The family of a config (`core.model_folder.config.read_config`)."""
    return FAMILIES[config["architectures"][0]]


def build(
    config: dict[str, Any], lora: Lora | None = None, token_ids: list[int] | None = None
) -> TransformerDecoder:
    """torchtune's model of the config's family, with random weights of torch's default dtype.

    With `lora` only its adapters are trainable, and the rows of `token_ids` (`recipes.token_rows`).
    """
    models = family(config)
    values = effective(config)
    sizes = {argument: values[key] for argument, key in models.config_keys.items()}
    builders = models.tied if config.get("tie_word_embeddings") else models.untied
    if lora:
        model = builders.lora(
            lora_rank=lora.rank,
            lora_alpha=lora.alpha,
            lora_dropout=lora.dropout,
            **sizes,
        )
        if token_ids:
            add_token_rows(model, token_ids)
        set_trainable_params(model, get_adapter_params(model))
    else:
        model = builders.full(**sizes)
    patch_attention(model)
    return model


def parallelize(model: TransformerDecoder, recipe: Training, ranks: Ranks) -> None:
    """Convert, compile, checkpoint and shard the model as the recipe says: in place, on the meta
    device."""
    if recipe.float8:
        float8.convert(model, ranks.device)
    if recipe.activation_checkpointing == "selective":
        # Before compiling: inside a compiled block no operation could be chosen.
        has_dropout = bool(recipe.lora and recipe.lora.dropout)
        save = partial(create_selective_checkpoint_contexts, [*saved_operations()])
        for number, layer in enumerate(model.layers):
            model.layers[number] = checkpoint_wrapper(
                layer, context_fn=save, preserve_rng_state=has_dropout
            )
    if recipe.compile:
        for layer in model.layers:
            layer.compile()
    if recipe.activation_checkpointing == "full":
        # After it: torch.compile gives up a checkpointed block of which a part is left out, as
        # attention is on a CPU.
        set_activation_checkpointing(model, {TransformerSelfAttentionLayer})
    if is_sharded(recipe, ranks):
        shard(model, recipe, ranks)


def saved_operations() -> Iterator[Any]:
    """What selective activation checkpointing keeps: the results of products and of attention.

    The same as torchtitan's, but of all matrix products, where it keeps every second.
    """
    aten = torch.ops.aten
    yield aten.mm.default
    yield aten.addmm.default
    yield aten._scaled_mm.default  # of float8
    for kernel in ("flash", "efficient", "cudnn"):
        yield getattr(aten, f"_scaled_dot_product_{kernel}_attention").default
    yield aten._scaled_dot_product_flash_attention_for_cpu.default
    yield torch.ops.higher_order.flex_attention


def is_sharded(recipe: Training, ranks: Ranks) -> bool:
    """Whether FSDP2 holds the model: it also makes the bf16 copies of fp32 weights on one rank."""
    return ranks.world_size > 1 or recipe.dtype == "mixed"


def shard(model: TransformerDecoder, recipe: Training, ranks: Ranks) -> None:
    """FSDP2 with a parameter group for each layer, and one for the rest.

    The rest stays unsharded between forward and backward. A single rank keeps the bf16 copies that
    it has made until `reshard`.
    """
    if recipe.sharding == "hybrid":
        within = _ranks_per_node(ranks)
        shape: tuple[int, ...] = (ranks.world_size // within, within)
        names: tuple[str, ...] | None = ("replicate", "shard")
    else:
        shape = (ranks.world_size,)
        names = None
    mesh = dist.init_device_mesh(ranks.device.type, shape, mesh_dim_names=names)
    policy = MixedPrecisionPolicy(
        param_dtype=torch.bfloat16 if recipe.dtype == "mixed" else None,
        reduce_dtype=None if recipe.dtype == "fp32" else torch.float32,
    )
    reshard_after_forward = False if ranks.world_size == 1 else None
    for number, module in enumerate((*model.layers, model), 1):
        # The backward pass begins with the last layer: freed, it would be gathered again at once.
        keep = number == len(model.layers)
        fully_shard(
            module,
            mesh=mesh,
            mp_policy=policy,
            reshard_after_forward=False if keep else reshard_after_forward,
        )
    # Gathering a layer is begun before the layer ahead of it, not once that has been launched.
    for layer, following in pairwise(model.layers):
        layer.set_modules_to_forward_prefetch([following])
    if ranks.world_size == 1:
        model.set_reshard_after_backward(False)


def sync_gradients(model: TransformerDecoder, recipe: Training, ranks: Ranks, last: bool) -> None:
    """Say before a micro-batch's backward pass whether FSDP2 sums the ranks' gradients in it.

    `last`: the micro-batch is the step's last. With `gradient_sync: step`, and on a single rank,
    only it does; before it gradients are added up where they are.
    """
    if isinstance(model, FSDPModule):
        once = recipe.gradient_sync == "step" or ranks.world_size == 1
        model.set_requires_gradient_sync(last or not once)
        # Between nodes (hybrid) shards are summed once a step, which takes no memory.
        model.set_requires_all_reduce(last)


def reshard(model: TransformerDecoder) -> None:
    """Free what FSDP2 holds beside this rank's shards.

    To be called before the weights change or are saved.
    """
    for module in (*model.layers, model):
        if isinstance(module, FSDPModule):
            module.reshard()


def shard_index(recipe: Training, ranks: Ranks) -> int:
    """The number of the shard that this rank holds; with hybrid every node has all shards."""
    return ranks.rank % _ranks_per_node(ranks) if recipe.sharding == "hybrid" else ranks.rank


def _ranks_per_node(ranks: Ranks) -> int:
    return int(os.environ.get("LOCAL_WORLD_SIZE", ranks.world_size))


def flops_per_token(model: TransformerDecoder, seq_len: int) -> float:
    """FLOPs of one token, forward and backward, counted as in PaLM (arXiv 2204.02311, appendix B).

    6 for each trained weight of a matrix product, 4 for each frozen one (LoRA: no gradient of the
    weight itself), and attention over full rows of `seq_len`, though documents in a pack see less.
    An embedding's lookup costs nothing.
    """
    embedding = model.tok_embeddings.weight
    tied = hasattr(model.output, "tied_module")
    weights = [p for p in model.parameters() if p is not embedding or tied]
    attention = 12 * len(model.layers) * model.head_dim * model.num_heads * seq_len
    products = sum((6 if p.requires_grad else 4) * p.numel() for p in weights)
    return float(products + attention)


def peak_flops(device: torch.device) -> float | None:
    """Peak FLOP/s of this GPU in bf16; None for a CPU, and a GPU not in core.gpu_specs."""
    gpu = find_gpu(torch.cuda.get_device_name(device)) if device.type == "cuda" else None
    return gpu.peak_flops if gpu else None
