"""Rewards of sampled answers: a rule, or a Hugging Face sequence classifier."""

import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BatchEncoding,
    PreTrainedTokenizerBase,
)

from core.cell.context import StageContext
from core.errors import UserError
from core.model_folder.chat import Chat
from core.model_folder.check import check_reward_model

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

    One whose tokenizer has a chat template reads a conversation of them. Others read a pair of
    texts, of which the longer is cut at its end beyond MAX_LENGTH tokens. Raises UserError where
    the folder is no such model, or a reward is no number.
    """
    check_reward_model(folder)
    try:
        model, loaded = AutoModelForSequenceClassification.from_pretrained(
            folder, output_loading_info=True
        )
        tokenizer = AutoTokenizer.from_pretrained(folder)
    except (OSError, ValueError, KeyError, ImportError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:300]
        raise _unfit(folder, f"is no sequence classifier: {reason}") from None
    if missing := sorted(loaded["missing_keys"]):
        raise _unfit(folder, f"has no {missing[0]}: rewards would be random")
    model = model.to(device).float().eval()
    config = model.config.get_text_config()
    positions = getattr(config, "max_position_embeddings", None) or MAX_LENGTH
    # transformers finds a text's end by the config's padding token.
    is_padded = tokenizer.pad_token_id is not None and tokenizer.pad_token_id == config.pad_token_id
    at_once = PAIRS_AT_ONCE if is_padded else 1

    def encode(pairs: list[tuple[str, str]]) -> BatchEncoding:
        if tokenizer.chat_template:
            rows = [_conversation(tokenizer, *pair)[:positions] for pair in pairs]
            return tokenizer.pad({"input_ids": rows}, padding=is_padded, return_tensors="pt")
        questions, answers = zip(*pairs, strict=True)
        inputs: BatchEncoding = tokenizer(
            list(questions),
            list(answers),
            truncation=True,
            max_length=min(MAX_LENGTH, positions, tokenizer.model_max_length),
            padding=is_padded,
            return_tensors="pt",
        )
        return inputs

    @torch.no_grad()
    def score(pairs: list[tuple[str, str]]) -> list[float]:
        rewards: list[float] = []
        for start in range(0, len(pairs), at_once):
            inputs = encode(pairs[start : start + at_once])
            logits = model(**inputs.to(device)).logits
            rewards += [round(value, DECIMALS) for value in logits[:, 0].tolist()]
        if not all(map(math.isfinite, rewards)):
            raise _unfit(folder, "gives a reward that is no number")
        return rewards

    return score


def _conversation(tokenizer: PreTrainedTokenizerBase, question: str, answer: str) -> list[int]:
    turns = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return Chat(tokenizer).render(turns, False)


def _unfit(folder: Path, what: str) -> UserError:
    return UserError(where=str(folder), what=what, fix="name a reward model")
