"""A model's config.json: which models the recipes train, and the values that transformers takes."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from core.errors import UserError
from core.model_folder.config_values import GenerationValues, check_kinds, check_vllm
from core.model_size import architecture

# What a model of each architecture has to state.
REQUIRED = (
    "vocab_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "hidden_size",
    "intermediate_size",
    "max_position_embeddings",
    "rms_norm_eps",
    "rope_theta",
)
# The date of chat templates that ask for today's, as Llama 3.1's writes it without asking.
CHAT_DATE = "2024-07-26"
# dtypes of weights, by torch's name -> their name in a safetensors header.
DTYPES = {"float32": "F32", "bfloat16": "BF16", "float16": "F16"}


@dataclass(frozen=True)
class Architecture:
    """The models of an architecture that the recipes train."""

    names: str
    fixed: dict[str, Any]
    """What the recipes do whatever a config.json says; the latter must agree. A tuple: either."""
    required: tuple[str, ...] = REQUIRED


ARCHITECTURES = {
    "LlamaForCausalLM": Architecture(
        names="Llama 3.1, 3.2 and 3.3",
        fixed={
            "model_type": "llama",
            "hidden_act": "silu",
            "attention_bias": False,
            "mlp_bias": False,
            "partial_rotary_factor": 1,
            "rope_type": "llama3",
            "low_freq_factor": 1,
            "high_freq_factor": 4,
            "original_max_position_embeddings": 8192,
        },
        required=(*REQUIRED, "factor", "low_freq_factor", "high_freq_factor"),
    ),
    "Qwen2ForCausalLM": Architecture(
        names="Qwen2 and 2.5 with plain RoPE and full attention",
        fixed={
            "model_type": "qwen2",
            "hidden_act": "silu",
            "use_sliding_window": False,
            "partial_rotary_factor": 1,
            "rope_type": "default",
        },
    ),
    "Qwen3ForCausalLM": Architecture(
        names="Qwen3 with plain RoPE and full attention",
        fixed={
            "model_type": "qwen3",
            "hidden_act": "silu",
            "attention_bias": False,
            "use_sliding_window": False,
            "partial_rotary_factor": 1,
            "rope_type": "default",
        },
        required=(*REQUIRED, "head_dim"),
    ),
    "Olmo3ForCausalLM": Architecture(
        names="OLMo 3",
        fixed={
            "model_type": "olmo3",
            "hidden_act": "silu",
            "attention_bias": False,
            "partial_rotary_factor": 1,
            "rope_type": ("default", "yarn"),
            # transformers takes this for the layers with a window, whatever rope_theta says.
            "rope_theta": 500_000,
        },
        required=(*REQUIRED, "sliding_window", "layer_types"),
    ),
}


def read_json(file: Path, fix: str = "fetch the model again") -> dict[str, Any]:
    """The object in a JSON file of a model folder. Raises UserError."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        if not isinstance(content, dict):
            raise ValueError("it is no JSON object")
    except (OSError, ValueError) as error:
        raise UserError(where=str(file), what=f"can't be read: {error}", fix=fix) from None
    return content


def read_config(folder: Path) -> dict[str, Any]:
    """The `effective` config.json of a model of the ARCHITECTURES.

    Raises UserError where there is none, or the recipes can't train what it describes.
    """
    file = folder / "config.json"
    config = read_json(file)
    models = ARCHITECTURES[architecture(config, file)]
    check_kinds(file, config)
    values = effective(config)
    if "quantization_config" in config:
        raise UserError(
            where=str(file),
            what="has a quantization_config, which training would ignore and vLLM apply",
            fix="start from the model that is not quantized; if the weights are not, remove the "
            "key from config.json",
        )
    if (dtype := stated_dtype(config)) not in (None, *DTYPES):
        raise UserError(
            where=str(file),
            what=f"dtype is {dtype!r}, which is none of torch's for weights",
            fix=f"set it to {', '.join(DTYPES)}, as the weights are",
        )
    differences = [
        f"{key} is {values[key]}"
        for key, value in models.fixed.items()
        if values.get(key) not in (*(value if isinstance(value, tuple) else [value]), None)
    ]
    missing = sorted(key for key in models.required if values.get(key) is None)
    differences += _head_differences(values, has_own_size="head_dim" in models.required)
    if "sliding_window" in models.required:
        differences += _window_differences(values)
    else:
        kinds = config.get("layer_types")
        if "sliding_attention" in (kinds or []):
            differences.append("layer_types has sliding_attention")
        if kinds is not None and len(kinds) != values.get("num_hidden_layers"):
            differences.append(f"layer_types names {len(kinds)} layers")
    if differences:
        raise UserError(
            where=str(file), what=", ".join(differences), fix=f"this recipe trains {models.names}"
        )
    if missing:
        raise UserError(
            where=str(file),
            what=f"lacks {', '.join(missing)}",
            fix="write them as the model was made; transformers would take defaults of its own",
        )
    check_vllm(file, config)
    return values


