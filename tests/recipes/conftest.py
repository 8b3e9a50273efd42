"""The toy training, done once as it should go, for all tests that compare with it."""

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from core.cell.run import run_cell
from tests.recipes import toy


@pytest.hookimpl(tryfirst=True)  # before pytest deselects by markers
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The first test that asks for the toy study makes it, by processes of its own."""
    for item in items:
        if item.path.parent == Path(__file__).parent and "base" in item.fixturenames:  # type: ignore[attr-defined]
            item.add_marker("multiprocess")


@pytest.fixture(scope="package", autouse=True)
def _processes() -> Iterator[None]:
    """Ranks are forked from a process that has imported torch already: an import takes seconds."""
    toy.PROCESSES.set_forkserver_preload(
        ["recipes.finetune", "core.cell.run", "torch.distributed.tensor"]
    )
    ours = {
        "PYTHONPATH": str(Path(__file__).parents[2]),
        "OMP_NUM_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": "",
    }
    with mock.patch.dict(os.environ, ours):
        yield


@pytest.fixture(scope="package")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study's folder with a finished tiny checkpoint and finished documents."""
    folder = tmp_path_factory.mktemp("runs") / "study"
    toy.make_inputs(folder)
    return folder


@pytest.fixture(scope="package")
def start(base: Path) -> Path:
    return base / toy.MODEL.relpath / "model"


@pytest.fixture(scope="package")
def tied(start: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama 3.2 in miniature, as transformers writes it: its output layer is its embedding."""
    folder = tmp_path_factory.mktemp("tied") / "model"
    config = json.loads((start / "config.json").read_text()) | {"tie_word_embeddings": True}
    config["rope_scaling"] |= {"factor": 32.0}
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**config))
    shutil.copytree(start, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="package")
def qwen2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return toy.make_qwen2(tmp_path_factory.mktemp("qwen2") / "model", tied=False)


@pytest.fixture(scope="package")
def tied_qwen2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return toy.make_qwen2(tmp_path_factory.mktemp("tied_qwen2") / "model", tied=True)


@pytest.fixture(scope="package")
def qwen3(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return toy.make_qwen3(tmp_path_factory.mktemp("qwen3") / "model", tied=False)


@pytest.fixture(scope="package")
def tied_qwen3(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return toy.make_qwen3(tmp_path_factory.mktemp("tied_qwen3") / "model", tied=True)


@pytest.fixture(scope="package")
def olmo3(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return toy.make_olmo3(tmp_path_factory.mktemp("olmo3") / "model")


@pytest.fixture(scope="package")
def alone(base: Path) -> Path:
    """The training as one process does it, undisturbed."""
    folder = toy.training(base, "alone")
    run_cell(folder)
    return folder


@pytest.fixture(scope="package")
def two(base: Path) -> Path:
    """The training on two ranks, undisturbed."""
    return toy.on_ranks(toy.training(base, "two"), 2)


@pytest.fixture(scope="package")
def killed_alone(base: Path) -> Path:
    """The training as one process, saved after every update and killed."""
    return killed(toy.training(base, "killed_alone", checkpoint_minutes=0.0), 1)


@pytest.fixture(scope="package")
def killed_two(base: Path) -> Path:
    return killed(toy.training(base, "killed_two", checkpoint_minutes=0.0), 2)


def killed(folder: Path, world: int) -> Path:
    processes = toy.start_ranks(folder, world)
    toy.until(lambda: len(toy.lines(folder)) > 9, processes)
    for process in processes:
        process.kill()
    toy.ends(processes)
    assert not (folder / "manifest.json").exists() and not (folder / "model").exists()
    return folder
