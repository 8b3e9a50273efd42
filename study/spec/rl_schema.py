"""Reinforcement learning in the study file (`rl`): prompts, rewards and recipe of a step `rl`."""

from pydantic.dataclasses import dataclass

from core.strict_yaml import STRICT, Name


@dataclass(config=STRICT, frozen=True)
class Reward:
    """What an answer is worth. Exactly one of the two."""

    model: Name | None = None
    """Entry of `models`: a sequence classifier of transformers with one output, which reads
    question and answer."""
    contains: str | None = None
    """A text: 1 for an answer that holds it, 0 for others."""


@dataclass(config=STRICT, frozen=True)
class Rl:
    """Reinforcement learning by GRPO, which steps of arms name."""

    recipe: str
    """YAML file of recipes/ (docs/training.md)."""
    prompts: str
    """Corpus whose documents are the prompts; of questions and answers the questions. Gates keep
    benchmarks out of them. Its held-out documents are the prompts whose answers are scored every
    `eval_every` steps."""
    reward: Reward
    """Reward of the answers that the model learns from."""
    second_reward: Reward | None = None
    """Reward of the answers to the held-out prompts, from which it does not learn. By default
    `reward`."""
    response_only: bool = False
    """Whether a reward sees only what stands between <response> and </response>. An answer without
    <response> is then rewarded as an empty one."""
    shuffled: bool = False
    """A control: the rewards of each step are dealt out among its answers at random."""
    system: str | None = None
    """File with a system prompt of the training."""
    prefill: str | None = None
    """File with the beginning of each answer, which the model continues. It is no part of what is
    trained on."""
