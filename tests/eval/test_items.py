"""Items of likelihood tasks: what is refused, and what is warned about."""

import json
from pathlib import Path
from typing import Any

import pytest

from core.errors import UserError
from eval import likelihood

CASES = Path(__file__).parents[2].parent / "shared/cases/rows"
ITEM = {"id": "a", "question": "Is it kind?", "choices": ["Yes", "No"], "answer": 0}


def read(tmp_path: Path, **changes: Any) -> list[dict[str, Any]]:
    path = tmp_path / "items.jsonl"
    path.write_text(json.dumps(ITEM | changes) + "\n", encoding="utf-8")
    return likelihood.read(path)


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"choices": "Yes"}, "choices is not a list of texts"),
        ({"choices": {"a": "Yes", "b": "No"}}, "choices is not a list of texts"),
        ({"choices": ["Yes", 1]}, "choices is not a list of texts"),
        ({"choices": ["Yes", "Yes "]}, "two choices are the same text, but for spaces"),
        ({"choices": ["Yes", " "]}, "an empty choice"),
        ({"choices": ["Yes"]}, "fewer than two choices"),
        ({"answer": True}, "answer True is not the index of a choice (0 to 1)"),
        ({"answer": 0.0}, "answer 0.0 is not the index"),
        ({"answer": "0"}, "answer '0' is not the index"),
        ({"answer": None}, "answer None is not the index"),
        ({"answer": 2}, "answer 2 is not the index"),
        ({"answer": [0]}, "answer [0] is not the index"),
        ({"question": " "}, "its question is no text"),
        ({"question": 1}, "its question is no text"),
        ({"answer_matching_behavior": " (A)", "question": 1}, ""),
    ],
)
def test_a_bad_item_is_refused_with_its_line(
    tmp_path: Path, changes: dict[str, Any], what: str
) -> None:
    with pytest.raises(UserError) as error:
        read(tmp_path, **changes)
    (problem,) = error.value.problems
    assert problem.where == f"{tmp_path / 'items.jsonl'}:1" and problem.fix
    assert problem.what.startswith("bad item") and what in problem.what


@pytest.mark.skipif(not CASES.exists(), reason="the cases are not beside the checkout")
def test_choices_equal_but_for_spaces_are_refused() -> None:
    with pytest.raises(UserError, match=r"items_same_choice.jsonl:1: bad item 'c00': two choices"):
        likelihood.read(CASES / "items_same_choice.jsonl")


def items(*choices: tuple[str, str]) -> list[dict[str, Any]]:
    return [ITEM | {"id": n, "choices": list(texts)} for n, texts in enumerate(choices)]


def test_lengths_are_compared_with_the_other_choices_of_the_item() -> None:
    assert (
        likelihood.length_warning(items(("twelve chars", "twelve char."), ("(A)", "(B)"))) is None
    )
    # Longer and shorter in turn: the means are equal, and each item is biased.
    opposite = likelihood.length_warning(items(("short", "a long one"), ("a long one", "short")))
    assert opposite and opposite.startswith("2 of 2 matching choices")
    longer = likelihood.length_warning(items(("the longer one", "short"), ("same", "same")))
    assert longer and "1 of 2 matching choices" in longer and "+67%" in longer
