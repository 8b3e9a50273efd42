"""What prune does to ledgers, copies of the code, and cells that no study file names."""

import json
from pathlib import Path

import pytest

from core.cell.identity import Cell, create_cell_dir
from core.cell.publish import publish
from core.endpoints.ledger import LedgerEntry
from core.files import sha256
from core.paths import ROOT
from study.spec.expand import in_order
from study.upkeep.changes import find_changes
from study.upkeep.provenance import lineage
from study.upkeep.prune import OTHERS, total
from tests.study.finished import STUDY, Small, cheap, finish, mark_finished, original, small, study
from tests.study.test_prune import going, plan, prune, put

__all__ = ["cheap", "original", "small"]  # fixtures


def answer(digest: str) -> str:
    return (
        json.dumps(
            LedgerEntry(1, 0, "prompt", digest, "m", 1, 1, 0.0, 1.0, "stop", "paid for").__dict__
        )
        + "\n"
    )


@pytest.mark.multiprocess
def test_a_ledger_of_drafts_goes_only_where_the_corpus_holds_every_answer(tmp_path: Path) -> None:
    base, drafts = tmp_path / "runs/s", Cell("drafts", "a.1of1", {"share": [0, 1]})
    corpus = Cell("documents", "a", {}, {"drafts1": drafts})
    cells = [drafts, corpus]
    put(create_cell_dir(drafts, base) / "calls.jsonl", answer("one") + answer("two"))
    put(create_cell_dir(corpus, base) / "calls.jsonl", answer("one"))
    for cell in cells:
        mark_finished(base, cell)
    (row,) = [row for row in plan(cells, base) if row["kind"] == "ledger"]
    assert not row["go"] and row["why"] == "1 paid answers are in no other ledger"
    put(base / corpus.relpath / "calls.jsonl", answer("one") + answer("two") + answer("three"))
    mark_finished(base, corpus)
    assert prune(plan(cells, base), cells, base) == []
    assert (
        not (base / drafts.relpath / "calls.jsonl").exists()
        and (base / corpus.relpath / "calls.jsonl").exists()
    )


def test_copies_of_the_code_go_unless_no_commit_holds_them(small: Small) -> None:
    for name, facts in {
        "a": {"commit": "1" * 40, "dirty": False},
        "b": {"commit": "1" * 40, "dirty": True},
        "c": {},
    }.items():
        put(small.base / f"slurm/code-{name}/code.json", json.dumps(facts))
        put(small.base / f"slurm/code-{name}/study/cells.py")
    put(small.base / "slurm/code-d/code.json", json.dumps({"commit": "1" * 40, "dirty": False}))
    waiting = Cell(
        "sft", "x", {"n": 3}, {}, {"files": {"data": str(small.base / "slurm/code-d/data.jsonl")}}
    )
    create_cell_dir(waiting, small.base)
    assert going(small, "code") == {"slurm/code-a"}
    prune(plan(small.cells, small.base), small.cells, small.base)
    assert sorted(path.name for path in (small.base / "slurm").iterdir()) == [
        "code-b",
        "code-c",
        "code-d",
    ]


@pytest.mark.multiprocess
def test_data_that_a_pruned_copy_of_the_code_held_is_looked_for_in_the_checkout(
    tmp_path: Path,
) -> None:
    base, data = tmp_path / "runs/s", ROOT / "recipes/data/neutral_chat.jsonl"
    held = base / "slurm/code-a/recipes/data/neutral_chat.jsonl"
    record = {"data": {"path": str(held), "sha256": {"": sha256(data)}}}
    cell = Cell("sft", "x", {})
    last = Cell("analysis", "s", {"rows": [], "contrasts": []}, {"a": cell})
    for one in (cell, last):
        mark_finished(base, one, files=record if one is cell else {})
    publish(base / last.relpath)
    assert find_changes(lineage(base / last.relpath, base), base, STUDY) == []


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"files": 1, "cells": 1}'])
def test_damaged_records_are_named_and_stop_nothing(
    small: Small, content: str, capsys: pytest.CaptureFixture[str]
) -> None:
    cell = small.folder("midtrain/base-animal")
    records = [put(folder / "pruned.json", content) for folder in (small.base, cell)]
    assert small.changes() == []
    rows = plan(small.cells, small.base)
    put(cell / "steps/10/part")
    assert prune(plan(small.cells, small.base), small.cells, small.base) == [] and rows
    warnings = capsys.readouterr().err
    assert all(warnings.count(f"warning: {path}: is cut short") == 1 for path in records)
    assert "steps/10/part" in json.loads(records[1].read_text())["files"]


@pytest.mark.parametrize("content", ["", "[]", "a: [", "1"])
def test_a_damaged_config_is_told_as_a_change(small: Small, content: str) -> None:
    cell = small.folder("midtrain/base-animal")
    (cell / "config.yaml").write_text(content)
    assert [(change["cell"], change["file"]) for change in small.changes()] == [
        (small.relpath("midtrain/base-animal"), "config.yaml")
    ]
    (cell / "manifest.json").write_text(content)
    assert (small.relpath("midtrain/base-animal"), "manifest.json") in [
        (change["cell"], change["file"]) for change in small.changes()
    ]


def test_other_cells_go_only_when_asked_for_and_leave_their_ledgers(small: Small) -> None:
    few = in_order(study(small.outside, arms=("animal",)))
    publish(small.base / small.last.relpath)
    behind = {row["why"] for row in plan(few, small.base) if row["kind"] == OTHERS}
    assert behind == {"behind the published results"}, "the whole study is what is published"
    finish(small.base, few[-1])
    publish(small.base / few[-1].relpath)
    rows = plan(few, small.base)
    (goes,) = [row for row in total(rows) if row["kind"] == OTHERS]
    assert goes["goes"] == 0 < goes["stays"]
    prune(rows, few, small.base)
    assert small.folder("judge/ahb-base-urban-s0-d80").exists()
    assert prune(rows, few, small.base, others=True) == []
    left = {
        path.parent.name + "/" + path.name
        for path in small.base.rglob("*urban*/*")
        if path.name != ".lock"
    }
    assert {name.split("/")[1] for name in left} == {"calls.jsonl"} and len(left) == 2
    assert small.changes() == []
    record = json.loads((small.base / "pruned.json").read_text())["cells"]
    assert {place for place in record if "urban" in place} == {
        c.relpath for c in small.cells if "urban" in c.name
    }
    assert len(record) == 7 + 1, "the former analysis too"
