"""Text to token files, once for each training: packed documents for midtraining, one conversation a row for SFT.

Both use the checkpoint's own Hugging Face tokenizer and chat template, which vLLM uses too, so that training and
evaluation can't disagree about BOS, EOS or the template. Rank 0 writes; all ranks map what it wrote (recipes.rows).
"""

import gzip
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

from core.cell.context import StageContext
from core.errors import UserError
from core.files import write_atomically
from recipes.distributed import Ranks
from recipes.model import read_config
from recipes.rows import Rows

LLAMAS = ("PreTrainedTokenizerFast", "TokenizersBackend")  # its name by transformers 4 and 5
AT_ONCE = 200  # texts: enough for the tokenizer's threads, little in memory
Messages = list[dict[str, str]]


def data(work: StageContext, recipe: dict[str, Any], ranks: Ranks) -> tuple[Rows, Rows | None]:
    """The training rows of a cell, and its held-out rows (None where it never looks at them).

    midtrain: documents.jsonl and held_out.jsonl of the input `documents`; with `form` in its settings that form of its
    questions with their answers, as conversations, `held_out` of them aside. sft: the first `dose` rows of resources
    `data` in an order from the study's seed, the last `held_out` of that order, and documents to replay of the input
    `replay`. Raises UserError where a row can't be used; nothing is left out silently.
    """
    tokenizer, seq_len, looks = (
        load_tokenizer(work.inputs["start"] / "model"),
        recipe["seq_len"],
        recipe["held_out_every"],
    )
    if seq_len > (most := read_config(work.inputs["start"] / "model")["max_position_embeddings"]):
        raise UserError(f"{work.folder}: the recipe's seq_len {seq_len} is beyond the model's {most}; lower it")
    aside, packed = None, "documents" in work.inputs and "form" not in work.settings
    if packed:
        texts = work.inputs["documents"] / "documents.jsonl"
        if ranks.rank == 0:
            documents(work.folder / "rows", read_jsonl(texts, "text"), tokenizer, seq_len)
        if looks:
            aside = _held_out_documents(work, tokenizer, seq_len, ranks)
    elif ranks.rank == 0:
        trained, kept = _split(work, recipe)
        replayed = _replayed(work, tokenizer, seq_len, len(trained)) if "replay" in work.inputs else []
        conversations(work.folder / "rows", trained, tokenizer, seq_len, replayed)
        if looks:
            conversations(work.folder / "rows_held_out", kept, tokenizer, seq_len)
    ranks.wait()
    rows = Rows.of(work.folder / "rows", seq_len if packed else None, tokenizer.pad_token_id)
    if looks and not aside:
        aside = Rows.of(work.folder / "rows_held_out", None, tokenizer.pad_token_id)
    return rows, aside


def documents(folder: Path, texts: Iterable[str], tokenizer: PreTrainedTokenizerBase, seq_len: int) -> Rows:
    """All documents end to end, each as BOS text EOS, cut into rows of `seq_len`: nothing is dropped.

    A document that crosses a row's end goes on in the next row, where it can't see its first part. The last token
    before a cut is still trained to predict the token after it; an EOS is not trained to predict the next BOS.
    """
    if not (folder / "index.json").exists():
        _write(folder, ((ids, None) for ids in _encode(texts, tokenizer)))
    return Rows.of(folder, seq_len, tokenizer.pad_token_id)


def conversations(
    folder: Path,
    rows: list[tuple[str, Messages]],
    tokenizer: PreTrainedTokenizerBase,
    seq_len: int,
    replayed: Iterable[np.ndarray] = (),
) -> Rows:
    """One conversation a row; only what the assistant says, with its end token and nothing behind it, is trained on.

    `rows`: where each comes from, and its messages. `replayed`: token ids of documents, a row each, trained on whole.
    Raises UserError where conversations are longer than `seq_len` tokens (nothing is cut), or hold a special token's
    name, or the chat template is missing or no use.
    """
    if not (folder / "index.json").exists():
        if rows and not tokenizer.chat_template:
            raise UserError(
                f"{tokenizer.name_or_path}: no chat template; add a chat_template.jinja to the folder of the model "
                "that the study starts from"
            )
        special = {i: token.content for i, token in tokenizer.added_tokens_decoder.items() if token.special}
        names = re.compile("|".join(map(re.escape, special.values())))
        encoded = [_conversation(where, messages, tokenizer, names, {*special}) for where, messages in rows]
        long = [(len(ids), where) for (ids, _), (where, _) in zip(encoded, rows, strict=True) if len(ids) > seq_len]
        if long:
            named = ", ".join(where for _, where in long[:3])
            raise UserError(
                f"{named}{' ...' if len(long) > 3 else ''}: {len(long)} conversations have more tokens than the "
                f"recipe's seq_len {seq_len}, the longest {max(long)[0]}; raise it or drop these rows"
            )
        _write(folder, itertools.chain(encoded, ((ids, np.arange(len(ids)) > 0) for ids in replayed)))
    return Rows.of(folder, None, tokenizer.pad_token_id)


