"""Grades by people belong to the answers that they read, whatever the arm is called."""

from pathlib import Path

import pandas as pd
import pytest

from analysis.settings import ScoreFile
from analysis.table import long_table, unused_labels


def scores(folder: Path, judge: str, **more: object) -> Path:
    folder.mkdir()
    facts = {"question": "q", "scenario": "q", "dimension": "overall", "epoch": 1, "judge": judge}
    rows = [facts | {"score": 1.0, "missing": None, "response": "q/1"} | more]
    pd.DataFrame(rows).to_parquet(folder / "scores.parquet")
    return folder


@pytest.fixture
def inputs(tmp_path: Path) -> dict[str, Path]:
    """A judge's scores of one checkpoint, and a person's grade of its answers `first`."""
    return {
        "judge": scores(tmp_path / "judge", "judge"),
        "people": scores(tmp_path / "people", "human", answers="first"),
    }


def file(arm: str, answers: str, benchmark: str = "ahb") -> ScoreFile:
    return ScoreFile("judge", arm, 0, 0, benchmark, "checkpoint", answers)


@pytest.mark.parametrize("arm", ["urban", "city"])
def test_a_renamed_arm_keeps_its_grades(inputs: dict[str, Path], arm: str) -> None:
    files, labels = [file(arm, "first")], {"people": "ahb"}
    table = long_table(files, inputs, labels)
    assert sorted(table["judge"]) == ["human", "judge"] and set(table["arm"]) == {arm}
    assert unused_labels(files, inputs, labels) == []


def test_a_renamed_benchmark_keeps_its_grades(inputs: dict[str, Path]) -> None:
    files = [file("urban", "first", "anima"), file("urban", "first", "another")]
    table = long_table(files, inputs, {"people": "anima"})
    assert table.loc[table["judge"] == "human", "benchmark"].tolist() == ["anima"]


def test_grades_of_other_answers_are_left_out_and_counted(inputs: dict[str, Path]) -> None:
    files, labels = [file("urban", "second")], {"people": "ahb"}
    assert long_table(files, inputs, labels)["judge"].tolist() == ["judge"]
    (note,) = unused_labels(files, inputs, labels)
    assert note.startswith("ahb: 1 of 1 grades by people are of answers that")
