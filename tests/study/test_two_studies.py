"""Two studies of one runs folder, of which the second uses what the first has made."""

import json
import shutil
import tarfile
from dataclasses import replace
from pathlib import Path

import pytest

from core.cell.identity import Cell, create_cell_dir, read_config
from core.cell.lookup import RunsIndex
from core.cell.manifest import read_manifest, write_manifest
from core.cell.publish import publish, results
from study.spec.expand import in_order
from study.upkeep.archive import archive
from study.upkeep.changes import find_changes
from study.upkeep.provenance import lineage
from study.upkeep.prune import plan, prune
from tests.study.finished import STUDY, Small, cheap, finish, original, small

__all__ = ["cheap", "original", "small"]  # fixtures


def with_folder(cell: Cell, index: RunsIndex) -> Cell:
    inputs = {role: with_folder(used, index) for role, used in cell.inputs.items()}
    return replace(cell, inputs=inputs, folder=index.folder_of(cell))


@pytest.fixture
def second(small: Small) -> Small:
    """A study with the same cells, whose analysis alone is its own."""
    base = small.base.with_name("second")
    last = replace(small.last, name="second", settings=small.last.settings | {"study": "second"})
    last = with_folder(last, RunsIndex(base))
    cells = in_order(last)
    todo = [cell for cell in cells if not read_manifest(base / cell.relpath)]
    assert todo == [last]
    finish(base, last)
    publish(base / last.relpath)
    return replace(small, base=base, last=last, cells=cells)


def changes(study: Small) -> list[dict[str, str]]:
    rows = lineage(study.base / study.last.relpath, study.base)
    assert len(rows) == len(study.cells)
    return find_changes(rows, study.base, STUDY)


def test_verify_follows_the_results_into_the_other_study(small: Small, second: Small) -> None:
    assert changes(second) == []
    path = small.folder("documents/animal") / "documents.jsonl"
    path.write_text(path.read_text().upper())
    (change,) = changes(second)
    assert change["cell"] == f"../small/{path.parent.relative_to(small.base)}"
    assert change["consequence"].startswith("scores 2 of 4")


def test_prune_leaves_what_another_study_uses(small: Small, second: Small) -> None:
    # The first study's file names its analysis alone now, and it has no results.
    shutil.rmtree(results(small.base))
    orphan = create_cell_dir(Cell("generate", "old", {}), small.base)
    gone = [small.last]
    rows = plan(gone, small.base, STUDY)
    kept = {row["cell"] for row in rows if not row["go"] and "second uses it" in row["why"]}
    assert kept == {cell.relpath for cell in small.cells if cell is not small.last}
    prune(rows, gone, small.base, STUDY, others=True)
    assert not orphan.exists() and changes(second) == []
    # Where the other study is gone, they go.
    shutil.rmtree(second.base)
    prune(plan(gone, small.base, STUDY), gone, small.base, STUDY, others=True)
    assert not (small.base / small.cells[0].relpath).exists()


def test_prune_keeps_weights_that_a_cell_of_another_study_waits_for(
    small: Small, second: Small
) -> None:
    sft = next(cell for cell in second.cells if cell.stage == "sft")
    waiting = Cell("generate", "more", {"n": 1}, {"checkpoint": sft})
    folder = create_cell_dir(waiting, second.base)
    assert read_config(folder)["inputs"]["checkpoint"]["cell"].startswith("../small/sft/")
    weights = {
        row["cell"]: row["go"]
        for row in plan(small.cells, small.base, STUDY)
        if row["kind"] == "weights"
    }
    mine = Path(sft.folder).relative_to(small.base).as_posix()
    assert [cell for cell, go in weights.items() if not go] == [mine]
    # Nor does it wait any longer once a third study has finished it.
    write_manifest(
        twin := create_cell_dir(waiting, second.base.with_name("third")),
        read_config(twin),
        "",
        "",
        counts={},
        warnings=[],
    )
    assert mine in {
        row["cell"]
        for row in plan(small.cells, small.base, STUDY)
        if row["kind"] == "weights" and row["go"]
    }


def test_prune_removes_nothing_of_another_study(small: Small, second: Small) -> None:
    rows = plan(second.cells, second.base, STUDY)
    assert {row["cell"] for row in rows} == {second.last.relpath}


@pytest.mark.multiprocess
def test_an_archive_holds_the_cells_of_the_other_study(second: Small, tmp_path: Path) -> None:
    file = tmp_path / "second.yaml"
    file.write_text("study: second\n")
    packed = tmp_path / "second.tar.gz"
    facts = archive(file, second.base, results(second.base), packed)
    assert facts["cells"] == len(second.cells)
    with tarfile.open(packed) as archived:
        names = archived.getnames()
        archived.extractall(tmp_path / "unpacked")  # extractall(filter=) came with Python 3.11.4
    assert not [name for name in names if ".." in name]
    cells = tmp_path / "unpacked/second/cells"
    for cell in second.cells:
        folder = cells / cell.stage / Path(cell.relpath).name
        manifest = json.loads((folder / "manifest.json").read_text())
        assert manifest["identity"] == cell.identity
