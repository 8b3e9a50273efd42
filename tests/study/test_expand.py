"""A study is expanded forwards: what is read to plan it is read once."""

import json
from collections import Counter
from pathlib import Path

import pytest
import yaml

from core.cell.external_files import digests
from core.cell.identity import Cell
from study.spec import expand, sources
from study.spec.load import load_study
from tests.llama import LLAMA

SEEDS = 5
DOSES = [0, 40, 80, 120]
ARMS = 3


@pytest.fixture
def study_file(tmp_path: Path) -> Path:
    """A study of a model folder with three arms, five seeds and four doses."""
    model = tmp_path / "llama"
    model.mkdir()
    (model / "config.json").write_text(json.dumps(LLAMA))
    (model / "tokenizer.json").write_text("{}")
    (model / "model.safetensors").write_bytes(b"weights")
    (tmp_path / "chat.jsonl").write_text("{}\n" * 200)
    corpus = {"template": "animal_welfare", "documents": 9, "writer": "writer"}
    study = {
        "study": "counted",
        "seeds": list(range(SEEDS)),
        "endpoints": {"writer": {"served_by": "dummy"}},
        "models": {"base": {"path": str(model)}},
        "corpora": {
            "animal": corpus,
            "urban": corpus | {"template": "urban_density", "matched_to": "animal"},
        },
        "midtrain": {"recipe": "recipes/tiny_midtrain.yaml"},
        "arms": {
            "untrained": {"start": "base"},
            "animal": {"start": "base", "midtrain": "animal"},
            "urban": {"start": "base", "midtrain": "urban"},
        },
        "sft": {
            "recipe": "recipes/tiny_sft.yaml",
            "data": str(tmp_path / "chat.jsonl"),
            "doses": DOSES,
        },
        "benchmarks": {"concern": {"task": "preference"}},
    }
    path = tmp_path / "study.yaml"
    path.write_text(yaml.safe_dump(study))
    return path


def test_a_model_folder_is_read_once_however_many_checkpoints_start_from_it(
    study_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads: Counter[str] = Counter()

    def counted(folder: str) -> dict[str, str]:
        reads[folder] += 1
        return digests(Path(folder), tmp_path)

    monkeypatch.setattr(sources, "fingerprint_once", counted)
    study = load_study(study_file)
    cells = expand.in_order(expand.analysis(study))
    assert reads == {study.models["base"].path: 1}
    trainings = [cell for cell in cells if cell.stage in ("midtrain", "sft")]
    assert len(trainings) == SEEDS * (ARMS * (len(DOSES) - 1) + 2), (
        "the arms' SFT, two midtrainings"
    )


def test_each_corpus_and_each_training_is_one_object(study_file: Path) -> None:
    last = expand.analysis(load_study(study_file))
    objects: dict[str, set[int]] = {}

    def walk(cell: Cell) -> None:
        if cell.stage in ("model", "documents", "midtrain", "sft"):
            objects.setdefault(cell.relpath, set()).add(id(cell))
        for needed in cell.inputs.values():
            walk(needed)

    walk(last)
    assert objects and all(len(ids) == 1 for ids in objects.values())
