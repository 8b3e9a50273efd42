"""macros.tex: a LaTeX command for every number that prose needs, so that no number is copied by hand."""

import re
import unicodedata
from collections.abc import Iterator
from typing import Any

from analysis.headline import p_value, percent
from analysis.tables import tex
from core.errors import UserError

DIGITS = ("Zero", "One", "Two", "Three", "Four", "Five", "Six", "Seven", "Eight", "Nine")
SYMBOLS = {
    "%": "Percent",
    "&": "And",
    "$": "Dollar",
    "#": "Number",
    "+": "Plus",
    "=": "Equals",
    "<": "Below",
    "@": "At",
}
NOTHING = r"\mbox{--}"  # what prints for a number that the data can't give, in text and between $ signs alike
HEADER = r"""% Every number of the study that prose needs; written by the analysis, not by hand; for \input.
% End a command with {} where a space follows: \ScoreAnimalAhbDoseZero{} percent. Needs no package.
% Names are letters only: digits are spelled one by one, other signs begin a new word. Scores are in percent and
% differences in percentage points; p comes with its sign: $p\PHolmAnimalMinusUrbanAhbDoseZero$ gives p = .012."""
Macro = tuple[tuple[object, ...], str, str]  # parts of its name, its value in LaTeX, what it is


def macros(results: dict[str, Any]) -> str:
    r"""The contents of macros.tex from results.json: a line `\newcommand{\Name}{value}% what it is` for each number.

    Scores (`Score`, `Low`, `High`, `Seeds`) by arm, benchmark and dose; contrasts (`Contrast`, `ContrastLow`,
    `ContrastHigh`, `PHolm`, `PResponses`, `ContrastSeeds`, `Verdict`) by name, benchmark and dose; `Questions`,
    `Scenarios`, `Epochs`, `Judge` by benchmark; `Documents`, `HeldOut`, `Tokens`, `MedianWords` by corpus; `StudyName`.
    A number that is None prints as a dash and its comment says so. The order is that of the results. Raises UserError
    if two names come out the same, as for arms a-b and a_b.
    """
    lines, problems = [HEADER], []
    owners: dict[str, str] = {}
    for parts, value, what in _all(results):
        command = "".join(map(word, parts))
        what = " ".join(what.split())
        if command in owners:
            problems.append(f"\\{command} would be both {owners[command]} and {what}; rename one of them in the study")
        owners[command] = what
        lines.append(f"\\newcommand{{\\{command}}}{{{value}}}% {what}")
    if problems:
        raise UserError(*problems)
    return "\n".join(lines) + "\n"


def word(part: object) -> str:
    """Any text as a word of a command's name: letters a to z only, each word and digit capitalized.

    `ahb_2` gives AhbTwo, `é` E, `β` GreekSmallLetterBeta, `50%` FiveZeroPercent, ` - ` Minus.
    """
    text = unicodedata.normalize("NFKD", str(part).replace(" - ", " minus "))
    pieces = []
    for letter in text:
        if letter.isascii():
            named = SYMBOLS.get(letter) or (DIGITS[int(letter)] if letter.isdigit() else None)
            pieces.append(f" {named} " if named else letter if letter.isalpha() else " ")
        elif not unicodedata.combining(letter):
            # an ideograph's number spells in digits, so that two of them don't share a name
            pieces.append(f" {word(unicodedata.name(letter, f'sign {ord(letter)}').lower())} ")
    return "".join(piece[:1].upper() + piece[1:] for piece in re.split(r"\s+", "".join(pieces)))


def _all(results: dict[str, Any]) -> Iterator[Macro]:
    yield ("study name",), tex(results["study"]), "name of the study"
    for name, benchmark in results["benchmarks"].items():
        for key in ("questions", "scenarios", "epochs"):
            yield (key, name), _count(benchmark[key]), f"{key} of {name}"
        yield ("judge", name), tex(benchmark["judge"]) if benchmark["judge"] else NOTHING, f"what grades {name}"
    for row in results["arms"]:
        at, what = (row["arm"], row["benchmark"], "dose", row["dose"]), _place(row, row["arm"])
        yield ("score", *at), _points(row["mean"]), f"mean score of {what}, percent{_why(row, 'mean')}"
        yield ("low", *at), _points(row["low"]), f"lower end of its 95 % interval{_why(row, 'low')}"
        yield ("high", *at), _points(row["high"]), f"upper end of its 95 % interval{_why(row, 'high')}"
        yield ("seeds", *at), _count(row["seeds"]), f"training seeds of {what}{', a fixed checkpoint' * row['fixed']}"
    for row in results["contrasts"]:
        at = (row["name"], row["benchmark"], *_doses(row))
        what = _place(row, f"{row['of']} minus {row['against']}")
        yield ("contrast", *at), _points(row["estimate"]), f"{what}, percentage points{_why(row, 'estimate')}"
        yield ("contrast low", *at), _points(row["low"]), f"lower end of its 95 % interval{_why(row, 'low')}"
        yield ("contrast high", *at), _points(row["high"]), f"upper end of its 95 % interval{_why(row, 'high')}"
        yield ("p holm", *at), _p(row["p_holm"]), f"its p after Holm in family {row['family']}{_why(row, 'p_holm')}"
        yield ("p responses", *at), _p(row["p_response_level"]), "its p over single responses, which never decides"
        seeds = _count(row["seeds"])
        yield ("contrast seeds", *at), seeds, "training seeds of the arm that has fewer (0: none was trained)"
        yield ("verdict", *at), "no verdict" if row["verdict"] == "none" else tex(row["verdict"]), f"verdict on {what}"
    for row in results.get("corpora", []):
        for key in ("documents", "held_out", "tokens"):
            yield (key, row["name"]), _count(row[key]), f"{key.replace('_', ' ')} of the corpus {row['name']}"
        words = None if row["median_words"] is None else round(row["median_words"])
        yield ("median words", row["name"]), _count(words), f"words of its median document, {row['name']}"


def _doses(row: dict[str, Any]) -> tuple[object, ...]:
    other = row.get("against_dose", row["dose"])
    if row["dose"] is None:
        return ("no dose",)
    return ("dose", row["dose"], *(() if other == row["dose"] else ("versus", other)))


def _place(row: dict[str, Any], what: str) -> str:
    other = row.get("against_dose", row["dose"])
    dose = f"SFT dose {row['dose']}" + (f" against {other}" if other != row["dose"] else "")
    return f"{what} on {row['benchmark']} at {dose if row['dose'] is not None else 'no common SFT dose'}"


def _why(row: dict[str, Any], key: str) -> str:
    return f": none, {row['reason']}" if row[key] is None else ""


def _points(value: float | None) -> str:
    text = percent(value)
    return NOTHING if value is None else f"\\ensuremath{{{text}}}" if text.startswith("-") else text


def _p(value: float | None) -> str:
    text = p_value(value)
    return NOTHING if value is None else f"\\ensuremath{{{text if text.startswith('<') else f'= {text}'}}}"


def _count(value: int | None) -> str:
    return NOTHING if value is None else f"{value:,}".replace(",", r"\,")
