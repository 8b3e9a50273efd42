"""The canary of the judges: its answers, its cells, and that they are judged anew in each study."""

import json
from collections import Counter
from pathlib import Path

import pandas as pd
import pytest

from core.cell.identity import Cell, create_cell_dir
from core.cell.manifest import read_manifest
from core.errors import UserError
from core.paths import ROOT
from eval import anima
from eval.canary import read_answers
from study.cli import main
from study.forecast.assumptions import CANARY_GRADES
from study.forecast.cell_cost import estimates
from study.spec import expand
from study.spec.canary import FILES
from study.spec.load import load_study

TINY = ROOT / "studies/tiny.yaml"
ANSWERS = ROOT / str(FILES["questions"]["path"])
PATHS = {name: ROOT / str(source["path"]) for name, source in FILES.items()}


def cells(*overrides: str) -> dict[str, Cell]:
    study = load_study(TINY, None, list(overrides))
    in_order = expand.in_order(expand.analysis(study))
    return {f"{cell.stage}/{cell.name}": cell for cell in in_order}


def test_every_dimension_has_answers_of_either_grade() -> None:
    question_set = anima.read(PATHS)
    rows = read_answers(ANSWERS, question_set)
    assert len(rows) == 26 and len({row["answer"] for row in rows.values()}) == 26
    counts = Counter(
        (name, grade) for row in rows.values() for name, grade in row["grades"].items()
    )
    names = {row["dimension"] for row in question_set.dimensions}
    assert len(names) == 13 and {name for name, _ in counts} == names
    assert all(counts[name, grade] >= 2 for name in names for grade in (0, 1))
    assert anima.num_judge_calls(question_set) == counts.total() == CANARY_GRADES


def test_answers_without_their_grades_are_refused(tmp_path: Path) -> None:
    rows = [json.loads(line) for line in ANSWERS.read_text().splitlines()]
    del rows[0]["grades"]["Actionability"]
    rows[1]["grades"]["Moral Consideration"] = 2
    rows[2]["answer"] = " "
    path = tmp_path / "answers.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(UserError) as error:
        read_answers(path, anima.read(PATHS | {"questions": path}))
    assert len(error.value.lines) == 3 and "'lobsters-1' lacks grades" in error.value.lines[0]


def test_no_cell_but_the_analysis_becomes_new() -> None:
    before, after = cells(), cells("canary=true")
    changed = {name for name, cell in after.items() if name not in before
               or before[name].identity != cell.identity}  # fmt: skip
    assert changed == {"canary/dummy", "analysis/tiny"}
    same, renamed = cells("canary=true"), cells("canary=true", "study=later")
    assert same["canary/dummy"].identity == after["canary/dummy"].identity
    assert renamed["canary/dummy"].identity != after["canary/dummy"].identity
    assert renamed["generate/ahb-base"].identity == after["generate/ahb-base"].identity


def test_each_judge_has_a_cell_and_a_study_without_judges_is_refused() -> None:
    other = "endpoints.other={base_url: 'https://x.org/v1', model: strict, key_env: KEY}"
    names = {name for name in cells("canary=true", other, "benchmarks.ahb.other_judges=[other]")
             if name.startswith("canary/")}  # fmt: skip
    assert names == {"canary/dummy", "canary/other"}
    study = load_study(ROOT / "tests/small/small.yaml", None, [
        "canary=true", "benchmarks={concern: {task: concern_for_animals}}", "contrasts=[]",
    ])  # fmt: skip
    with pytest.raises(UserError, match="canary: no benchmark of the study has a judge"):
        expand.analysis(study)


def test_the_forecast_counts_its_grades(tmp_path: Path) -> None:
    made = cells("canary=true")
    amounts = estimates([*made.values()], tmp_path, {})[made["canary/dummy"].identity]
    assert amounts["calls"] == CANARY_GRADES and amounts["gpu_hours"] == 0


@pytest.mark.multiprocess
def test_the_dummy_grades_it_and_anew_in_another_study(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("first", "later"):
        cell = cells("canary=true", f"study={name}")["canary/dummy"]
        folder = create_cell_dir(cell, tmp_path / name)
        assert main(["cell", str(folder)]) == 0, capsys.readouterr().err
        manifest = read_manifest(folder)
        assert manifest is not None
        counts = manifest["counts"]
        assert (counts["grades"], counts["missing_grades"]) == (CANARY_GRADES, 0)
        assert (counts["paid_calls"], counts["calls_reused"]) == (CANARY_GRADES, 0), name
        table = pd.read_parquet(folder / "scores.parquet")
        assert len(table) == CANARY_GRADES and set(table["published"]) == {0.0, 1.0}
        assert counts["agreeing"] == (table["score"] == table["published"]).sum()
        rows = {row["id"]: row for row in map(json.loads, ANSWERS.read_text().splitlines())}
        assert all(
            rows[question]["grades"][dimension] == published
            for question, dimension, published in zip(
                table["question"], table["dimension"], table["published"], strict=True
            )
        )
