"""From a published number back to hashes: each kind of change is found, with what it affects."""

import errno
import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from core.cell.external_files import check_unchanged, digests
from core.cell.identity import Cell
from core.cell.manifest import installed, read_manifest
from core.cell.publish import publish, results
from core.errors import UserError
from core.files import content_files, owner, sha256
from core.paths import ROOT
from study.spec import expand
from study.spec.expand import in_order
from study.spec.load import load_study
from study.upkeep import changes, prune
from study.upkeep.changes import affected_results, find_changes
from study.upkeep.provenance import lineage, published, trace
from study.upkeep.stale import stale
from tests.study.finished import (
    STUDY,
    Small,
    changes_of,
    cheap,
    finish,
    mark_finished,
    original,
    small,
)

__all__ = ["cheap", "original", "small"]  # fixtures


def test_nothing_changed_is_no_fault_and_every_cell_is_in_the_chain(small: Small) -> None:
    rows = small.lineage()
    assert [row["cell"] for row in rows] == [cell.relpath for cell in small.cells]
    states = {check["state"] for row in rows for check in row["checks"]}
    assert states == {"same"} and find_changes(rows, small.base, STUDY) == []
    outside = {
        (row["stage"], check["file"])
        for row in rows
        for check in row["checks"]
        if check["kind"] == "external"
    }
    questions, data = str(small.outside / "questions.jsonl"), str(small.outside / "chat.jsonl")
    assert outside == {("documents", questions), ("generate", questions), ("sft", data)}


def closed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As another user's home: root, who runs tests, may see everything."""
    plain = os.stat

    def stat(path: Any, *args: Any, **options: Any) -> os.stat_result:
        follows = options.get("follow_symlinks", True)
        seen = os.path.realpath(path) if follows and isinstance(path, str | Path) else str(path)
        if seen.startswith(f"{folder}/"):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return plain(path, *args, **options)

    monkeypatch.setattr(os, "stat", stat)


