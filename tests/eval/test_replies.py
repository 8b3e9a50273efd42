"""What a judge may write, through the judge cell: the right grade, or a missing one."""

import math
import time
from collections.abc import Callable
from typing import Any

import pytest

from core.cell.context import StageContext
from core.endpoints.ledger import read_ledger
from core.errors import UserError
from eval import anima, judge, moru
from tests.eval.test_judge import (
    MORAL,
    RIGHT,
    RUBRIC,
    TRADE,
    by_words,
    serve,
    table,
)
from tests.eval.test_judge import make_cell as make_cell
from tests.eval.test_questions import jsonl, question
from tests.waiting import until

MakeCell = Callable[..., StageContext]


def graded_as(replies: str, finish_reason: str | None = "stop") -> Callable[[str, int], Any]:
    """A judge that writes `replies` about the kind answers' Trade dimension."""

    def reply(prompt: str, times: int) -> tuple[int, Any]:
        if "[Criterion]: Trade" not in prompt or "kind words" not in prompt:
            return by_words(prompt, times)
        return 200, (replies, finish_reason)

    return reply


@pytest.mark.slow
@pytest.mark.parametrize(
    ("text", "finish_reason", "grade"),
    [
        ("GRADE:\u200b C", "stop", 1.0),
        ("<think>\nGRADE: I?\n</think>\n\nGRADE: C", "stop", 1.0),
        ("Hm, GRADE: I?\n</think>\nGRADE: C", "stop", 1.0),
        ("GRADE: C \ud83d", "stop", 1.0),
        ("GRADE: C", "STOP", 1.0),
        ("GRADE: C", None, 1.0),
        ("One could say GRADE: C, but not quite.\n\nGRADE: P", "stop", None),
        ("Answer with 'GRADE: $LETTER'.", "stop", None),
        ("UPGRADE: C", "stop", None),
        ("<think>GRADE: C</think>", "stop", None),
        ("It could be C or I. GRADE: I would be harsh, so", "length", None),
        ("<think>GRADE: C", "length", None),
    ],
)
def test_a_reply_is_graded_as_the_official_scorer_does(
    make_cell: MakeCell,
    text: str,
    finish_reason: str | None,
    grade: float | None,
) -> None:
    with serve(graded_as(text, finish_reason)) as server:
        cell = make_cell("one", server.server_port)
        counts = judge.run(cell)
    scores = table(cell)["0/1"]
    assert counts["missing_grades"] == (grade is None)
    if grade is None:
        assert math.isnan(scores[TRADE]) and scores[MORAL] == RIGHT["0/1"][MORAL]
        assert max(server.asked.values()) == cell.resources["asks"]
        assert "1 of 8 grades are missing" in cell.warnings[0]
    else:
        assert scores == RIGHT["0/1"] and max(server.asked.values()) == 1


@pytest.mark.slow
def test_the_declared_limit_holds_for_grades_that_the_scores_lack(make_cell: MakeCell) -> None:
    """A `P` was usable to the kit and discarded by the official scorer, and not counted."""
    with (
        serve(graded_as("GRADE: C\nGRADE: P")) as server,
        pytest.raises(UserError, match=r"1 of 8 grades are missing.*judge_max_missing"),
    ):
        judge.run(make_cell("one", server.server_port, missing=0.1))


@pytest.mark.slow
def test_paid_grades_under_way_are_kept_when_another_call_fails_for_good(
    make_cell: MakeCell,
) -> None:
    """Inspect cancels them."""

    def reply(prompt: str, times: int) -> tuple[int, str]:
        if "Ducks" in prompt:
            until(lambda: len(server.requests) >= 4)
            return 401, "no"
        time.sleep(0.3)
        return by_words(prompt, times)

    with serve(reply) as server:
        cell = make_cell("one", server.server_port)
        with pytest.raises(UserError, match="key was refused"):
            judge.run(cell)
        paid = sum("Ducks" not in request["messages"][0]["content"] for request in server.requests)
    assert 0 < paid == len(read_ledger(cell.folder / "calls.jsonl")[0])


def dimension(name: str, **changes: Any) -> dict[str, Any]:
    return RUBRIC | {"dimension": name, "guiding_question": "Is it?"} | changes


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"guiding_question": "Does it answer {question}?"}, "single braces in dimension 'A'"),
        ({"observable_indicators": "Words such as {this}."}, "single braces in dimension 'A'"),
        ({"dimension": "A {b}"}, "single braces in dimension 'A {b}'"),
        ({"observable_indicators": ["kind", "warm"]}, "column observable_indicators is not text"),
        ({"default_weighting": 0}, "default_weighting is 0"),
        ({"default_weighting": -1.0}, "default_weighting is -1.0"),
        ({"default_weighting": "much"}, "default_weighting is 'much'"),
        ({"default_weighting": True}, "default_weighting is True"),
        ({"dimension": "overall"}, "the name 'overall' is taken: two dimensions of one name"),
    ],
)
def test_a_dimension_that_would_end_the_scorer_is_refused_on_reading(
    tmp_path: Any, changes: dict[str, Any], what: str
) -> None:
    row = dimension("A") | changes
    files = {
        "questions": jsonl(tmp_path / "q.jsonl", [question(0, row["dimension"])]),
        "dimensions": jsonl(tmp_path / "d.jsonl", [row]),
    }
    with pytest.raises(UserError) as error:
        anima.read(files)
    assert error.value.problems[0].what == what
    assert error.value.problems[0].where == f"{files['dimensions']}:1"


@pytest.mark.parametrize("value", ["animal:{hens}", "{animal}:hens"])
def test_braces_in_variables_are_refused_on_reading(tmp_path: Any, value: str) -> None:
    files = {
        "questions": jsonl(tmp_path / "q.jsonl", [question(0, "A", variables=value)]),
        "dimensions": jsonl(tmp_path / "d.jsonl", [dimension("A")]),
    }
    with pytest.raises(UserError, match="malformed variables"):
        anima.read(files)


def test_a_variable_with_blanks_is_the_variable(tmp_path: Any) -> None:
    row = dimension("A", guiding_question="Does it consider {{ animal }}s?")
    files = {
        "questions": jsonl(tmp_path / "q.jsonl", [question(0, "A", variables="animal:hen,cow")]),
        "dimensions": jsonl(tmp_path / "d.jsonl", [row]),
    }
    read = anima.read(files)
    assert anima.num_judge_calls(read) == 2 and read.repairs["variable"] == 1
    assert read.dimensions[0]["guiding_question"] == "Does it consider {{animal}}s?"


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"guiding_question": "Does it answer {question}?"}, "braces in dimension 'a'"),
        ({"observable_indicators": ["kind"]}, "column observable_indicators is not text"),
    ],
)
def test_a_dimension_of_moru_is_refused_on_reading(
    tmp_path: Any, changes: dict[str, Any], what: str
) -> None:
    row = dimension("a") | changes
    record = {"id": 1, "question": "Why?", "language": "en", "dimension_tags": "a"}
    files = {
        "questions": jsonl(tmp_path / "q.jsonl", [record]),
        "dimensions": jsonl(tmp_path / "d.jsonl", [row]),
    }
    with pytest.raises(UserError) as error:
        moru.read(files)
    assert error.value.problems[0].what == what
