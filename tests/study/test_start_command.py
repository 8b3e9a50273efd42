"""The command that starts a study: typed by people, so it names what is known and fits the place."""

import shlex
import shutil
from pathlib import Path

import pytest

from core.cell.identity import Cell
from slurm import profile as profiles
from slurm import submissions
from slurm.profile import Profile, Resources
from study.commands import common
from study.commands.common import start_command, submit_command
from study.commands.status import look

SUBMIT = "python -m study submit s.yaml --cluster"
RUN = "python -m study run s.yaml"
TOY = Cell("model", "base", {"recipe": {}})
LLAMA = Cell("model", "base", {"files": {"model": {"hub": "meta-llama/Llama-3.1-8B"}}})


@pytest.fixture(autouse=True)
def _clusters(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clusters = tmp_path / "clusters"
    shutil.copytree(profiles.FOLDER, clusters)
    monkeypatch.setattr(profiles, "FOLDER", clusters)


def on(monkeypatch: pytest.MonkeyPatch, slurm: bool, gpus: int) -> None:
    """Play a machine."""
    monkeypatch.setattr(common, "visible_gpus", lambda: [None] * gpus)
    monkeypatch.setattr(
        shutil, "which", lambda name: f"/usr/bin/{name}" if slurm and name == "sbatch" else None
    )


@pytest.mark.parametrize(
    ("slurm", "gpus", "model", "command"),
    [
        (True, 0, LLAMA, f"{SUBMIT} NAME"),
        (True, 0, TOY, RUN),
        (True, 1, LLAMA, RUN),
        (False, 0, LLAMA, RUN),
    ],
)
def test_a_login_node_is_no_place_to_train_a_model_from_outside(
    slurm: bool,
    gpus: int,
    model: Cell,
    command: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    on(monkeypatch, slurm, gpus)
    assert look([model], tmp_path / "runs/s", "s.yaml")["next"] == command


def test_the_profile_that_the_user_has_written_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    on(monkeypatch, slurm=True, gpus=0)
    base = tmp_path / "runs/s"
    assert start_command(base, "s.yaml", is_toy=False) == f"{SUBMIT} NAME"
    (profiles.FOLDER / "mine.yaml").touch()
    assert start_command(base, "s.yaml", is_toy=False) == f"{SUBMIT} mine"
    (profiles.FOLDER / "other.yaml").touch()
    assert start_command(base, "s.yaml", is_toy=False) == f"{SUBMIT} NAME"
    # Once a study was submitted, its last profile is known, whatever there is beside.
    (base / "slurm").mkdir(parents=True)
    plain = Profile(stages={"default": Resources(minutes=5)})
    submissions.write_submission(base / "slurm", "'my other.yaml'", tmp_path, plain, None)
    assert start_command(base, "s.yaml", is_toy=True) == f"{SUBMIT} 'my other.yaml'"
    assert shlex.split(submit_command(base, "s.yaml"))[-1] == "my other.yaml"
