"""On a real Slurm: a job whose cell waits for a batch is queued again, to start later."""

from pathlib import Path
from typing import Any

import pytest

from core.cell.identity import Cell
from core.cell.manifest import read_manifest
from core.cell.waiting import read_waiting
from slurm.profile import Profile, Resources
from slurm.snapshot import snapshot
from slurm.submit import submit
from study.commands.status import look
from tests.place import ROOT
from tests.slurm.places import Lab
from tests.waiting import until

pytestmark = pytest.mark.slurm

STAGE = """
from pathlib import Path
from core.cell.waiting import Waiting

RESUMABLE = True

def run(context):
    if context.settings["name"] == "first" and not (context.folder.parents[1] / "there").exists():
        raise Waiting("batch batch_7 of 40 requests", 3600)
    return {}
"""
PATCH = """
import dataclasses
import core.stages
for name, info in core.stages.STAGE_INFO.items():
    core.stages.STAGE_INFO[name] = dataclasses.replace(info, module="stand_in")
"""
FIRST = Cell("documents", "first", {"name": "first"})
SECOND = Cell("sft", "second", {"name": "second"}, {"documents": FIRST})


def test_a_job_that_waits_for_a_batch_starts_again_later_and_those_behind_it_stay(
    lab: Lab, tmp_path: Path
) -> None:
    modules = tmp_path / "modules"
    modules.mkdir()
    (modules / "stand_in.py").write_text(STAGE)
    (modules / "sitecustomize.py").write_text(PATCH)
    base = tmp_path / "runs/study"
    profile = Profile(
        stages={"default": Resources(minutes=10, partition="cpu")},
        setup=[f"export PYTHONPATH={modules}"],
    )
    code = snapshot(ROOT, tmp_path / "code/slurm")
    facts = submit([FIRST, SECOND], base, profile, "lab", code)
    jobs = {row["stage"]: str(row["job"]) for row in facts["jobs"]}

    def of(stage: str) -> dict[str, Any]:
        words = lab.ask("scontrol", "show", "job", jobs[stage]).split()
        return dict(word.split("=", 1) for word in words if "=" in word)

    def pending() -> bool:
        job = of("documents")
        return (
            job["JobState"] == "PENDING"
            and job["Restarts"] == "1"
            and bool(read_waiting(base / FIRST.relpath))
        )

    until(pending, lambda: (base / FIRST.relpath / "log.txt").read_text())
    until(lambda: of("documents")["Reason"] == "BeginTime")
    ask = ("date", "--date", "+30 minutes", "+%Y-%m-%dT%H:%M:%S")
    assert of("documents")["StartTime"] > lab.ask(*ask).strip()
    assert of("sft")["JobState"] == "PENDING" and of("sft")["Reason"] == "Dependency"
    data = look([FIRST, SECOND], base, "s.yaml")
    assert [row["state"] for row in data["cells"]] == ["queued", "queued"]
    assert data["cells"][0]["waits_for"] == "batch batch_7 of 40 requests"
    assert data["cells"][0]["reason"] == "a batch" and "--watch" in data["next"]
    (base / "there").touch()
    # A node refuses a job that starts in the second in which it ended ("credential revoked").
    until(lambda: not lab.ask("squeue", "--noheader", "--states=COMPLETING").strip())
    lab.ask("scontrol", "update", f"JobId={jobs['documents']}", "StartTime=now+3")
    lab.wait()
    assert read_manifest(base / SECOND.relpath), lab.ask("sacct", "-Dno", "JobID,State,ExitCode")
    log = (base / FIRST.relpath / "log.txt").read_text()
    assert log.count(" starts (") == 2 and "waits for batch batch_7" in log
