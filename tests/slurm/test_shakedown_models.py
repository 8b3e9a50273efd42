"""What a shakedown says of exported models held one after another. The job itself runs in
test_shakedown.py's miniature."""

import json
from pathlib import Path
from typing import Any

import pytest

from core.cell.identity import Cell
from slurm.profile import Profile, Resources
from study.commands import shakedown_models
from study.commands.shakedown_models import models_rows

PROFILE = Profile({"default": Resources(10)})


def likelihoods(dtype: str) -> list[Cell]:
    return [
        Cell(
            "likelihood", name, {"engine": {"dtype": dtype}}, {"checkpoint": Cell("sft", name, {})}
        )
        for name in "ab"
    ]


def rows_of(base: Path, facts: dict[str, Any], dtype: str = "bfloat16") -> dict[str, Any]:
    cells = likelihoods(dtype)
    path = base / f"slurm/models-{cells[0].identity[:8]}-{cells[1].identity[:8]}.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(facts))
    rows = models_rows(cells, base, PROFILE, 0.0, lambda: None)
    return {row["what"]: row for row in rows}


@pytest.mark.parametrize(
    "difference, dtype, state",
    [
        (0.09, "bfloat16", "works"),
        (0.11, "bfloat16", "fails"),
        (0.004, "float32", "works"),
        (0.09, "float32", "fails"),
    ],
)
def test_likelihoods_differ_by_no_more_than_the_tolerance(
    difference: float, dtype: str, state: str, tmp_path: Path
) -> None:
    rows = rows_of(tmp_path, {"difference": difference, "held_gb": [0.5, 0.6]}, dtype)
    row = rows[shakedown_models.LIKELIHOODS]
    assert row["state"] == state and f"{difference:g} nats" in row["finding"]
    assert "2,040 tokens, tolerance" in row["finding"] and dtype in row["finding"]
    assert rows[shakedown_models.MEMORY]["state"] == "works"


def test_memory_that_stays_is_a_failure(tmp_path: Path) -> None:
    rows = rows_of(tmp_path, {"difference": 0.0, "held_gb": [0.5, 30.0]})
    row = rows[shakedown_models.MEMORY]
    assert row["state"] == "fails" and "30.0 GB after the second" in row["finding"]


def test_without_two_models_nothing_is_claimed(tmp_path: Path) -> None:
    rows = models_rows(likelihoods("float32")[:1], tmp_path, PROFILE, 0.0, lambda: None)
    assert [row["state"] for row in rows] == ["not run", "not run"]
