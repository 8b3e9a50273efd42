"""The gates of one document: checks that a text must pass, in this order.

    empty        the text is empty or whitespace
    truncated    the endpoint's finish_reason is not "stop", or the text ends inside a sentence
    characters   control characters, lone surrogates or replacement characters; text that was read
                 in the wrong encoding, as â€”
    markup       a web page, JSON, or line breaks that were written out (sdf.text_checks)
    length       fewer or more words than the template allows; in scripts without spaces characters
    placeholder  blanks that the writer left to be filled in
    refusal      the writer declines the request
    meta         remarks about the text: a preamble, a word count, a note to the user, chat markup
    banned       a string that the template forbids
    leaks        a word of another arm's subject
    drop         a word of the paper's own filter
    language     the beginning, middle or end is not in the template's language
    overlap      a piece of a benchmark (core.contamination)
    repetition   passages that repeat earlier ones of the text

Cheap gates come first. The patterns of meta and truncated are English, those of refusal and
placeholder cover more languages (sdf.gate_patterns).
Of sdf.corpus_writer are `failed` (the request failed for good) and `withheld` (the endpoint gave no
answer), which come before these, and `score` and `unscored`, which come after these and need a call
to the writer.
The gate `duplicate` compares documents with each other (sdf.duplicates).
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

from core.contamination import UNSPACED_SCRIPTS, WindowIndex, build_index, find_overlap
from core.errors import Problem, UserError
from sdf.gate_patterns import (
    CHARACTERS,
    ENDING_CHARACTERS,
    META,
    META_FIRST,
    META_LAST,
    PLACEHOLDER,
    REFUSAL,
    REFUSAL_FIRST,
    REFUSAL_OTHER,
    REFUSAL_OTHER_FIRST,
    UNFINISHED,
)
from sdf.text_checks import count_words, find_markup, find_mojibake, find_repetition

WORD_LISTS = ("banned", "leaks", "drop")
GATE_KEYS = ("words", "language", *WORD_LISTS)
EXCERPT_CHARACTERS = 600  # at the beginning, middle and end, whose language is classified


@dataclass(frozen=True)
class GateRules:
    """What a template and a study require of a document; made by `parse_gates`. None: no check."""

    words: tuple[int, int] | None = None  # fewest and most
    language: str | None = None  # ISO 639-1
    banned: re.Pattern[str] | None = None
    leaks: re.Pattern[str] | None = None
    drop: re.Pattern[str] | None = None
    benchmarks: WindowIndex | None = None


@dataclass(frozen=True, order=True)
class Rejection:
    """The gate that a text failed, and what was found there."""

    gate: str
    detail: str

    def __str__(self) -> str:
        return f"{self.gate}: {self.detail}"


def parse_gates(
    gates: Mapping[str, Any],
    benchmark_texts: Iterable[str] = (),
    where: str = "template, gates",
) -> GateRules:
    """Build the rules from a template's `gates:` and the texts of the study's benchmarks.

    Keys of `gates`: `words`, [fewest, most]; `language`, an ISO 639-1 code; `banned`, `leaks` and
    `drop`, lists of words or phrases. An entry matches whole words, whatever their case and
    spacing. "densif*" matches every word that begins so, "=ML" matches in this case only.

    Raises:
        UserError: one problem for each mistake in `gates`.
    """
    problems = [
        Problem(where, f"unknown gate {key!r}", f"use one of {', '.join(GATE_KEYS)}")
        for key in gates
        if key not in GATE_KEYS
    ]
    words = gates.get("words")
    match words:
        case None:
            pass
        case [int(fewest), int(most)] if 0 <= fewest <= most:
            words = (fewest, most)
        case _:
            fix = "give [fewest, most], two whole numbers"
            problems.append(Problem(where, f"words is {words!r}", fix))
    language = gates.get("language")
    if language is not None and language not in languages():
        fix = f"use one of {', '.join(sorted(languages()))}"
        problems.append(Problem(where, f"unknown language {language!r}", fix))
    for key in WORD_LISTS:
        entries = gates.get(key) or []
        if not isinstance(entries, list) or not all(map(_is_word_entry, entries)):
            fix = "quote the entries that YAML reads as a number, yes or no"
            problems.append(Problem(where, f"{key} is not a list of words", fix))
    if problems:
        raise UserError.of(problems)
    patterns = {key: _word_list_pattern(gates.get(key) or []) for key in WORD_LISTS}
    return GateRules(words, language, **patterns, benchmarks=build_index(benchmark_texts) or None)


def first_failed_gate(text: str, finish_reason: str, rules: GateRules) -> Rejection | None:
    """Return the first gate that the text fails, with what was found, or None if it passes.

    The result depends on the arguments only. `finish_reason` is the endpoint's; give "stop" for a
    text that was not generated.
    """
    text = text.strip()
    if not text:
        return Rejection("empty", "no text")
    if finish_reason != "stop":
        return Rejection("truncated", f"finish_reason {finish_reason!r}")
    if unfinished := UNFINISHED.search(text[-80:]):
        return Rejection("truncated", f"ends in {unfinished[0]!r}")
    if unreadable := CHARACTERS.search(text):
        return Rejection("characters", f"U+{ord(unreadable[0]):04X}")
    if mojibake := find_mojibake(text):
        return Rejection("characters", f"text in the wrong encoding, {mojibake!r}")
    if markup := find_markup(text):
        return Rejection("markup", markup)
    words, length = count_words(text)
    if rules.words and not rules.words[0] <= words <= rules.words[1]:
        return Rejection("length", length)
    # Language models write the curly apostrophe and the non-breaking hyphen.
    text = text.replace("\u2019", "'").replace("\u2011", "-")
    first_word = len(text) - len(text.lstrip("\"'*#_> "))  # after quotes and Markdown
    matches = {
        "placeholder": PLACEHOLDER.search(text),
        "refusal": (
            REFUSAL_FIRST.match(text, first_word)
            or REFUSAL.search(text)
            or REFUSAL_OTHER_FIRST.match(text, first_word)
            or REFUSAL_OTHER.search(text)
        ),
        "meta": (
            META_FIRST.match(text, first_word)
            or META.search(text)
            or META_LAST.search(text[-ENDING_CHARACTERS:])
        ),
        "banned": rules.banned and rules.banned.search(text),
        "leaks": rules.leaks and rules.leaks.search(text),
        "drop": rules.drop and rules.drop.search(text),
    }
    for gate, match in matches.items():
        if match:
            return Rejection(gate, repr(" ".join(match[0].split())[:60]))
    if rules.language:
        for excerpt in _excerpts(text):
            language = _classify_language(excerpt)
            if language != rules.language:
                return Rejection("language", language)
    if quoted := quoted_benchmark(text, rules):
        return quoted
    repetition = find_repetition(text)
    return Rejection("repetition", repetition) if repetition else None


def failed_question(question: str, rules: GateRules) -> Rejection | None:
    """The first gate that a question fails, of those that are not about documents alone."""
    if not question.strip():
        return Rejection("empty", "no question")
    if unreadable := CHARACTERS.search(question):
        return Rejection("characters", f"U+{ord(unreadable[0]):04X}")
    return quoted_benchmark(question, rules)


def quoted_benchmark(text: str, rules: GateRules) -> Rejection | None:
    """The gate `overlap` by itself."""
    quote = find_overlap(text, rules.benchmarks) if rules.benchmarks else None
    return Rejection("overlap", repr(quote)) if quote else None


@cache
def languages() -> frozenset[str]:
    """The ISO 639-1 codes of the languages that the classifier knows."""
    import py3langid

    return frozenset(code for code, _ in py3langid.rank("a"))


def _classify_language(text: str) -> str:
    import py3langid

    # The classifier names a language even for a text without a letter.
    if not re.search(r"[^\W\d_]", text):
        return "none"
    code: str = py3langid.classify(text)[0]
    return code


def _excerpts(text: str) -> list[str]:
    # The classifier takes 3 ms for 1,000 characters, so a long text is sampled. The end is needed:
    # a writer that changes to another language does so in the course of the text.
    if len(text) <= 3 * EXCERPT_CHARACTERS:
        return [text]
    middle = (len(text) - EXCERPT_CHARACTERS) // 2
    return [
        text[:EXCERPT_CHARACTERS],
        text[middle : middle + EXCERPT_CHARACTERS],
        text[-EXCERPT_CHARACTERS:],
    ]


def _is_word_entry(entry: object) -> bool:
    return isinstance(entry, str) and bool(entry.strip("=* "))


def _word_list_pattern(entries: list[str]) -> re.Pattern[str] | None:
    # Chinese or Japanese characters beside an English word do not make it part of a longer word.
    letter = rf"[^\W{UNSPACED_SCRIPTS}]"

    def entry_pattern(entry: str) -> str:
        words = entry.lstrip("=").rstrip("*").split()
        phrase = r"\s+".join(re.escape(word) for word in words)
        phrase += rf"{letter}*" if entry.endswith("*") else rf"(?!{letter})"
        return f"(?-i:{phrase})" if entry.startswith("=") else phrase

    if not entries:
        return None
    alternatives = "|".join(map(entry_pattern, entries))
    return re.compile(rf"(?<!{letter})(?:{alternatives})", re.IGNORECASE)
