"""Faults of a text that come from how it was saved or made, whatever it is about.

Text in the wrong encoding, web pages, text wrapped in JSON, and text that repeats itself.
"""

import json
import re

from core.contamination import (
    UNSPACED_SCRIPTS,
    WINDOW_CHARACTERS,
    WINDOW_WORDS,
    WORD,
    normalized_words,
)

REPEATED_WORDS = 10
MAX_REPEATED_SHARE = 0.3  # of a text's words, in runs of REPEATED_WORDS that occurred before

# UTF-8 that was read as Windows-1252 or Latin-1: curly quotes and dashes, emoji, letters with
# accents. What closes a quotation may follow a capital letter with an accent (IRMÃ»).
MOJIBAKE = re.compile(
    "\u00e2(?:\u20ac|\u0080)."  # â€™
    "|\u00f0\u0178[\u0080-\u2122]"  # emoji
    "|\u00ef\u00bb\u00bf|\u00ef\u00bf\u00bd"  # a byte order mark, U+FFFD
    "|\u00c3[\u0080-\u00aa\u00ac-\u00ba\u00bc-\u00bf\u0152-\u0192\u02c6\u02dc\u2013-\u2122]"  # Ã©
    "|\u00c2[\u00a0-\u00aa\u00ac-\u00ba\u00bc-\u00bf]"  # Â°
    # Cyrillic that was read as Windows-1251: every other letter is one of two.
    "|(?:[\u0420\u0421][\u00a0-\u00bf\u0402-\u040f\u0452-\u045f\u0490\u0491\u2013-\u2122]){3}"
)
TAG = re.compile(
    r"<!doctype html|</?(?:html|head|body|div|span|p|br|table|tr|td|th|ul|ol|li|a|img|script|style"
    r"|h[1-6]|meta|link|section|article|nav|footer|header|form|input|button|iframe|strong|em|b|i)"
    r"(?:\s[^<>]{0,500})?/?>|&(?:nbsp|amp|lt|gt|quot|#\d{1,6});",
    re.IGNORECASE,
)
FEWEST_TAGS = 3
# A line break that was written out. TeX's \nu and \nabla go on in lower case.
WRITTEN_BREAK = re.compile(r"\\n(?![a-z])|\\r\\n")
FEWEST_BREAKS = 2
UNSPACED = re.compile(f"[{UNSPACED_SCRIPTS}]")


def unify_line_ends(text: str) -> str:
    """The text with its lines ended by LF."""
    return text.replace("\r\n", "\n").replace("\r", "\n")


def find_mojibake(text: str) -> str | None:
    """A passage of text that was decoded by the wrong encoding."""
    if text.isascii():
        return None
    match = MOJIBAKE.search(text)
    return match[0] if match else None


def find_markup(text: str) -> str | None:
    """What shows that the text is a web page, JSON, or has its line breaks written out."""
    if text[:1] in "{[" and text[-1:] in "}]":
        try:
            json.loads(text)
        except (ValueError, RecursionError):
            pass
        else:
            return f"JSON: {text[:40]}"
    tags = TAG.findall(text) if "<" in text or "&" in text else []
    if len(tags) >= FEWEST_TAGS:
        return f"{len(tags)} x HTML, as {tags[0]}"
    breaks = WRITTEN_BREAK.findall(text) if "\\" in text else []
    if len(breaks) >= FEWEST_BREAKS and len(breaks) > text.count("\n"):
        return rf"{len(breaks)} x \n written out"
    return None


def find_repetition(text: str) -> str | None:
    """How much of the text repeats its own earlier passages, if it is too much."""
    import numpy as np  # not to plan a study

    from sdf.duplicates import ngram_hashes

    words = normalized_words(text)
    hashes = ngram_hashes(words, REPEATED_WORDS)
    _, first = np.unique(hashes, return_index=True)
    repeats = np.ones(len(hashes), bool)
    repeats[first] = False
    covered = np.zeros(len(words) + 1, np.int64)  # +1 where a repeated run begins, -1 behind it
    starts = np.flatnonzero(repeats)
    np.add.at(covered, starts, 1)
    np.add.at(covered, starts + REPEATED_WORDS, -1)
    share = np.count_nonzero(np.cumsum(covered)[:-1]) / max(1, len(words))
    return f"{share:.0%} of the words repeat earlier ones" if share > MAX_REPEATED_SHARE else None


def count_words(text: str) -> tuple[int, str]:
    """The length of a text in words, and as a message says it.

    In scripts without spaces between words the characters count: as many to a word as in the
    windows of `core.contamination`.
    """
    characters = 0 if text.isascii() else len(UNSPACED.findall(text))
    spaced = len(WORD.findall(text)) - characters if characters else 0
    if spaced >= characters:
        words = len(text.split())
        return words, f"{words} words"
    words = spaced + characters * WINDOW_WORDS // WINDOW_CHARACTERS
    return words, f"{characters} characters, as {words} words"
