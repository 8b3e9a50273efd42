"""Entries of `rl` that name what is not there, or whose keys do not fit one another."""

from core.strict_yaml import KeyPath
from study.spec.checks import (
    Mapping,
    Mistake,
    Mistakes,
    check_reference,
    mapping,
    section_entries,
)

REWARDS = ("reward", "second_reward")


def rl_mistakes(raw: Mapping) -> Mistakes:
    """Mistakes in the section `rl` of a study file."""
    mistakes: Mistakes = []
    for name, rl in section_entries(raw, "rl").items():
        at = ("rl", name)
        mistakes += check_reference(raw, "corpora", (*at, "prompts"), rl.get("prompts"))
        prompts = section_entries(raw, "corpora").get(str(rl.get("prompts")))
        if rl.get("second_reward") and prompts and not prompts.get("held_out"):
            what = f"is of answers to held-out prompts, and {rl['prompts']} holds out none"
            mistakes.append(Mistake((*at, "second_reward"), what, "give it held_out: 0.1"))
        for key in REWARDS:
            if isinstance(rl.get(key), dict):
                mistakes += _reward((*at, key), rl[key], raw)
    return mistakes


def _reward(at: KeyPath, reward: Mapping, raw: Mapping) -> Mistakes:
    if bool(reward.get("model")) == bool(reward.get("contains")):
        return [Mistake(at, "needs exactly one of model, contains")]
    name = reward.get("model")
    mistakes = check_reference(raw, "models", (*at, "model"), name)
    if mapping(mapping(raw.get("models")).get(str(name))).get("make"):
        mistakes.append(Mistake((*at, "model"), "is a toy Llama, which is no classifier"))
    return mistakes
