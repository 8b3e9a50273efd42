"""Mistakes that a user can correct, as opposed to bugs."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Self

# Control characters, other line ends, changes of direction, halves of surrogate pairs.
UNPRINTABLE = re.compile("[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def printable(text: str) -> str:
    """The text as one line, with each character that a terminal would obey as its escape.

    Names in files and what endpoints answer are shown: they must not write to the terminal.
    """
    return UNPRINTABLE.sub(lambda match: match[0].encode("unicode_escape").decode(), text)


@dataclass(frozen=True)
class Problem:
    """One mistake of the user's, as fields.

    Attributes:
        where: A file with its line and key, an option, a cell; empty where there is no such place.
        what: What is wrong there.
        fix: What to do. A command in it works when typed.
    """

    where: str
    what: str
    fix: str = ""

    def __str__(self) -> str:
        prefix = f"{self.where}: " if self.where else ""
        suffix = f"; {self.fix}" if self.fix else ""
        return printable(f"{prefix}{self.what}{suffix}")


class UserError(Exception):
    """One or more mistakes in what the user gave.

    The command line prints a line for each on stderr, without a traceback, and exits with 2.
    `UserError(where=..., what=..., fix=...)` is one mistake, `UserError.of(problems)` several.
    """

    def __init__(self, *, where: str = "", what: str, fix: str = ""):
        self._set(Problem(where, what, fix))

    @classmethod
    def of(cls, problems: Iterable[Problem]) -> Self:
        """Several mistakes, in their order."""
        error = cls.__new__(cls)
        error._set(*problems)
        return error

    def _set(self, *problems: Problem) -> None:
        self.problems = problems
        self.args = ("\n".join(self.lines),)

    def __reduce__(self) -> tuple[Any, ...]:
        # Pickle would call __init__ with args: errors come from processes of a pool too.
        return type(self).of, (self.problems,)

    @property
    def lines(self) -> tuple[str, ...]:
        """Each mistake as the line that a person reads."""
        return tuple(map(str, self.problems))
