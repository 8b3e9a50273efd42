"""Where compute nodes may not submit: the chain of jobs ends aloud, and a login shell goes on."""

import json
import os
import signal
import subprocess
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from core.cell.manifest import read_manifest
from core.errors import UserError
from slurm import submissions
from slurm import until_done as module
from slurm.profile import load_profile
from slurm.submit import submit
from slurm.until_done import until_done
from study.commands.status import look, show
from tests.slurm.places import Fake, Kit, Lab
from tests.slurm.test_limit import PROFILE, corpora

pytestmark = pytest.mark.slurm


def test_a_chain_that_nodes_may_not_continue_is_told_and_a_shell_continues_it(
    lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lab.only_here(tmp_path, monkeypatch)
    cells, base = corpora(6), tmp_path / "runs/limit"
    facts = submit(cells, base, PROFILE, "lab")
    assert (facts["submitted"], facts["left"]) == (2, 4) and facts["continues"]
    lab.wait()
    data = look(cells, base, "s.yaml")
    refusal = f"job {facts['continues']} could not submit: documents jobs: Access/permission"
    assert refusal in data["broken"] and data["broken"] in show(data)
    again = "python -m study submit s.yaml --cluster lab --until-done"
    assert data["next"] == again and not data["goes_on"]
    lines: list[str] = []
    queued: list[int] = []

    def report(line: str) -> None:
        lines.append(line)
        queued.append(len(lab.jobs()))

    facts = until_done(cells, base, PROFILE, "lab", report, pause=0.5)
    assert facts["finished"] == 6 and all(read_manifest(base / c.relpath) for c in cells), lines
    assert max(queued) <= 3 and look(cells, base, "s.yaml")["broken"] is None
    tried = [i for group in submissions.read(base / "slurm") for task in group.tasks for i in task]
    assert sorted(tried) == sorted(c.identity for c in cells), "none twice"


def test_a_cell_that_fails_is_not_submitted_again(lab: Lab, tmp_path: Path) -> None:
    good = corpora(3)
    bad = type(good[0])("documents", "bad", {**good[0].settings, "template": {}})
    lines: list[str] = []
    facts = until_done([bad, *good], tmp_path / "runs/s", PROFILE, "lab", lines.append, pause=0.5)
    assert (facts["finished"], facts["left"], facts["queued"]) == (3, 0, 0)
    groups = submissions.read(tmp_path / "runs/s/slurm")
    assert sum(bad.identity in task for group in groups for task in group.tasks) == 1
    assert lines[-1].endswith("3 of 4 cells finished, 0 in the queue, 0 remain")


def test_ctrl_c_ends_it_in_one_line_and_the_same_command_goes_on(kit: Kit, fake: Fake) -> None:
    process = subprocess.Popen(
        kit.words("submit", "--until-done"),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr
    first = process.stderr.readline()
    while "cells finished" not in first:
        first = process.stderr.readline()
    process.send_signal(signal.SIGINT)
    output, errors = process.communicate()
    assert process.returncode == 130 and not output
    assert errors.splitlines()[-1].startswith("stopped; what is queued goes on, the same command")
    jobs = len(fake.scripts)
    assert jobs and kit.done("submit")["submitted"], "the record is whole"


def test_a_limit_that_slurm_does_not_tell_is_tried_again(
    kit: Kit, fake: Fake, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake.say("refuse-101", "Job violates accounting/QOS policy (job submit limit, user's size)")
    pauses: list[float] = []
    clock = SimpleNamespace(sleep=pauses.append, strftime=time.strftime)
    monkeypatch.setattr(module, "time", clock)
    lines: list[str] = []
    profile = load_profile(Path("lab"))
    cells = corpora(2)
    until_done(cells, kit.base, profile, "lab", lines.append)
    assert "job submit limit" in lines[0] and "2 in the queue, 0 remain" in lines[1]
    assert set(pauses) == {module.PAUSE_SECONDS}
    fake.say(f"refuse-{int((fake.folder / 'count').read_text()) + 1}", "Invalid account")
    with pytest.raises(UserError, match="Invalid account"):
        until_done(corpora(3), kit.base, profile, "lab", lines.append)


def test_a_refusal_that_stays_ends_it_and_what_waits_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = {"finished": 0, "cells": 3, "queued": 0, "submitted": 1, "left": 2, "code": None}
    first |= {"behind": [], "login": []}
    first |= {"remaining": ["a", "b"], "held": ["7"], "waits": ["2 jobs for nodes that are down"]}
    calls = []

    def submit(*_: object, **options: object) -> dict[str, object]:
        calls.append(options)
        if len(calls) == 1:
            return first
        raise UserError(what="partition gpu: there is none")

    monkeypatch.setattr(module, "submit", submit)
    lines: list[str] = []
    with pytest.raises(UserError, match="there is none"):
        until_done([], tmp_path / "s", PROFILE, "lab", lines.append, pause=0)
    assert "Slurm holds 7; waits: 2 jobs for nodes that are down" in lines[0]
    assert len(calls) == 1 + 1 + module.REFUSALS and len(lines) == 2


def test_what_a_job_could_not_submit_is_on_record(
    kit: Kit, fake: Fake, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The job of study.sbatch, before anything was submitted."""
    fake.say("reject", "allocation failure: Access/permission denied\n")
    kit.refused("submit")
    assert not (kit.base / "slurm/jobs.jsonl").exists(), "here a person reads it"
    monkeypatch.setenv("SLURM_JOB_ID", "77")
    kit.refused("submit")
    monkeypatch.delenv("SLURM_JOB_ID")
    data = kit.done("status")
    assert data["broken"].startswith("job 77 could not submit: ")
    assert data["next"].endswith("--until-done")
    fake.say("reject", "")
    kit.done("submit")
    assert kit.done("status")["broken"] is None


def test_a_job_that_ended_without_submitting_is_named(kit: Kit, fake: Fake) -> None:
    cells = corpora(1)
    (kit.base / "slurm").mkdir(parents=True)
    submissions.write_submitting(kit.base / "slurm", "g9", submissions.CONTINUE, [[]], None)
    submissions.write_submitted(kit.base / "slurm", "g9", "9")
    fake.in_queue("9|PENDING|Dependency|x|g9")
    assert look(cells, kit.base, "s.yaml")["broken"] is None
    fake.in_queue()
    assert "job 9 ended without submitting" in look(cells, kit.base, "s.yaml")["broken"]
    os.utime(kit.base / "slurm/jobs.jsonl")
    assert json.dumps(look(cells, kit.base, "s.yaml"))
