"""Text to training rows: packed documents for midtraining, one conversation a row for SFT.

Both use the checkpoint's own Hugging Face tokenizer and chat template, which vLLM uses too, so that training and
evaluation can't disagree about BOS, EOS or the template.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torchtune.data import CROSS_ENTROPY_IGNORE_IDX as IGNORE
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from study.errors import UserError


@dataclass(frozen=True)
class Rows:
    """Training rows: int64 arrays [rows, length]. `labels` are already shifted: labels[t] is what follows tokens[t].

    `document` numbers the text each token belongs to; attention never leaves it. Padding has number -1.
    """

    tokens: np.ndarray
    labels: np.ndarray
    document: np.ndarray
    positions: np.ndarray
    real_tokens: int  # without padding

    def __len__(self) -> int:
        return len(self.tokens)

    def first(self, count: int) -> "Rows":
        """The first `count` rows alone."""
        document = self.document[:count]
        real = int((document >= 0).sum())
        return Rows(self.tokens[:count], self.labels[:count], document, self.positions[:count], real)

    def batch(self, which: np.ndarray) -> dict[str, torch.Tensor]:
        """The named rows as torchtune's model takes them: tokens, labels, input_pos [b, s], mask [b, s, s]."""
        document = torch.from_numpy(self.document[which])
        same = document[:, :, None] == document[:, None, :]
        return {
            "tokens": torch.from_numpy(self.tokens[which]),
            "labels": torch.from_numpy(self.labels[which]),
            "input_pos": torch.from_numpy(self.positions[which]),
            "mask": same & torch.ones(same.shape[1:], dtype=torch.bool).tril(),
        }


def pack(texts: list[str], tokenizer: PreTrainedTokenizerBase, seq_len: int) -> Rows:
    """All documents end to end, each as BOS text EOS, cut into rows of `seq_len`: nothing is dropped.

    A document that crosses a row's end goes on in the next row, where it can't see its first part. The last token
    before a cut is still trained to predict the token after it; an EOS is not trained to predict the next BOS.
    """
    tokens, document = [], []
    for number, ids in enumerate(_encode(texts, tokenizer)):
        ids = [tokenizer.bos_token_id, *ids, tokenizer.eos_token_id]
        tokens += ids
        document += [number] * len(ids)
    following = np.append(tokens[1:], IGNORE)
    ends = np.append(np.diff(document) != 0, True)
    labels = np.where(ends, IGNORE, following)
    count = -(-len(tokens) // seq_len)
    width = count * seq_len - len(tokens)
    shape = (count, seq_len)
    numbers = np.pad(np.array(document), (0, width), constant_values=-1).reshape(shape)
    return Rows(
        tokens=np.pad(np.array(tokens), (0, width), constant_values=tokenizer.pad_token_id).reshape(shape),
        labels=np.pad(labels, (0, width), constant_values=IGNORE).reshape(shape),
        document=numbers,
        positions=_positions(numbers),
        real_tokens=len(tokens),
    )


def conversations(rows: list[list[dict[str, str]]], tokenizer: PreTrainedTokenizerBase, seq_len: int) -> Rows:
    """One conversation a row, padded on the right; only what the assistant says, with its end token, is trained on.

    Raises UserError where a conversation is longer than `seq_len` tokens: nothing is cut silently.
    """
    encoded = [_conversation(messages, tokenizer) for messages in rows]
    longest = max(len(ids) for ids, _ in encoded)
    if longest > seq_len:
        raise UserError(
            f"a conversation has {longest} tokens, the recipe's seq_len is {seq_len}; raise it or drop the row"
        )
    tokens = np.full((len(rows), longest), tokenizer.pad_token_id)
    labels = np.full((len(rows), longest), IGNORE)
    document = np.full((len(rows), longest), -1)
    for i, (ids, trained) in enumerate(encoded):
        tokens[i, : len(ids)] = ids
        labels[i, : len(ids) - 1] = np.where(trained[1:], ids[1:], IGNORE)
        document[i, : len(ids)] = 0
    return Rows(tokens, labels, document, _positions(document), sum(len(ids) for ids, _ in encoded))


def load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """The tokenizer of a checkpoint, with a pad token (EOS where the model names none)."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def read_jsonl(path: Path, key: str) -> list[Any]:
    """The value under `key` of every row. Raises UserError that names the first line without it."""
    values = []
    with open(path, encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            try:
                values.append(json.loads(line)[key])
            except (ValueError, KeyError, TypeError):
                raise UserError(f"{path}:{number}: must be a JSON object with {key!r}") from None
    return values


def _encode(texts: list[str], tokenizer: PreTrainedTokenizerBase) -> list[list[int]]:
    # Special tokens' names inside a text stay text: data must not be able to end a document or open a turn.
    return tokenizer(texts, add_special_tokens=False, split_special_tokens=True)["input_ids"]


def _conversation(messages: list[dict[str, str]], tokenizer: PreTrainedTokenizerBase) -> tuple[list[int], np.ndarray]:
    """Token ids of a conversation under the chat template, and which of them the assistant says."""
    ids: list[int] = []
    trained: list[bool] = []
    for turn, message in enumerate(messages, 1):
        assistant = message["role"] == "assistant"
        # The assistant's header is part of the prompt, as it is when the model is asked.
        asked = turn < len(messages) and messages[turn]["role"] == "assistant" and not assistant
        so_far: Any = tokenizer.apply_chat_template(messages[:turn], add_generation_prompt=asked, return_dict=False)
        if so_far[: len(ids)] != ids:
            raise UserError("the chat template rewrites earlier turns, so the answer's tokens can't be told apart")
        trained += [assistant] * (len(so_far) - len(ids))
        ids = so_far
    return ids, np.array(trained)


def _positions(document: np.ndarray) -> np.ndarray:
    """Positions that start at 0 with each document of each row."""
    columns = np.broadcast_to(np.arange(document.shape[1]), document.shape)
    starts = np.ones_like(document, dtype=bool)
    starts[:, 1:] = document[:, 1:] != document[:, :-1]
    return columns - np.maximum.accumulate(np.where(starts, columns, 0), axis=1)
