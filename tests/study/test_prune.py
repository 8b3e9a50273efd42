"""Room is made of what nothing needs, on record: the study stays finished, its tables and their way
back too."""

import fcntl
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from core.cell import local_executor as engine
from core.cell.identity import Cell, create_cell_dir
from core.cell.manifest import read_manifest
from core.cell.publish import publish, results
from core.errors import UserError
from core.paths import ROOT
from slurm import slurm_cli, submissions
from study.commands.prune import queue_of
from study.spec.expand import in_order
from study.upkeep import prune as pruning
from study.upkeep.prune import OTHERS, needed_again, pruned_on, total
from tests.study.finished import STUDY, Small, cheap, finish, mark_finished, original, small, study

__all__ = ["cheap", "original", "small"]  # fixtures


IDLE = pruning.Queue()


def plan(cells: list[Cell], base: Path) -> list[pruning.Row]:
    return pruning.plan(cells, base, STUDY)


def prune(
    rows: list[pruning.Row],
    cells: list[Cell],
    base: Path,
    others: bool = False,
    queue: pruning.Queue = IDLE,
) -> list[str]:
    return pruning.prune(rows, cells, base, STUDY, others, queue)


def content(folder: Path) -> dict[str, bytes]:
    return {
        str(p.relative_to(folder)): p.read_bytes()
        for p in folder.rglob("*")
        if p.is_file() and p.name != ".lock"
    }


def removed(before: dict[str, bytes], folder: Path) -> set[str]:
    after = content(folder)
    assert all(before[name] == after[name] for name in before if name in after), (
        "nothing else changes"
    )
    return before.keys() - after.keys()


def going(small: Small, kind: str) -> set[str]:
    return {
        row["cell"] for row in plan(small.cells, small.base) if row["kind"] == kind and row["go"]
    }


def put(path: Path, text: str = "x") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def test_what_was_declared_and_judged_stays(small: Small) -> None:
    records = [put(small.base / name) for name in ("declaration.json", "looks.json")]
    assert prune(plan(small.cells, small.base), small.cells, small.base, others=True) == []
    assert all(record.read_text() == "x" for record in records)


def test_the_plan_changes_nothing_and_counts_every_byte(small: Small) -> None:
    put(small.folder("midtrain/base-animal") / "steps/10/part", "12345")
    put(small.folder("generate/ahb-base-animal-s0-d80") / "temporary-x/log", "123")
    before = content(small.base)
    rows = plan(small.cells, small.base)
    assert content(small.base) == before and not list(small.base.rglob(".lock"))
    assert sum(row["bytes"] for row in rows) == sum(map(len, before.values()))
    kinds = {row["kind"]: row for row in total(rows)}
    assert (
        kinds["steps"] == {"kind": "steps", "goes": 5, "stays": 0}
        and kinds["temporary"]["goes"] == 3
    )
    assert (
        kinds["weights"]["stays"] == 0
        and kinds["records"]["goes"] == 0
        and kinds["records"]["stays"] > 0
    )


