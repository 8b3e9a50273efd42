"""The rows of a training: which documents or conversations it trains on, and which are held out.

Rank 0 writes token files once (recipes.tokenization); all ranks map them (recipes.rows).
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from transformers import PreTrainedTokenizerBase

from core.cell.context import StageContext
from core.errors import UserError
from core.files import read_rows
from core.model_folder.chat import Chat
from core.model_folder.config import end_token_ids, longest_row, read_config
from core.model_folder.tokenizer import load_tokenizer
from core.recipe import Training
from recipes.conversations import (
    BadRow,
    Conversation,
    check_bad_rows,
    count_by_rule,
    read_conversations,
    split_rows,
)
from recipes.distributed import Ranks
from recipes.rows import Rows
from recipes.tokenization import (
    cut_texts,
    documents_as_rows,
    encode_conversations,
    encode_documents,
    pack_documents,
    usable_conversations,
)


def prepare_rows(
    context: StageContext, recipe: Training, ranks: Ranks, chat: Chat | None = None
) -> tuple[Rows, Rows | None]:
    """The training rows of a cell, and the held-out rows of an evaluation (None: no evaluation).

    midtrain: documents.jsonl and held_out.jsonl of the input `documents`. With `question_variant`
        in its settings the questions of that form with their answers, as conversations, a share
        `held_out` of them held out.
    sft: the first `dose` usable rows of the file `data` in an order from the study's seed, the
        last share `held_out` of that order, and documents to replay of the input `replay`.

    At most `eval_rows` of the held-out rows are evaluated; the others are not trained on either.

    `chat`: that of `chat_of`, where the caller has it.

    A collective. Rows that can't be used go by the recipe's rules (recipes.conversations): they are
    dropped before a dose is drawn and listed in the manifest, or UserError is raised.
    """
    start = context.inputs["start"] / "model"
    chat = chat or chat_of(context)
    tokenizer = chat.tokenizer if chat else load_tokenizer(start)
    max_seq_len = longest_row(read_config(start))
    if recipe.seq_len > max_seq_len:
        raise UserError(
            where=str(context.folder),
            what=f"the recipe's seq_len {recipe.seq_len} is beyond the model's {max_seq_len}",
            fix="lower it",
        )
    if chat is None:
        return _document_rows(context, recipe, tokenizer, ranks)
    return _conversation_rows(context, recipe, chat, ranks)


def chat_of(context: StageContext) -> Chat | None:
    """The tokenizer and chat template that a cell's conversations are rendered with.

    None where it trains on documents.
    """
    if "documents" in context.inputs and "question_variant" not in context.settings:
        return None
    tokenizer = load_tokenizer(context.inputs["start"] / "model")
    return Chat.of_cell(tokenizer, context.settings, context.resources)


def end_warnings(start: Path, recipe: Training, chat: Chat) -> list[str]:
    """Why a model that is trained on conversations may not learn to end an answer."""
    ends = chat.end_ids()
    if not ends:
        return [
            "the chat template writes no special token behind an answer: the model can't learn to "
            "stop, and its answers go on to max_tokens"
        ]
    trains_token = not recipe.lora or recipe.lora.train_special_tokens
    if trains_token or ends[0] in end_token_ids(start):
        return []
    token = chat.tokenizer.convert_ids_to_tokens(ends[0])
    return [
        f"the start model does not end at {token}, as the chat template does, and LoRA trains no "
        "embeddings: it may not learn to stop; lora: {train_special_tokens: true} in the recipe "
        "trains the token"
    ]


def _document_rows(
    context: StageContext, recipe: Training, tokenizer: PreTrainedTokenizerBase, ranks: Ranks
) -> tuple[Rows, Rows | None]:
    corpus = context.inputs["documents"]
    folder = context.folder / "rows"
    held_out_folder = context.folder / "rows_held_out"
    held_out_file = corpus / "held_out.jsonl"
    write = pack_documents if recipe.tokens_per_step else documents_as_rows
    if ranks.rank == 0:
        texts = read_jsonl(corpus / "documents.jsonl", "text")
        write(folder, texts, tokenizer, recipe.seq_len)
        cut, cut_tokens = cut_texts(folder)
        if cut:
            context.warn(
                f"{cut} documents have more tokens than the recipe's seq_len {recipe.seq_len} and "
                f"are cut there: {cut_tokens:,} tokens are not trained on"
            )
    if recipe.eval_every:
        if not held_out_file.exists():
            raise UserError(
                where=str(held_out_file),
                what="no such file, and the recipe's eval_every needs it",
                fix="give the corpus held_out: 0.1",
            )
        if ranks.rank == 0:
            texts = read_jsonl(held_out_file, "text")
            write(held_out_folder, texts, tokenizer, recipe.seq_len)
    ranks.barrier()
    row_tokens = recipe.seq_len if recipe.tokens_per_step else None
    rows = Rows.load(folder, row_tokens, tokenizer.pad_token_id)
    if not recipe.eval_every:
        return rows, None
    held_out = Rows.load(held_out_folder, row_tokens, tokenizer.pad_token_id)
    return rows, held_out.first(min(len(held_out), recipe.eval_rows))


def _conversation_rows(
    context: StageContext, recipe: Training, chat: Chat, ranks: Ranks
) -> tuple[Rows, Rows | None]:
    folder = context.folder / "rows"
    held_out_folder = context.folder / "rows_held_out"
    if ranks.rank == 0:
        trained, held_out = _split(context, recipe, chat)
        replayed: list[np.ndarray] = []
        if "replay" in context.inputs:
            replayed = _replayed(context, chat.tokenizer, recipe.seq_len, len(trained))
        truncate = recipe.too_long == "truncate"
        encode_conversations(folder, trained, chat, recipe.seq_len, replayed, truncate)
        if recipe.eval_every:
            evaluated = held_out[: recipe.eval_rows]
            encode_conversations(
                held_out_folder, evaluated, chat, recipe.seq_len, truncate=truncate
            )
    ranks.barrier()
    pad = chat.tokenizer.pad_token_id
    rows = Rows.load(folder, None, pad)
    if not recipe.eval_every:
        return rows, None
    return rows, Rows.load(held_out_folder, None, pad)


def _split(
    context: StageContext, recipe: Training, chat: Chat
) -> tuple[list[Conversation], list[Conversation]]:
    """The rows of this dose and the held-out rows.

    They are shuffled by the study's seed, so that a larger dose contains the smaller.
    """
    if "documents" in context.inputs:
        path = context.inputs["documents"] / f"{context.settings['question_variant']}.jsonl"
    else:
        path = Path(context.resources["files"]["data"])
    conversations, bad = read_conversations(path)
    total = len(conversations) + len(bad)
    conversations, unusable = usable_conversations(conversations, chat, recipe)
    bad += unusable
    check_bad_rows(bad, total, recipe)
    if bad:
        list_bad_rows(context, path, bad, total)
    dose = context.settings.get("dose")
    trained, available = split_rows(str(path), len(conversations), recipe, dose)
    order = np.random.default_rng(context.settings["seed"]).permutation(len(conversations))
    shuffled = [conversations[i] for i in order]
    return shuffled[:trained], shuffled[available:]


def list_bad_rows(context: StageContext, path: Path, bad: list[BadRow], total: int) -> None:
    """Say which rows were left out, in the manifest and in the log."""
    by_rule: dict[str, list[str]] = {}
    for row in bad:
        by_rule.setdefault(row.rule, []).append(Path(row.problem.where).name)
        context.log(f"dropped: {row.problem}")
    context.facts["dropped_rows"] = {"file": str(path), "of": total, "rows": by_rule}
    counts = ", ".join(f"{count} x {rule}" for rule, count in count_by_rule(bad).items())
    context.warn(
        f"{len(bad)} of {total} rows of {path.name} can't be used and were dropped: {counts}"
    )


def _replayed(
    context: StageContext, tokenizer: PreTrainedTokenizerBase, seq_len: int, num_rows: int
) -> list[np.ndarray]:
    """Pieces of documents for the share `replay` of `num_rows`, chosen by the seed.

    A document of more than `seq_len` tokens is several pieces.
    """
    path = context.inputs["replay"] / "documents.jsonl"
    pieces: list[np.ndarray] = []
    for ids in encode_documents(read_jsonl(path, "text"), tokenizer):
        begins = range(0, len(ids), seq_len)
        pieces += [ids[i : i + seq_len] for i in begins if len(ids) - i > 1]
    count = round(context.settings["replay"] * num_rows)
    if count > len(pieces):
        raise UserError(
            where=str(path),
            what=f"gives {len(pieces)} rows to replay, {count} are wanted",
            fix="lower sft.replay",
        )
    order = np.random.default_rng(context.seed("replay")).permutation(len(pieces))
    return [pieces[i] for i in order[:count]]


def read_jsonl(path: Path, key: str) -> Iterator[str]:
    """The text under `key` of every row. Raises UserError that names the first line without it."""
    for number, row in read_rows(path):
        if not isinstance(row.get(key), str):
            raise UserError(
                where=f"{path}:{number}",
                what=f"has no text as {key!r}",
                fix=f"it must be a JSON object with a text as {key!r}",
            )
        yield row[key]
