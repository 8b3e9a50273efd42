"""A finished cell is found by stage and identity in any study of the runs folder."""

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from core.cell import local_executor, manifest
from core.cell import run as running
from core.cell.identity import Cell, create_cell_dir, read_config
from core.cell.lookup import RunsIndex, input_folder
from core.cell.manifest import check_inputs, read_manifest, write_manifest
from core.errors import UserError
from core.paths import ROOT

CORPUS = Cell("documents", "animal", {"documents": 3})


@pytest.fixture(autouse=True)
def cheap(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(manifest, "code_version", dict)  # git is a process


def finish(cell: Cell, base: Path) -> Path:
    folder = create_cell_dir(cell, base)
    (folder / "out.txt").write_text(cell.name)
    write_manifest(folder, read_config(folder), "", "", counts={}, warnings=[])
    return folder


def with_folder(cell: Cell, base: Path) -> Cell:
    return replace(cell, folder=RunsIndex(base).folder_of(cell))


def test_a_finished_cell_is_found_under_any_name_and_in_any_study(tmp_path: Path) -> None:
    base, other = tmp_path / "runs/mine", tmp_path / "runs/other"
    beasts = replace(CORPUS, name="beasts")
    assert with_folder(beasts, base).relpath == f"documents/beasts-{CORPUS.identity[:8]}"
    made = finish(CORPUS, other)
    # The study's own folder need not be there.
    assert base / with_folder(beasts, base).relpath == made
    mine = finish(CORPUS, base)
    assert with_folder(beasts, base).relpath == f"documents/{mine.name}"
    another = with_folder(replace(CORPUS, settings={"documents": 4}), base)
    assert another.folder == ""


def test_a_broken_or_foreign_manifest_of_another_study_is_no_result(tmp_path: Path) -> None:
    base, other = tmp_path / "runs/mine", tmp_path / "runs/other"
    path = finish(CORPUS, other) / "manifest.json"
    record = json.loads(path.read_text())
    for text in (
        path.read_text()[:-30],
        "[]",
        json.dumps(record | {"identity": CORPUS.identity[:8] + "0" * 56}),
    ):
        path.write_text(text)
        assert with_folder(CORPUS, base).folder == ""


def test_a_begun_cell_of_this_study_is_continued_under_its_first_name(tmp_path: Path) -> None:
    base = tmp_path / "runs/mine"
    begun = create_cell_dir(CORPUS, base)
    create_cell_dir(CORPUS, tmp_path / "runs/other")  # of another study it is left alone
    beasts = with_folder(replace(CORPUS, name="beasts"), base)
    assert base / beasts.relpath == begun
    assert create_cell_dir(beasts, base) == begun
    assert read_config(begun)["name"] == "beasts"


def test_the_record_of_a_finished_cell_keeps_the_names_that_it_was_made_under(
    tmp_path: Path,
) -> None:
    base = tmp_path / "runs/mine"
    folder = finish(CORPUS, base)
    before = (folder / "config.yaml").read_bytes()
    create_cell_dir(with_folder(replace(CORPUS, name="beasts"), base), base)
    assert (folder / "config.yaml").read_bytes() == before


def test_an_input_of_another_study_is_read_and_recorded_from_there(tmp_path: Path) -> None:
    base, other = tmp_path / "runs/mine", tmp_path / "runs/other"
    made = finish(CORPUS, other)
    user = Cell("midtrain", "m", {}, {"documents": with_folder(CORPUS, base)})
    folder = finish(user, base)
    record = read_manifest(folder)
    recorded = f"../other/documents/{made.name}"
    assert record and record["inputs"]["documents"]["cell"] == recorded
    config = read_config(folder)
    assert config["inputs"]["documents"]["cell"] == recorded
    assert check_inputs(folder, config) == {"documents": made}
    # Whole runs folders and studies are moved.
    (tmp_path / "runs").rename(tmp_path / "moved")
    (tmp_path / "moved/other").rename(tmp_path / "moved/third")
    folder = tmp_path / "moved/mine/midtrain" / folder.name
    assert check_inputs(folder, read_config(folder)) == {
        "documents": tmp_path / "moved/third/documents" / made.name
    }
    shutil.rmtree(tmp_path / "moved/third")
    with pytest.raises(UserError, match="which is not finished"):
        check_inputs(folder, read_config(folder))


def test_an_input_that_another_study_has_finished_since_the_plan_is_read_there(
    tmp_path: Path,
) -> None:
    base = tmp_path / "runs/mine"
    folder = create_cell_dir(Cell("midtrain", "m", {}, {"documents": CORPUS}), base)
    create_cell_dir(CORPUS, base)
    made = finish(replace(CORPUS, name="beasts"), tmp_path / "runs/other")
    config = read_config(folder)
    assert check_inputs(folder, config) == {"documents": made}
    assert input_folder(base, config["inputs"]["documents"]) == made
    write_manifest(folder, config, "", "", counts={}, warnings=[])
    record = read_manifest(folder)
    assert record and record["inputs"]["documents"]["cell"] == (f"../other/documents/{made.name}")


def test_a_cell_that_another_study_has_finished_since_the_plan_is_not_run_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = tmp_path / "runs/mine"
    folder = create_cell_dir(CORPUS, base)
    finish(replace(CORPUS, name="beasts"), tmp_path / "runs/other")

    def never(*_: Any) -> None:
        raise AssertionError("it ran")

    monkeypatch.setattr(running, "_import_stage", never)
    running.run_cell(folder)
    assert not read_manifest(folder)
    # The local executor takes it as finished.
    events: list[str] = []
    with monkeypatch.context() as patch:
        patch.setattr(local_executor, "ForkServer", Ended)
        failures = local_executor.run(
            [CORPUS], base, 1, lambda event, cell, facts: events.append(event)
        )
    assert (failures, events) == ([], ["started", "finished"])


@pytest.mark.multiprocess
def test_two_studies_that_start_one_cell_at_once_make_it_once(tmp_path: Path) -> None:
    """Each process appends to one file when its stage runs; the first goes slowly."""
    code = """
import sys, time
from pathlib import Path
from types import SimpleNamespace
from core.cell import run
def stage(context):
    with open(sys.argv[2], "a") as file:
        file.write("ran\\n")
    time.sleep(1)
    return {}
run._import_stage = lambda config: SimpleNamespace(run=stage, RESUMABLE=False)
run.run_cell(Path(sys.argv[1]))
"""
    ran = tmp_path / "ran"
    folders = [create_cell_dir(CORPUS, tmp_path / "runs" / name) for name in ("one", "two")]
    processes = [
        subprocess.Popen([sys.executable, "-c", code, str(folder), str(ran)], cwd=ROOT)
        for folder in folders
    ]
    assert [process.wait(120) for process in processes] == [0, 0]
    assert ran.read_text() == "ran\n"
    assert sum(bool(read_manifest(folder)) for folder in folders) == 1


class Ended:
    """A fork server whose processes are over at once."""

    def __init__(self, *_: Any) -> None:
        self.process = self

    def start(self, *_: Any) -> "Ended":
        return self

    def poll(self) -> int:
        return 0

    def wait(self) -> int:
        return 0

    def close(self) -> None:
        pass