@pytest.mark.multiprocess
def test_what_goes_and_what_stays_and_that_the_study_is_still_whole(
    small: Small, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained = small.folder("midtrain/base-animal")
    step = put(trained / "steps/10/part")
    half = put(trained / "metrics.jsonl.tmp123")
    before, published = content(small.base), content(results(small.base))
    assert prune(plan(small.cells, small.base), small.cells, small.base) == []
    trainings = [
        small.relpath(f"{stage}/base-{arm}")
        for stage in ("midtrain", "sft")
        for arm in ("animal", "urban")
    ]
    weights = {
        f"{place}/model/{name}"
        for place in trainings
        for name in ("model.safetensors", "config.json")
    }
    assert removed(before, small.base) == weights | {
        str(p.relative_to(small.base)) for p in (step, half)
    }
    assert not (trained / "model").exists(), "what is left of it would pass for a whole model"
    record = json.loads((trained / "pruned.json").read_text())
    manifest = read_manifest(trained) or {}
    file = record["files"]["model/model.safetensors"]
    assert (
        file["sha256"] == manifest["outputs"]["model/model.safetensors"]["sha256"]
        and file["kind"] == "weights"
    )
    assert record["files"].keys() == {
        "model/model.safetensors",
        "model/config.json",
        "steps/10/part",
    }

    assert small.changes() == []
    (note,) = [note for note in small.notes() if note.startswith("pruned on ")]
    assert file["date"] in note and note.endswith("and 3 more")
    monkeypatch.setattr(
        engine._Executor, "_start", lambda *_: pytest.fail("a finished cell was run again")
    )
    assert engine.run(small.cells, small.base, 2, lambda *_: None) == []
    publish(small.base / small.last.relpath)
    assert content(results(small.base)) == published
    assert going(small, "weights") == set() and needed_again(small.cells, small.base) == []


def test_damage_is_told_apart_from_what_was_pruned(small: Small) -> None:
    prune(plan(small.cells, small.base), small.cells, small.base)
    (small.folder("sft/base-animal") / "metrics.jsonl").unlink()
    shutil.rmtree(small.folder("model/base") / "model")
    record = small.folder("sft/base-urban") / "pruned.json"
    record.write_text(record.read_text().replace('"sha256": "', '"sha256": "0'))
    found = {(f["cell"], f["file"]) for f in small.changes()}
    files = ("model/config.json", "model/model.safetensors")
    expected = {(small.relpath("sft/base-animal"), "metrics.jsonl")} | {
        (small.relpath("model/base"), f) for f in files
    }
    assert found == expected | {(small.relpath("sft/base-urban"), f) for f in files}


def test_weights_stay_for_a_cell_that_is_not_finished(small: Small) -> None:
    sample = small.folder("generate/ahb-base-animal-s0-d80")
    (sample / "manifest.json").unlink()
    sft = small.relpath("sft/base-animal")
    rows = plan(small.cells, small.base)
    assert going(small, "weights") == {
        small.relpath(f"{c}/base-{a}")
        for c, a in (("midtrain", "animal"), ("midtrain", "urban"), ("sft", "urban"))
    }
    (kept,) = [row for row in rows if row["cell"] == sft and row["kind"] == "weights"]
    assert kept["why"] == f"needed by {sample.relative_to(small.base)}, which is not finished"
    prune(rows, small.cells, small.base)
    assert (small.base / sft / "model/model.safetensors").exists()
    assert needed_again(small.cells, small.base) == []


def test_weights_stay_where_what_they_made_is_damaged_or_not_made(small: Small) -> None:
    (small.folder("generate/ahb-base-animal-s0-d80") / "samples.eval").write_text("short")
    shutil.rmtree(small.folder("generate/ahb-base-urban-s0-d80"))
    assert not going(small, "weights") & {
        small.relpath("sft/base-animal"),
        small.relpath("sft/base-urban"),
    }
    alone = [
        cell for cell in small.cells if cell.stage in ("model", "documents", "midtrain", "sft")
    ]
    kept = {
        r["cell"]: r["why"]
        for r in plan(alone, small.base)
        if r["kind"] == "weights" and not r["go"]
    }
    assert kept[small.relpath("sft/base-animal")] == "no cell of the study has used it yet"


def test_what_became_needed_after_the_plan_stays(small: Small) -> None:
    rows = plan(small.cells, small.base)
    (small.folder("generate/ahb-base-animal-s0-d80") / "manifest.json").unlink()
    (small.folder("midtrain/base-urban") / "manifest.json").unlink()
    left = prune(rows, small.cells, small.base)
    assert len(left) == 2 and all("since it was planned; plan again" in line for line in left)
    assert (small.folder("sft/base-animal") / "model/model.safetensors").exists()
    assert (small.folder("midtrain/base-urban") / "model/model.safetensors").exists()


def test_an_unfinished_cell_of_another_study_file_keeps_what_it_needs(small: Small) -> None:
    other = Cell(
        "generate",
        "other",
        {"n": 1},
        {"checkpoint": next(c for c in small.cells if c.stage == "sft")},
    )
    folder = create_cell_dir(other, small.base)
    place = other.inputs["checkpoint"].relpath
    assert place not in going(small, "weights") and len(going(small, "weights")) == 3
    assert going(small, OTHERS) == {other.relpath}
    prune(plan(small.cells, small.base), small.cells, small.base)
    assert folder.exists(), "only when asked for"
    prune(plan(small.cells, small.base), small.cells, small.base, others=True)
    assert not folder.exists() and place in going(small, "weights")


def test_weights_that_are_not_what_they_were_stay(small: Small) -> None:
    path = small.folder("sft/base-animal") / "model/model.safetensors"
    path.write_text(path.read_text().upper())
    (line,) = prune(plan(small.cells, small.base), small.cells, small.base)
    assert line.startswith(f"{path}: is not what its manifest says") and path.exists()
    assert not (path.parents[1] / "pruned.json").exists()
    assert len(small.changes()) == 1


def test_nothing_goes_while_a_cell_or_a_job_is_at_work(
    small: Small, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, rows = content(small.base), plan(small.cells, small.base)
    folder = create_cell_dir(Cell("sft", "of-another-study-file", {}), small.base)
    with open(folder / ".lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(UserError, match=f"{folder}: is running; prune when"):
            prune(rows, small.cells, small.base)
    shutil.rmtree(folder)
    identity = small.cells[3].identity
    record = small.base / "slurm/jobs.jsonl"
    record.parent.mkdir()
    submissions.write_submitting(record.parent, "g", "sft", [[identity]], None)
    submissions.write_submitted(record.parent, "g", "7")
    queue = [slurm_cli.Queued("7", "PENDING", "Priority", "s-sft", "", "g")]
    monkeypatch.setattr(slurm_cli, "queue", lambda: queue)
    with pytest.raises(UserError, match="jobs of the study are in the queue"):
        prune(rows, small.cells, small.base, queue=queue_of(small.base))

    def silent() -> list[slurm_cli.Queued]:
        raise UserError(what="squeue does not answer", fix="wait")

    monkeypatch.setattr(slurm_cli, "queue", silent)
    with pytest.raises(UserError, match="what is queued is unknown: squeue does not answer"):
        prune(rows, small.cells, small.base, queue=queue_of(small.base))
    record.unlink()
    assert content(small.base) == before


def test_a_cell_that_began_meanwhile_is_left_alone(
    small: Small, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("study.upkeep.prune._check_idle", lambda *_: None)
    rows, folder = plan(small.cells, small.base), small.folder("sft/base-animal")
    with open(folder / ".lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        (line,) = prune(rows, small.cells, small.base)
    assert str(folder) in line and (folder / "model/model.safetensors").exists()


@pytest.mark.multiprocess
@pytest.mark.parametrize("moment", [1, 2, 3, 6])
def test_killed_in_the_middle_it_goes_on(small: Small, moment: int) -> None:
    """Killed at a removal of a file: at no moment is there a fault, and the next time it ends as
    ever."""
    rows = plan(small.cells, small.base)
    assert sum(len(row["files"]) for row in rows if row["go"]) == 8
    script = f"""
import os, sys; sys.path.insert(0, {str(ROOT)!r})
from pathlib import Path
from study.upkeep import prune
count, unlink = 0, Path.unlink
def dying(self, *a, **k):
    global count
    count += 1
    if count == {moment}: os.kill(os.getpid(), 9)
    unlink(self, *a, **k)
Path.unlink = dying
prune.prune({rows!r}, [], Path({str(small.base)!r}), "x.yaml")
"""
    died = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert died.returncode == -9, died.stderr
    assert small.changes() == []
    left = [row for row in plan(small.cells, small.base) if row["go"]]
    assert sum(len(row["files"]) for row in left) == 8 - (moment - 1)
    assert prune(left, small.cells, small.base) == []
    assert small.changes() == [] and going(small, "weights") == set()
    assert not list(small.base.glob("*/base-*-s0*/model"))


def test_a_benchmark_added_later_is_told_what_to_delete_and_gets_the_same_weights(
    small: Small,
) -> None:
    trained, sft = small.folder("midtrain/base-animal"), small.folder("sft/base-animal")
    before = content(small.base)
    prune(plan(small.cells, small.base), small.cells, small.base)
    more = in_order(study(small.outside, benchmarks=("ahb", "second")))
    lines = [str(problem) for problem in needed_again(more, small.base)]
    assert len(lines) == 4, "one for each checkpoint"
    (line,) = [line for line in lines if line.startswith(f"{sft}: was pruned on ")]
    assert f"rm {trained}/manifest.json {sft}/manifest.json and run the study again" in line
    for folder in (trained, sft):
        (folder / "manifest.json").unlink()
    assert {problem.where for problem in needed_again(more, small.base)} == {
        str(small.folder(f"{s}/base-urban")) for s in ("midtrain", "sft")
    }
    for cell in (c for c in small.cells if small.base / c.relpath in (trained, sft)):
        finish(small.base, cell, "2026-03-01")
    after = content(small.base)
    assert all(
        after[name] == before[name]
        for name in before
        if "base-animal" in name and "/model/" in name
    )
    assert pruned_on(trained) is None and pruned_on(sft) is None


@pytest.mark.multiprocess
def test_made_anew_with_the_same_bytes_is_a_note_and_with_others_a_fault(small: Small) -> None:
    (sft,) = [c for c in small.cells if c.relpath.startswith("sft/base-animal")]
    folder = small.base / sft.relpath
    prune(plan(small.cells, small.base), small.cells, small.base)
    finish(small.base, sft, "2026-03-01")
    assert small.changes() == []
    assert f"made again with the same results: {sft.relpath}" in small.notes()
    finish(small.base, sft, "2026-03-01", **{"model/model.safetensors": "other bits"})
    (change,) = small.changes()
    assert change["cell"] == sft.relpath and change["problem"].startswith(
        "was made again since generate/"
    )
    prune(plan(small.cells, small.base), small.cells, small.base)
    assert [f["cell"] for f in small.changes()] == [sft.relpath], (
        "pruned again, it is still another"
    )
    assert not (folder / "model").exists()


@pytest.mark.multiprocess
def test_a_dose_that_a_longer_run_keeps_holds_the_weights_of_that_run(tmp_path: Path) -> None:
    base, start = tmp_path / "runs/s", Cell("midtrain", "m", {})
    run = Cell("sft", "m-d80", {"dose": 80, "doses": [20]}, {"start": start})
    link = Cell("sft", "m-d20", {"dose": 20}, {"run": run})
    score = Cell("likelihood", "of-d20", {}, {"checkpoint": link})
    whole = Cell("likelihood", "of-d80", {}, {"checkpoint": run})
    last = Cell("analysis", "s", {"rows": [], "contrasts": []}, {"a": score, "b": whole})
    cells = in_order(last)
    for cell in cells:
        folder = create_cell_dir(cell, base)
        if cell is link:
            (folder / "model").symlink_to(
                os.path.relpath(base / run.relpath / "doses/20/model", folder)
            )
        elif cell.stage in ("midtrain", "sft"):
            put(folder / "model/w.safetensors")
            put(folder / "doses/20/model/w.safetensors")
        mark_finished(base, cell)
    (base / score.relpath / "manifest.json").unlink()
    prune(plan(cells, base), cells, base)
    assert (base / link.relpath / "model/w.safetensors").exists() and not (
        base / start.relpath / "model"
    ).exists()
    mark_finished(base, score)
    prune(plan(cells, base), cells, base)
    assert (
        not (base / run.relpath / "doses").exists() and (base / link.relpath / "model").is_symlink()
    )
    new = [*cells, Cell("likelihood", "another", {"n": 2}, {"checkpoint": link})]
    (problem,) = needed_again(new, base)
    manifests = f"{base / start.relpath}/manifest.json {base / run.relpath}/manifest.json"
    assert f"rm {manifests} and" in problem.fix
