"""Text to token files: packed documents for midtraining, one conversation a row for SFT.

Both use the checkpoint's own Hugging Face tokenizer and chat template. vLLM uses them too, so that
training and evaluation can't disagree about BOS, EOS or the template.
"""

import itertools
import json
import os
import re
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
from transformers import PreTrainedTokenizerBase

from core.errors import Problem, UserError
from core.files import write_atomically
from core.model_folder.chat import Chat
from core.model_folder.chat import Messages as PlainMessages
from core.model_folder.tokenizer import special_names
from core.recipe import Training
from recipes.conversations import BadRow, Conversation, Messages
from recipes.rows import Rows

ROW_FIX = "change the row, or give the model another template"
TEXTS_AT_ONCE = 200  # enough for the tokenizer's threads, and little in memory


def pack_documents(
    folder: Path, texts: Iterable[str], tokenizer: PreTrainedTokenizerBase, seq_len: int
) -> Rows:
    """All documents end to end, each as BOS text EOS, cut into rows of `seq_len` tokens.

    Nothing is dropped. A document that crosses a row's end continues in the next row, where it
    can't see its first part. The last token before a cut is still trained to predict the token
    after it; an EOS is not trained to predict the next BOS.
    """
    if not (folder / "index.json").exists():
        _write(folder, ((ids, None) for ids in encode_documents(texts, tokenizer)))
    return Rows.load(folder, seq_len, tokenizer.pad_token_id)


def documents_as_rows(
    folder: Path, texts: Iterable[str], tokenizer: PreTrainedTokenizerBase, seq_len: int
) -> Rows:
    """A document a row, as BOS text EOS; one of more than `seq_len` tokens is cut there."""
    if not (folder / "index.json").exists():
        encoded = ((ids, None) for ids in encode_documents(texts, tokenizer))
        _write(folder, encoded, longest=seq_len)
    return Rows.load(folder, None, tokenizer.pad_token_id)


def cut_texts(folder: Path) -> tuple[int, int]:
    """How many documents `documents_as_rows` cut, and the tokens of them that were dropped."""
    index = json.loads((folder / "index.json").read_text(encoding="utf-8"))
    return index["cut_texts"], index["cut_tokens"]


def encode_documents(
    texts: Iterable[str], tokenizer: PreTrainedTokenizerBase
) -> Iterator[np.ndarray]:
    """Each text as BOS text EOS, uint32; without BOS where the tokenizer has none."""
    texts = iter(texts)
    backend = tokenizer.backend_tokenizer
    bos = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
    backend.no_truncation()
    backend.no_padding()
    while batch := list(itertools.islice(texts, TEXTS_AT_ONCE)):
        # Names of special tokens inside a text stay text: data must not be able to end a document.
        backend.encode_special_tokens = True
        # A quarter faster than calling the tokenizer itself.
        for encoding in backend.encode_batch_fast(batch, add_special_tokens=False):
            yield np.array([*bos, *encoding.ids, tokenizer.eos_token_id], np.uint32)


def encode_conversations(
    folder: Path,
    rows: list[Conversation],
    chat: Chat,
    seq_len: int,
    replayed: Iterable[np.ndarray] = (),
    truncate: bool = False,
) -> Rows:
    """One conversation a row; only the assistant's answers with their end token are trained.

    Args:
        replayed: token ids of documents, a row each, of which every token is trained.
        truncate: cut conversations at `seq_len` tokens.

    Raises UserError where conversations have more than `seq_len` tokens and are not cut, or the
    chat template is missing or unusable.
    """
    if not (folder / "index.json").exists():
        if rows:
            chat.check(trained=True)
        special = chat.special_ids()
        encoded = [_encode_conversation(row, chat, special) for row in rows]
        if not truncate:
            _check_lengths(rows, [len(ids) for ids, _ in encoded], seq_len)
        cut = ((ids[:seq_len], loss_mask[:seq_len]) for ids, loss_mask in encoded)
        all_trained = ((ids, np.arange(len(ids)) > 0) for ids in replayed)
        _write(folder, itertools.chain(cut, all_trained))
    return Rows.load(folder, None, chat.tokenizer.pad_token_id)


def usable_conversations(
    rows: list[Conversation], chat: Chat, recipe: Training
) -> tuple[list[Conversation], list[BadRow]]:
    """The conversations that can be encoded, and those that can't or are longer than `seq_len`.

    Raises UserError where the chat template is missing or unusable.
    """
    if rows:
        chat.check(trained=True)
    names = special_names(chat.tokenizer)
    special = chat.special_ids()
    usable = []
    bad = []
    for row in rows:
        problem = _problem(row, chat, names, special, recipe)
        if problem:
            bad.append(problem)
        else:
            usable.append(row)
    return usable, bad