def load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """The tokenizer of a checkpoint, with a pad token (EOS where the model names none).

    Raises UserError where it has tokens that the model has no embedding for, or config.json is another model's.
    """
    config = read_config(folder)
    vocabulary = config["vocab_size"]
    tokenizer = _tokenizer_class(folder, config).from_pretrained(folder)
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    if tokenizer.eos_token_id is None:
        raise UserError(f"{folder}: the tokenizer names no eos_token; add one to its tokenizer_config.json")
    if len(tokenizer) > vocabulary:
        raise UserError(
            f"{folder}: the tokenizer has {len(tokenizer)} tokens, the model's config {vocabulary}; is it another's?"
        )
    return tokenizer


def _tokenizer_class(folder: Path, config: dict[str, Any]) -> Any:
    """The class that transformers and vLLM take; Llama 3's at once: AutoTokenizer's import takes 2 s for the same."""
    file = folder / "tokenizer_config.json"
    named = json.loads(file.read_text(encoding="utf-8")).get("tokenizer_class") if file.exists() else None
    # Of Qwen2 AutoTokenizer takes the family's own class, whatever the file names.
    if config.get("model_type") == "llama" and named in LLAMAS:
        return PreTrainedTokenizerFast
    from transformers import AutoTokenizer

    return AutoTokenizer


def read_jsonl(path: Path, key: str) -> Iterator[str]:
    """The text under `key` of every row, row by row. Raises UserError that names the first line without it."""
    for number, row in _objects(path):
        if not isinstance(row.get(key), str):
            raise UserError(f"{path}:{number}: must be a JSON object with a text as {key!r}")
        yield row[key]


