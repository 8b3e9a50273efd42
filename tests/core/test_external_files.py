"""Files from outside the runs folder: a change between plan, start and end of a cell is refused."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from core.cell import external_files, hash_cache
from core.cell import manifest as manifests
from core.cell import run as run_cell
from core.cell.context import StageContext
from core.cell.identity import Cell, create_cell_dir
from core.cell.manifest import read_manifest
from core.errors import UserError
from core.files import sha256

SIZE = 16 * 2**20
MIDDLE = SIZE // 2


@pytest.fixture(autouse=True)
def cheap(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(manifests, "code_version", lambda: {"commit": None, "dirty": None})
    monkeypatch.setattr(hash_cache, "LARGE", 2**20)


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    """A model folder."""
    folder = tmp_path / "llama"
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(b"w" * SIZE)
    return folder


def run(cell: Cell, base: Path, stage: Callable[[StageContext], Any] | None = None) -> Path:
    """Run a cell whose stage calls `stage`."""

    class Stage:
        RESUMABLE = True

        @staticmethod
        def run(context: StageContext) -> dict[str, int]:
            (context.folder / "out").write_text("made of it")
            (context.folder / "calls.jsonl").write_text("paid\n")
            if stage:
                stage(context)
            return {}

    folder = create_cell_dir(cell, base)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run_cell, "_import_stage", lambda config: Stage)
        run_cell.run_cell(folder)
    return folder


def reading(path: Path, planned: Any) -> Cell:
    return Cell("sft", "x", {"files": {"data": planned}}, {}, {"files": {"data": str(path)}})


def linking(path: Path) -> Cell:
    planned = {"files": {"model": external_files.digests(path, path.parent)}}
    return Cell("model", "base", planned, {}, {"files": {"model": str(path)}})


def overwrite_middle(folder: Path) -> None:
    """Other weights of the same size with the same ends, and the former time of change."""
    file = folder / "model.safetensors"
    status = file.stat()
    with open(file, "r+b") as opened:
        opened.seek(MIDDLE)
        opened.write(b"other")
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))


def test_a_file_edited_before_the_start_is_refused_and_nothing_runs(tmp_path: Path) -> None:
    path = tmp_path / "chat.jsonl"
    path.write_text("planned")
    cell = reading(path, sha256(path))
    path.write_text("edited!")
    with pytest.raises(UserError) as error:
        run(cell, tmp_path / "runs/s", lambda _: pytest.fail("it runs"))
    (line,) = error.value.lines
    assert line.startswith(f"{path}: changed since the study was planned; run the study again")
    path.unlink()
    with pytest.raises(UserError, match=r"no such file; fetch or restore it"):
        run(cell, tmp_path / "runs/s")


def test_a_file_edited_while_the_cell_runs_leaves_no_manifest_and_no_output(tmp_path: Path) -> None:
    path = tmp_path / "chat.jsonl"
    path.write_text("planned")
    cell = reading(path, sha256(path))
    base = tmp_path / "runs/s"
    with pytest.raises(UserError, match="changed since the cell started"):
        run(cell, base, lambda _: path.write_text("edited!"))
    folder = base / cell.relpath
    kept = {file.name for file in folder.iterdir()}
    assert kept == {"config.yaml", ".lock", "calls.jsonl"}, "a later run must not continue from it"
    path.write_text("planned")
    assert read_manifest(run(cell, base))


def test_a_manifest_says_what_was_read(tmp_path: Path, weights: Path) -> None:
    digest = sha256(weights / "model.safetensors")
    manifest = read_manifest(run(linking(weights), tmp_path / "runs/s"))
    assert manifest and manifest["files"] == {
        "model": {"path": str(weights), "sha256": {"model.safetensors": digest}}
    }


def test_weights_swapped_in_the_middle_are_refused_at_the_start_and_at_the_end(
    tmp_path: Path, weights: Path
) -> None:
    cell, base = linking(weights), tmp_path / "runs/s"
    folder = create_cell_dir(cell, base)
    overwrite_middle(weights)
    config = run_cell.read_config(folder)
    with pytest.raises(UserError, match=r"model.safetensors: changed since the study was planned"):
        external_files.check_planned(folder, config)
    with pytest.raises(UserError, match="changed since the cell started"):  # planned anew
        run(linking(weights), base, lambda _: overwrite_middle_with(weights, b"third"))
    assert not read_manifest(folder)


def overwrite_middle_with(folder: Path, text: bytes) -> None:
    with open(folder / "model.safetensors", "r+b") as opened:
        opened.seek(MIDDLE)
        opened.write(text)


def test_users_of_a_linked_model_compare_it_with_its_manifest(
    tmp_path: Path, weights: Path
) -> None:
    base = tmp_path / "runs/s"
    model = linking(weights)
    run(model, base)
    user = Cell("midtrain", "m", {"seed": 0}, {"start": model})
    with pytest.raises(UserError, match=r"model.safetensors: changed since .*model/base-"):
        run(user, base, lambda _: overwrite_middle(weights))
    with pytest.raises(UserError, match=r"model.safetensors: changed since .*model/base-"):
        run(user, base, lambda _: pytest.fail("it runs"))


def test_what_was_fetched_is_compared_with_the_record_of_fetch(tmp_path: Path) -> None:
    folder, base = tmp_path / "snapshot", tmp_path / "runs/s"
    folder.mkdir()
    base.mkdir(parents=True)
    (folder / "tokenizer.json").write_text("{}")
    pin = {"hub": "a/b", "revision": "0" * 40, "file": None}
    one = reading(folder, pin)
    part = reading(folder / "tokenizer.json", pin | {"file": "tokenizer.json"})
    url = reading(folder / "tokenizer.json", {"url": "https://a.example/t", "sha256": None})
    digest = {"sha256": sha256(folder / "tokenizer.json"), "bytes": 2}
    sources = [pin | {"files": {"tokenizer.json": digest}}, {"url": "https://a.example/t"} | digest]
    (base / "fetched.json").write_text(json.dumps({"sources": sources}))
    for cell in (one, part, url):
        config = run_cell.read_config(create_cell_dir(cell, base))
        assert external_files.check_planned(base / cell.relpath, config)
    (folder / "tokenizer.json").write_text("[]")
    for cell in (one, part, url):
        config = run_cell.read_config(base / cell.relpath)
        with pytest.raises(UserError, match=r"tokenizer.json: changed since the study was planned"):
            external_files.check_planned(base / cell.relpath, config)


def test_a_large_file_is_read_once_until_anything_of_it_changes(
    tmp_path: Path, weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads = []

    def counted(path: Path) -> str:
        reads.append(path)
        return sha256(path)

    monkeypatch.setattr(hash_cache, "sha256", counted)
    file = weights / "model.safetensors"
    (tmp_path / "link").symlink_to(file)
    first = hash_cache.remembered_sha256(file, tmp_path)
    assert hash_cache.remembered_sha256(tmp_path / "link", tmp_path) == first == sha256(file)
    assert len(reads) == 1
    overwrite_middle(weights)
    assert hash_cache.remembered_sha256(file, tmp_path) == sha256(file) != first
    shutil.copyfile(file, tmp_path / "copy")
    os.replace(tmp_path / "copy", file)
    assert hash_cache.remembered_sha256(file, tmp_path) == sha256(file) and len(reads) == 3
    (tmp_path / hash_cache.FILE).write_text("damaged\n")
    assert hash_cache.remembered_sha256(file, tmp_path) == sha256(file)
