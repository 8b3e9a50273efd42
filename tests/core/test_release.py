"""Weights that a study does not keep go once the last cell that reads them is finished."""

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest

from core.cell.identity import Cell, create_cell_dir, read_config
from core.cell.manifest import READERS, read_manifest, write_manifest
from core.cell.release import RECORD, is_read, register_readers, release, release_inputs
from core.files import locked

pytestmark = pytest.mark.multiprocess  # a manifest asks git

RELEASE = {"release": ["checkpoint"]}
NOW = "2026-01-01T00:00:00Z"


def finish(cell: Cell, base: Path, *files: str) -> Path:
    """Finish a cell with these files, as `run_cell` does."""
    folder = create_cell_dir(cell, base)
    for name in files:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name)
    config = read_config(folder)
    counts = {"steps": 1, "tokens": 1}
    write_manifest(folder, config, NOW, NOW, counts=counts, warnings=[])
    release_inputs(folder, config)
    return folder


WEIGHTS = ("model/model.safetensors", "model/config.json", "doses/80/model/model.safetensors")
TRAINING = Cell("midtrain", "t", {"n": 1})
FIRST, SECOND = (
    Cell("generate", name, {"n": name}, {"checkpoint": TRAINING}, RELEASE) for name in "ab"
)


def weights(folder: Path) -> list[str]:
    return [name for name in WEIGHTS if (folder / name).exists()]


def test_they_go_with_the_last_reader_and_the_manifest_stays(tmp_path: Path) -> None:
    base = tmp_path / "runs/s"
    for _ in range(2):  # submitted twice; the second reader has no folder yet
        register_readers([TRAINING, FIRST, SECOND], base)
    checkpoint = finish(TRAINING, base, *WEIGHTS, "metrics.jsonl")
    assert len((checkpoint / READERS).read_text().splitlines()) == 2
    before = read_manifest(checkpoint)
    assert before and READERS not in before["outputs"]
    finish(FIRST, base)
    assert weights(checkpoint) == [*WEIGHTS], "the other still reads them"
    finish(SECOND, base)
    assert not weights(checkpoint) and not (checkpoint / "model").exists()
    assert (checkpoint / "metrics.jsonl").exists() and read_manifest(checkpoint) == before
    record = json.loads((checkpoint / RECORD).read_text())["files"]
    assert {name: row["sha256"] for name, row in record.items()} == {
        name: before["outputs"][name]["sha256"] for name in WEIGHTS
    }


def test_they_stay_where_the_study_keeps_them(tmp_path: Path) -> None:
    base = tmp_path / "runs/s"
    checkpoint = finish(TRAINING, base, *WEIGHTS)
    finish(replace(FIRST, resources={}), base)
    assert weights(checkpoint) == [*WEIGHTS]


def test_they_stay_for_a_reader_of_another_plan_and_go_without_its_folder(tmp_path: Path) -> None:
    base = tmp_path / "runs/s"
    checkpoint = finish(TRAINING, base, *WEIGHTS)
    later = Cell("likelihood", "later", {"n": 3}, {"checkpoint": in_study(base)})
    other = create_cell_dir(later, base.parent / "o")
    register_readers([later], base.parent / "o")
    register_readers([FIRST], base)
    finish(FIRST, base)
    assert weights(checkpoint) == [*WEIGHTS] and is_read(checkpoint), "a cell of another study"
    for path in other.iterdir():
        path.unlink()
    register_readers([SECOND], base)  # this forgets a reader that is gone
    finish(SECOND, base)
    assert not weights(checkpoint)


def in_study(base: Path) -> Cell:
    """The training, as another study of the runs folder sees it."""
    return replace(TRAINING, folder=str(base / TRAINING.relpath))


def test_weights_of_another_study_stay(tmp_path: Path) -> None:
    base, other = tmp_path / "runs/s", tmp_path / "runs/o"
    checkpoint = finish(TRAINING, base, *WEIGHTS)
    finish(replace(FIRST, inputs={"checkpoint": in_study(base)}), other)
    assert weights(checkpoint) == [*WEIGHTS]


def test_a_longer_run_waits_for_the_readers_of_its_doses(tmp_path: Path) -> None:
    base = tmp_path / "runs/s"
    dose = Cell("sft", "d80", {"dose": 80}, {"run": TRAINING}, {"release": ["run"]})
    of_dose = replace(SECOND, inputs={"checkpoint": dose})
    register_readers([FIRST, dose, of_dose], base)
    checkpoint = finish(TRAINING, base, *WEIGHTS)
    link = create_cell_dir(dose, base) / "model"
    link.symlink_to(os.path.relpath(checkpoint / "doses/80/model", link.parent))
    finish(dose, base)
    finish(FIRST, base)
    assert weights(checkpoint) == [*WEIGHTS], "the dose's reader is not finished"
    finish(of_dose, base)
    assert not weights(checkpoint)


def test_a_process_that_holds_the_checkpoint_keeps_it(tmp_path: Path) -> None:
    base = tmp_path / "runs/s"
    checkpoint = finish(TRAINING, base, *WEIGHTS)
    with locked(checkpoint / ".lock"):
        finish(FIRST, base)
        assert weights(checkpoint) == [*WEIGHTS]
    assert release(checkpoint, base)
