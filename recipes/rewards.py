"""Rewards of sampled answers: a rule, or a Hugging Face sequence classifier."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from core.cell.context import StageContext
from core.errors import UserError

# (question, answer) of each rollout -> its reward.
Reward = Callable[[list[tuple[str, str]]], list[float]]
RESPONSE = re.compile(r"<response>(.*?)(?:</response>|\Z)", re.DOTALL)
PAIRS_AT_ONCE = 8
MAX_LENGTH = 512  # tokens of a pair: DeBERTa's positions
DECIMALS = 6


def response_of(answer: str) -> str | None:
    """What stands in the first <response> of an answer, to its end where it is not closed.

    None where there is no <response>.
    """
    match = RESPONSE.search(answer)
    return match[1].strip() if match else None


def reward_of_cell(context: StageContext, role: str, device: torch.device) -> Reward:
    """The reward that a cell's setting `role` names.

    {contains: TEXT} is 1 where the answer holds the text, otherwise 0. {model: true} is the output
    of the classifier in the folder that its resources name under `role`.
    """
    settings: dict[str, Any] = context.settings[role]
    if text := settings.get("contains"):
        return lambda pairs: [float(text in answer) for _, answer in pairs]
    return classifier(Path(context.resources["files"][role]), device)


def classifier(folder: Path, device: torch.device) -> Reward:
    """A sequence classifier with one output, which is read as the reward of (question, answer).

    Of a pair of more than MAX_LENGTH tokens the longer text is cut at its end. Raises UserError
    where the folder is no such model.
    """
    try:
        model = AutoModelForSequenceClassification.from_pretrained(folder).to(device).float().eval()
        tokenizer = AutoTokenizer.from_pretrained(folder)
    except (OSError, ValueError, KeyError) as error:
        raise UserError(
            where=str(folder),
            what=f"is no sequence classifier: {error}",
            fix="name a model of AutoModelForSequenceClassification",
        ) from None
    if model.config.num_labels != 1:
        raise UserError(
            where=str(folder),
            what=f"has {model.config.num_labels} outputs, and a reward is one number",
            fix="name a reward model",
        )

    @torch.no_grad()
    def score(pairs: list[tuple[str, str]]) -> list[float]:
        rewards: list[float] = []
        for start in range(0, len(pairs), PAIRS_AT_ONCE):
            questions, answers = zip(*pairs[start : start + PAIRS_AT_ONCE], strict=True)
            inputs = tokenizer(
                list(questions),
                list(answers),
                truncation=True,
                max_length=MAX_LENGTH,
                padding=True,
                return_tensors="pt",
            )
            logits = model(**inputs.to(device)).logits
            rewards += [round(value, DECIMALS) for value in logits[:, 0].tolist()]
        return rewards

    return score
