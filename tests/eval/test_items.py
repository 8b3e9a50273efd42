"""Items of likelihood tasks: what is refused, and what is warned about."""

import json
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

from core.cell.context import StageContext
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


@pytest.mark.parametrize(
    "pair", [["Yes", "Yes\u200b"], ["caf\u00e9", "cafe\u0301"], ["", "\ufeff"]]
)
def test_choices_that_look_the_same_are_refused(tmp_path: Path, pair: list[str]) -> None:
    with pytest.raises(UserError, match=r"two choices are the same text|an empty choice"):
        read(tmp_path, choices=pair)


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


def test_scores_that_are_nearly_all_0_or_1_are_said() -> None:
    assert likelihood.saturation_warning([0.001, 0.5, 0.99, 0.999]) is None, "half of them"
    warning = likelihood.saturation_warning([0.001, 0.995, 0.5])
    assert warning and warning.startswith("2 of 3 scores are beyond 0.99 or below 0.01: ")


@pytest.mark.parametrize("per_token", [False, True])
def test_a_cell_warns_of_lengths_and_saturation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, per_token: bool
) -> None:
    """Lengths are no matter to scores by token."""
    path = tmp_path / "items.jsonl"
    path.write_text(json.dumps(ITEM) + "\n")
    sample = {"score": 0.999, "acc": 1.0, "acc_norm": 1.0}
    monkeypatch.setattr(likelihood, "evaluate", lambda *_: ([sample], 9))
    monkeypatch.setattr(likelihood, "open_results", lambda *_: nullcontext({}))
    monkeypatch.setattr(likelihood.engine, "open_engine", lambda *_: None)
    monkeypatch.setattr(likelihood.contamination, "check", lambda _: None)
    settings = {"task": "t", "per_token": per_token, "rows": None, "engine": {}}
    resources = {"files": {"items": str(path)}, "engine": {}}
    context = StageContext(tmp_path, "a", settings, resources, {"checkpoint": tmp_path})
    likelihood.run(context)
    lengths = [text for text in context.warnings if "bias towards the shorter" in text]
    assert len(lengths) == (not per_token)
    assert context.warnings[-1].startswith("1 of 1 scores are beyond 0.99")


def test_stance_items_are_read_as_questions_with_two_choices(tmp_path: Path) -> None:
    """In the form of compassion-features-attribution, which is a JSON list."""
    path = tmp_path / "stance.json"
    row = {"id": 7, "category": "farming", "prompt": "Question: Are crates fair?\nAnswer:"}
    path.write_text(json.dumps([row | {"aligned": "They harm.", "misaligned": "They pay."}]))
    (item,) = likelihood.read(path)
    assert item == {
        "id": "7",
        "question": "Are crates fair?",
        "choices": ["They harm.", "They pay."],
        "answer": 0,
    }
