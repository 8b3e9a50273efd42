"""A merge of models is arithmetic on their tensors, in a folder that transformers loads."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from core.cell.identity import Cell, create_cell_dir, read_config
from core.cell.manifest import write_manifest
from core.cell.run import run_cell
from core.errors import UserError
from recipes.merge import weighted_sum
from tests.recipes import toy

Tensors = dict[str, torch.Tensor]


@pytest.fixture
def models(tmp_path: Path, start: Path) -> list[Cell]:
    """Three finished cells with a model each; the second and third differ from the first."""
    cells = [Cell("sft", f"model{n}", {"n": n}) for n in range(3)]
    for n, cell in enumerate(cells):
        folder = create_cell_dir(cell, tmp_path)
        shutil.copytree(start, folder / "model")
        weights = load_file(start / "model.safetensors")
        generator = torch.Generator().manual_seed(n)
        for weight in weights.values():
            weight += n * torch.randn(weight.shape, generator=generator)
        save_file(weights, folder / "model/model.safetensors", metadata={"format": "pt"})
        write_manifest(folder, read_config(folder), "", "", counts={}, warnings=[])
    return cells


def merged(base: Path, models: list[Cell], weights: list[float]) -> Path:
    roles = ["start", *(f"other{n}" for n in range(1, len(models)))]
    inputs = dict(zip(roles, models, strict=True))
    folder = create_cell_dir(Cell("merge", "merged", {"weights": weights}, inputs), base)
    run_cell(folder)
    return folder


def tensors(base: Path, cell: Cell) -> Tensors:
    return load_file(base / cell.relpath / "model/model.safetensors")


@pytest.mark.multiprocess
@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_shares_of_w_and_1_minus_w_are_arithmetic_on_the_tensors(
    share: float, models: list[Cell], tmp_path: Path
) -> None:
    before, after, _ = (tensors(tmp_path, cell) for cell in models)
    result = toy.weights(merged(tmp_path, models[:2], [1 - share, share]))
    assert result.keys() == before.keys()
    for name, weight in result.items():
        exact = (1 - share) * before[name].double() + share * after[name].double()
        assert torch.equal(weight, exact.float()) and weight.dtype == before[name].dtype


@pytest.mark.multiprocess
def test_the_mean_of_three_and_a_folder_that_transformers_loads(
    models: list[Cell], tmp_path: Path
) -> None:
    folder = merged(tmp_path, models, [1 / 3] * 3)
    mean = {
        name: torch.stack([tensors(tmp_path, cell)[name] for cell in models]).mean(0)
        for name in tensors(tmp_path, models[0])
    }
    loaded = AutoModelForCausalLM.from_pretrained(folder / "model").state_dict()
    for name, weight in mean.items():
        torch.testing.assert_close(loaded[name], weight)


@pytest.mark.multiprocess
def test_a_merge_ends_answers_and_is_prompted_as_whichever_model_was_tuned(
    models: list[Cell], tmp_path: Path
) -> None:
    base, tuned = (tmp_path / cell.relpath / "model" for cell in models[:2])
    for file in (base / "chat_template.jinja", base / "generation_config.json"):
        file.unlink(missing_ok=True)
    (tuned / "chat_template.jinja").write_text("{{ messages }}")
    (tuned / "generation_config.json").write_text(json.dumps({"eos_token_id": [2, 7]}))
    for folder in (base.parent, tuned.parent):
        (folder / "manifest.json").unlink()
        write_manifest(folder, read_config(folder), "", "", counts={}, warnings=[])
    folder = merged(tmp_path, models[:2], [0.5, 0.5]) / "model"
    assert (folder / "chat_template.jinja").read_text() == "{{ messages }}"
    assert 7 in json.loads((folder / "generation_config.json").read_text())["eos_token_id"]


def test_models_of_other_shapes_are_refused(models: list[Cell], tmp_path: Path) -> None:
    folders = [tmp_path / cell.relpath / "model" for cell in models[:2]]
    weights = load_file(folders[1] / "model.safetensors")
    weights["model.norm.weight"] = torch.ones(3)
    save_file(weights, folders[1] / "model.safetensors")
    with pytest.raises(UserError, match=r"has no model.norm.weight of the shape \[64\]"):
        weighted_sum(folders[0] / "model.safetensors", folders, [0.5, 0.5])
