"""Mistakes that a user can correct, as opposed to bugs."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Self


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
        return f"{prefix}{self.what}{suffix}"


class UserError(Exception):
    """One or more mistakes in what the user gave.

    The command line prints a line for each on stderr, without a traceback, and exits with 2.
    `UserError(where=..., what=..., fix=...)` is one mistake, `UserError.of(problems)` several.
    """

    def __init__(self, *lines: str | Problem, where: str = "", what: str = "", fix: str = ""):
        # Positional strings are the old form: each is a whole sentence. New code gives fields.
        given = tuple(Problem("", line) if isinstance(line, str) else line for line in lines)
        self.problems = given or (Problem(where, what, fix),)
        super().__init__("\n".join(self.lines))

    @classmethod
    def of(cls, problems: Iterable[Problem]) -> Self:
        """Several mistakes, in their order."""
        return cls(*problems)

    @property
    def lines(self) -> tuple[str, ...]:
        """Each mistake as the line that a person reads."""
        return tuple(map(str, self.problems))
