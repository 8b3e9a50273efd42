"""On a real Slurm: more jobs than may be queued at once go in by themselves, some now and the rest later."""

import json
import time
from dataclasses import replace
from pathlib import Path

from core.cell.identity import Cell
from core.cell.manifest import read_manifest
from slurm.profile import Profile, Resources
from slurm.submit import submit
from study.spec import source_cells as inputs
from study.spec.load import load_study
from tests.slurm.places import Lab

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


def test_one_submission_ends_with_all_done_and_never_more_in_the_queue_than_allowed(
    lab: Lab, tmp_path: Path
) -> None:
    cells = corpora(6)
    facts = submit(cells, tmp_path / "runs/limit", PROFILE)
    assert (facts["submitted"], facts["left"]) == (2, 4) and facts["continues"]
    end, most = time.monotonic() + 300, 0
    while jobs := lab.jobs():
        most = max(most, len(jobs))
        assert time.monotonic() < end, lab.ask("squeue")
        time.sleep(0.2)
    logs = [path.read_text() for path in (tmp_path / "runs/limit/slurm/jobs").glob("*.out")]
    assert all(read_manifest(tmp_path / "runs/limit" / cell.relpath) for cell in cells), logs
    assert most == 3
    assert submit(cells, tmp_path / "runs/limit", PROFILE)["finished"] == 6


def test_what_failed_is_not_submitted_again_by_a_job(lab: Lab, tmp_path: Path) -> None:
    cells = [replace(cell, settings={**cell.settings, "template": {}}) for cell in corpora(5)]
    more = replace(cells[0], name="more", inputs={"matched_to": cells[0]})
    assert submit([*cells, more], tmp_path / "runs/limit", PROFILE)["left"] == 4
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
