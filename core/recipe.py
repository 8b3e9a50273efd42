"""A training recipe (recipes/*.yaml): its fields, how it is read, and sizes that trainer and forecast share."""

from typing import Annotated, Any, Literal

from pydantic import Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from core.errors import UserError
from core.paths import resolve
from core.strict_yaml import STRICT, Count, Problems, Rate, explain, in_file_order, located, read_yaml, validate

FEW_UPDATES = 100  # a handful of updates at a small learning rate hardly moves a model
MULTIPLE = 8  # tokens, to which conversations are padded: fewer shapes, and fit for tensor cores
# Keys of a training recipe that a user may change while a training is half done: it goes on in the same folder.
RUNTIME_KEYS = ("rows_per_rank", "save_minutes", "activation_checkpointing", "compile", "sharding")


@dataclass(config=STRICT, frozen=True)
class Lora:
    """Low-rank adapters on the seven linear layers of every block; merged into the weights at the end."""

    rank: Count
    alpha: Rate
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0


@dataclass(config=STRICT, frozen=True)
class Training:
    """A training recipe (recipes/*.yaml)."""

    seq_len: Count
    epochs: Count
    lr: Annotated[float, Field(gt=0)]
    tokens_per_update: Count | None = None  # midtraining: packed rows of seq_len tokens
    rows_per_update: Count | None = None  # SFT: one conversation a row
    max_updates: Count | None = None  # stop there, though the epochs would give more
    schedule: Literal["cosine", "constant"] = "cosine"
    warmup_updates: Annotated[int, Field(ge=0)] = 0
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    betas: Annotated[list[float], Field(min_length=2, max_length=2)] = Field(default_factory=lambda: [0.9, 0.95])
    clip_grad_norm: Annotated[float, Field(gt=0)] = 1.0
    # fp32: all of it. mixed: weights and optimizer state fp32, matrix products bf16. bf16: all of it, and stochastic
    # rounding, without which a small learning rate moves few weights: 8 instead of 16 bytes a parameter.
    dtype: Literal["fp32", "mixed", "bf16"] = "fp32"
    optimizer: Literal["adamw", "adamw_8bit"] = "adamw"
    lora: Lora | None = None  # none: full fine-tuning
    held_out: Annotated[float, Field(ge=0, lt=1)] = 0.0  # SFT: share of the rows not trained on; a corpus has its own
    held_out_every: Count | None = None  # updates between two looks at the loss on what is held out; none: never
    patience: Count | None = None  # stop after so many looks without a better one; none: never
    load_best: bool = False  # end with the weights of the best look, not with the last ones
    # How, not what: they change no result beyond rounding, and are no part of a cell's identity (WAYS).
    rows_per_rank: Count | None = None  # rows at once on each rank; none: its whole share of an update
    save_minutes: Annotated[float, Field(ge=0)] = 30  # between step checkpoints; 0: one after every update
    activation_checkpointing: bool = False  # computes each block twice, to keep little of it in memory
    compile: bool = False  # torch.compile of each block
    sharding: Literal["full", "hybrid"] = "full"  # hybrid: shards within a node, copies across nodes


@dataclass(config=STRICT, frozen=True)
class TinyLlama:
    """A toy Llama-3.1 made from scratch (recipes/tiny_llama.yaml)."""

    vocab_size: Count
    dim: Count
    layers: Count
    heads: Count
    kv_heads: Count
    ffn_dim: Count
    max_seq_len: Count
    tokens: Count  # pretraining length
    pretrain: Training


def training_mistakes(recipe: dict[str, Any]) -> Problems:
    """Settings of a training recipe that contradict each other, each right by itself."""
    found: Problems = []
    if bool(recipe["tokens_per_update"]) == bool(recipe["rows_per_update"]):
        found.append(((), "needs exactly one of tokens_per_update (documents), rows_per_update (conversations)"))
    elif recipe["tokens_per_update"] and recipe["tokens_per_update"] % recipe["seq_len"]:
        text = f"{recipe['tokens_per_update']} is not a multiple of seq_len {recipe['seq_len']}"
        found.append((("tokens_per_update",), text))
    for key in ("patience", "load_best"):
        if recipe[key] and not recipe["held_out_every"]:
            found.append(((key,), "needs held_out_every, the updates between two looks at the held-out loss"))
    if recipe["optimizer"] == "adamw_8bit" and recipe["dtype"] == "bf16":
        found.append((("optimizer",), "adamw_8bit has no stochastic rounding; with dtype bf16 leave it out"))
    return found


def load_recipe(relative: str, kind: type[Training] | type[TinyLlama]) -> dict[str, Any]:
    """A recipe file as plain data with every default filled in. Raises UserError with one line per mistake."""
    path = resolve(relative)
    raw, where, mistakes = read_yaml(path)
    try:
        recipe = validate(kind, raw)
    except ValidationError as error:
        raise UserError(*in_file_order(mistakes + explain(path, error, kind, where))) from None
    found: dict[str, Any] = TypeAdapter(kind).dump_python(recipe)
    at, training = ((), found) if kind is Training else (("pretrain",), found["pretrain"])
    mistakes += [located(path, (*at, *key), text, where) for key, text in training_mistakes(training)]
    if mistakes:
        raise UserError(*in_file_order(mistakes))
    return found


def split_recipe(recipe: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """A training recipe's settings, and its ways of running."""
    return {k: v for k, v in recipe.items() if k not in RUNTIME_KEYS}, {k: recipe[k] for k in RUNTIME_KEYS}