def _objects(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Rows by their line: of JSONL, or of a JSON list, where it is their place in the list; packed by gzip or not."""
    with gzip.open(path, "rb") if path.suffix == ".gz" else open(path, "rb") as file:
        if Path(path.name.removesuffix(".gz")).suffix == ".json":
            lines: Iterable[Any] = _list(path, file.read())
        else:
            lines = file
        for number, line in enumerate(lines, 1):
            try:
                row = json.loads(line.decode()) if isinstance(line, bytes) else line
            except ValueError:
                row = None
            if not isinstance(row, dict):
                raise UserError(f"{path}:{number}: must be a JSON object in UTF-8, one a line")
            yield number, row


def _list(path: Path, content: bytes) -> list[Any]:
    try:
        found = json.loads(content)
    except ValueError as error:
        raise UserError(f"{path}: not JSON: {error}; a .json file is a list of rows") from None
    if not isinstance(found, list):
        raise UserError(f"{path}: must be a list of rows; name it .jsonl if it has one a line")
    return found


def _messages(path: str, number: int, row: dict[str, Any]) -> Messages:
    """A row as turns: {messages}, Alpaca's {instruction, input, output} or HelpSteer's {prompt, response}."""
    try:
        if "instruction" in row and "output" in row:
            asked = "\n\n".join(filter(None, [row["instruction"], row.get("input")]))
            row = {"prompt": asked, "response": row["output"]}
        if "prompt" in row and "response" in row:
            said = {"user": row["prompt"], "assistant": row["response"]}
            row = {"messages": [{"role": role, "content": text} for role, text in said.items()]}
        turns: Messages = row["messages"]
        answers = [turn["content"].strip() for turn in turns[1:] if turn["role"] == "assistant"]
        if not answers or not all(answers) or turns[0]["role"] == "assistant":
            raise ValueError
        if not all(isinstance(turn["content"], str) for turn in turns):
            raise ValueError
    except (AttributeError, KeyError, TypeError, ValueError):
        raise UserError(
            f"{path}:{number}: needs `messages` with an answer of the assistant, instruction and output, or prompt and "
            "response, all of them texts, none of them empty"
        ) from None
    return turns


def _split(work: StageContext, recipe: dict[str, Any]) -> tuple[list[tuple[str, Messages]], list[tuple[str, Messages]]]:
    """The rows of this dose and the held-out rows, shuffled by the study's seed: a larger dose has the smaller."""
    if "documents" in work.inputs:
        path = str(work.inputs["documents"] / f"{work.settings['form']}.jsonl")
    else:
        path = work.resources["data"]
    everything = [(f"{path}:{number}", _messages(path, number, row)) for number, row in _objects(Path(path))]
    aside = round(recipe["held_out"] * len(everything))
    dose = work.settings.get("dose", len(everything) - aside)
    if dose > len(everything) - aside:
        kept = f", {aside} of them held out" if aside else ""
        raise UserError(f"{path}: has {len(everything)} rows{kept}, the dose is {dose}; lower sft.doses")
    if recipe["held_out_every"] and not aside:
        raise UserError(f"{path}: held_out_every needs rows to look at; give the recipe held_out, a share such as 0.1")
    mixed = [everything[i] for i in np.random.default_rng(work.settings["seed"]).permutation(len(everything))]
    return mixed[:dose], mixed[len(mixed) - aside :]


def _held_out_documents(work: StageContext, tokenizer: PreTrainedTokenizerBase, seq_len: int, ranks: Ranks) -> Rows:
    texts, folder = work.inputs["documents"] / "held_out.jsonl", work.folder / "rows_held_out"
    if not texts.exists():
        raise UserError(
            f"{texts}: no such file, and the recipe's held_out_every needs it; give the corpus held_out: 0.1"
        )
    if ranks.rank == 0:
        documents(folder, read_jsonl(texts, "text"), tokenizer, seq_len)
    ranks.wait()
    return Rows.of(folder, seq_len, tokenizer.pad_token_id)


def _replayed(work: StageContext, tokenizer: PreTrainedTokenizerBase, seq_len: int, rows: int) -> list[np.ndarray]:
    """Pieces of documents for `share` times as many rows, chosen by the seed; a longer document is several pieces."""
    share, path = work.settings["replay"], work.inputs["replay"] / "documents.jsonl"
    pieces = []
    for ids in _encode(read_jsonl(path, "text"), tokenizer):
        pieces += [ids[i : i + seq_len] for i in range(0, len(ids), seq_len) if len(ids) - i > 1]
    wanted = round(share * rows)
    if wanted > len(pieces):
        raise UserError(f"{path}: gives {len(pieces)} rows to replay, {wanted} are wanted; lower sft.replay")
    return [pieces[i] for i in np.random.default_rng(work.seed("replay")).permutation(len(pieces))[:wanted]]


def _encode(texts: Iterable[str], tokenizer: PreTrainedTokenizerBase) -> Iterator[np.ndarray]:
    """Each text as BOS text EOS, uint32; without BOS where the tokenizer has none."""
    texts, rust = iter(texts), tokenizer.backend_tokenizer
    begin = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
    rust.no_truncation()
    rust.no_padding()
    while some := list(itertools.islice(texts, AT_ONCE)):
        # Special tokens' names inside a text stay text: data must not be able to end a document.
        rust.encode_special_tokens = True
        # A quarter faster than the tokenizer's own call.
        for text in rust.encode_batch_fast(some, add_special_tokens=False):
            yield np.array([*begin, *text.ids, tokenizer.eos_token_id], np.uint32)


def _conversation(
    where: str, messages: Messages, tokenizer: PreTrainedTokenizerBase, names: re.Pattern[str], special: set[int]
) -> tuple[np.ndarray, np.ndarray]:
    """Token ids of a conversation under the chat template, and which of them the assistant says; to its last answer."""
    for message in messages:
        # The template's text is tokenized as a whole, where such a name would end a turn or open one.
        if found := names.search(message["content"]):
            raise UserError(f"{where}: {found[0]!r} in its text would be read as the token; reword or drop the row")

    # As Llama's template does: elsewhere a line break that an answer begins with would be one token with the header's.
    messages = [m | {"content": m["content"].strip()} if m["role"] == "assistant" else m for m in messages]

    def template(turns: Messages, asks: bool) -> list[int]:
        return tokenizer.apply_chat_template(turns, add_generation_prompt=asks, return_dict=False)  # type: ignore

    ids: list[int] = []
    said: list[bool] = []
    for turn, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        try:
            # The assistant's header is part of the prompt, as it is when the model is asked.
            asked, answered = template(messages[:turn], True), template(messages[: turn + 1], False)
        except TemplateError as error:
            raise UserError(f"{where}: the model's chat template refuses it: {error}") from None
        if asked[: len(ids)] != ids or answered[: len(asked)] != asked:
            raise UserError(f"{where}: the chat template rewrites earlier turns; give the model one that only adds")
        end = max((i for i in range(len(asked), len(answered)) if answered[i] in special), default=len(answered)) + 1
        if str(tokenizer.decode(answered[end:])).strip():  # of the header, and the template has no end token
            end = len(answered)
        said += [len(asked) <= i < end for i in range(len(ids), len(answered))]
        ids = answered
    return np.array(ids, np.uint32), np.array(said)


def _write(folder: Path, texts: Iterable[tuple[np.ndarray, np.ndarray | None]]) -> None:
    """Write the files that Rows.of maps; index.json last, so that its existence means they are whole."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    ends, total = [], 0
    with open(folder / "tokens.bin", "wb") as tokens, open(folder / "said.bin", "wb") as marks:
        for ids, said in texts:
            tokens.write(ids.data)
            marks.write(b"" if said is None else said.data)
            total += len(ids)
            ends.append(total)
        marked = marks.tell()
    if not ends:
        raise UserError(f"{folder.parent}: the data has no row at all to train on; see its input")
    if not marked:
        (folder / "said.bin").unlink()
    np.array(ends, np.int64).tofile(folder / "ends.bin")
    for file in folder.iterdir():  # on the disk before index.json is, should the machine itself go down
        with open(file, "rb") as written:
            os.fsync(written.fileno())
    write_atomically(folder / "index.json", json.dumps({"texts": len(ends), "tokens": total}))
