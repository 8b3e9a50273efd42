"""Mistakes a user can mend, apart from bugs."""

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Problem:
    """One mistake of the user's, as fields."""

    where: str  # a file with its line and key, an option, a cell; empty where there is no such place
    what: str
    fix: str = ""  # what to do; a command in it works when typed

    def __str__(self) -> str:
        place = f"{self.where}: " if self.where else ""
        return f"{place}{self.what}{f'; {self.fix}' if self.fix else ''}"


class UserError(Exception):
    """One or more mistakes in what the user gave.

    The command line prints a line for each on stderr, without a traceback, and exits with 2.
    `UserError(where=..., what=..., fix=...)` is one mistake, `UserError.of(problems)` several.
    """

    def __init__(self, *lines: str, where: str = "", what: str = "", fix: str = ""):
        # Positional lines are the old form: each is a whole sentence. New code gives fields.
        self.problems = tuple(Problem("", line) for line in lines) or (Problem(where, what, fix),)
        super().__init__("\n".join(self.lines))

    @classmethod
    def of(cls, problems: Iterable[Problem]) -> "UserError":
        """Several mistakes, in their order."""
        error = cls()
        error.problems = tuple(problems)
        error.args = ("\n".join(error.lines),)
        return error

    @property
    def lines(self) -> tuple[str, ...]:
        """Each mistake as the line that a person reads."""
        return tuple(map(str, self.problems))
