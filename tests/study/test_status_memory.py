"""What a watched `status` asks again, how often it looks, and the cells of earlier study files."""

import json
import os
import shlex
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from core.cell.identity import Cell, create_cell_dir
from study.cli import main
from study.commands import plan as plan_command
from study.commands import status as module
from study.commands import status_rows
from study.commands.status import AUTOMATIC, Memory, look, print_status
from study.spec import expand
from study.spec.load import load_study
from tests.place import ROOT, SMALL

CELLS = [Cell("documents", f"d{n}", {"n": n}) for n in range(700)]


def finish(cell: Cell, base: Path) -> Path:
    folder = create_cell_dir(cell, base)
    manifest = {"identity": cell.identity, "inputs": {}, "outputs": {}, "counts": {}}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """The calls of the system about files, by name, while a test runs."""
    names: list[str] = []

    for name in ("stat", "open", "scandir", "listdir"):
        plain = getattr(os, name)

        def counted(*args: object, _name: str = name, _plain: object = plain, **keys: object) -> object:  # fmt: skip
            names.append(_name)
            return _plain(*args, **keys)  # type: ignore[operator]

        monkeypatch.setattr(os, name, counted)
    read = status_rows.read_manifest

    def read_manifest(folder: Path) -> object:
        names.append("manifest")
        return read(folder)

    monkeypatch.setattr(status_rows, "read_manifest", read_manifest)
    yield names


def test_finished_cells_are_read_once_and_others_cost_one_call(
    tmp_path: Path, calls: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "/nowhere")  # no squeue
    base, memory = tmp_path / "runs/s", Memory()
    for cell in CELLS[:500]:
        finish(cell, base)
    for cell in CELLS[500:600]:
        create_cell_dir(cell, base)
    assert look(CELLS, base, "s.yaml", memory)["total"]["done"] == 500
    assert calls.count("manifest") == 700
    calls.clear()
    data = look(CELLS, base, "s.yaml", memory)
    assert (data["total"]["done"], data["total"]["to do"]) == (500, 200)
    assert "manifest" not in calls and len(calls) < 200 + 20, "one for each unfinished cell"
    # What has changed since is seen, whether the cell had a folder or not.
    time.sleep(0.01)  # beyond the resolution of the folders' times
    for cell in (CELLS[550], CELLS[650]):
        finish(cell, base)
    (base / CELLS[551].relpath / "log.txt").write_text("starts\nValueError: no\n")
    total = look(CELLS, base, "s.yaml", memory)["total"]
    assert (total["done"], total["failed"], total["to do"]) == (502, 1, 197)


def test_many_cells_are_looked_at_once_a_minute(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pauses: list[float] = []

    def sleep(pause: float) -> None:
        pauses.append(pause)
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "time", SimpleNamespace(sleep=sleep))
    monkeypatch.setattr(module, "show", lambda data: "")
    monkeypatch.setattr(module, "look", lambda *_: {"cells": [], "goes_on": True, "user": "kim"})
    for cells in (CELLS[:500], CELLS[:501]):
        print_status(cells, tmp_path, "s.yaml", watch=AUTOMATIC)
    assert pauses == [15, 60]


def test_cells_of_earlier_study_files_are_told_from_todays(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = tmp_path / "runs/small"
    options = ["--runs", str(tmp_path / "runs")]
    cells = expand.in_order(expand.analysis(load_study(SMALL), base))
    today = next(cell for cell in cells if cell.stage == "documents")
    finish(today, base)
    earlier = Cell("documents", today.name, {"n": "earlier"})
    (finish(earlier, base) / "documents.jsonl").write_text("x" * 2_000_000)
    gone = create_cell_dir(Cell("judge", "gone", {"n": 1}), base)
    assert main(["status", str(SMALL), "--stale", "--json", *options]) == 0
    rows = {row["cell"]: row for row in json.loads(capsys.readouterr().out)["stale"]}
    assert rows.keys() == {earlier.label, gone.name}
    assert rows[earlier.label]["now"] == [today.label] and rows[earlier.label]["bytes"] > 2e6
    assert (rows[earlier.label]["state"], rows[gone.name]["state"]) == ("finished", "begun")
    main(["status", str(SMALL), "--stale", *options])
    text = capsys.readouterr().out
    assert (
        f"python -m study prune {shlex.quote(str(SMALL))} --runs {tmp_path}/runs --orphans" in text
    )
    assert "no cell of that name" in text and today.label in text
    assert main(["prune", str(SMALL), "--orphans", "--delete", *options]) == 0
    capsys.readouterr()
    main(["status", str(SMALL), "--stale", *options])
    assert "every cell in" in capsys.readouterr().out


def test_plan_of_many_cells_ends_in_a_line_for_each_stage(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["plan", str(ROOT / "studies/tiny.yaml"), "--runs", str(tmp_path / "runs")]
    main(words)
    assert " base-animal-s0-d200" in capsys.readouterr().out
    monkeypatch.setattr(plan_command, "MOST_LISTED", 50)
    main(words)
    text = capsys.readouterr().out
    table = text.partition("(--all lists the cells)")[0].splitlines()
    assert table[0].split() == ["stage", "done", "begun", "ready", "waiting", "cells"]
    assert len(table) < 15 and "base-animal-s0-d200" not in "".join(table)
    main([*words, "--all"])
    assert " base-animal-s0-d200" in capsys.readouterr().out
