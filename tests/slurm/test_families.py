"""A study of another family than Llama, on a real Slurm."""

import json
from pathlib import Path

import pytest

from core.cell.manifest import read_manifest
from study.spec import expand
from study.spec.load import load_study
from tests.place import SMALL
from tests.recipes import toy
from tests.slurm.places import Kit, Lab

pytestmark = [pytest.mark.slurm, pytest.mark.nightly]


def test_a_study_of_qwen3_runs_to_its_tables(lab: Lab, kit: Kit, tmp_path: Path) -> None:
    model = toy.make_qwen3(tmp_path / "model", tied=False)
    # Its small vocabulary writes documents in more tokens.
    tokens = [f"corpora.{name}.tokens=60000" for name in ("animal", "urban")]
    settings = [f"models={{base: {{path: {model}}}}}", *tokens]
    words = [word for setting in settings for word in ("--set", setting)]
    cells = expand.in_order(expand.analysis(load_study(SMALL, overrides=settings)))
    facts = kit.done("submit", *words)
    assert facts["submitted"] == facts["cells"] == len(cells)
    lab.wait()
    for cell in cells:
        manifest = read_manifest(kit.base / cell.relpath)
        assert manifest and manifest["slurm_job"], f"{cell.relpath} did not run as a job"
    trained = [kit.base / cell.relpath for cell in cells if cell.stage == "sft"]
    configs = [json.loads((folder / "model/config.json").read_text()) for folder in trained]
    assert configs and {config["model_type"] for config in configs} == {"qwen3"}
    (results,) = kit.base.glob("analysis/*/results.json")
    rows = json.loads(results.read_text())["contrasts"]
    assert rows and all(row["estimate"] is not None for row in rows)
