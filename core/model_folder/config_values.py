"""The values of a config.json: what kind each one is, and what vLLM alone does by one."""

from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, PositiveInt, ValidationError

from core.errors import Problem, UserError

TokenId = Annotated[int, Field(ge=0)]

# Keys that vLLM goes by in models of the trained architectures, where transformers has no such key
# -> the values by which vLLM does nothing else.
VLLM_ALONE: dict[str, tuple[Any, ...]] = {
    "is_causal": (True,),
    "logit_scale": (1,),
    "bias": (False,),
    "qk_norm": (False,),
    "dual_chunk_attention_config": ({},),
}
# In the classes of these models transformers has no window; vLLM applies it to every layer.
WITHOUT_WINDOW = ("llama",)


class Values(BaseModel):
    """Values of the kind that transformers takes; other keys are not looked at."""

    model_config = ConfigDict(strict=True, extra="ignore", allow_inf_nan=False)


class Rope(Values):
    """`rope_scaling` and `rope_parameters`, and what they nest."""

    rope_type: str | None = None
    type: str | None = None
    rope_theta: PositiveFloat | None = None
    factor: PositiveFloat | None = None
    low_freq_factor: PositiveFloat | None = None
    high_freq_factor: PositiveFloat | None = None
    original_max_position_embeddings: PositiveFloat | None = None
    attention_factor: PositiveFloat | None = None
    beta_fast: PositiveFloat | None = None
    beta_slow: PositiveFloat | None = None
    full_attention: "Rope | None" = None
    sliding_attention: "Rope | None" = None


class ConfigValues(Values):
    """config.json."""

    vocab_size: PositiveInt | None = None
    num_hidden_layers: PositiveInt | None = None
    num_attention_heads: PositiveInt | None = None
    num_key_value_heads: PositiveInt | None = None
    hidden_size: PositiveInt | None = None
    intermediate_size: PositiveInt | None = None
    max_position_embeddings: PositiveInt | None = None
    head_dim: PositiveInt | None = None
    rms_norm_eps: PositiveFloat | None = None
    rope_theta: PositiveFloat | None = None
    rope_scaling: Rope | None = None
    rope_parameters: Rope | None = None
    original_max_position_embeddings: PositiveFloat | None = None
    sliding_window: Annotated[int, Field(ge=0)] | None = None
    layer_types: list[str] | None = None
    tie_word_embeddings: bool | None = None
    attention_bias: bool | None = None
    mlp_bias: bool | None = None
    use_sliding_window: bool | None = None
    dtype: str | None = None
    torch_dtype: str | None = None
    bos_token_id: TokenId | None = None
    eos_token_id: TokenId | list[TokenId] | None = None
    pad_token_id: int | None = None


class GenerationValues(Values):
    """generation_config.json."""

    bos_token_id: TokenId | None = None
    eos_token_id: TokenId | list[TokenId] | None = None
    pad_token_id: int | None = None


def check_kinds(file: Path, content: dict[str, Any], kind: type[Values] = ConfigValues) -> None:
    """Raise UserError where a value is of another kind than transformers takes."""
    try:
        kind.model_validate(content)
    except ValidationError as error:
        problems: dict[str, Problem] = {}  # by key: each form of a value has a line of its own
        for line in error.errors():
            names: list[str] = []
            value: Any = content
            for part in line["loc"]:  # behind the keys it names the forms of a value
                if isinstance(value, dict) and part in value:
                    names.append(str(part))
                    value = value[part]
            key = ".".join(names)
            needed = "it must be an object" if line["type"] == "model_type" else line["msg"]
            problems[key] = Problem(
                str(file), f"{key} is {value!r}: {needed}", "write it as the model was made"
            )
        raise UserError.of(tuple(problems.values())) from None


def check_vllm(file: Path, config: dict[str, Any]) -> None:
    """Raise UserError where vLLM would do by a key what transformers and the recipes do not."""
    keys = dict(VLLM_ALONE)
    if config.get("model_type") in WITHOUT_WINDOW:
        keys["sliding_window"] = (0,)
    for key, values in keys.items():
        if config.get(key) not in (None, *values):
            raise UserError(
                where=str(file),
                what=f"{key} is {config[key]}, by which vLLM computes otherwise than transformers "
                "and training",
                fix="remove the key if the model was trained without it; else take another model",
            )


def check_pad_token(file: Path, config: dict[str, Any]) -> None:
    """Raise UserError where transformers can't make the embedding for its padding token."""
    pad, size = config.get("pad_token_id"), config.get("vocab_size")
    if pad is not None and size and not -size <= pad < size:
        raise UserError(
            where=str(file),
            what=f"pad_token_id is {pad}, beyond the {size} tokens of vocab_size: transformers "
            "can't load the model",
            fix="set pad_token_id to null: no row is padded by it",
        )
