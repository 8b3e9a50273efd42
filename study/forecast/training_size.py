"""Steps, tokens, padding and evaluations of a training, by its settings and the files here."""

import json
import math
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from core.cell.identity import Cell
from core.endpoints.ledger import CHARACTERS_PER_TOKEN
from core.model_size import rows_at_once
from core.recipe import MULTIPLE, Training
from recipes.conversations import (
    BadRow,
    Conversation,
    check_bad_rows,
    read_conversations,
    split_rows,
)
from study.forecast.assumptions import ANSWER_TOKENS, DATA_ROWS, QUESTION_TOKENS

# Tokens of a document until a manifest has counts, by the writer's `served_by`. The paper's
# documents have 1,000 to 1,200; the dummy writer's are shorter, and a toy tokenizer splits them
# finely.
TOKENS_PER_DOCUMENT = {"dummy": 333, "url": 1100, "vllm": 1100}
BLOCK = 128  # tokens of the narrowest packed row
SAMPLED_ROWS = 1000  # conversations of a file that are read to estimate the others
TOKENS_PER_ROW = 180  # of instruction data that has not been fetched yet: about Alpaca's
# Tokens of a question in its forms, and of an answer, as the paper reports them.
ASKED = 60
ANSWERED = 74


def recipe_of(cell: Cell) -> Training:
    """The recipe of a training cell, as its stage will build it.

    Of one by GRPO a step's rows are rollouts, and beta is the factor of the KL to the start.
    """
    recipe = Training.from_settings(cell.settings["recipe"], cell.resources)
    if cell.stage != "rl":
        return recipe
    grpo = cell.settings["grpo"]
    rollouts = recipe.rows_per_step * grpo["group_size"]
    return replace(recipe, global_batch_size=rollouts, kl_to_start=grpo["beta"] or None)


