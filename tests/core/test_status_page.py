"""status.html: what it shows of a study's folder, and that nothing of it can fail a cell."""

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from core.cell import status_page
from core.cell.run import run_cells
from core.cell.status_page import FINISHED, PAGE, PLAN, gather, read_curve, update
from core.cell.waiting import Waiting, write_waiting
from core.files import locked


def planned(base: Path, *cells: dict[str, Any]) -> dict[str, Any]:
    """A plan of these cells in the folder, each with its defaults."""
    forecast = {"hours": 1.0, "gpu_hours": 2.0, "cost": 0.5}
    rows: list[dict[str, Any]] = [
        {"identity": cell["cell"], "name": cell["cell"].partition("/")[2], "gpus": 2}
        | {"stage": cell["cell"].partition("/")[0], "forecast": forecast}
        | cell
        for cell in cells
    ]
    base.mkdir(parents=True, exist_ok=True)
    plan = {"study": "s", "cells": rows}
    (base / PLAN).write_text(json.dumps(plan))
    return plan


def finish(base: Path, cell: str, **counts: float) -> Path:
    """A finished cell, which took half an hour. Returns its folder."""
    folder = base / cell
    folder.mkdir(parents=True, exist_ok=True)
    times = {"started": "2026-04-01T10:00:00Z", "ended": "2026-04-01T10:30:00Z"}
    manifest = {"identity": cell, "inputs": {}, "outputs": {}, "counts": counts, **times}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


@contextmanager
def at_work(folder: Path) -> Iterator[None]:
    """A cell that a process runs."""
    folder.mkdir(parents=True)
    (folder / "log.txt").write_text("midtrain a starts (process 1)\n")
    (folder / "progress.json").write_text('{"done": 3, "total": 12, "unit": "steps"}')
    lines = (f'{{"step": {n}, "loss": {9 - n}}}\n' for n in (1, 2, 3))
    (folder / "metrics.jsonl").write_text("".join(lines) + '{"step": 4, "lo')
    with locked(folder / ".lock"):
        yield


def scores(folder: Path, *values: float | None) -> None:
    rows = [{"dimension": "overall", "score": value} for value in values]
    pd.DataFrame([*rows, {"dimension": "harm", "score": 0.0}]).to_parquet(folder / "scores.parquet")


def text_of(base: Path) -> str:
    """The words of the page."""
    return re.sub(r"\s+", " ", re.sub(r"<style>.*?</style>|<[^>]*>", " ", (base / PAGE).read_text(), flags=re.S))  # fmt: skip


def test_a_cell_that_waits_for_a_batch_is_to_do(tmp_path: Path) -> None:
    base = tmp_path / "s"
    plan = planned(base, {"cell": "judge/a"})
    (base / "judge/a").mkdir(parents=True)
    (base / "judge/a/log.txt").write_text("judge a starts (process 1)\n")
    with locked(base / "judge/a/.lock"):
        pass
    write_waiting(base / "judge/a", Waiting("batch batch_7", 60))
    facts = gather(base, plan, {})
    assert facts.states == {"to do": 1} and not facts.failures


