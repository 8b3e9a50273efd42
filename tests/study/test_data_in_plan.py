"""`plan` refuses data as the cell that reads it would."""

import json
from pathlib import Path
from typing import Any

import pytest

from core.errors import UserError
from core.paths import ROOT
from sdf.source_rows import local_rows, read_column
from study.forecast import training_size
from study.spec import source_cells
from study.spec.expand import analysis, in_order
from study.spec.load import load_study

SMALL = ROOT / "tests/small/small.yaml"
TALK = {"prompt": "Where is the cup?", "response": "On the roof."}


def written(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def sft_steps(*overrides: str) -> tuple[int, int] | None:
    cells = in_order(analysis(load_study(SMALL, None, list(overrides))))
    return training_size.count_steps(next(cell for cell in cells if cell.stage == "sft"))


def test_instruction_data_with_too_many_bad_rows_is_refused(tmp_path: Path) -> None:
    few = written(tmp_path / "few.jsonl", [TALK] * 99 + [TALK | {"response": ""}])
    assert sft_steps(f"sft.data={few}") == sft_steps()[:1] + sft_steps(f"sft.data={few}")[1:]
    many = written(tmp_path / "many.jsonl", [TALK] * 98 + [TALK | {"response": ""}] * 2)
    with pytest.raises(UserError, match="2 of 100 rows can't be used, more than the recipe's"):
        sft_steps(f"sft.data={many}")
    short = written(tmp_path / "short.jsonl", [TALK] * 79 + [TALK | {"response": ""}])
    with pytest.raises(UserError, match="1 of 80 rows can't be used"):
        sft_steps(f"sft.data={short}")
    short = written(tmp_path / "shorter.jsonl", [TALK] * 79)
    with pytest.raises(UserError, match="has 79 rows, the dose is 80"):
        sft_steps(f"sft.data={short}")


def test_a_corpus_without_texts_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = written(tmp_path / "numbers.jsonl", [{"text": n} for n in range(9)])
    study = load_study(
        SMALL,
        None,
        [f"corpora.animal={{path: {path}, documents: 5}}", "corpora.urban.matched_to=null"],
    )
    with pytest.raises(UserError) as planned:
        analysis(study)
    with pytest.raises(UserError) as in_cell:
        read_column(local_rows(path), "text", str(path))
    assert planned.value.problems == in_cell.value.problems
    assert planned.value.problems[0].what == "column 'text' holds no text (9 x number)"
    source_cells._check_texts.cache_clear()
    monkeypatch.setattr(source_cells, "LARGE", 9)
    analysis(study)  # a large file is not read