def sampled_tokens(cell: Cell, steps: int) -> tuple[int, int]:
    """Tokens that vLLM reads and writes in a training by GRPO; none in another."""
    if cell.stage != "rl":
        return 0, 0
    recipe = recipe_of(cell)
    answers = steps * recipe.rows_per_step
    if recipe.eval_every:
        corpus = cell.inputs["documents"].settings
        held_out = corpus["documents"] - trained_documents(corpus)
        evaluations = 1 + -(-steps // recipe.eval_every)
        answers += evaluations * min(held_out, recipe.eval_rows)
    written = min(ANSWER_TOKENS, cell.settings["grpo"]["max_tokens"])
    return answers * QUESTION_TOKENS, answers * written


def is_training(cell: Cell) -> bool:
    """Whether the cell trains from a recipe (a dose on the way of a longer run does not)."""
    return cell.stage in ("midtrain", "sft", "rl") and "recipe" in cell.settings


def count_steps(cell: Cell) -> tuple[int, int] | None:
    """Optimizer steps of a training cell, and tokens trained on; None for any other cell.

    The tokens of a midtraining are estimated from its number of documents, those of an SFT from the
    first rows of its data.
    """
    if cell.stage == "model":
        toy = cell.settings.get("recipe")
        if not (toy and toy["tokens"]):
            return None
        return -(-toy["tokens"] // toy["pretrain"]["tokens_per_step"]), toy["tokens"]
    if "recipe" not in cell.settings:
        return None
    recipe = recipe_of(cell)
    if cell.stage == "sft":
        rows = round(cell.settings["dose"] * (1 + cell.settings.get("replay", 0))) * recipe.epochs
        lengths, _ = _read_data(cell.resources["files"]["data"])
        _check_rows(cell, recipe)
        tokens = rows * sum(lengths) // max(1, len(lengths))
    elif cell.stage == "rl":
        grpo = cell.settings["grpo"]
        prompts = trained_documents(cell.inputs["documents"].settings) * recipe.epochs
        rows = prompts * grpo["group_size"]
        tokens = rows * (QUESTION_TOKENS + min(ANSWER_TOKENS, grpo["max_tokens"]))
    elif "question_variant" in cell.settings:
        pairs = cell.inputs["documents"].settings["documents"]
        rows = (pairs - round(recipe.held_out * pairs)) * recipe.epochs
        tokens = rows * (ASKED + ANSWERED)
    else:
        corpus = cell.inputs["documents"].settings
        tokens = corpus_tokens(corpus) * recipe.epochs
        rows = _document_rows(recipe, trained_documents(corpus), corpus_tokens(corpus))
        rows *= recipe.epochs
    full_steps = -(-rows // recipe.rows_per_step)
    steps = min(full_steps, recipe.max_steps or full_steps)
    return steps, tokens if steps == full_steps else tokens * steps // full_steps


def _document_rows(recipe: Training, documents: int, tokens: int) -> int:
    """Rows of so many documents with so many tokens: a document each, or end to end."""
    return documents if recipe.global_batch_size else -(-tokens // recipe.seq_len)


def trained_documents(settings: dict[str, Any]) -> int:
    """Documents of a corpus that are trained on: those that are not held out."""
    documents: int = settings["documents"]
    held_out: int = round(settings["held_out"] * documents)
    return documents - held_out


def corpus_tokens(settings: dict[str, Any]) -> int:
    """Tokens of a corpus that are trained on, stated or by its number of documents."""
    served_by = settings.get("writer", {}).get("served_by", "url")
    tokens: int = settings["tokens"] or trained_documents(settings) * TOKENS_PER_DOCUMENT[served_by]
    return tokens


@lru_cache
def _read_data(path: str) -> tuple[list[int], int]:
    """Tokens of the first conversations of a data file, and the number of all.

    JSON's punctuation is about as many letters as a chat template's tokens stand for.
    """
    if not Path(path).exists():  # not fetched yet
        return [TOKENS_PER_ROW], DATA_ROWS
    conversations, _ = _conversations(path)
    sizes = [
        len(json.dumps(row.messages, ensure_ascii=False)) // CHARACTERS_PER_TOKEN
        for row in conversations[:SAMPLED_ROWS]
    ]
    return sizes, len(conversations)


@lru_cache
def _conversations(path: str) -> tuple[list[Conversation], list[BadRow]]:
    return read_conversations(Path(path))


def _check_rows(cell: Cell, recipe: Training) -> None:
    """Refuse the data of an SFT as its cell would, as far as that needs no tokenizer."""
    path = cell.resources["files"]["data"]
    if Path(path).exists():
        conversations, bad = _conversations(path)
        check_bad_rows(bad, len(conversations) + len(bad), recipe)
        split_rows(path, len(conversations), recipe, cell.settings["dose"])


def _packed_padding(lengths: list[int], recipe: Training, ranks: int) -> float:
    """Of conversations that share rows, whose width is a power of two (recipes.rows)."""
    tokens = recipe.rows_per_step * sum(lengths) / max(1, len(lengths))
    fewest = -(-math.ceil(tokens) // recipe.seq_len)
    rows = min(recipe.rows_per_step, -(-fewest // ranks) * ranks)
    width: int = min(recipe.seq_len, max(BLOCK, 2 ** (math.ceil(tokens / rows) - 1).bit_length()))
    return max(0.0, 1 - tokens / (rows * width))


def count_evaluations(cell: Cell, steps: int) -> tuple[int, int]:
    """Evaluations of the held-out loss in a training of so many steps, and the rows of each."""
    recipe = recipe_of(cell)
    if not recipe.eval_every or cell.stage == "rl":  # answers, which `cell_cost` counts
        return 0, 0
    if cell.stage == "sft":
        held_out = round(recipe.held_out * _read_data(cell.resources["files"]["data"])[1])
    elif "question_variant" in cell.settings:
        held_out = round(recipe.held_out * cell.inputs["documents"].settings["documents"])
    else:
        corpus = cell.inputs["documents"].settings
        share = corpus["held_out"]
        documents = corpus["documents"] - trained_documents(corpus)
        tokens = round(corpus_tokens(corpus) * share / (1 - share))
        held_out = _document_rows(recipe, documents, tokens)
    # One before the first step, and one after the last.
    evaluations = 1 + -(-steps // recipe.eval_every)
    return evaluations, min(held_out, recipe.eval_rows)


def padding(cell: Cell, ranks: int) -> float:
    """Share of a training's positions that are padding, about.

    It is behind the last document, or behind conversations that are shorter than the longest of
    those that a rank runs at once.
    """
    recipe = recipe_of(cell)
    if (
        cell.stage == "rl"
        or "question_variant" in cell.settings
        or (cell.stage == "midtrain" and recipe.global_batch_size and not recipe.packed)
    ):
        return 0.0  # not known before they are written
    if cell.stage == "midtrain":
        corpus = cell.inputs["documents"].settings
        if recipe.packed:
            mean = corpus_tokens(corpus) // max(1, trained_documents(corpus))
            return _packed_padding([min(mean, recipe.seq_len)], recipe, ranks)
        tokens = corpus_tokens(corpus)
        positions = -(-tokens // recipe.seq_len) * recipe.seq_len
    else:
        lengths, _ = _read_data(cell.resources["files"]["data"])
        size = rows_at_once(recipe, ranks)
        if recipe.packed:
            return _packed_padding(lengths, recipe, ranks)
        batches = [lengths[i : i + size] for i in range(0, len(lengths), size)]
        positions = sum(len(batch) * -(-max(batch) // MULTIPLE) * MULTIPLE for batch in batches)
        tokens = sum(lengths)
    return 1 - tokens / positions if positions else 0.0
