"""The study file or the code is edited while jobs are queued: what runs on is named, can be
cancelled by the printed command, and never replaces newer results."""

import json
import shlex
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from core.cell.identity import Cell
from core.cell.publish import read_start, record_start
from core.errors import UserError
from slurm import submissions
from slurm import submit as submit_module
from slurm.cancel import cancel
from slurm.profile import Profile, Resources
from slurm.submit import Continuation, Target, submit
from slurm.until_done import until_done
from tests.place import ROOT, SMALL
from tests.slurm.places import CLUSTER, Fake, Kit
from tests.slurm.test_shells import LIST, sbatch_ends

pytestmark = pytest.mark.slurm

PROFILE = Profile(stages={"default": Resources(minutes=5)})
CORPORA = [Cell("documents", f"c{n}", {"seed": n}) for n in range(4)]


def version(*cells: Cell) -> list[Cell]:
    """A version of the study file: its corpora and the analysis of them."""
    return [*cells, Cell("analysis", "s", {}, {cell.name: cell for cell in cells})]


@pytest.fixture
def queue(fake: Fake, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Fake:
    """What is submitted is listed. The code is a file, for speed."""
    sbatch_ends(fake, LIST + 'echo "$n"')
    code = tmp_path / "kit"
    code.mkdir()
    (code / "a.py").write_text("1")
    monkeypatch.setattr(submit_module, "ROOT", code)
    return fake


def of(facts: dict[str, Any], stage: str) -> str:
    (job,) = [row["job"] for row in facts["jobs"] if row["stage"] == stage]
    return str(job)


def test_the_printed_command_cancels_the_jobs_of_cells_that_left_the_file(
    kit: Kit, fake: Fake
) -> None:
    sbatch_ends(fake, LIST + 'echo "$n"')
    before = kit.done("submit", "--set", "sft.doses=[0]")
    options = ("--set", "sft.doses=[0]", "--set", "benchmarks.ahb.epochs=1")
    words = [word for word in kit.words("submit", *options) if word != "--json"]
    text = subprocess.run(words, capture_output=True, text=True, check=True).stdout
    (line,) = [line for line in text.splitlines() if "not in the study file now" in line]
    # Each old answering of ahb shares its job with likelihoods that are still asked for.
    assert line.startswith("3 queued jobs run cells"), text
    assert "judge ahb-" in line and "analysis small" in line
    command = text.partition("to cancel them and no others: ")[2].splitlines()[0]
    orphans = kit.done("submit", *options)["orphans"]
    listed = (fake.folder / "queue").read_text().splitlines()
    typed = [sys.executable, *shlex.split(command)[1:]]
    done = subprocess.run(typed, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    gone = {row["job"] for row in orphans}
    assert done.startswith(f"{len(gone)} jobs cancelled: ")
    kept = (fake.folder / "queue").read_text().splitlines()
    assert [line for line in listed if line.split("|")[0] not in gone] == kept and kept
    again = kit.done("submit", *options)
    assert (again["orphans"], again["submitted"]) == ([], 0)
    assert before["submitted"] == again["cells"] == again["queued"]


def test_a_job_that_also_runs_a_cell_of_the_file_is_kept(queue: Fake, tmp_path: Path) -> None:
    """Benchmarks of one checkpoint share a job."""
    base = tmp_path / "runs/s"
    model = Cell("model", "m", {})
    first, second = (Cell("generate", name, {"n": name}, {"checkpoint": model}) for name in "ab")
    facts = submit([model, first, second], base, PROFILE, "x")
    assert [job["cells"] for job in facts["jobs"]] == [1, 2]
    assert submit([model, first], base, PROFILE, "x")["orphans"] == []
    (row,) = submit([model], base, PROFILE, "x")["orphans"]
    assert row == {"job": facts["jobs"][1]["job"], "cells": ["generate a", "generate b"]}
    assert cancel(base, [model])["cancelled"] == [row["job"]]


def test_what_waits_for_a_cancelled_job_is_named(queue: Fake, tmp_path: Path) -> None:
    """Arrays of large studies are merged: a task may wait for another cell's job."""
    base = tmp_path / "runs/s"
    submit(version(*CORPORA[:2]), base, PROFILE, "x")
    lines = (base / "slurm/jobs.jsonl").read_text()
    (base / "slurm/jobs.jsonl").write_text(lines.replace("afterok:101", "afterok:101_0:101_1"))
    facts = cancel(base, [CORPORA[1], *version(*CORPORA[:2])[2:]])
    assert (facts["cancelled"], facts["waiting"]) == (["101_0"], ["102"])


def test_a_continuation_of_an_old_file_submits_nothing_and_is_replaced(
    queue: Fake, tmp_path: Path
) -> None:
    base = tmp_path / "runs/s"
    limited = replace(PROFILE, max_submit=3)
    old, new = version(*CORPORA[:3]), version(*CORPORA[1:])
    first = submit(old, base, limited, "x")
    assert first["left"] and first["continues"]
    same = submit(old, base, limited, "x")
    assert same["continues"] == first["continues"]
    second = submit(new, base, limited, "x")
    assert (queue.folder / "cancelled").read_text().split()[1:] == [first["continues"]]
    assert second["continues"] not in (None, first["continues"])
    # One that was running at that moment ends in words.
    target = Target(base, tmp_path / "kit", limited, "x")
    sent = len(queue.scripts)
    assert Continuation(old, {old[2].identity}, target)() == {"submitted": 0}
    with pytest.raises(UserError, match="with another study file since; nothing was submitted"):
        submit(old, base, limited, "x", only={old[2].identity})
    assert len(queue.scripts) == sent and read_start(base)["analysis"] == new[-1].identity


def test_until_done_ends_when_another_file_is_started(queue: Fake, tmp_path: Path) -> None:
    base = tmp_path / "runs/s"

    def meanwhile(line: str) -> None:
        record_start(base, "0" * 64)

    with pytest.raises(UserError, match="with another study file since"):
        until_done(version(*CORPORA), base, PROFILE, "x", meanwhile, pause=0)


def test_a_refused_submission_leaves_the_last_one_in_force(queue: Fake, tmp_path: Path) -> None:
    base = tmp_path / "runs/s"
    old, new = version(*CORPORA[:1]), version(*CORPORA)
    submit(old, base, PROFILE, "x")
    queue.say("reject", "sbatch: error: invalid partition\n")
    with pytest.raises(UserError):
        submit(new, base, PROFILE, "x")
    assert read_start(base)["analysis"] == old[-1].identity
    queue.say("reject", "")
    submit(new, base, PROFILE, "x")
    submit(old, base, PROFILE, "x")
    assert read_start(base)["analysis"] == old[-1].identity, "its jobs were queued already"


def test_after_a_change_of_the_code_the_queued_jobs_are_told_apart(
    queue: Fake, tmp_path: Path
) -> None:
    base = tmp_path / "runs/s"
    first = submit(version(*CORPORA[:2]), base, PROFILE, "x")
    assert first["queued_code"] == []
    same = submit(version(*CORPORA[:2]), base, PROFILE, "x")
    assert [row["current"] for row in same["queued_code"]] == [True]
    (tmp_path / "kit/a.py").write_text("2")
    changed = submit(version(*CORPORA[:2]), base, PROFILE, "x")
    (row,) = changed["queued_code"]
    assert not changed["submitted"] and not row["current"], "nothing new is submitted, and yet"
    version_of_copy = json.loads((Path(row["code"]) / "code.json").read_text())
    assert (row["code"], row["jobs"]) == (first["code"], 3)
    assert {key: row[key] for key in version_of_copy} == version_of_copy
    more = submit(version(*CORPORA), base, PROFILE, "x")
    assert more["code"] != first["code"]
    both = submit(version(*CORPORA), base, PROFILE, "x")["queued_code"]
    assert sorted((row["jobs"], row["current"]) for row in both) == [(3, False), (3, True)]


def test_submit_says_which_code_the_queued_jobs_run(kit: Kit, fake: Fake) -> None:
    sbatch_ends(fake, LIST + 'echo "$n"')
    facts = kit.done("submit")
    words = [word for word in kit.words("submit") if word != "--json"]

    def text() -> str:
        return subprocess.run(words, capture_output=True, text=True, check=True).stdout

    assert "queued jobs run the code" not in text()
    copy = Path(facts["code"])
    commit = json.loads((copy / "code.json").read_text())["commit"]
    record = kit.base / "slurm/jobs.jsonl"
    record.write_text(record.read_text().replace(copy.name, "code-0123456789ab"))
    shutil.copytree(copy, copy.with_name("code-0123456789ab"))
    output = text()
    jobs = sum(job["tasks"] for job in facts["jobs"])
    shown = f"commit {commit[:8]}" if commit else "commit not known"
    assert f"  {jobs} jobs: {shown}" in output and "(code-0123456789ab)" in output
    words = [str(SMALL), "--runs", str(kit.folder / "runs")]
    assert output.partition("to run all by the code as it is now: ")[2].splitlines()[0] == (
        f"python -m study cancel {shlex.join(words)} && "
        f"python -m study submit {shlex.join([*words, '--cluster', str(CLUSTER)])}"
    )


def test_records_of_an_earlier_version_are_read(queue: Fake, tmp_path: Path) -> None:
    """Without the code and the analysis of a submission, nothing is claimed of its jobs."""
    base = tmp_path / "runs/s"
    submit(version(*CORPORA), base, replace(PROFILE, max_submit=3), "x")
    path = base / "slurm/jobs.jsonl"
    events = [json.loads(line) for line in path.read_text().splitlines()]
    old = [{k: v for k, v in event.items() if k not in ("code", "analysis")} for event in events]
    path.write_text("".join(json.dumps(event) + "\n" for event in old))
    (base / "last_start.json").unlink()
    assert all(group.analysis is group.code is None for group in submissions.read(base / "slurm"))
    facts = submit(version(*CORPORA), base, replace(PROFILE, max_submit=3), "x")
    (row,) = facts["queued_code"]
    assert not facts["orphans"] and row["code"] is row["commit"] is None