def test_files_in_another_users_home_are_missing(
    small: Small, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A runs folder was moved to another user, who may not look where it has been."""
    (cell,) = [c for c in small.cells if c.stage == "sft"][:1]
    record = (read_manifest(small.base / cell.relpath) or {})["files"]
    link = small.base / cell.relpath / "model/linked"
    link.parent.mkdir(exist_ok=True)
    link.symlink_to(small.outside / "chat.jsonl")
    closed(small.outside, monkeypatch)
    outside = [c for row in small.lineage() for c in row["checks"] if c["kind"] == "external"]
    assert {check["state"] for check in outside} == {"missing"}
    with pytest.raises(UserError, match="is gone since"):
        check_unchanged(record, small.base, "then")
    assert "linked" not in str(content_files(link.parent))
    assert prune.plan(small.cells, small.base, STUDY) and not stale(small.cells, small.base)
    assert owner(small.outside / "chat.jsonl") == owner(small.outside.parent)


def test_a_moved_studys_copy_of_the_code_is_read_where_it_is_now(small: Small) -> None:
    """The checkout may have another version of the file since."""
    (cell,) = [c for c in small.cells if c.stage == "sft"][:1]
    path = small.base / cell.relpath / "manifest.json"
    manifest = json.loads(path.read_text())
    (entry,) = manifest["files"].values()
    copy = small.base / "slurm/code-0123abcd/README.md"
    copy.parent.mkdir(parents=True)
    shutil.copy(entry["path"], copy)
    entry["path"] = "/home/other/runs/s/slurm/code-0123abcd/README.md"
    path.write_text(json.dumps(manifest))
    rows = {row["cell"]: row for row in small.lineage()}
    (check,) = [c for c in rows[cell.relpath]["checks"] if c["kind"] == "external"]
    assert (check["state"], check["path"]) == ("same", str(copy))


@pytest.mark.multiprocess
def test_of_one_stage_too_inputs_come_before_their_users(tmp_path: Path) -> None:
    base, run = tmp_path / "runs/s", Cell("sft", "d80", {})
    link = Cell("sft", "d20", {"dose": 20}, {"run": run})
    score = Cell("likelihood", "b", {}, {"checkpoint": link})
    row = {"role": "b", "arm": "a", "seed": 0, "dose": 20, "benchmark": "b"}
    last = Cell("analysis", "s", {"rows": [row], "contrasts": []}, {"b": score})
    for cell in in_order(last):
        mark_finished(base, cell)
    rows = lineage(base / last.relpath, base)
    assert [row["cell"] for row in rows] == [cell.relpath for cell in (run, link, score, last)]
    assert (
        affected_results(run.relpath, rows)
        == "scores 1 of 1; benchmarks b; arms a; seeds 0; doses 20"
    )


def test_an_edited_sample_is_found_with_the_numbers_that_rest_on_it(small: Small) -> None:
    path = small.folder("generate/ahb-base-animal-s0-d80") / "samples.eval"
    path.write_text(path.read_text().upper())  # of the same size
    (change,) = small.changes()
    assert (change["cell"], change["file"]) == (
        small.relpath("generate/ahb-base-animal-s0-d80"),
        "samples.eval",
    )
    assert (
        change["problem"] == "changed since it was made"
        and "study run" in change["fix"]
        and str(path) in change["fix"]
    )
    assert change["consequence"] == (
        "scores 1 of 4; benchmarks ahb; arms animal; seeds 0; doses 80; "
        "contrasts animal - urban; tables contrasts, scores"
    )
    assert [
        c["state"]
        for row in small.lineage(hashes=False)
        for c in row["checks"]
        if c["kind"] == "output"
    ].count("changed") == 0
    path.write_text("longer than it was, which its size tells without reading it")
    sizes = small.lineage(hashes=False)
    assert [change["file"] for change in find_changes(sizes, small.base, STUDY)] == ["samples.eval"]


@pytest.mark.parametrize("what", ["weights", "everything", "what was trained from it"])
def test_a_swapped_checkpoint_says_whose_it_is(small: Small, what: str) -> None:
    source = "sft/base-animal" if what == "what was trained from it" else "midtrain/base-urban"
    ours, other = small.folder("midtrain/base-animal"), small.folder(source)
    part = "model" if what == "weights" else ""
    shutil.rmtree(ours / part)
    shutil.copytree(other / part, ours / part)
    (change,) = small.changes()
    assert change["cell"] == small.relpath("midtrain/base-animal")
    name = small.relpath(source)
    if what == "weights":
        assert change["file"] == "model/model.safetensors"
        assert change["problem"] == f"is now model/model.safetensors of {name}"
    else:
        assert change["problem"] == f"is that of {name}: the folder holds another cell"
        assert "delete it" in change["fix"]
    assert (
        "scores 2 of 4; benchmarks ahb; arms animal; seeds 0; doses 0, 80" in change["consequence"]
    )


def test_a_changed_corpus_reaches_its_arm_and_the_table_of_corpora(small: Small) -> None:
    (small.folder("documents/urban") / "documents.jsonl").write_text("documents URBAN")
    (change,) = small.changes()
    assert change["file"] == "documents.jsonl"
    assert (
        "arms urban" in change["consequence"]
        and "tables contrasts, corpora, scores" in change["consequence"]
    )
    (small.folder("documents/urban") / "documents.jsonl").unlink()
    (small.folder("documents/animal") / "corpus_stats.json").unlink()
    assert {(f["file"], f["problem"]) for f in small.changes()} == {
        (n, "is missing") for n in ("documents.jsonl", "corpus_stats.json")
    }


@pytest.mark.multiprocess
@pytest.mark.parametrize(
    "start", ["midtrain/base-animal", "judge/ahb-base-urban-s0-d80", "analysis/small"]
)
def test_a_deleted_manifest(small: Small, start: str) -> None:
    (small.folder(start) / "manifest.json").unlink()
    (change,) = small.changes()
    assert (change["cell"], change["file"], change["problem"]) == (
        small.relpath(start),
        "manifest.json",
        "is gone",
    )
    shutil.rmtree(
        small.folder(start) / "no" if start.startswith("analysis") else small.folder(start),
        ignore_errors=True,
    )
    (change,) = small.changes()
    assert change["problem"] == (
        "is gone" if start.startswith("analysis") else "is gone with its folder"
    )
    (small.base / "pruned.json").write_text(
        json.dumps({"cells": {small.relpath(start): {"date": "2026-02-03"}}})
    )
    assert (
        small.changes() == []
        and f"removed on 2026-02-03 by prune: {small.relpath(start)}" in small.notes()
    )


@pytest.mark.parametrize("name", ["tables/scores.tex", "results.json", "manifest.json"])
def test_a_hand_edited_table(small: Small, name: str) -> None:
    path = results(small.base) / name
    path.write_text(path.read_text().replace("s", "z", 1))
    (change,) = small.changes()
    assert change["file"] == str(path) and change["consequence"] == f"the published {name}"
    publish(published(small.base, STUDY))
    assert small.changes() == [], "the fix restores it"
    path.unlink()
    assert [f["problem"] for f in small.changes()] == ["is missing"]
    publish(published(small.base, STUDY))
    (results(small.base) / "tables/mine.tex").write_text("")
    assert [f["problem"] for f in small.changes()] == ["was added: no analysis wrote it"]


@pytest.mark.multiprocess
def test_a_manifest_edited_by_hand_is_known_by_who_used_it(small: Small) -> None:
    folder = small.folder("sft/base-animal")
    path = folder / "manifest.json"
    before = path.read_text()
    path.write_text(before.replace('"steps": 7', '"steps": 9999'))
    (change,) = small.changes()
    assert change["file"] == "manifest.json" and change["problem"].startswith(
        "was edited since generate/ahb-base-animal-s0-d80"
    )
    later = before.replace('"ended": "2026-01-01"', '"ended": "2026-02-01"')
    path.write_text(later)
    assert small.changes() == []
    assert f"made again with the same results: {small.relpath('sft/base-animal')}" in small.notes()
    digest = sha256(folder / "metrics.jsonl")
    path.write_text(later.replace(digest, "0" * 64))
    assert "was made again since" in {f["problem"][:20] for f in small.changes()}
    path.write_text(before[:-9])
    assert small.changes()[0]["problem"] == "can't be read"
    path.write_text(before)
    config = folder / "config.yaml"
    config.write_text(config.read_text().replace("dose: 80", "dose: 81"))
    assert [(f["file"], f["problem"]) for f in small.changes()] == [
        ("config.yaml", "changed since it was made")
    ]


def test_inputs_from_outside_and_files_that_were_added(small: Small) -> None:
    (small.outside / "chat.jsonl").write_text("others")
    found = small.changes()
    assert {f["cell"] for f in found} == {
        small.relpath("sft/base-animal"),
        small.relpath("sft/base-urban"),
    }
    assert all(f["problem"] == "input from outside: changed since it was used" for f in found)
    (small.outside / "chat.jsonl").write_text("chat.jsonl")
    (small.folder("sft/base-animal") / "model/more.safetensors").write_text(
        "a loader would take it too"
    )
    assert [(f["file"], f["problem"]) for f in small.changes()] == [
        ("model/more.safetensors", "was added")
    ]
    (small.outside / "questions.jsonl").unlink()
    assert "input from outside: is missing" in {f["problem"] for f in small.changes()}


@pytest.mark.multiprocess
def test_a_model_by_path_and_one_from_the_network(tmp_path: Path) -> None:
    model, hub = tmp_path / "llama", tmp_path / "hub"
    for folder in (model, hub):
        folder.mkdir()
        (folder / "w.safetensors").write_text("weights")
    pin = {"hub": "a/b", "revision": "0" * 40, "file": None}
    base = tmp_path / "runs/s"
    by_path = Cell("model", "path", planned(digests(model, tmp_path)), {}, lying(model))
    by_hub = Cell("model", "hub", planned(pin), {}, lying(hub))
    last = Cell("analysis", "s", {"rows": [], "contrasts": []}, {"a": by_path, "b": by_hub})
    finish_all(base, [by_path, by_hub, last])
    assert changes_of(base) == []
    for folder in (model, hub):
        (folder / "w.safetensors").write_text("WEIGHTS")
        (folder / "code.py").write_text("")
    found = {(Path(f["file"]).parent.name, Path(f["file"]).name) for f in changes_of(base)}
    assert found == {(at, name) for at in ("llama", "hub") for name in ("w.safetensors", "code.py")}


def planned(identity: Any) -> dict[str, Any]:
    return {"files": {"model": identity}}


def lying(path: Path) -> dict[str, Any]:
    return {"files": {"model": str(path)}}


def finish_all(base: Path, cells: list[Cell]) -> None:
    for cell in cells:
        mark_finished(base, cell)
    publish(base / cells[-1].relpath)


@pytest.mark.multiprocess
def test_every_file_from_outside_of_a_study_is_followed(tmp_path: Path) -> None:
    """As study.spec.expand, source_cells and benchmarks put them into cells."""
    outside = tmp_path / "outside"
    served = outside / "judge"
    for name in ("judge/w", "llama/tokenizer.json", "chat.jinja", "corpus.jsonl", "chat.jsonl"):
        (outside / name).parent.mkdir(parents=True, exist_ok=True)
        (outside / name).write_text("{}")
    local = {"served_by": "vllm", "path": str(served)}
    model = {"path": str(outside / "llama"), "chat_template": str(outside / "chat.jinja")}
    overrides = [
        f"endpoints.dummy={json.dumps(local)}",
        f"models.base={json.dumps(model)}",
        f"corpora.given={json.dumps({'path': str(outside / 'corpus.jsonl'), 'documents': 1})}",
        f"arms.given={json.dumps({'start': 'base', 'midtrain': 'given'})}",
        f"sft.data={outside / 'chat.jsonl'}",
    ]
    study = load_study(ROOT / "studies/tiny.yaml", None, overrides)
    cells = expand.in_order(expand.analysis(study))
    base = tmp_path / "runs/tiny"
    finish_all(base, cells)
    rows = lineage(published(base, STUDY), base)
    read = {c["path"] for row in rows for c in row["checks"] if c["kind"] == "external"}
    assert {path for path in read if path.startswith(str(outside))} == {
        str(path) for path in outside.rglob("*") if path.is_file()
    }
    assert {str(Path(path).relative_to(ROOT)) for path in read if path.startswith(str(ROOT))} == {
        "analysis/claims/2604.13076v3.yaml",
        "analysis/report.css",
        "analysis/report.html.j2",
        "analysis/report.js",
        "eval/data/anima_like/questions.jsonl",
        "eval/data/anima_like/dimensions.jsonl",
        "eval/data/concern_for_animals.jsonl",
    }
    assert changes_of(base) == []
    for path in outside.rglob("*"):
        if path.is_file():
            path.write_text("other")
    changed = {f["file"] for f in changes_of(base)}
    assert changed == {str(path) for path in outside.rglob("*") if path.is_file()}


def test_other_code_and_packages_are_a_note_not_a_fault(
    small: Small, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        changes, "installed", lambda name: "9.9" if name == "torch" else installed(name)
    )
    monkeypatch.setattr(changes, "code_version", lambda: {"commit": "f" * 40, "dirty": False})
    assert small.changes() == []
    found = small.notes()
    manifest = read_manifest(small.folder("sft/base-animal")) or {}
    made = manifest["packages"]["torch"]
    assert any(
        note.startswith(f"torch was {made} and is 9.9: {small.cells[0].relpath} and ")
        for note in found
    )
    # Without git no commit is on record.
    is_known = manifest["code"]["commit"] is not None
    assert any("and is ffffffff" in note for note in found) == is_known
    assert not any("numpy" in note for note in found)


def test_a_cell_whose_variables_change_numbers_is_named(
    small: Small, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(changes, "code_version", lambda: {"commit": "f" * 40, "dirty": False})
    path = small.folder("judge/ahb-base-animal-s0-d80") / "manifest.json"
    manifest = json.loads(path.read_text())
    assert "environment" in manifest and not any("numbers" in note for note in small.notes())
    manifest["environment"] |= {"ATEN_CPU_CAPABILITY": "default"}
    path.write_text(json.dumps(manifest))
    assert (
        "numbers may differ from other cells of judge: ATEN_CPU_CAPABILITY was default, not unset: "
        + small.relpath("judge/ahb-base-animal-s0-d80")
    ) in small.notes()


def test_the_way_back_of_one_number(small: Small) -> None:
    way = trace(results(small.base), small.base, STUDY, "ahb", "animal", 0, 80)
    stages = [
        "analysis",
        "judge",
        "generate",
        "sft",
        "midtrain",
        "documents",
        "model",
        "file",
        "file",
    ]
    assert [step["stage"] for step in way] == stages
    assert way[0]["facts"] == "score 0.25, n 4" and "judge dummy" in way[1]["facts"]
    assert (
        "None" not in json.dumps(way)
        and "dose 80" in way[3]["facts"]
        and "steps 7" in way[3]["facts"]
        and "documents 9" in way[5]["facts"]
    )
    assert "urban" not in json.dumps(way) and all(step["recorded"] == "yes" for step in way[:7])
    for step in way[:7]:
        assert step["sha256"] == sha256(small.base / step["cell"] / "manifest.json")
    assert {step["sha256"] for step in way[7:]} == {
        sha256(path) for path in small.outside.iterdir()
    }
    assert {step["recorded"] for step in way[7:]} == {"unread"}
    path = small.folder("midtrain/base-animal") / "manifest.json"
    path.write_text(path.read_text() + " ")
    way = trace(results(small.base), small.base, STUDY, "ahb", "animal", 0, 80)
    assert [step["stage"] for step in way if step["recorded"] == "no"] == ["midtrain"]


def test_a_number_that_is_not_there_and_a_study_without_results(small: Small) -> None:
    with pytest.raises(
        UserError,
        match=r"no score of ahb animal 0 7 \(did you mean ahb animal 0 0\?\); results.json",
    ):
        trace(results(small.base), small.base, STUDY, "ahb", "animal", 0, 7)
    shutil.rmtree(results(small.base))
    with pytest.raises(UserError, match=f"are published; python -m study run {STUDY}"):
        published(small.base, STUDY)


def test_the_published_analysis_is_found_among_several(small: Small) -> None:
    other: Any = Cell("analysis", "small", {"rows": [], "contrasts": []}, small.last.inputs)
    finish(small.base, other)
    assert published(small.base, STUDY) == small.base / small.last.relpath
    publish(small.base / other.relpath)
    assert published(small.base, STUDY) == small.base / other.relpath
