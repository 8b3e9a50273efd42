"""Errors of the user's that cross a process."""

import pickle
from pathlib import Path

import pytest

from core.cell.context import StageContext
from core.errors import Problem, UserError


def test_an_error_keeps_its_problems_on_its_way_from_another_process() -> None:
    problems = (Problem("a.yaml:3", "unknown key", "remove it"), Problem("", "no key"))
    error = pickle.loads(pickle.dumps(UserError.of(problems)))
    assert isinstance(error, UserError) and error.problems == problems
    assert str(error) == "a.yaml:3: unknown key; remove it\nno key"


def test_what_a_terminal_obeys_is_shown_as_text(capsys: pytest.CaptureFixture[str]) -> None:
    """An endpoint's error body, or a name in a file, must not write to the terminal."""
    body = "\x1b[2J\x1b]0;title\x07 a\r\nb\u2028c\u202ed \ud83d caf\xe9"
    shown = r"\x1b[2J\x1b]0;title\x07 a\r\nb\u2028c\u202ed \ud83d café"
    assert UserError(where="x", what=body).lines == (f"x: {shown}",)
    StageContext(Path(), "", {}, {}, {}).log(body)
    assert capsys.readouterr().out.endswith(f" {shown}\n")
