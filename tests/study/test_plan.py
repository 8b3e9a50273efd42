"""What makes a cell another cell, and what doesn't."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from core.cell.identity import Cell, create_cell_dir, read_config
from core.paths import ROOT
from study.cli import main
from study.spec import expand as plan
from study.spec.load import load_study

SMALL = ROOT / "tests/small/small.yaml"


def cells(tmp_path: Path, **changes: Any) -> dict[str, Cell]:
    """The small study's trainings by name, its three recipes changed."""
    overrides = []
    for key, name in (
        ("midtrain.recipe", "midtrain"),
        ("sft.recipe", "sft"),
        ("models.base.make", "llama"),
    ):
        recipe = yaml.safe_load((ROOT / f"tests/small/{name}.yaml").read_text())
        (recipe["pretrain"] if name == "llama" else recipe).update(changes)
        folder = tmp_path / "-".join(map(str, changes.values()))
        folder.mkdir(exist_ok=True)
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(recipe))
        overrides.append(f"{key}={folder}/{name}.yaml")
    found = plan.in_order(plan.analysis(load_study(SMALL, None, overrides)))
    trainings = {cell.name: cell for cell in found if cell.stage in ("model", "midtrain", "sft")}
    assert len(trainings) == 5
    return trainings


def test_plan_says_what_evaluations_will_refuse(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    study = load_study(SMALL)
    checks = [c for c in plan.in_order(plan.analysis(study)) if c.stage == "contamination"]
    for cell, hits in zip(checks, (2, 0, 0, 0), strict=True):
        folder = create_cell_dir(cell, tmp_path / study.study)
        manifest = {"identity": cell.identity, "counts": {"documents_hit": hits}, "outputs": {}}
        times = dict.fromkeys(("started", "ended"), "2026-01-01T00:00:00Z")
        (folder / "manifest.json").write_text(json.dumps(manifest | times))
    main(["plan", str(SMALL), "--runs", str(tmp_path)])
    told = [line for line in capsys.readouterr().out.splitlines() if "hold text" in line]
    folder = tmp_path / study.study / checks[0].relpath
    assert told == [
        "can't run: evaluations on ahb after training on corpus animal: 2 documents hold text of "
        f"it ({folder}/hits.jsonl); set corpora.animal.exclude to a file with the ids in "
        f"{folder}/exclude.txt"
    ]


@pytest.mark.parametrize("changes", [{"micro_batch_size": 2}, {"checkpoint_minutes": 5}])
def test_a_way_of_running_is_a_resource_of_the_same_cell(
    tmp_path: Path, changes: dict[str, Any]
) -> None:
    before, after = cells(tmp_path), cells(tmp_path, **changes)
    for name, cell in after.items():
        assert cell.identity == before[name].identity
        assert (
            before[name].resources.items()
            >= {"micro_batch_size": None, "checkpoint_minutes": 30}.items()
        )
        assert cell.resources == {**before[name].resources, **changes}
        folder = create_cell_dir(before[name], tmp_path)
        (folder / "steps").mkdir()
        assert create_cell_dir(cell, tmp_path) == folder and (folder / "steps").exists()
        assert read_config(folder)["resources"] == cell.resources


def test_what_a_training_does_is_its_identity(tmp_path: Path) -> None:
    before, after = cells(tmp_path), cells(tmp_path, lr=0.25)
    assert all(cell.identity != before[name].identity for name, cell in after.items())
