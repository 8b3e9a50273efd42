"""On a real Slurm: more jobs than may be queued at once go in by themselves, some now and the rest later."""

import time
from dataclasses import replace
from pathlib import Path

from slurm.profile import Profile, Shape
from slurm.submit import submit
from study import plan
from study.cells import read_manifest
from study.load import load_study
from tests.slurm.places import Lab

SMALL = Path(__file__).parents[1] / "small/small.yaml"


def test_one_submission_ends_with_all_done_and_never_more_in_the_queue_than_allowed(lab: Lab, tmp_path: Path) -> None:
    corpus = next(c for c in plan.in_order(plan.analysis(load_study(SMALL))) if c.stage == "documents" and not c.inputs)
    cells = [replace(corpus, name=f"c{n}", settings={**corpus.settings, "documents": 8, "seed": n}) for n in range(6)]
    profile = Profile(stages={"default": Shape(minutes=5, mem_gb=2.0)}, partition="cpu", max_submit=3)
    facts = submit(cells, tmp_path / "runs/limit", profile)
    assert (facts["submitted"], facts["left"]) == (2, 4) and facts["continues"]
    end, most = time.monotonic() + 120, 0
    while jobs := lab.jobs():
        most = max(most, len(jobs))
        assert time.monotonic() < end, lab.ask("squeue")
        time.sleep(0.2)
    logs = [path.read_text() for path in (tmp_path / "runs/limit/slurm/jobs").glob("*.out")]
    assert all(read_manifest(tmp_path / "runs/limit" / cell.place) for cell in cells), logs
    assert most == 3
    assert submit(cells, tmp_path / "runs/limit", profile)["finished"] == 6
