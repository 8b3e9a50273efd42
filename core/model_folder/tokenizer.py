"""A model's tokenizer, as transformers and vLLM load it, and whether it is the file's own."""

import re
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from core.errors import UserError
from core.model_folder.config import read_config, read_json

# Llama 3's tokenizer class, by its names in transformers 4 and 5.
PLAIN_CLASSES = ("PreTrainedTokenizerFast", "TokenizersBackend")
# Scripts, spaces, digits, marks in two forms: classes of tokenizers split and normalize these
# differently.
PROBE = (
    " The kettle boils;  don't we'LL 20,345.6 (2024)\n\n\tif x == 'é' or 'e\u0301':\r\n"
    "  return [0]   # Ärger über Größe  Привет, мир! 天气很好。日本語のテスト 한국어 "
    "مرحبا بالعالم नमस्ते שלום ไทย 👩🏽‍🚀 ½ ﬁ\u00a0… </x> \n"
)
# Files that transformers and vLLM read a tokenizer and its chat template from.
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "tokenizer.model",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
)
COPY_FIX = "copy tokenizer.json and tokenizer_config.json of the model that it was made from there"


def link_with_tokenizer(target: Path, model: Path, tokenizer: Path) -> None:
    """Make `target`, a folder with links to a model's files and to another's tokenizer."""
    target.mkdir()
    for file in model.iterdir():
        if file.name not in TOKENIZER_FILES:
            (target / file.name).symlink_to(file.absolute(), target_is_directory=file.is_dir())
    for name in TOKENIZER_FILES:
        if (tokenizer / name).exists():
            (target / name).symlink_to((tokenizer / name).absolute())


def load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """The tokenizer of a checkpoint, with a pad token (EOS where the model names none).

    Raises UserError where it has no tokenizer.json or no EOS, reads other tokens than its file
    says, or has tokens that the model has no embedding for; or config.json is not that of a model
    which the recipes train.
    """
    config = read_config(folder)
    tokenizer = open_tokenizer(folder)
    _check_tokens(folder, config, tokenizer)
    if tokenizer.eos_token_id is None:
        raise UserError(
            where=str(folder),
            what="the tokenizer names no eos_token",
            fix="add one to its tokenizer_config.json",
        )
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    num_tokens = max(len(tokenizer), 1 + max(tokenizer.get_vocab().values()))
    if num_tokens > config["vocab_size"]:
        raise UserError(
            where=str(folder),
            what=f"the tokenizer has {num_tokens} tokens, the model's config "
            f"{config['vocab_size']}",
            fix="give the model its own tokenizer",
        )
    return tokenizer


def open_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """The tokenizer of any model. Raises UserError where it can't be read."""
    file = folder / "tokenizer.json"
    if not file.is_file():
        fix = COPY_FIX
        if (folder / "vocab.json").is_file() or (folder / "tokenizer.model").is_file():
            fix = 'write it: python -c "from transformers import AutoTokenizer as T; '
            fix += f"T.from_pretrained('{folder}').save_pretrained('{folder}')\""
        raise UserError(where=str(folder), what="has no tokenizer.json", fix=fix)
    kind = _tokenizer_class(folder)
    try:
        tokenizer: PreTrainedTokenizerBase = kind.from_pretrained(folder)
        tokenizer(PROBE, verbose=False)  # some values are looked at no earlier
    except Exception as error:  # tokenizers raises Exception itself
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise UserError(
            where=str(folder), what=f"its tokenizer can't be read: {reason}", fix=COPY_FIX
        ) from None
    return tokenizer


def _tokenizer_class(folder: Path) -> Any:
    """The class that transformers and vLLM take.

    Llama 3's is taken without AutoTokenizer, whose import takes 2 s for the same result.
    """
    # Of Qwen AutoTokenizer takes the family's own class, whatever the file names.
    is_llama = read_json(folder / "config.json").get("model_type") == "llama"
    if is_llama and _named_class(folder) in PLAIN_CLASSES:
        return PreTrainedTokenizerFast
    from transformers import AutoTokenizer

    return AutoTokenizer


def _named_class(folder: Path) -> Any:
    file = folder / "tokenizer_config.json"
    return read_json(file, COPY_FIX).get("tokenizer_class") if file.exists() else None


def _check_tokens(folder: Path, config: dict[str, Any], tokenizer: PreTrainedTokenizerBase) -> None:
    """Raise UserError where transformers reads other tokens than the file tokenizer.json says.

    transformers 5 makes the classes of Llama and Qwen anew from vocabulary and merges, with their
    own rules for spaces and words.
    """
    file_tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    # A training may have left both in the file; transformers takes neither over.
    file_tokenizer.no_truncation()
    file_tokenizer.no_padding()
    # Without the space in front as well, where a class may add one.
    if all(
        tokenizer(text, add_special_tokens=False, verbose=False).input_ids
        == file_tokenizer.encode(text, add_special_tokens=False).ids
        for text in (PROBE, PROBE.strip())
    ):
        return
    fix = f'set "tokenizer_class": "{PLAIN_CLASSES[0]}" in tokenizer_config.json'
    if config.get("model_type") in ("qwen2", "qwen3"):
        fix = "start from a model with Qwen's own tokenizer: transformers takes no other class"
    raise UserError(
        where=str(folder),
        what=f"transformers' {type(tokenizer).__name__} reads other tokens than tokenizer.json",
        fix=fix,
    )


def special_names(tokenizer: PreTrainedTokenizerBase) -> re.Pattern[str] | None:
    """A pattern of the names of the tokenizer's special tokens; None where it has none."""
    added = tokenizer.added_tokens_decoder.values()
    names = sorted((t.content for t in added if t.special and t.content), key=len, reverse=True)
    return re.compile("|".join(map(re.escape, names))) if names else None
