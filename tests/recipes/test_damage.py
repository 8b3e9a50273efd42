"""A training whose files were damaged later is made anew, whichever of them were."""

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from core.cell.identity import Cell, create_cell_dir, read_config
from core.cell.manifest import check_inputs, read_manifest, results_sha256
from core.cell.run import run_cell
from core.errors import UserError
from recipes import checkpoint
from tests.recipes import zoo
from tests.recipes.test_doses import sft


def outputs(folder: Path) -> str:
    manifest = read_manifest(folder)
    assert manifest
    return results_sha256(manifest)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def empty(path: Path) -> None:
    path.write_bytes(b"")


@pytest.mark.multiprocess
def test_whatever_is_missing_or_cut_short_is_made_anew(base: Path) -> None:
    _, folder = sft(base, "damaged", seed=1)
    run_cell(folder)
    made = outputs(folder)
    damages: list[tuple[str, Callable[[Path], object]]] = [
        ("model/model.safetensors", cut),
        ("model/tokenizer.json", Path.unlink),
        ("doses/13/model/model.safetensors", Path.unlink),
        ("doses", shutil.rmtree),
        ("metrics.jsonl", empty),
    ]
    for name, damage in damages:
        damage(folder / name)
        (folder / "manifest.json").unlink()
        run_cell(folder)
        manifest = read_manifest(folder)
        assert manifest and any("incomplete" in text for text in manifest["warnings"]), name
        assert outputs(folder) == made, name
    (folder / "manifest.json").unlink()
    before = (folder / "model/model.safetensors").stat().st_mtime_ns
    run_cell(folder)
    assert (folder / "model/model.safetensors").stat().st_mtime_ns == before, "it was complete"


@pytest.mark.multiprocess
@pytest.mark.parametrize("name", ["model/model.safetensors", "doses/8/model/model.safetensors"])
def test_the_printed_command_repairs_a_training(base: Path, name: str) -> None:
    seed = 2 if name.startswith("model") else 3  # a cell that is finished elsewhere is not run
    cell, folder = sft(base, f"repaired-{name.split('/')[0]}", seed)
    run_cell(folder)
    made = outputs(folder)
    dose = Cell("sft", folder.name, {"dose": 8}, {"run": cell})
    run_cell(create_cell_dir(dose, base))
    user = create_cell_dir(Cell("generate", folder.name, {}, {"checkpoint": dose}), base)
    assert check_inputs(user, read_config(user))
    cut(folder / name)
    with pytest.raises(UserError) as error:
        check_inputs(user, read_config(user))
    (problem,) = error.value.problems
    assert problem.where == str(folder / name)
    command = problem.fix.partition("to make it anew: ")[2].partition(" and run the study")[0]
    subprocess.run(command.split(), check=True)
    run_cell(folder)
    assert outputs(folder) == made and check_inputs(user, read_config(user))


def test_a_model_in_several_files_is_complete_with_all_its_weights(tmp_path: Path) -> None:
    start = zoo.model("sharded with an index", tmp_path / "start")
    zoo.write(start, "generation_config.json", {})
    made = shutil.copytree(start, tmp_path / "made")
    assert checkpoint.is_complete(made, start)
    (made / "model-00002-of-00002.safetensors").unlink()
    assert not checkpoint.is_complete(made, start)
