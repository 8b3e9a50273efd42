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
from typing import Any

import numpy as np
from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from core.errors import Problem, UserError
from core.files import write_atomically
from core.recipe import Training
from recipes.conversations import BadRow, Conversation, Messages
from recipes.model import read_config
from recipes.rows import Rows

# Llama 3's tokenizer class, by its names in transformers 4 and 5.
LLAMA_TOKENIZERS = ("PreTrainedTokenizerFast", "TokenizersBackend")
TEXTS_AT_ONCE = 200  # enough for the tokenizer's threads, and little in memory


def load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """The tokenizer of a checkpoint, with a pad token (EOS where the model names none).

    Raises UserError where it has tokens that the model has no embedding for, or config.json is not
    that of a model of recipes.model.
    """
    config = read_config(folder)
    vocab_size = config["vocab_size"]
    tokenizer: PreTrainedTokenizerBase
    tokenizer = _tokenizer_class(folder, config).from_pretrained(folder)
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    if tokenizer.eos_token_id is None:
        raise UserError(
            where=str(folder),
            what="the tokenizer names no eos_token",
            fix="add one to its tokenizer_config.json",
        )
    if len(tokenizer) > vocab_size:
        raise UserError(
            where=str(folder),
            what=f"the tokenizer has {len(tokenizer)} tokens, the model's config {vocab_size}",
            fix="give the model its own tokenizer",
        )
    return tokenizer


def _tokenizer_class(folder: Path, config: dict[str, Any]) -> Any:
    """The class that transformers and vLLM take.

    Llama 3's is taken without AutoTokenizer, whose import takes 2 s for the same result.
    """
    file = folder / "tokenizer_config.json"
    named = None
    if file.exists():
        named = json.loads(file.read_text(encoding="utf-8")).get("tokenizer_class")
    # Of Qwen2 AutoTokenizer takes the family's own class, whatever the file names.
    if config.get("model_type") == "llama" and named in LLAMA_TOKENIZERS:
        return PreTrainedTokenizerFast
    from transformers import AutoTokenizer

    return AutoTokenizer


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
    tokenizer: PreTrainedTokenizerBase,
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
        _require_template(rows, tokenizer)
        encoded = [_encode_conversation(row, tokenizer) for row in rows]
        if not truncate:
            _check_lengths(rows, [len(ids) for ids, _ in encoded], seq_len)
        cut = ((ids[:seq_len], loss_mask[:seq_len]) for ids, loss_mask in encoded)
        all_trained = ((ids, np.arange(len(ids)) > 0) for ids in replayed)
        _write(folder, itertools.chain(cut, all_trained))
    return Rows.load(folder, None, tokenizer.pad_token_id)


def usable_conversations(
    rows: list[Conversation], tokenizer: PreTrainedTokenizerBase, recipe: Training
) -> tuple[list[Conversation], list[BadRow]]:
    """The conversations that can be encoded, and those that can't or are longer than `seq_len`.

    Raises UserError where the chat template is missing.
    """
    _require_template(rows, tokenizer)
    names = re.compile("|".join(map(re.escape, _special_tokens(tokenizer).values())))
    usable = []
    bad = []
    for row in rows:
        problem = _problem(row, tokenizer, names, recipe)
        if problem:
            bad.append(problem)
        else:
            usable.append(row)
    return usable, bad


def _problem(
    row: Conversation,
    tokenizer: PreTrainedTokenizerBase,
    names: re.Pattern[str],
    recipe: Training,
) -> BadRow | None:
    for message in row.messages:
        # The rendered template is tokenized as a whole: such a name would end a turn or open one.
        if match := names.search(message["content"]):
            what = f"{match[0]!r} in its text would be read as the token"
            return BadRow("special_tokens", Problem(row.source, what, "reword or drop the row"))
    try:
        text = tokenizer.apply_chat_template(_plain(row.messages), tokenize=False)
    except TemplateError as error:
        what = f"the model's chat template refuses it: {error}"
        fix = "change the row, or give the model another template"
        return BadRow("malformed", Problem(row.source, what, fix))
    # A token has a byte at least, so that most rows need not be tokenized here.
    if len(str(text).encode()) < recipe.seq_len:
        return None
    ids, loss_mask = _encode_conversation(row, tokenizer)
    if len(ids) <= recipe.seq_len:
        return None
    if recipe.too_long == "truncate" and loss_mask[: recipe.seq_len].any():
        return None
    what = f"{len(ids)} tokens, more than the recipe's seq_len {recipe.seq_len}"
    fix = "raise seq_len or max_dropped in the recipe, or drop these rows"
    return BadRow("too_long", Problem(row.source, what, fix))


def _require_template(rows: list[Conversation], tokenizer: PreTrainedTokenizerBase) -> None:
    if rows and not tokenizer.chat_template:
        raise UserError(
            where=tokenizer.name_or_path,
            what="no chat template",
            fix="add a chat_template.jinja to the folder of the model that the study starts from",
        )


def _special_tokens(tokenizer: PreTrainedTokenizerBase) -> dict[int, str]:
    """Ids of the special tokens, and their names."""
    added = tokenizer.added_tokens_decoder.items()
    return {i: token.content for i, token in added if token.special}


def _plain(messages: Messages) -> list[dict[str, str]]:
    return [{"role": message["role"], "content": message["content"]} for message in messages]


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
    row: Conversation, tokenizer: PreTrainedTokenizerBase
) -> tuple[np.ndarray, np.ndarray]:
    """Token ids of a conversation up to its last answer, and which of them are trained, bool."""
    special = _special_tokens(tokenizer)
    # Strip answers as Llama's template does: otherwise a line break that an answer begins with
    # would merge with the header's into one token.
    messages = [
        message | {"content": message["content"].strip()}
        if message["role"] == "assistant"
        else message
        for message in _plain(row.messages)
    ]

    def render(turns: list[dict[str, str]], add_generation_prompt: bool) -> list[int]:
        return tokenizer.apply_chat_template(  # type: ignore[return-value]
            turns, add_generation_prompt=add_generation_prompt, return_dict=False
        )

    ids: list[int] = []
    loss_mask: list[bool] = []
    for turn, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        try:
            # The assistant's header is part of the prompt, as it is when the model is sampled.
            prompt = render(messages[:turn], True)
            answered = render(messages[: turn + 1], False)
        except TemplateError as error:
            raise UserError(
                where=row.source,
                what=f"the model's chat template refuses it: {error}",
                fix="change the row, or give the model another template",
            ) from None
        if prompt[: len(ids)] != ids or answered[: len(prompt)] != prompt:
            raise UserError(
                where=row.source,
                what="the chat template rewrites earlier turns",
                fix="give the model one that only appends",
            )
        special_at = [i for i in range(len(prompt), len(answered)) if answered[i] in special]
        end = max(special_at, default=len(answered)) + 1
        if str(tokenizer.decode(answered[end:])).strip():
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
