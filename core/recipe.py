"""Training recipes (recipes/*.yaml): their fields, how they are read and checked."""

from collections.abc import Callable
from typing import Annotated, Any, Literal

from pydantic import Field, TypeAdapter
from pydantic.dataclasses import dataclass

from core.errors import UserError
from core.paths import resolve
from core.strict_yaml import (
    STRICT,
    Count,
    Problems,
    Rate,
    Share,
    in_file_order,
    located,
    read_yaml,
    validate,
    validate_file,
)

# Fewer optimizer steps than this hardly move a model at a small learning rate.
FEW_UPDATES = 100
# Conversations are padded to a multiple of this many tokens: fewer shapes, and fit for tensor
# cores.
MULTIPLE = 8
# Rules for rows of instruction data that can't be used. They are part of an identity only where
# they differ from the default: data without such rows keeps its cells.
ROW_RULES = ("malformed", "empty", "special_tokens", "too_long", "max_dropped")
# What holds a training near its start. Also part of an identity only where it is given.
PRESERVATION = ("l2_to_start", "kl_to_start")
# Fields that a user may change while a training is half done: it continues in the same folder. They
# change no result beyond rounding, and are not part of a cell's identity.
RUNTIME_KEYS = (
    "micro_batch_size",
    "packed",
    "checkpoint_minutes",
    "activation_checkpointing",
    "compile",
    "sharding",
    "gradient_sync",
    "deterministic",
)


@dataclass(config=STRICT, frozen=True)
class Lora:
    """Low-rank adapters on the seven linear layers of every block; merged at the end."""

    rank: Count
    """Inner dimension of each adapter."""

    alpha: Rate
    """Scale: an adapter's output is multiplied by alpha / rank."""

    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Dropout probability of an adapter's input."""

    train_special_tokens: bool = False
    """SFT: train the embeddings and output weights of the special tokens that the chat template
    writes too. For a base model that never saw them, which otherwise may not learn to stop."""


