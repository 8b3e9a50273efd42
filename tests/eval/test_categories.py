"""Questions in categories, and question sets of other columns and places."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from core.errors import UserError
from core.paths import ROOT
from eval import rubric
from eval.judge import scores_table
from study.spec import expand
from study.spec.load import load_study
from tests.place import SMALL

OURS = ROOT / "eval/data/human_compassion.jsonl"
ORIGINAL = "benchmarks.people={task: human_compassion_original, judge: dummy%s}"


def test_ours_have_the_papers_four_categories() -> None:
    questions = rubric.read({"questions": OURS}).questions
    counts: dict[str, int] = {}
    for row in questions:
        (category,) = row["tags"]
        counts[category] = counts.get(category, 0) + 1
    assert counts == {"compassion": 18, "trades": 4, "misalignment": 4, "control": 4}


def test_the_score_of_a_question_is_that_of_its_category() -> None:
    from inspect_ai.scorer import Score

    question_set = rubric.read({"questions": OURS})
    question_set.questions = question_set.questions[:1]
    sample = SimpleNamespace(id="h00", epoch=1, scores={"s": Score(value="C")})
    log: Any = SimpleNamespace(
        samples=[sample], eval=SimpleNamespace(config=SimpleNamespace(epochs=1))
    )
    table = scores_table(log, question_set, rubric.to_scores, "dummy")
    scores = dict(zip(table["dimension"], table["score"], strict=True))
    assert scores == {"overall": 1.0, "compassion": 1.0}
    sample.scores = {"s": Score.unscored(reason="other")}
    table = scores_table(log, question_set, rubric.to_scores, "dummy")
    assert table["score"].isna().all() and table["missing"].notna().all()


def test_published_columns_are_read(tmp_path: Path) -> None:
    rows = [
        {"prompt": f"Question {n}?", "criteria": "It is met.", "type": "trades"} for n in (1, 2)
    ]
    path = tmp_path / "theirs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    questions = rubric.read({"questions": path}).questions
    assert [(row["id"], row["question"], row["tags"]) for row in questions] == [
        ("1", "Question 1?", ["trades"]),
        ("2", "Question 2?", ["trades"]),
    ]


def test_the_original_questions_are_named_in_the_study_file(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"human_compassion_original\.yaml says what to name"):
        load_study(SMALL, None, [ORIGINAL % ""])
    hub = ", questions: {hub: owner/people, file: questions.jsonl%s}"
    with pytest.raises(UserError, match="--pin writes the newest"):
        load_study(SMALL, None, [ORIGINAL % (hub % "")])
    pinned = hub % f", revision: {'ab' * 20}"
    study = load_study(SMALL, None, [ORIGINAL % pinned])
    (cell,) = {
        json.dumps(cell.settings["files"]["questions"])
        for cell in expand.in_order(expand.analysis(study))
        if cell.name.startswith("people-") and cell.stage == "generate"
    }
    assert json.loads(cell)["hub"] == "owner/people"
