"""A second user in the runs folder of the first: reads, and submits, cancels and runs nothing."""

import json
import os
import pwd
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from core.errors import UserError
from slurm import submissions
from slurm.cancel import cancel
from slurm.submit import submit
from study.commands.status import look, show
from tests.place import ROOT, SMALL
from tests.slurm.places import CLUSTER, Fake, Kit
from tests.slurm.test_edited_study import CORPORA, PROFILE, version
from tests.slurm.test_shells import LIST, sbatch_ends

pytestmark = pytest.mark.slurm

OTHER = 65534
# Another user who may read everything, and write nothing of ours.
AS_OTHER = [
    "setpriv",
    f"--reuid={OTHER}",
    f"--regid={OTHER}",
    "--clear-groups",
    "--inh-caps=+dac_read_search",
    "--ambient-caps=+dac_read_search",
]


def test_what_another_user_has_submitted_is_neither_submitted_again_nor_cancelled(
    fake: Fake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a folder that both may write. `squeue --me` lists none of the first user's jobs."""
    base = tmp_path / "runs/s"
    submit(version(*CORPORA), base, PROFILE, "x")
    sent, user = len(fake.scripts), pwd.getpwuid(os.getuid()).pw_name
    monkeypatch.setattr(os, "getuid", lambda: OTHER)
    for call in (lambda: submit(version(*CORPORA), base, PROFILE, "x"), lambda: cancel(base)):
        with pytest.raises(UserError) as error:
            call()
        (line,) = error.value.lines
        assert f"these are the jobs of user {user}" in line and "--runs DIR" in line
    assert len(fake.scripts) == sent and not (fake.folder / "cancelled").exists()
    data = look(version(*CORPORA), base, "s.yaml")
    assert data["user"] == user and f"files and jobs of user {user}" in show(data)
    assert data["next"] == "python -m study status s.yaml", "neither submit nor run"
    assert data["total"]["unknown"] == 5
    # In a folder of their own they may.
    assert submit(version(*CORPORA), tmp_path / "mine/s", PROFILE, "x")["submitted"] == 5


def test_a_second_user_can_read_and_is_told_whose_folder_it_is(
    kit: Kit, fake: Fake, tmp_path: Path
) -> None:
    if os.getuid() or not shutil.which("setpriv"):
        pytest.skip("plays another user: needs root and setpriv")
    sbatch_ends(fake, LIST + 'echo "$n"')
    kit.done("submit")
    record = (kit.base / "slurm" / submissions.FILE).read_bytes()

    def call(command: str, *more: str) -> subprocess.CompletedProcess[str]:
        words = [sys.executable, "-m", "study", command, str(SMALL)]
        words += ["--runs", str(kit.folder / "runs"), *more]
        return subprocess.run([*AS_OTHER, *words], cwd=ROOT, capture_output=True, text=True)

    assert len(json.loads(call("plan", "--json").stdout)["cells"])
    status = call("status")
    assert status.returncode == 0, status.stderr
    assert "These are the files and jobs of user root: you can read them." in status.stdout
    (kit.base / "declaration.json").unlink()  # else nothing is written before the jobs
    for command in (("submit", "--cluster", str(CLUSTER)), ("cancel",)):
        refused = call(*command)
        assert refused.returncode == 2 and "these are the jobs of user root" in refused.stderr
    shutil.rmtree(kit.base / "slurm")  # `run` by the first user
    status = json.loads(call("status", "--json").stdout)
    assert status["user"] == "root" and " status " in status["next"]
    run = call("run")
    (line,) = run.stderr.splitlines()
    assert run.returncode == 2 and line.endswith("with --runs; this one is of user root")
    assert record and not (kit.base / "slurm").exists()