def _problem(
    row: Conversation,
    chat: Chat,
    names: re.Pattern[str] | None,
    special: set[int],
    recipe: Training,
) -> BadRow | None:
    """What is wrong with a row. `names` matches the special tokens' names."""
    for message in row.messages:
        # The rendered template is tokenized as a whole: such a name would end a turn or open one.
        if names and (match := names.search(message["content"])):
            what = f"{match[0]!r} in its text would be read as the token"
            return BadRow("special_tokens", Problem(row.source, what, "reword or drop the row"))
    try:
        text = chat.text(_plain(row.messages), False)
        rewrites = _rewrites(chat, _with_stripped_answers(row.messages))
    except UserError as error:
        return BadRow("malformed", Problem(row.source, error.problems[0].what, ROW_FIX))
    if rewrites:
        what = "the chat template rewrites earlier turns of it"
        return BadRow("malformed", Problem(row.source, what, ROW_FIX))
    for message in row.messages:
        if message["content"].strip() not in text:
            what = f"the chat template leaves out the text of a turn of the {message['role']}"
            return BadRow("malformed", Problem(row.source, what, ROW_FIX))
    # A token has a byte at least, so that most rows need not be tokenized here.
    if len(text.encode()) < recipe.seq_len:
        return None
    ids, loss_mask = _encode_conversation(row, chat, special)
    if len(ids) <= recipe.seq_len:
        return None
    if recipe.too_long == "truncate" and loss_mask[: recipe.seq_len].any():
        return None
    what = f"{len(ids)} tokens, more than the recipe's seq_len {recipe.seq_len}"
    fix = "raise seq_len or max_dropped in the recipe, or drop these rows"
    return BadRow("too_long", Problem(row.source, what, fix))


def _plain(messages: Messages) -> PlainMessages:
    return [{"role": message["role"], "content": message["content"]} for message in messages]


def _with_stripped_answers(messages: Messages) -> PlainMessages:
    """Answers as Llama's template has them.

    Otherwise a line break that an answer begins with would merge with the header's into one token.
    """
    return [
        message | {"content": message["content"].strip()}
        if message["role"] == "assistant"
        else message
        for message in _plain(messages)
    ]


def _rewrites(chat: Chat, messages: PlainMessages) -> bool:
    """Whether the template writes a turn in another way when others follow it.

    Some move the system's message into the last question, or take thoughts out of earlier answers.
    """
    before = ""
    for turn, message in enumerate(messages):
        if message["role"] == "assistant":
            prompt = chat.text(messages[:turn], True)
            answered = chat.text(messages[: turn + 1], False)
            if not (prompt.startswith(before) and answered.startswith(prompt)):
                return True
            before = answered
    return False


def _check_lengths(rows: list[Conversation], lengths: list[int], seq_len: int) -> None:
    """Raises UserError where conversations have more than `seq_len` tokens."""
    too_long = [
        (length, row.source) for length, row in zip(lengths, rows, strict=True) if length > seq_len
    ]
    if too_long:
        sources = ", ".join(source for _, source in too_long[:3])
        raise UserError(
            where=f"{sources}{' ...' if len(too_long) > 3 else ''}",
            what=f"{len(too_long)} conversations have more tokens than the recipe's seq_len "
            f"{seq_len}, the longest {max(too_long)[0]}",
            fix="raise it or drop these rows",
        )


def _encode_conversation(
    row: Conversation, chat: Chat, special: set[int]
) -> tuple[np.ndarray, np.ndarray]:
    """Token ids of a conversation up to its last answer, and which of them are trained, bool.

    `special` has the ids that may end an answer.
    """
    messages = _with_stripped_answers(row.messages)
    ids: list[int] = []
    loss_mask: list[bool] = []
    for turn, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        try:
            # The assistant's header is part of the prompt, as it is when the model is sampled.
            prompt = chat.render(messages[:turn], True)
            answered = chat.render(messages[: turn + 1], False)
        except UserError as error:
            raise UserError(
                where=row.source,
                what=error.problems[0].what,
                fix=ROW_FIX,
            ) from None
        if prompt[: len(ids)] != ids or answered[: len(prompt)] != prompt:
            raise UserError(
                where=row.source,
                what=chat.not_a_prefix(messages, turn),
                fix="give the model one that only appends",
            )
        special_at = [i for i in range(len(prompt), len(answered)) if answered[i] in special]
        end = max(special_at, default=len(answered)) + 1
        if str(chat.tokenizer.decode(answered[end:])).strip():
            # That special token is of the header: the template has no end token.
            end = len(answered)
        is_trained = bool(row.messages[turn].get("weight", 1))
        loss_mask += [is_trained and len(prompt) <= i < end for i in range(len(ids), len(answered))]
        ids = answered
    return np.array(ids, np.uint32), np.array(loss_mask)


def _write(
    folder: Path,
    texts: Iterable[tuple[np.ndarray, np.ndarray | None]],
    longest: int | None = None,
) -> None:
    """Write the files that Rows.load maps; index.json last: it exists when they are complete.

    `texts`: token ids, and which of them are trained (None: all). Of a text of more than `longest`
    tokens the rest is dropped.
    """
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    offsets: list[int] = []
    total = cut = cut_tokens = 0
    mask_file = folder / "loss_mask.bin"
    with open(folder / "tokens.bin", "wb") as tokens, open(mask_file, "wb") as masks:
        for ids, loss_mask in texts:
            if longest and len(ids) > longest:
                cut += 1
                cut_tokens += len(ids) - longest
                ids = ids[:longest]
            tokens.write(ids.data)
            masks.write(b"" if loss_mask is None else loss_mask.data)
            total += len(ids)
            offsets.append(total)
        is_masked = masks.tell() > 0
    if not offsets:
        raise UserError(
            where=str(folder.parent),
            what="the data has no row at all to train on",
            fix="see its input",
        )
    if not is_masked:
        mask_file.unlink()
    np.array(offsets, np.int64).tofile(folder / "offsets.bin")
    for path in folder.iterdir():  # on the disk before index.json is, should the machine go down
        with open(path, "rb") as file:
            os.fsync(file.fileno())
    index = {"texts": len(offsets), "tokens": total, "cut_texts": cut, "cut_tokens": cut_tokens}
    write_atomically(folder / "index.json", json.dumps(index))