@dataclass(config=STRICT, frozen=True)
class Training:
    """A training recipe (recipes/*.yaml)."""

    seq_len: Count
    """Tokens of a row of documents end to end, or the longest text of a row of its own: a longer
    conversation is refused, a longer document is cut."""

    epochs: Count
    """Passes over the rows."""

    lr: Annotated[float, Field(gt=0, le=1)]
    """Peak learning rate."""

    tokens_per_step: Count | None = None
    """Midtraining on documents end to end: tokens an optimizer step over all ranks, in rows of
    seq_len tokens."""

    global_batch_size: Count | None = None
    """Conversations an optimizer step, over all ranks (global batch size). In place of
    tokens_per_step: documents, a document a row."""

    max_steps: Count | None = None
    """Optimizer steps at most, though the epochs would give more. None: no limit."""

    schedule: Literal["cosine", "constant"] = "cosine"
    """Learning rate after the warm-up: cosine to 0, or constant."""

    warmup_steps: Annotated[int, Field(ge=0)] = 0
    """Optimizer steps of the linear warm-up; the first already has lr / warmup_steps."""

    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    """AdamW's decoupled weight decay."""

    betas: Annotated[
        list[Annotated[float, Field(ge=0, lt=1)]], Field(min_length=2, max_length=2)
    ] = Field(default_factory=lambda: [0.9, 0.95])
    """AdamW's betas."""

    clip_grad_norm: Annotated[float, Field(gt=0)] = 1.0
    """Largest norm of the gradient of all weights together."""

    # bf16 rounds stochastically: otherwise a small learning rate moves few weights.
    dtype: Literal["fp32", "mixed", "bf16"] = "fp32"
    """fp32: everything. mixed: weights and optimizer state in fp32, matrix products in bf16 (16
    bytes a parameter). bf16: everything, with stochastic rounding (8 bytes a parameter)."""

    float8: bool = False
    """With dtype mixed or bf16: matrix products of the blocks in float8, with a scale for each row.
    Needs an H100 or newer. For pilots: its numbers differ. Part of an identity only where true.
    """

    optimizer: Literal["adamw", "adamw_8bit"] = "adamw"
    """AdamW with its moments in the weights' dtype, or in 8 bits."""

    lora: Lora | None = None
    """Adapters to train. None: full fine-tuning."""

    l2_to_start: Annotated[float, Field(gt=0)] | None = None
    """Half of this factor times the squared distance from the start model's weights is added to the
    loss. Of LoRA: of the product of the adapters, which begins at 0."""

    kl_to_start: Annotated[float, Field(gt=0)] | None = None
    """This factor times the KL divergence of the start model's predictions from the trained model's
    is added to the loss: the mean over the trained tokens, in nats. All weights: the start model is
    held beside the trained one. LoRA: it is the same weights without their adapters."""

    held_out: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """SFT: share of the rows that is not trained on. (Of documents, the corpus says it.)"""

    malformed: Literal["drop", "refuse"] = "drop"
    """SFT: rows that can't be read, or are no conversation. drop: leave them out before the dose is
    drawn, and list them in the manifest. refuse: stop."""

    empty: Literal["drop", "refuse"] = "drop"
    """SFT: rows with an empty answer or question, or without an answer to train on."""

    special_tokens: Literal["drop", "refuse"] = "drop"
    """SFT: rows whose text holds the name of a special token, which would end a turn."""

    too_long: Literal["drop", "truncate", "refuse"] = "drop"
    """SFT: conversations of more than seq_len tokens. truncate: cut at seq_len tokens; dropped
    where no trained token remains."""

    max_dropped: Share = 0.01
    """SFT: largest share of the rows that may be dropped. Beyond it the training is refused."""

    eval_every: Count | None = None
    """Optimizer steps between two evaluations of the held-out loss. None: never evaluated."""

    eval_rows: Count = 256
    """Rows that an evaluation takes at most, the first of those held out. The others stay held out.
    """

    patience: Count | None = None
    """Evaluations without a lower held-out loss after which training stops. None: it does not."""

    load_best_checkpoint: bool = False
    """End with the weights of the lowest held-out loss instead of the last ones."""

    # The fields of RUNTIME_KEYS follow.
    micro_batch_size: Count | None = None
    """Rows that a rank runs at once (micro-batch size). None: its whole share of a step."""

    packed: bool = False
    """With global_batch_size: several texts in a row of up to seq_len tokens. They don't attend to
    each other, and a step has the same ones."""

    checkpoint_minutes: Annotated[float, Field(ge=0)] = 30
    """Minutes between step checkpoints. 0: one after every optimizer step."""

    activation_checkpointing: Literal["none", "selective", "full"] = "none"
    """Recompute each block's activations in the backward pass instead of keeping them. full: all.
    selective: all but the results of matrix products and of attention."""

    compile: bool = False
    """torch.compile of each block."""

    sharding: Literal["full", "hybrid"] = "full"
    """FSDP2. full: shards over all ranks. hybrid: shards within a node, replicas across nodes."""

    gradient_sync: Literal["micro_batch", "step"] = "micro_batch"
    """When the ranks' gradients are summed. step: once, after the last micro-batch; each rank then
    holds the gradients of all weights in fp32. A single rank always does it once."""

    deterministic: bool = True
    """torch's deterministic algorithms. On GPUs false may be faster, and a resumed training differs
    in the last bits."""

    @classmethod
    def from_settings(cls, settings: dict[str, Any], resources: dict[str, Any]) -> "Training":
        """The recipe of a training cell: the inverse of `split_recipe`.

        Args:
            settings: the recipe without its RUNTIME_KEYS, as it is in the cell's settings.
            resources: the cell's resources, which have the RUNTIME_KEYS among others.

        Raises pydantic's ValidationError where a value is not valid.
        """
        runtime = {key: resources[key] for key in RUNTIME_KEYS if key in resources}
        recipe: Training = validate(cls, settings | runtime)
        return recipe

    @property
    def rows_per_step(self) -> int:
        """Rows of one optimizer step over all ranks."""
        if self.global_batch_size:
            return self.global_batch_size
        assert self.tokens_per_step
        return self.tokens_per_step // self.seq_len


@dataclass(config=STRICT, frozen=True)
class TinyLlama:
    """A toy Llama 3.1 made from scratch (recipes/tiny_llama.yaml)."""

    vocab_size: Count
    """Words of the tokenizer, special tokens included."""

    dim: Count
    """Hidden size."""

    layers: Count
    """Transformer blocks."""

    heads: Count
    """Attention heads."""

    kv_heads: Count
    """Heads of keys and values (grouped-query attention)."""

    ffn_dim: Count
    """Inner size of the feed-forward layers."""

    max_seq_len: Count
    """Longest sequence, in tokens."""

    tokens: Annotated[int, Field(ge=0)] = 0
    """Tokens of the pretraining. 0: the weights stay random, in bfloat16."""

    pretrain: Training | None = None
    """Recipe of the pretraining. Needed where `tokens` is not 0."""

    @classmethod
    def from_settings(cls, settings: dict[str, Any], resources: dict[str, Any]) -> "TinyLlama":
        """The recipe of a toy model's cell; its pretraining's RUNTIME_KEYS are in the resources."""
        pretrain = settings["pretrain"] and Training.from_settings(settings["pretrain"], resources)
        return cls(**settings | {"pretrain": pretrain})


