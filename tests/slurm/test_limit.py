"""On a real Slurm: a study of more jobs than may be queued at once is submitted in parts."""

import json
import time
from dataclasses import replace
from pathlib import Path

import pytest

from core.cell.identity import Cell
from core.cell.manifest import read_manifest
from slurm.profile import Profile, Resources
from slurm.submit import submit
from study.spec import source_cells as inputs
from study.spec.load import load_study
from tests.slurm.places import Lab

pytestmark = pytest.mark.slurm

SMALL = Path(__file__).parents[1] / "small/small.yaml"


def corpora(count: int) -> list[Cell]:
    """Small cells that need nothing."""
    (corpus,) = inputs.previews(load_study(SMALL, None, ["corpora.animal.preview=8"]))
    return [
        replace(corpus, name=f"c{n}", settings={**corpus.settings, "seed": n}) for n in range(count)
    ]


PROFILE = Profile(
    stages={"default": Resources(minutes=5, mem_gb=2.0)}, partition="cpu", max_submit=3
)


def test_continuations_submit_all_cells_within_the_limit(lab: Lab, tmp_path: Path) -> None:
    cells = corpora(6)
    facts = submit(cells, tmp_path / "runs/limit", PROFILE, "lab")
    assert (facts["submitted"], facts["left"]) == (2, 4) and facts["continues"]
    most = 0
    while jobs := lab.jobs():
        most = max(most, len(jobs))
        time.sleep(0.2)
    logs = [path.read_text() for path in (tmp_path / "runs/limit/slurm/jobs").glob("*.out")]
    assert all(read_manifest(tmp_path / "runs/limit" / cell.relpath) for cell in cells), logs
    assert most == 3
    task = lab.ask("scontrol", "show", "job", f"{facts['jobs'][0]['job']}_1")
    assert "JobName=limit-documents-c1\n" in task, "each task of an array tells its cell"
    assert submit(cells, tmp_path / "runs/limit", PROFILE, "lab")["finished"] == 6
    record = (tmp_path / "runs/limit/slurm/jobs.jsonl").read_text().splitlines()
    clusters = [e["cluster"] for e in map(json.loads, record) if e["event"] == "submission"]
    assert len(clusters) > 1 and set(clusters) == {"lab"}, "continuations record it too"


def test_a_continuation_does_not_resubmit_failed_cells(lab: Lab, tmp_path: Path) -> None:
    cells = [replace(cell, settings={**cell.settings, "template": {}}) for cell in corpora(5)]
    more = replace(cells[0], name="more", inputs={cell.name: cell for cell in cells})
    assert submit([*cells, more], tmp_path / "runs/limit", PROFILE, "lab")["left"] == 4
    lab.wait()
    record = [
        json.loads(line)
        for line in (tmp_path / "runs/limit/slurm/jobs.jsonl").read_text().splitlines()
    ]
    tried = [
        identity
        for event in record
        if event["event"] == "submitting"
        for task in event["tasks"]
        for identity in task
    ]
    assert sorted(tried) == sorted(cell.identity for cell in cells), (
        "each once, and not what needs one that failed"
    )
