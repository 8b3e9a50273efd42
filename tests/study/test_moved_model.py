"""A model folder that was moved, and another in its place: trainings follow the study file."""

import json
import shutil
from pathlib import Path

import pytest

from core.cell import manifest as manifests
from core.cell.identity import Cell, create_cell_dir, read_config
from core.cell.manifest import check_inputs, read_manifest
from core.cell.run import run_cell
from core.errors import UserError
from study.commands.common import unfinished, unlink_moved
from study.spec import expand
from study.spec.fingerprints import fingerprint_once
from study.spec.load import load_study
from tests.place import SMALL


@pytest.fixture(autouse=True)
def cheap(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(manifests, "code_version", lambda: {"commit": None, "dirty": None})


def model_of(path: Path, **model: str) -> Cell:
    """The cell of the study's model, as a new process plans it."""
    fingerprint_once.cache_clear()
    override = f"models.base={json.dumps({'path': str(path), **model})}"
    last = expand.analysis(load_study(SMALL, None, [override]))
    (cell,) = [cell for cell in expand.in_order(last) if cell.stage == "model"]
    return cell


@pytest.fixture
def here(tmp_path: Path) -> Path:
    folder = tmp_path / "here"
    folder.mkdir()
    for name, text in {"config.json": "{}", "tokenizer.json": "{}", "w.safetensors": "w"}.items():
        (folder / name).write_text(text)
    return folder


@pytest.mark.multiprocess
@pytest.mark.parametrize("model", [{}, {"chat_template": "recipes/data/llama3_chat.jinja"}])
def test_a_moved_model_is_linked_anew_and_another_in_its_place_is_another(
    tmp_path: Path, here: Path, model: dict[str, str]
) -> None:
    base, there = tmp_path / "runs/s", tmp_path / "there"
    first = model_of(here, **model)
    run_cell(create_cell_dir(first, base))
    here.rename(there)
    shutil.copytree(there, here)
    (here / "w.safetensors").write_text("another")

    other = model_of(here, **model)
    assert other.identity != first.identity, "another model"
    user = Cell("midtrain", "m", {}, {"start": first})
    folder = create_cell_dir(user, base)
    with pytest.raises(UserError, match=r"w.safetensors: "):
        check_inputs(folder, read_config(folder))

    moved = model_of(there, **model)
    assert moved.identity == first.identity, "only the path is new"
    unlink_moved([moved], base)
    assert unfinished([moved], base) == [moved]
    run_cell(create_cell_dir(moved, base))
    (start,) = check_inputs(folder, read_config(folder)).values()
    assert (start / "model/w.safetensors").samefile(there / "w.safetensors")
    unlink_moved([moved], base)
    assert unfinished([moved], base) == []


@pytest.mark.multiprocess
def test_a_model_that_only_its_middle_tells_from_the_former_is_no_moved_one(
    tmp_path: Path, here: Path
) -> None:
    base, there = tmp_path / "runs/s", tmp_path / "there"
    (here / "w.safetensors").write_bytes(b"w" * 2**24)
    run_cell(create_cell_dir(model_of(here), base))
    shutil.copytree(here, there)
    with open(there / "w.safetensors", "r+b") as file:
        file.seek(2**23 + 40_000)
        file.write(b"x")
    moved = model_of(there)
    with pytest.raises(UserError, match=f"{there}/w.safetensors: changed since"):
        unlink_moved([moved], base)
    assert read_manifest(base / moved.relpath)
