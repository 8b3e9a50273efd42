"""Find benchmark texts in documents, whatever their case, accents, punctuation and spacing.

A benchmark text is cut into windows of WINDOW_WORDS words (PaLM's authors counted contamination in
eights: Chowdhery et al. 2022, section 8), or, where a script has no spaces between words (Chinese,
Japanese, Thai ...), of WINDOW_LETTERS letters, which is about as much to read. A shorter text is
one window. A text under MIN_WORDS words (MIN_LETTERS letters) is a phrase of the language and is
dropped, since it says nothing about the benchmark: "none of these" is dropped, "Do fish feel pain?"
is not.
"""

import re
import tempfile
import unicodedata
from collections.abc import Iterable, Iterator
from pathlib import Path

import regex

from core.files import read_rows, row_format

TABLE_FORMATS = (".jsonl", ".csv", ".parquet")
WINDOW_WORDS = 8
MIN_WORDS = 4
WINDOW_LETTERS = 13
MIN_LETTERS = 7
HEAD_LETTERS = 7  # windows are looked up by their first letters
# Thai, Lao, Burmese, Khmer, kana and Han.
SPACELESS = (
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff"
    "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\U00020000-\U0003ffff"
)
UNIT = re.compile(rf"[{SPACELESS}]|[^\W_{SPACELESS}]+")
INVISIBLE = regex.compile(r"[\p{M}\p{Cf}]+")  # accents, vowel signs, soft hyphens, joiners
# What evaluations put around a question; a document would hold the question without it.
FRAME = re.compile(r"^\s*question\s*:|\banswer\s*:\s*$", re.IGNORECASE)
# The first letters of a window -> windows that begin so, each without spaces and as it is shown.
Index = dict[str, list[tuple[str, str]]]


def normalized_words(text: str) -> list[str]:
    """The words of a text in lower case, without accents and punctuation.

    In scripts without spaces between words each letter counts as a word.
    """
    if not text.isascii():
        text = INVISIBLE.sub("", unicodedata.normalize("NFKD", text))
    return UNIT.findall(text.casefold())


def index(texts: Iterable[str]) -> Index:
    """The windows of benchmark texts, for `overlap`."""
    heads: dict[str, dict[str, str]] = {}
    for text in texts:
        for window in _windows(normalized_words(FRAME.sub("", text))):
            squeezed = "".join(window)
            if len(squeezed) >= HEAD_LETTERS:
                heads.setdefault(squeezed[:HEAD_LETTERS], {})[squeezed] = " ".join(window)
    return {head: list(windows.items()) for head, windows in heads.items()}


def overlap(text: str, benchmarks: Index) -> str | None:
    """The first window of a benchmark that occurs in the text, or None. Spacing is ignored."""
    squeezed = "".join(normalized_words(text))
    starts = [
        i
        for i in range(len(squeezed) - HEAD_LETTERS + 1)
        if squeezed[i : i + HEAD_LETTERS] in benchmarks
    ]
    for start in starts:
        for window, shown in benchmarks[squeezed[start : start + HEAD_LETTERS]]:
            if squeezed.startswith(window, start):
                return shown
    return None


def read(path: Path) -> list[str]:
    """Every string in a benchmark's file, whatever its field: questions, choices, rubrics.

    Args:
        path: A JSONL, CSV or parquet file by its ending, or a folder with such files. Files of
            training splits in a folder ("train" in the name) are left out: no score is of them.

    Raises:
        UserError: A file is missing, is not UTF-8, or a line is not JSON or CSV.
    """
    if path.is_dir():
        files = sorted(
            file
            for file in path.rglob("*")
            if row_format(file) in TABLE_FORMATS and "train" not in file.name
        )
        return [text for file in files for text in read(file)]
    if path.suffix == ".parquet":
        import datasets

        with tempfile.TemporaryDirectory() as cache:
            rows = datasets.load_dataset(
                "parquet", data_files=str(path), split="train", cache_dir=cache
            )
            return [text for row in rows for text in _strings(row)]
    return [text for _, row in read_rows(path, objects=False) for text in _strings(row)]


def _windows(words: list[str]) -> Iterator[list[str]]:
    letters = sum(re.match(f"[{SPACELESS}]", word) is not None for word in words)
    if 2 * letters > len(words):
        size, minimum = WINDOW_LETTERS, MIN_LETTERS
    else:
        size, minimum = WINDOW_WORDS, MIN_WORDS
    if len(words) >= minimum:
        yield from (words[i : i + size] for i in range(max(1, len(words) - size + 1)))


def _strings(value: object) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for part in value.values() if isinstance(value, dict) else value:
            yield from _strings(part)