def _head_differences(values: dict[str, Any], has_own_size: bool) -> list[str]:
    """What the recipes can't do of heads. `has_own_size`: they need not fill the width."""
    sizes = ("hidden_size", "num_attention_heads", "num_key_value_heads")
    if any(values.get(size) is None for size in sizes):
        return []  # the caller says so
    width, heads, kv_heads = (values[size] for size in sizes)
    head_dim = values.get("head_dim") or width / heads
    differences = []
    if width % heads:
        differences.append(f"{heads} heads don't divide hidden_size")
    elif not has_own_size and head_dim != width / heads:
        differences.append(f"head_dim is {head_dim}")
    elif head_dim % 2:
        differences.append(f"heads have an odd size, {head_dim:g}")
    if heads % kv_heads:
        differences.append(f"{kv_heads} key-value heads don't divide {heads} heads")
    return differences


def _window_differences(values: dict[str, Any]) -> list[str]:
    """What the recipes can't do of a model of which some layers attend to a window."""
    kinds = values.get("layer_types") or []
    differences = []
    if unknown := sorted({*map(str, kinds)} - {"full_attention", "sliding_attention"}):
        differences.append(f"layer_types has {unknown[0]}")
    if values.get("layer_types") is not None and len(kinds) != values.get("num_hidden_layers"):
        differences.append(f"layer_types names {len(kinds)} layers")
    nested = values.get("rope_parameters") or {}
    if values.get("rope_parameters") == {}:
        differences.append("rope_parameters is empty")
    stated = values.get("rope_scaling") or nested.get("full_attention") or {}
    if "type" in stated and "rope_type" not in stated:
        differences.append("RoPE has a type and no rope_type")
    if nested and "full_attention" not in nested and values["rope_type"] != "default":
        differences.append("rope_parameters does not tell the kinds of layers apart")
    window = nested.get("sliding_attention") or {}
    if window.get("rope_type", "default") != "default" or (
        window.get("rope_theta", 500_000) != 500_000
    ):
        differences.append("RoPE of sliding_attention is not plain")
    return differences


def longest_row(config: dict[str, Any]) -> int:
    """Tokens of the longest row that the recipes train a model on.

    Rows stay within the window of layers with `sliding_attention`: it hides nothing then.
    """
    lengths: list[int] = [config["max_position_embeddings"]]
    if "sliding_attention" in (config.get("layer_types") or []):
        lengths.append(config["sliding_window"])
    return min(lengths)


def effective(config: dict[str, Any]) -> dict[str, Any]:
    """The config as transformers 5 takes it, with RoPE's values beside the others.

    transformers has moved and renamed them. Where both stand, the whole of `rope_scaling` counts
    and nothing of `rope_parameters` (`convert_rope_params_to_dict`). Of a model that has RoPE by
    the kind of layer it is that of full attention. All of RoPE's values are also under `rope`.
    """
    rope = dict(config.get("rope_scaling") or config.get("rope_parameters") or {})
    rope = dict(rope.get("full_attention") or rope)
    rope["rope_type"] = rope.get("rope_type", rope.get("type", "default"))
    rope.setdefault("rope_theta", config.get("rope_theta"))
    if rope["rope_type"] != "default":
        # That of the config itself counts first, then that of the scaling, then the whole length.
        for value in (config, rope):
            if original := value.get("original_max_position_embeddings"):
                break
        else:
            original = config.get("max_position_embeddings")
        rope["original_max_position_embeddings"] = original
    values = {**config, **rope, "rope": rope}
    if values.get("num_key_value_heads") is None and config.get("model_type") == "llama":
        values["num_key_value_heads"] = config.get("num_attention_heads")
    return values


def end_token_ids(folder: Path) -> list[int]:
    """The tokens that end a text by config.json and generation_config.json, in this order.

    Raises UserError where a file holds something else.
    """
    ids: list[int] = []
    for name in ("config.json", "generation_config.json"):
        if (folder / name).exists():
            content = read_json(folder / name)
            check_kinds(folder / name, content, GenerationValues)
            ids += as_list(content.get("eos_token_id"))
    return [*dict.fromkeys(ids)]


def as_list(ids: Any) -> list[int]:
    """`eos_token_id`, which may be one id, a list or null."""
    return [] if ids is None else [ids] if isinstance(ids, int) else [*ids]


def stated_dtype(config: dict[str, Any]) -> Any:
    """The dtype of the weights by torch's name, as new and old files state it; None if not."""
    return config.get("dtype") or config.get("torch_dtype")
