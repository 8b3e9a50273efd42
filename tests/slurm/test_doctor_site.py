"""`doctor` where a site's database is down, and where compute nodes may not submit."""

import os
from pathlib import Path

import pytest

from slurm.doctor import doctor
from tests.slurm.places import Lab
from tests.slurm.test_doctor import LIGHT, by_name, profile


@pytest.mark.slurm
def test_a_slurmdbd_that_is_down_ends_nothing(
    lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not lab.accounting:
        pytest.skip("no accounting on this cluster")
    for name in ("sacctmgr", "sacct"):
        (tmp_path / name).write_text("#!/bin/sh\necho 'slurmdbd: Connection refused' >&2; exit 1\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    report = by_name(doctor(profile(tmp_path, {"default": LIGHT}), tmp_path / "runs", None, 60))
    assert "slurmdbd: Connection refused" in report["jobs at once"].finding
    assert report["jobs at once"].state == "not checked"
    assert report["accounting"].state == "warning" and report["cpu: shared folder"].state == "ok"


@pytest.mark.slurm
def test_nodes_that_may_not_submit(
    lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lab.only_here(tmp_path, monkeypatch)
    path = profile(tmp_path, {"default": LIGHT})
    report = by_name(doctor(path, tmp_path / "runs", None, 60))
    assert report["cpu: submit"].state == "warning"
    assert "denied" in report["cpu: submit"].finding and "--until-done" in report["cpu: submit"].fix
