"""The plan behind status.html, and the page that `status --watch` writes."""

import json
from pathlib import Path

import pytest

from core.cell.status_page import PAGE, PLAN
from study.cli import main
from study.commands.status_plan import start_page
from study.spec import expand
from study.spec.load import load_study
from tests.place import SMALL

pytestmark = pytest.mark.multiprocess  # git, squeue


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """The folder of the small study, with its plan."""
    base = tmp_path / "runs/small"
    study = load_study(SMALL)
    start_page(expand.in_order(expand.analysis(study, base)), base)
    return base


def test_the_plan_names_cells_forecasts_and_scores(base: Path) -> None:
    cells = json.loads((base / PLAN).read_text())["cells"]
    assert len(cells) == len({cell["identity"] for cell in cells}) == 24
    assert all(cell["forecast"]["hours"] > 0 for cell in cells if cell["stage"] == "midtrain")
    scored = [(cell["arm"], cell["benchmark"], cell["dose"]) for cell in cells if "arm" in cell]
    assert len(scored) == len({*scored}) == 8 and ("animal", "ahb", 80) in scored
    assert {cell["stage"] for cell in cells if "arm" in cell} == {"judge", "likelihood"}
    assert "0 of 24 cells done" in (base / PAGE).read_text()


def test_watch_writes_the_page_and_a_single_look_does_not(base: Path) -> None:
    words = ["status", str(SMALL), "--runs", str(base.parent)]
    (base / PAGE).unlink()
    assert main(words) == 0 and not (base / PAGE).exists()
    assert main([*words, "--watch", "1"]) == 0  # nothing goes on: it ends
    assert "0 of 24 cells done" in (base / PAGE).read_text()