def test_a_study_at_work(tmp_path: Path) -> None:
    arm = {"arm": "animal", "benchmark": "ahb", "dose": 0}
    plan = planned(
        tmp_path,
        {"cell": "documents/a"},
        {"cell": "midtrain/a"},
        {"cell": "midtrain/b"},
        {"cell": "judge/a"} | arm,
        {"cell": "judge/b"} | arm,
    )
    finish(tmp_path, "documents/a", paid_cost=0.75)
    scores(finish(tmp_path, "judge/a"), 0.5, 0.75, None)
    stopped = tmp_path / "midtrain/b"
    stopped.mkdir(parents=True)
    (stopped / "log.txt").write_text("midtrain b starts (process 1)\nTraceback\nKeyError: <x>\n")
    with at_work(tmp_path / "midtrain/a"):
        facts = gather(tmp_path, plan, {})
        update(tmp_path)
    assert facts.states == {"done": 2, "running": 1, "stopped": 1, "to do": 1}
    assert facts.spent == {"hours": 1.0, "gpu_hours": 2.0, "cost": 0.75}
    assert facts.due == {"hours": 2.0, "gpu_hours": 4.0, "cost": 1.0}
    assert facts.forecast == {"hours": 5.0, "gpu_hours": 10.0, "cost": 2.5}
    assert facts.scores == {("animal", 0): {"ahb": [0.625]}}
    (curve,) = facts.curves
    assert curve["curve"] == [(1, 8), (2, 7), (3, 6)]
    page = (tmp_path / PAGE).read_text()
    assert '<meta http-equiv="refresh"' in page and "<script" not in page and "http:" not in page
    words = text_of(tmp_path)
    assert "2 of 5 cells done" in words and "3 of 12 steps" in words
    assert "KeyError: &lt;x&gt;" in words and "62.5 1/2" in words
    assert "0.75 against 1.00, of 2.50" in words and "<polyline points=" in page


def test_a_finished_study_does_not_load_again(tmp_path: Path) -> None:
    planned(tmp_path, {"cell": "documents/a"})
    finish(tmp_path, "documents/a")
    update(tmp_path)
    page = (tmp_path / PAGE).read_text()
    assert "1 of 1 cells done" in page and "refresh" not in page


def test_who_has_asked_slurm_says_the_states(tmp_path: Path) -> None:
    plan = planned(tmp_path, {"cell": "midtrain/a"}, {"cell": "midtrain/b"})
    (tmp_path / "midtrain/a").mkdir(parents=True)
    (tmp_path / "midtrain/a/log.txt").write_text("preempted\n")
    states = {"midtrain/a": "queued", "midtrain/b": "queued"}
    assert gather(tmp_path, plan, {}).states == {"stopped": 1, "to do": 1}
    assert gather(tmp_path, plan, states).states == {"queued": 2}


def test_finished_cells_are_read_once_and_a_new_cell_of_the_name_again(tmp_path: Path) -> None:
    plan = planned(tmp_path, {"cell": "documents/a"})
    folder = finish(tmp_path, "documents/a", paid_cost=2.0)
    assert gather(tmp_path, plan, {}).spent["cost"] == 2.0
    (folder / "manifest.json").unlink()
    assert gather(tmp_path, plan, {}).spent["cost"] == 2.0
    plan["cells"][0]["identity"] = "another"
    assert gather(tmp_path, plan, {}).states == {"to do": 1}
    assert json.loads((tmp_path / FINISHED).read_text()) == {}


def test_a_page_that_fails_leaves_the_former_one_and_no_exception(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    update(tmp_path)  # nothing is planned
    assert not (tmp_path / PAGE).exists()
    planned(tmp_path, {"cell": "documents/a"})
    update(tmp_path)
    before = (tmp_path / PAGE).read_text()
    monkeypatch.setattr(status_page, "render", lambda facts: 1 / 0)
    update(tmp_path)
    assert (tmp_path / PAGE).read_text() == before
    assert "status.html is not written: ZeroDivisionError" in capsys.readouterr().err


def test_the_page_is_written_at_the_end_of_a_cell_that_fails_too(tmp_path: Path) -> None:
    planned(tmp_path, {"cell": "documents/a"})
    (tmp_path / "documents/a").mkdir(parents=True)
    assert run_cells([tmp_path / "documents/a"]) == 2  # it has no config.yaml
    assert "0 of 1 cells done stopped 1" in text_of(tmp_path)


def test_a_long_curve_is_drawn_as_means(tmp_path: Path) -> None:
    lines = (json.dumps({"step": n, "loss": float(n % 2)}) + "\n" for n in range(1, 1001))
    (tmp_path / "metrics.jsonl").write_text("".join(lines))
    curve = read_curve(tmp_path / "metrics.jsonl")
    assert len(curve) == 77 and curve[0] == (13, pytest.approx(7 / 13)) and curve[-1][0] == 1000
