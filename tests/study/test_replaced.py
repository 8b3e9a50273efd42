"""A changed study says which finished cells it no longer uses, and asks before it makes them again."""

import argparse
import json
from pathlib import Path
from typing import Any

import pytest

from core.cell.identity import Cell, create_cell_dir, read_config
from core.cell.manifest import write_manifest
from core.errors import UserError
from core.paths import ROOT
from study.cli import main
from study.commands.common import check_before_start
from study.spec.expand import analysis, in_order
from study.spec.load import load_study
from study.upkeep.replaced import replaced

pytestmark = pytest.mark.multiprocess  # manifests ask git for the commit

SMALL = ROOT / "tests/small/small.yaml"


def cells_of(*overrides: str, seeds: list[int] | None = None) -> list[Cell]:
    return in_order(analysis(load_study(SMALL, seeds, list(overrides))))


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """A folder in which every cell of the small study is finished: an hour and 0.5 each."""
    base = tmp_path / "runs/small"
    for cell in cells_of():
        folder = create_cell_dir(cell, base)
        counts: dict[str, Any] = {"steps": 7, "tokens": 7}
        counts |= {"cost": 0.5, "calls": 1} if cell.stage == "documents" else {}
        start, end = "2026-01-01T00:00:00Z", "2026-01-01T01:00:00Z"
        write_manifest(folder, read_config(folder), start, end, counts=counts, warnings=[])
    return base


def test_a_finished_study_replaces_nothing_and_neither_do_more_seeds(base: Path) -> None:
    assert not replaced(cells_of(), base)
    assert not replaced(cells_of(seeds=[0, 1, 2, 7]), base)


def test_the_settings_that_differ_are_named_and_what_the_cells_took(base: Path) -> None:
    rows = replaced(cells_of("corpora.animal.temperature=0.5"), base)
    (documents,) = (row for row in rows if row.settings)
    assert (documents.cell.stage, documents.cell.name) == ("documents", "animal")
    assert documents.settings == ("temperature",) and documents.inputs == ()
    assert (documents.cost, documents.hours) == (0.5, 1.0)
    assert (base / documents.former / "manifest.json").exists()
    trainings = [row for row in rows if row.cell.stage == "midtrain"]
    assert ("documents animal",) in [row.inputs for row in trainings]
    assert "analysis" not in {row.cell.stage for row in rows}


def test_nested_settings_are_named_with_dots(base: Path) -> None:
    rows = replaced(cells_of("benchmarks.ahb.temperature=0.25"), base)
    assert {row.settings for row in rows if row.cell.stage == "generate"} == {
        ("sampling.temperature",)
    }


def test_a_cell_that_the_study_still_uses_is_not_replaced(base: Path) -> None:
    swapped = ["arms.animal.midtrain=urban", "arms.urban.midtrain=animal"]
    assert not replaced(cells_of(*swapped), base)


def test_a_renamed_cell_with_other_settings_is_replaced_too(base: Path, tmp_path: Path) -> None:
    path = tmp_path / "renamed.yaml"
    path.write_text(SMALL.read_text().replace("ahb", "anima_x"))
    assert not replaced(in_order(analysis(load_study(path))), base), "a name is a label"
    change = ["benchmarks.anima_x.temperature=0.25"]
    rows = replaced(in_order(analysis(load_study(path, None, change))), base)
    answers = [row for row in rows if row.cell.stage == "generate"]
    assert len(answers) == len({row.former for row in answers}) == 4
    assert {row.settings for row in answers} == {("sampling.temperature",)}
    assert all("generate/ahb-" in row.former for row in answers)


def test_plan_lists_them(base: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["plan", str(SMALL), "--runs", str(base.parent)]
    words += ["--set", "corpora.animal.temperature=0.5"]
    assert main([*words, "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["replaced"]
    assert ["temperature"] in [row["settings"] for row in rows]
    assert main(words) == 0
    assert "finished with other settings" in capsys.readouterr().out


def test_run_asks_before_it_makes_dear_cells_again(base: Path) -> None:
    overrides = ["corpora.animal.temperature=0.5", "corpora.urban.temperature=0.5"]
    study = load_study(SMALL, None, overrides)
    cells = in_order(analysis(study))
    folder = base / replaced(cells, base)[0].former
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["counts"]["cost"] = 40.0
    (folder / "manifest.json").write_text(json.dumps(manifest))
    args = argparse.Namespace(
        study=SMALL, seeds=None, overrides=overrides, runs=base.parent, budget=[], yes=False
    )
    with pytest.raises(UserError) as caught:
        check_before_start(args, study, base, cells, cells)
    *causes, total = caught.value.problems
    assert {problem.where for problem in causes} == {"documents animal", "documents urban"}
    assert "40" in total.what and "--yes" in total.fix
    args.yes = True
    check_before_start(args, study, base, cells, cells)