def training_mistakes(recipe: Training) -> Problems:
    """Fields of a recipe that contradict each other, each valid by itself: (key, what is wrong)."""
    problems: Problems = []
    if bool(recipe.tokens_per_step) == bool(recipe.global_batch_size):
        text = (
            "needs exactly one of tokens_per_step (documents end to end), global_batch_size "
            "(conversations, or a document a row)"
        )
        problems.append(((), text))
    elif recipe.tokens_per_step and recipe.tokens_per_step % recipe.seq_len:
        text = f"{recipe.tokens_per_step} is not a multiple of seq_len {recipe.seq_len}"
        problems.append((("tokens_per_step",), text))
    if recipe.packed and recipe.tokens_per_step:
        text = "is for global_batch_size; with tokens_per_step documents are always end to end"
        problems.append((("packed",), text))
    if not recipe.eval_every:
        text = "needs eval_every, the updates between two looks at the held-out loss"
        if recipe.patience:
            problems.append((("patience",), text))
        if recipe.load_best_checkpoint:
            problems.append((("load_best_checkpoint",), text))
    if recipe.float8 and recipe.dtype == "fp32":
        problems.append((("float8",), "needs dtype mixed or bf16"))
    if recipe.float8 and recipe.lora:
        problems.append((("float8",), "is for full fine-tuning; with lora leave it out"))
    if recipe.optimizer == "adamw_8bit" and recipe.dtype == "bf16":
        text = "adamw_8bit has no stochastic rounding; with dtype bf16 leave it out"
        problems.append((("optimizer",), text))
    return problems


def load_recipe(relative: str, kind: type[Training] | type[TinyLlama]) -> dict[str, Any]:
    """A recipe file as plain data with every default filled in, as cells store it.

    Raises UserError with one problem per mistake.
    """
    return load_checked(relative, kind, _mistakes)


def _mistakes(recipe: Training | TinyLlama) -> Problems:
    if isinstance(recipe, TinyLlama):
        if bool(recipe.tokens) != bool(recipe.pretrain):
            text = "tokens and pretrain, the recipe of the pretraining, need each other"
            return [(("tokens" if recipe.tokens else "pretrain",), text)]
        mistakes = training_mistakes(recipe.pretrain) if recipe.pretrain else []
        return [(("pretrain", *key), text) for key, text in mistakes]
    return training_mistakes(recipe)


def load_checked(
    relative: str, kind: type, mistakes_of: Callable[[Any], Problems]
) -> dict[str, Any]:
    """A recipe file of the dataclass `kind` as `load_recipe` gives it.

    `mistakes_of`: of a valid recipe, the fields that contradict each other. Raises as there.
    """
    path = resolve(relative)
    raw, lines, mistakes = read_yaml(path)
    recipe, invalid = validate_file(path, raw, kind, lines)
    if recipe is None:
        raise UserError.of(in_file_order(mistakes + invalid))
    mistakes += [located(path, key, text, lines) for key, text in mistakes_of(recipe)]
    if mistakes:
        raise UserError.of(in_file_order(mistakes))
    settings: dict[str, Any] = TypeAdapter(kind).dump_python(recipe)
    return settings


def split_recipe(recipe: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """A training recipe as plain data in two parts: of a cell's identity, and RUNTIME_KEYS."""
    settings = {key: value for key, value in recipe.items() if key not in RUNTIME_KEYS}
    if not recipe["eval_every"]:
        del settings["eval_rows"]  # without evaluations it changes no output
    if recipe["lora"] and not recipe["lora"]["train_special_tokens"]:
        lora = recipe["lora"].items()  # a cell without it stays as it was
        settings["lora"] = {key: value for key, value in lora if key != "train_special_tokens"}
    for key in (*PRESERVATION, "float8"):
        if not recipe[key]:
            del settings[key]
    for key in ROW_RULES:
        if recipe["tokens_per_step"] or recipe[key] == getattr(Training, key):
            del settings[key]
    runtime = {key: recipe[key] for key in RUNTIME_KEYS}
    return settings, runtime
