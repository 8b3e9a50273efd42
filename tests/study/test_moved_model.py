"""A model folder that was moved, and another in its place: trainings follow the study file."""

import json
import shutil
from pathlib import Path

import pytest

from core.cell import manifest as manifests
from core.cell.identity import Cell, create_cell_dir, read_config
from core.cell.manifest import check_inputs
from core.cell.run import run_cell
from core.errors import UserError
from recipes import tiny_llama
from study.commands.common import unfinished, unlink_moved
from study.spec import expand
from study.spec.fingerprints import fingerprint_once
from study.spec.load import load_study
from tests.place import SMALL


@pytest.fixture(autouse=True)
def cheap(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(manifests, "code_version", lambda: {"commit": None, "dirty": None})
    # These folders hold no model.
    monkeypatch.setattr(tiny_llama, "check_start_model", lambda *_, **__: None)


def model_of(path: Path) -> Cell:
    """The cell of the study's model, as a new process plans it."""
    fingerprint_once.cache_clear()
    override = f"models.base={json.dumps({'path': str(path)})}"
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
def test_a_moved_model_is_linked_anew_and_another_in_its_place_is_another(
    tmp_path: Path, here: Path
) -> None:
    base, there = tmp_path / "runs/s", tmp_path / "there"
    first = model_of(here)
    run_cell(create_cell_dir(first, base))
    here.rename(there)
    shutil.copytree(there, here)
    (here / "w.safetensors").write_text("another")

    other = model_of(here)
    assert other.identity != first.identity, "another model"
    user = Cell("midtrain", "m", {}, {"start": first})
    folder = create_cell_dir(user, base)
    with pytest.raises(UserError, match=r"w.safetensors: "):
        check_inputs(folder, read_config(folder))

    moved = model_of(there)
    assert moved.identity == first.identity, "only the path is new"
    unlink_moved([moved], base)
    assert unfinished([moved], base) == [moved]
    run_cell(create_cell_dir(moved, base))
    (start,) = check_inputs(folder, read_config(folder)).values()
    assert (start / "model/w.safetensors").samefile(there / "w.safetensors")
    unlink_moved([moved], base)
    assert unfinished([moved], base) == []


def test_weights_that_differ_in_one_byte_in_the_middle_are_another_model(here: Path) -> None:
    (here / "w.safetensors").write_bytes(b"w" * 2**24)
    first = model_of(here)
    with open(here / "w.safetensors", "r+b") as file:
        file.seek(2**23 + 40_000)
        file.write(b"x")
    assert model_of(here).identity != first.identity


def test_a_second_download_of_a_model_is_the_same_model(here: Path) -> None:
    first = model_of(here)
    (here / "README.md").write_text("newer")
    record = here / ".cache/huggingface/download/config.json.metadata"
    record.parent.mkdir(parents=True)
    record.write_text("1795000000.0")
    assert model_of(here).identity == first.identity


def test_a_chat_template_is_no_part_of_a_model_but_of_what_reads_it(here: Path) -> None:
    template = {"chat_template": "recipes/data/llama3_chat.jinja"}

    def identities(**model: str) -> dict[str, set[str]]:
        override = f"models.base={json.dumps({'path': str(here), **model})}"
        cells = expand.in_order(expand.analysis(load_study(SMALL, None, [override])))
        return {
            stage: {cell.identity for cell in cells if cell.stage == stage}
            for stage in ("model", "midtrain", "sft")
        }

    without, given = identities(), identities(**template)
    assert without["model"] == given["model"] and without["midtrain"] == given["midtrain"]
    assert not without["sft"] & given["sft"]
