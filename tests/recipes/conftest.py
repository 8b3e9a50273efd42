"""The toy training, done once as it should go, for all tests that compare with it."""

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from study.cells import prepare, read_config, write_manifest
from study.run_cell import run_cell
from tests.recipes import toy


@pytest.fixture(scope="package")
def base(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A study's folder with a finished tiny checkpoint and finished documents."""
    folder = tmp_path_factory.mktemp("runs") / "study"
    model, documents = (prepare(cell, folder) for cell in (toy.MODEL, toy.DOCUMENTS))
    toy.make_model(model / "model")
    (documents / "documents.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in toy.TEXTS))
    for made in (model, documents):
        write_manifest(made, read_config(made), "", "", counts={}, warnings=[])
    # Ranks are forked from a process that has imported torch already: an import takes seconds.
    before = os.environ.get("PYTHONPATH")
    os.environ.update(PYTHONPATH=str(Path(__file__).parents[2]), OMP_NUM_THREADS="1", CUDA_VISIBLE_DEVICES="")
    toy.PROCESSES.set_forkserver_preload(["recipes.finetune", "study.run_cell", "torch.distributed.tensor"])
    yield folder
    os.environ.pop("PYTHONPATH") if before is None else os.environ.update(PYTHONPATH=before)


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
    return killed(toy.training(base, "killed_alone", save_minutes=0.0), 1)


@pytest.fixture(scope="package")
def killed_two(base: Path) -> Path:
    return killed(toy.training(base, "killed_two", save_minutes=0.0), 2)


def killed(folder: Path, world: int) -> Path:
    processes = toy.start_ranks(folder, world)
    toy.until(lambda: len(toy.lines(folder)) > 9, processes)
    for process in processes:
        process.kill()
    toy.ends(processes)
    assert not (folder / "manifest.json").exists() and not (folder / "model").exists()
    return folder
