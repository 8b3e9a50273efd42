"""Texts without case, accents, punctuation and spacing, and an index of benchmark texts to find in documents.

A benchmark text is cut into windows of WORDS words (the eight that PaLM's authors counted contamination in), or, where
a script has no spaces between words (Chinese, Japanese, Thai ...), of LETTERS letters, about as much to read. A shorter
text is one window, unless it is so short (under LEAST_WORDS, LEAST_LETTERS) that it is a phrase of the language and
says nothing about the benchmark: "none of these" is dropped, "Do fish feel pain?" is not.
"""

import json
import re
import tempfile
import unicodedata
from collections.abc import Iterable, Iterator
from pathlib import Path

import regex

from core.errors import UserError

TABLES = (".jsonl", ".csv", ".parquet")
WORDS, LEAST_WORDS = 8, 4
LETTERS, LEAST_LETTERS = 13, 7
HEAD = 7  # letters by which windows are looked up
# Thai, Lao, Burmese, Khmer, kana and Han.
SPACELESS = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\U00020000-\U0003ffff"
UNIT = re.compile(rf"[{SPACELESS}]|[^\W_{SPACELESS}]+")
INVISIBLE = regex.compile(r"[\p{M}\p{Cf}]+")  # accents, vowel signs, soft hyphens, joiners
# What evaluations put around a question; a document would hold the question without it.
FRAME = re.compile(r"^\s*question\s*:|\banswer\s*:\s*$", re.IGNORECASE)
Index = dict[str, list[tuple[str, str]]]  # head -> windows that begin so: without spaces, and as they are shown


def units(text: str) -> list[str]:
    """The words of a text, or the letters where words aren't set apart; lower case, no accents, no punctuation."""
    if not text.isascii():
        text = INVISIBLE.sub("", unicodedata.normalize("NFKD", text))
    return UNIT.findall(text.casefold())


def index(texts: Iterable[str]) -> Index:
    """The windows of benchmark texts, for `overlap`."""
    heads: dict[str, dict[str, str]] = {}
    for text in texts:
        for window in _windows(units(FRAME.sub("", text))):
            squeezed = "".join(window)
            if len(squeezed) >= HEAD:
                heads.setdefault(squeezed[:HEAD], {})[squeezed] = " ".join(window)
    return {head: list(windows.items()) for head, windows in heads.items()}


def overlap(text: str, benchmarks: Index) -> str | None:
    """The first window of a benchmark that occurs in the text, however it is spaced there, or None."""
    squeezed = "".join(units(text))
    starts = [i for i in range(len(squeezed) - HEAD + 1) if squeezed[i : i + HEAD] in benchmarks]
    for i in starts:
        for window, shown in benchmarks[squeezed[i : i + HEAD]]:
            if squeezed.startswith(window, i):
                return shown
    return None


def read(path: Path) -> list[str]:
    """Every string in a benchmark's file, whatever its field: questions, choices, rubrics, translations.

    JSONL, CSV or parquet by its ending; of a folder, all such files but those of training splits, which no score is of.
    Raises UserError when a file is missing, isn't UTF-8, or a line isn't JSON.
    """
    found: list[str] = []
    if path.is_dir():
        files = sorted(file for file in path.rglob("*") if file.suffix in TABLES and "train" not in file.name)
        return [text for file in files for text in read(file)]
    if path.suffix in (".csv", ".parquet"):
        import datasets

        kind = {".csv": "csv", ".parquet": "parquet"}[path.suffix]
        with tempfile.TemporaryDirectory() as cache:
            rows = datasets.load_dataset(kind, data_files=str(path), split="train", cache_dir=cache)
            return [text for row in rows for text in _strings(row)]
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")  # splitlines would split inside of strings
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"can't read the benchmark ({error}); {path}; give a JSONL file in UTF-8") from None
    for number, line in enumerate(lines, 1):
        try:
            found += _strings(json.loads(line)) if line.strip() else []
        except ValueError as error:
            raise UserError(f"not JSON ({error}); {path}, line {number}; give one JSON value per line") from None
    return found


def _windows(found: list[str]) -> Iterator[list[str]]:
    letters = sum(re.match(f"[{SPACELESS}]", unit) is not None for unit in found)
    size, least = (LETTERS, LEAST_LETTERS) if 2 * letters > len(found) else (WORDS, LEAST_WORDS)
    if len(found) >= least:
        yield from (found[i : i + size] for i in range(max(1, len(found) - size + 1)))


def _strings(value: object) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for part in value.values() if isinstance(value, dict) else value:
            yield from _strings(part)
