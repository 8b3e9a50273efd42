"""Errors of the user's that cross a process."""

import pickle

from core.errors import Problem, UserError


def test_an_error_keeps_its_problems_on_its_way_from_another_process() -> None:
    problems = (Problem("a.yaml:3", "unknown key", "remove it"), Problem("", "no key"))
    error = pickle.loads(pickle.dumps(UserError.of(problems)))
    assert isinstance(error, UserError) and error.problems == problems
    assert str(error) == "a.yaml:3: unknown key; remove it\nno key"
