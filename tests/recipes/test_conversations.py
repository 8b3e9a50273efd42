"""Forms of instruction rows from public reports: read as they are meant, or set aside by a rule."""

from typing import Any

import pytest

from recipes.conversations import _Unusable, parse_messages

QUESTION = {"role": "user", "content": "Q"}
ANSWER = {"role": "assistant", "content": "R"}
TURNS = "A\r\n<extra_id_1>Assistant\r\nB\r\n<extra_id_1>User\r\nQ"


@pytest.mark.parametrize("blank", ["", " ", "\n", "\u200b", "\ufeff ", "No input.", "<noinput>"])
def test_a_blank_input_adds_nothing_to_the_question(blank: str) -> None:
    row = {"instruction": "Q", "input": blank, "output": "R"}
    assert parse_messages(row) == [QUESTION, ANSWER]


def test_turns_of_a_file_from_windows_are_turns() -> None:
    assert parse_messages({"prompt": TURNS, "response": "R"}) == [
        {"role": "user", "content": "A"},
        {"role": "assistant", "content": "B", "weight": 0},
        QUESTION,
        ANSWER,
    ]


@pytest.mark.parametrize(
    ("row", "rule"),
    [
        ({"prompt": "A<extra_id_1>Assistant B", "response": "R"}, "malformed"),
        ({"prompt": "A\n<extra_id_2>quality:4", "response": "R"}, "malformed"),
        ({"prompt": "Q", "response": "R\n<extra_id_1>User\nmore"}, "malformed"),
        ({"instruction": "Q", "input": "", "output": "\u200b"}, "empty"),
        ({"instruction": "\u200b\ufeff", "input": "", "output": "R"}, "empty"),
        ({"messages": [QUESTION, ANSWER | {"weight": False}]}, "empty"),
        ({"messages": [QUESTION, ANSWER | {"weight": 0.5}]}, "malformed"),
        ({"messages": [QUESTION, ANSWER | {"weight": "0"}]}, "malformed"),
        ({"messages": [QUESTION, ANSWER | {"content": [{"type": "text", "text": "R"}]}]}, "malformed"),
        ({"messages": [QUESTION, {"role": "bot", "content": "R"}]}, "malformed"),
        ({"messages": "[]"}, "malformed"),
        ({"conversations": [{"from": "human", "value": "Q"}]}, "malformed"),
        ({"prompt": "Q", "chosen": "R", "rejected": "S"}, "malformed"),
        ({"instruction": "Q", "input": float("nan"), "output": "R"}, "malformed"),
    ],
)  # fmt: skip
def test_a_row_that_can_not_be_used_has_a_rule(row: dict[str, Any], rule: str) -> None:
    with pytest.raises(_Unusable) as error:
        parse_messages(row)
    assert error.value.args[0] == rule and error.value.args[1]
