"""Step checkpoints hold pickles: nobody else may write them, and none runs what it names."""

import contextlib
import enum
import os
import pickle
import re
import shlex
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint import CheckpointException

from core.errors import UserError
from recipes import step_checkpoint
from recipes.distributed import SINGLE_PROCESS


def parts() -> tuple[torch.nn.Module, torch.optim.Optimizer]:
    """A model and its optimizer after a step."""
    model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.LayerNorm(4))
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(2, 4)).sum().backward()
    optimizer.step()
    return model, optimizer


@pytest.fixture
def steps(tmp_path: Path) -> Path:
    """steps/ with the checkpoint of step 3, written where the umask takes nothing away."""
    umask = os.umask(0)
    try:
        saver = step_checkpoint.AsyncSaver(tmp_path / "steps", SINGLE_PROCESS)
        saver.start(3, *parts())
        saver.finish()
    finally:
        os.umask(umask)
    return tmp_path / "steps"


def load(steps: Path) -> str | None:
    return step_checkpoint.load(steps, 3, *parts(), SINGLE_PROCESS)


def test_nobody_else_may_enter_whatever_the_umask(steps: Path) -> None:
    assert steps.stat().st_mode & 0o777 == 0o700
    assert load(steps) is None


@pytest.mark.multiprocess
@pytest.mark.parametrize("mode", [0o777, 0o770, 0o702])
def test_a_folder_that_others_may_write_is_not_read(steps: Path, mode: int) -> None:
    steps.chmod(mode)
    with pytest.raises(UserError, match="others may write to it") as error:
        load(steps)
    fix = error.value.problems[0].fix.partition("changed it: ")[2].partition(";")[0]
    subprocess.run(shlex.split(fix), check=True)
    assert load(steps) is None, "the printed cure works"


def test_a_folder_of_another_user_is_not_read(steps: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: steps.stat().st_uid + 1)
    with pytest.raises(UserError, match="another user's"):
        load(steps)


class Planted:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


class OlderPickler(pickle.Pickler):
    """Writes the members of enumerations as some Python 3.11 do, Debian 12's among them."""

    def reducer_override(self, value: Any) -> Any:
        return (
            (getattr, (type(value), value.name)) if isinstance(value, enum.Enum) else NotImplemented
        )


def test_metadata_of_an_older_python_is_read(steps: Path) -> None:
    metadata = steps / "3/.metadata"
    content = pickle.loads(metadata.read_bytes())
    with metadata.open("wb") as file:
        OlderPickler(file).dump(content)
    assert b"getattr" in metadata.read_bytes()
    assert load(steps) is None


@pytest.mark.parametrize("module", [b"pathlib", b"pathlib._local"])
def test_paths_that_another_python_wrote_are_read(module: bytes, steps: Path) -> None:
    metadata = steps / "3/.metadata"
    content = pickle.dumps(pickle.loads(metadata.read_bytes()), protocol=3)
    metadata.write_bytes(re.sub(rb"cpathlib(\._local)?\n", b"c%s\n" % module, content))
    assert b"c%s\nPosixPath" % module in metadata.read_bytes()
    assert load(steps) is None


def test_getattr_of_anything_else_is_not_run(steps: Path) -> None:
    (steps / "3/.metadata").write_bytes(pickle.dumps(torch.Size.numel))
    reason = load(steps)
    assert reason and "no part of a checkpoint's metadata" in reason


def test_what_a_planted_pickle_names_is_not_run(steps: Path, tmp_path: Path) -> None:
    (steps / "3/.metadata").write_bytes(pickle.dumps(Planted(tmp_path / "ran")))
    reason = load(steps)
    assert reason and "no part of a checkpoint's metadata" in reason
    assert not (tmp_path / "ran").exists()
    (steps / "3/.metadata").write_bytes(pickle.dumps({"a": 1}))
    assert "of another type" in (load(steps) or "")


def test_why_the_metadata_is_refused_is_said_where_torch_keeps_it_to_itself(
    steps: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As torch 2.10 does, of the CUDA 12 set."""

    def load_quietly(state: Any, storage_reader: dcp.StorageReader, **_: Any) -> None:
        with contextlib.suppress(Exception):
            storage_reader.read_metadata()
        raise CheckpointException("read", {0: (AssertionError("metadata is None"), None)})

    monkeypatch.setattr(dcp, "load", load_quietly)
    (steps / "3/.metadata").write_bytes(pickle.dumps({"a": 1}))
    assert "of another type" in (load(steps) or "")
