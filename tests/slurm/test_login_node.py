"""Stages that run by hand: `--stages`, and `where: login` of a cluster profile."""

import json
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from core.cell.identity import Cell
from core.errors import UserError
from core.stages import STAGES
from slurm import until_done as module
from slurm.login_node import behind_login
from slurm.profile import load_profile
from slurm.until_done import until_done
from study.cli import main
from study.commands.common import startable
from study.commands.status import look, show
from tests.place import SMALL
from tests.slurm.places import Fake, Kit
from tests.study.test_status_memory import finish

LOGIN = {"where": "login"}


def written(folder: Path, **stages: Any) -> Path:
    path = folder / "login.yaml"
    stages = {"default": {"minutes": 5, "mem_gb": 2}, **stages}
    path.write_text(yaml.safe_dump({"stages": stages}))
    return path


def cell(stage: str, name: str, *inputs: Cell) -> Cell:
    return Cell(stage, name, {"name": name}, {used.name: used for used in inputs})


MODEL, DOCUMENTS = cell("model", "m"), cell("documents", "d")
TRAINING = cell("midtrain", "t", MODEL, DOCUMENTS)
SAMPLES = cell("generate", "s", TRAINING)
GRADES = cell("judge", "g", SAMPLES)
LAST = cell("analysis", "a", GRADES, DOCUMENTS)
CELLS = [MODEL, DOCUMENTS, TRAINING, SAMPLES, GRADES, LAST]


def test_cells_of_stages_start_where_their_inputs_are_finished_or_start_too() -> None:
    assert startable(CELLS, ("drafts", "documents", "judge")) == [DOCUMENTS]
    assert startable(CELLS[3:], ("judge", "generate")) == [SAMPLES, GRADES]
    assert startable(CELLS, STAGES) == CELLS


@pytest.mark.multiprocess  # a plan asks git
def test_what_must_be_finished_first_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["run", str(SMALL), "--runs", str(tmp_path / "runs"), "--stages", "documents,judge"]
    assert main(words) == 0
    text = capsys.readouterr().out
    assert "nothing could start: documents, judge need model, generate first" in text


def test_a_stage_that_does_not_exist_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["run", str(SMALL), "--stages", "documents,jugde"])
    assert "no stage 'jugde' (did you mean judge?); stages are model," in capsys.readouterr().err


def test_only_stages_without_gpus_are_for_a_login_node(tmp_path: Path) -> None:
    path = written(tmp_path, midtrain=LOGIN, judge=LOGIN, model={"cpus": 2}, default=LOGIN)
    with pytest.raises(UserError) as error:
        load_profile(path)
    for line, words in zip(
        error.value.lines,
        ("default does not run on", "midtrain does not run on a login node; where: login is for "
         "model, drafts, documents, contamination, embeddings, merge, judge", "stages.model.minutes: missing"),
        strict=True,
    ):  # fmt: skip
        assert words in line
    profile = load_profile(written(tmp_path, documents=LOGIN))
    assert [s for s in STAGES if profile.is_on_login(s)] == ["drafts", "documents"]


def test_cells_behind_a_failed_one_wait_for_no_login_node(tmp_path: Path) -> None:
    profile = load_profile(written(tmp_path, judge=LOGIN))
    done = {cell.identity for cell in CELLS[:4]}
    assert behind_login(CELLS, CELLS, done, profile) == (["judge"], {LAST.identity})
    failed = done - {SAMPLES.identity}
    assert behind_login(CELLS, [LAST], failed | {SAMPLES.identity}, profile)[1]
    other = cell("generate", "other", TRAINING)
    last = cell("analysis", "b", GRADES, other)
    assert behind_login([*CELLS[:5], other, last], [last], done, profile)[1] == set()


@pytest.mark.slurm
def test_what_is_left_to_the_login_node_is_told_with_its_command(
    kit: Kit, fake: Fake, tmp_path: Path
) -> None:
    path = written(tmp_path, documents=LOGIN, judge=LOGIN)
    facts = kit.done("submit", "--cluster", str(path))
    assert [job["stage"] for job in facts["jobs"]] == ["model"]
    assert facts["login"] == ["documents", "judge"] and facts["left"] == 0
    assert facts["behind"] == facts["cells"] - 1 - 2 - 4, "all but the model, corpora and grades"
    fake.in_queue()
    text = kit.call("submit", "--cluster", str(path)).stdout
    assert json.loads(text)["login"]
    data = kit.done("status")
    # They count tokens by the model, which is not made yet. The analysis waits for the grades.
    row = {"stage": "documents", "cells": 2, "ready": 0, "behind": facts["behind"] - 1}
    assert data["login"][0] == row and data["login"][1]["behind"] == 1
    assert "to do:   documents on a login node: 2 cells, 0 ready; 16 more wait" in show(data)
    only = kit.done("submit", "--stages", "model,midtrain")
    assert {job["stage"] for job in only["jobs"]} == {"model"}


@pytest.mark.slurm
def test_submit_says_what_could_not_start_and_what_can_on_the_login_node(
    fake: Fake, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = written(tmp_path, model=LOGIN, documents=LOGIN, judge=LOGIN)
    words = ["submit", str(SMALL), "--runs", str(tmp_path / "runs"), "--cluster", str(path)]
    main([*words, "--stages", "judge,midtrain,midtrain"])
    text = capsys.readouterr().out
    assert "nothing could start: midtrain need model, documents first" in text
    assert not fake.scripts
    main(words)
    text = capsys.readouterr().out
    assert "nothing could start" not in text
    assert "--stages model,documents,judge; 3 cells can start there now," in text


@pytest.mark.slurm
def test_until_done_waits_for_the_login_node(
    kit: Kit, fake: Fake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = written(tmp_path, judge=LOGIN)
    profile = load_profile(path)
    for done in CELLS[:4]:
        finish(done, kit.base)
    pauses = iter([lambda: None, lambda: finish(GRADES, kit.base), lambda: finish(LAST, kit.base)])
    # Not of the module `time` itself: subprocess sleeps too.
    clock = SimpleNamespace(**vars(time) | {"sleep": lambda seconds: next(pauses)()})
    monkeypatch.setattr(module, "time", clock)
    lines: list[str] = []
    facts = until_done(CELLS, kit.base, profile, "mine", lines.append)
    assert "1 wait for judge on the login node" in lines[0]
    assert facts["finished"] == 6 and len(fake.scripts) == 1
    assert look(CELLS, kit.base, "s.yaml")["login"] == []
