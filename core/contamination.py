"""Contamination check: find texts of benchmarks in documents.

Both are normalized first: case, accents, punctuation and spacing are removed. A benchmark text is
then cut into windows of WINDOW_WORDS consecutive words (PaLM's contamination analysis uses windows
of eight: Chowdhery et al., arXiv 2204.02311). In scripts without spaces between words (Chinese,
Japanese, Thai ...) a window is WINDOW_CHARACTERS characters, which hold about as much text. A
shorter text is a single window. A text below MIN_WORDS or MIN_CHARACTERS is left out, because it
is a common phrase: "none of these" is left out, "Do fish feel pain?" is not.
"""

import re
import unicodedata
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import regex

from core.files import read_rows
from core.row_formats import NUMBERED, row_format

TABLE_FORMATS = (".jsonl", ".csv", ".parquet")
WINDOW_WORDS = 8
MIN_WORDS = 4
WINDOW_CHARACTERS = 13
MIN_CHARACTERS = 7
KEY_CHARACTERS = 7  # windows are looked up by their first characters
# Character ranges of Thai, Lao, Burmese, Khmer, kana and Han.
UNSPACED_SCRIPTS = (
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff"
    "\U00020000-\U0003ffff"
)
WORD = re.compile(rf"[{UNSPACED_SCRIPTS}]|[^\W_{UNSPACED_SCRIPTS}]+")
INVISIBLE = regex.compile(r"[\p{M}\p{Cf}]+")  # accents, vowel signs, soft hyphens, joiners
# Evaluation prompts put these labels around a question. A document would quote it without them.
PROMPT_LABELS = re.compile(r"^\s*question\s*:|\banswer\s*:\s*$", re.IGNORECASE)

# An item of a benchmark: its label and its texts.
Item = tuple[str, list[str]]
# First characters -> the windows that begin with them, each as (without spaces, with spaces).
WindowIndex = dict[str, list[tuple[str, str]]]


@dataclass(frozen=True)
class Hit:
    """A text of a benchmark in a document.

    Attributes:
        document: The document's id.
        item: The benchmark's item, by its label.
        text: The first window of the item that the document holds, normalized.
    """

    document: int
    item: str
    text: str


def normalized_words(text: str) -> list[str]:
    """Split a text into lower-case words without accents and punctuation.

    In scripts without spaces between words, each character is returned as a word.
    """
    if not text.isascii():
        text = INVISIBLE.sub("", unicodedata.normalize("NFKD", text))
    return WORD.findall(text.casefold())


def build_index(texts: Iterable[str]) -> WindowIndex:
    """Index the windows of benchmark texts for `find_overlap`."""
    windows_by_key: dict[str, dict[str, str]] = {}
    for joined, spaced in (window for text in texts for window in _windows(text)):
        windows_by_key.setdefault(joined[:KEY_CHARACTERS], {})[joined] = spaced
    return {key: list(windows.items()) for key, windows in windows_by_key.items()}


def find_overlap(text: str, benchmarks: WindowIndex) -> str | None:
    """Return the first benchmark window that occurs in the text, or None.

    Spacing is ignored: a window is found however the text is spaced or broken into lines.
    """
    return next((spaced for _, spaced in _overlaps(text, benchmarks)), None)


def find_hits(documents: Iterable[tuple[int, str]], items: list[Item]) -> list[Hit]:
    """Every item of which a document holds a window, once for each document, in their order.

    Args:
        documents: Pairs of id and text.
        items: The benchmark's items.
    """
    index = build_index(text for _, texts in items for text in texts)
    quoted = {number: dict(_overlaps(text, index)) for number, text in documents}
    quoted = {number: windows for number, windows in quoted.items() if windows}
    shared = {joined for windows in quoted.values() for joined in windows}
    owners: dict[str, list[str]] = {}  # window -> labels of the items that hold it
    for label, texts in items if shared else ():
        for joined in dict.fromkeys(joined for text in texts for joined, _ in _windows(text)):
            if joined in shared:
                owners.setdefault(joined, []).append(label)
    hits: dict[tuple[int, str], Hit] = {}
    for number, windows in quoted.items():
        for joined, spaced in windows.items():
            for label in owners[joined]:
                hits.setdefault((number, label), Hit(number, label, spaced))
    return list(hits.values())


def _overlaps(text: str, benchmarks: WindowIndex) -> Iterator[tuple[str, str]]:
    """The windows in the text, each as (without spaces, with spaces), in their order there."""
    joined = "".join(normalized_words(text))
    for start in range(len(joined) - KEY_CHARACTERS + 1):
        for window, spaced in benchmarks.get(joined[start : start + KEY_CHARACTERS], ()):
            if joined.startswith(window, start):
                yield window, spaced


def read_benchmark_texts(path: Path) -> list[str]:
    """Read every string of a benchmark's file: questions, choices, rubrics, translations ...

    As `read_benchmark_items`, without the items' labels.
    """
    return [text for _, texts in read_benchmark_items(path) for text in texts]


def read_benchmark_items(path: Path) -> list[Item]:
    """Read every item of a benchmark's file with its strings. Its label is its id or its line.

    Args:
        path: a file that `read_rows` reads, or a folder with files in JSONL, CSV or Parquet. In a
            folder, files of training splits ("train" in the name) are left out, because no score
            is computed on them.

    Raises:
        UserError: a file is missing, is not UTF-8, or a line is not JSON or CSV.
    """
    if path.is_dir():
        files = sorted(
            file
            for file in path.rglob("*")
            if row_format(file) in TABLE_FORMATS and "train" not in file.name
        )
        return [
            (f"{file.relative_to(path)}, {label}", texts)
            for file in files
            for label, texts in read_benchmark_items(file)
        ]
    unit = "row" if row_format(path) in NUMBERED else "line"
    return [_item(f"{unit} {number}", row) for number, row in read_rows(path, objects=False)]


def _item(position: str, row: object) -> Item:
    name = row.get("id") if isinstance(row, dict) else None
    return position if name is None else f"item {name}", list(_strings(row))


def _windows(text: str) -> Iterator[tuple[str, str]]:
    """The windows of a benchmark text, each as (without spaces, with spaces)."""
    words = normalized_words(PROMPT_LABELS.sub("", text))
    characters = sum(re.match(f"[{UNSPACED_SCRIPTS}]", word) is not None for word in words)
    is_unspaced = 2 * characters > len(words)
    size = WINDOW_CHARACTERS if is_unspaced else WINDOW_WORDS
    minimum = MIN_CHARACTERS if is_unspaced else MIN_WORDS
    for start in range(max(1, len(words) - size + 1)) if len(words) >= minimum else ():
        window = words[start : start + size]
        joined = "".join(window)
        if len(joined) >= KEY_CHARACTERS:
            yield joined, " ".join(window)


def _strings(value: object) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _strings(item)
