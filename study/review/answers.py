"""What a question of the review has for an answer."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

Light = Literal["green", "amber", "red"]
WORDS: dict[Light, str] = {"green": "shown", "amber": "weak or not shown", "red": "fault"}
SHOWN = 6  # details of an answer
# The tokens of names by which the models of one family are told.
FAMILIES = {
    "llama": ("llama", "codellama", "tulu"),
    "gemini": ("gemini", "gemma"),
    "gpt": ("gpt", "chatgpt", "o1", "o3", "o4"),
    "claude": ("claude", "haiku", "sonnet", "opus"),
    "mistral": ("mistral", "mixtral", "ministral"),
    "qwen": ("qwen", "qwq"),
    "deepseek": ("deepseek",),
    "grok": ("grok",),
    "olmo": ("olmo",),
    "phi": ("phi",),
}


@dataclass(frozen=True)
class Answer:
    """The answer to one question.

    Attributes:
        key: A word for the question, in JSON and in the page's links.
        question: As a reviewer asks it.
        light: green: the files show that all is well. amber: they do not show it. red: a fault.
        text: One sentence or two.
        file: What the answer rests on, by its name in an archive.
        details: Further lines.
    """

    key: str
    question: str
    light: Light
    text: str
    file: str
    details: tuple[str, ...] = ()


def shortened(lines: Iterable[str]) -> tuple[str, ...]:
    """The first lines, none twice, and how many more there are."""
    distinct = list(dict.fromkeys(lines))
    more = [f"and {len(distinct) - SHOWN} more"] if distinct[SHOWN:] else []
    return (*distinct[:SHOWN], *more)


def listed(names: Iterable[object]) -> str:
    """Names as a text, none twice."""
    return ", ".join(dict.fromkeys(map(str, names)))


def counted(count: int, name: str, plural: str = "") -> str:
    """`1 seed`, `2 seeds`."""
    return f"{count:,} {name if count == 1 else plural or name + 's'}"


def family(model: str) -> str:
    """The family of a model by its name: "meta-llama/Llama-3.1-8B" is of llama.

    A name with no known part is a family of its own, its first word.
    """
    words = _words(model.rstrip("/").rpartition("/")[2].removesuffix(".yaml"))
    for name, tokens in FAMILIES.items():
        if any(word.startswith(name) or word in tokens for word in words):
            return name
    return words[0] if words else model


def _words(name: str) -> Sequence[str]:
    text = "".join(letter if letter.isalnum() else " " for letter in name.lower())
    return text.split()


def points(difference: float) -> str:
    """A difference of scores (0..1) in percentage points."""
    return f"{difference * 100:+.1f} points"


def percent(share: float) -> str:
    return f"{share:.1%}"
