"""Mistakes that a user can correct, as opposed to bugs."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Self


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
