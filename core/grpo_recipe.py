"""Recipes of reinforcement learning by GRPO (recipes/*grpo.yaml)."""

from dataclasses import asdict
from typing import Annotated, Any, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from core.recipe import Training, load_checked, split_recipe, training_mistakes
from core.strict_yaml import (
    STRICT,
    Count,
    Problems,
    Share,
    validate,
)

Loss = Literal["grpo", "dapo", "dr_grpo"]
# Fields that change no result beyond rounding, and are not part of a cell's identity.
RUNTIME_KEYS = ("engine_memory",)


@dataclass(config=STRICT, frozen=True)
class Grpo:
    """A recipe of GRPO: each optimizer step takes answers that the model has just sampled."""

    train: Training
    """Optimizer and adapters. Here global_batch_size counts prompts an optimizer step,
    micro_batch_size rollouts, and seq_len is of a prompt and its answer together. eval_every and
    eval_rows are for the held-out prompts of the corpus, whose answers a reward scores. The rules
    special_tokens, too_long and max_dropped are for prompts."""

    group_size: Annotated[int, Field(ge=2)] = 8
    """Rollouts (sampled answers) for each prompt, whose rewards are compared."""

    max_tokens: Count = 512
    """Largest number of tokens of an answer. Answers are sampled at temperature 1."""

    loss: Loss = "dapo"
    """grpo: mean over rollouts of their mean over tokens. dapo: mean over all tokens. dr_grpo: sum
    over all tokens, divided by rollouts times max_tokens."""

    beta: Annotated[float, Field(ge=0)] = 0.0
    """Factor of the KL divergence from the model before this training, in the loss. LoRA: that is
    the same weights without their adapters. All weights: it is held beside the trained one."""

    epsilon_low: Annotated[float, Field(gt=0, lt=1)] = 0.2
    """A token's loss is clipped where its probability has become less than 1 - epsilon_low times
    what it was when it was sampled."""

    epsilon_high: Annotated[float, Field(gt=0)] = 0.2
    """The same for more than 1 + epsilon_high times."""

    scale_rewards: bool = True
    """Whether advantages are divided by the standard deviation of their group's rewards."""

    # The fields of RUNTIME_KEYS follow.
    engine_memory: Share = 0.4
    """Share of a GPU's memory that vLLM takes, beside the training."""

    @classmethod
    def from_settings(cls, settings: dict[str, Any], resources: dict[str, Any]) -> "Grpo":
        """The recipe of a cell: the inverse of `split_grpo`."""
        train = Training.from_settings(settings["recipe"], resources)
        runtime = {key: resources[key] for key in RUNTIME_KEYS if key in resources}
        recipe: Grpo = validate(cls, settings["grpo"] | runtime | {"train": asdict(train)})
        return recipe

    @property
    def rollouts_per_step(self) -> int:
        """Rollouts of one optimizer step."""
        return self.train.rows_per_step * self.group_size


def grpo_mistakes(recipe: Grpo) -> Problems:
    """Fields that contradict each other, each valid by itself: (key, what is wrong)."""
    train = recipe.train
    problems: Problems = [(("train", *key), what) for key, what in training_mistakes(train)]
    if train.tokens_per_step:
        problems.append((("train", "tokens_per_step"), "is for documents: give global_batch_size"))
    for key in ("packed", "patience", "load_best_checkpoint", "kl_to_start", "held_out"):
        if getattr(train, key):
            fix = " (beta is)" if key == "kl_to_start" else ""
            problems.append((("train", key), f"is not for GRPO{fix}"))
    if train.too_long == "truncate":
        what = "truncate is not for GRPO, whose prompts are not cut: drop, or refuse"
        problems.append((("train", "too_long"), what))
    if train.dtype == "mixed":
        problems.append((("train", "dtype"), "mixed is not for GRPO: fp32, or bf16"))
    if train.lora and train.lora.dropout:
        what = "is not for GRPO: the model must be the one that has sampled"
        problems.append((("train", "lora", "dropout"), what))
    if train.lora and train.lora.train_special_tokens:
        problems.append((("train", "lora", "train_special_tokens"), "is not for GRPO"))
    if recipe.max_tokens >= train.seq_len:
        what = f"{recipe.max_tokens} leave no token of seq_len {train.seq_len} for a prompt"
        problems.append((("max_tokens",), what))
    return problems


def load_grpo(relative: str) -> dict[str, Any]:
    """A recipe file as plain data with every default filled in.

    Raises UserError with one problem per mistake.
    """
    return load_checked(relative, Grpo, grpo_mistakes)


def split_grpo(recipe: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """A recipe as plain data in two parts: settings `recipe` and `grpo`, and the runtime keys."""
    train, runtime = split_recipe(recipe["train"])
    grpo = {key: recipe[key] for key in recipe if key not in ("train", *RUNTIME_KEYS)}
    return {"recipe": train, "grpo": grpo}, runtime | {key: recipe[key] for key in RUNTIME_KEYS}
