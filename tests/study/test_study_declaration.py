"""A study is declared once, before its first score, and later edits are named."""

import json
import multiprocessing
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from analysis.estimates import ALPHA
from core.cell import local_executor
from core.cell.identity import Cell, create_cell_dir
from core.cell.local_executor import Failure
from core.declaration import FILE, content_sha256, read_declaration, write_declaration
from core.errors import UserError
from core.paths import ROOT
from slurm import submit as slurm_submit
from study import cli
from study.spec import expand, study_declaration
from study.spec.load import load_study
from study.spec.schema import Study
from study.spec.study_declaration import content_of, declare, find_differences

SMALL = ROOT / "tests/small/small.yaml"
FORK = multiprocessing.get_context("fork")
CONTRASTS = [
    {"name": name, "treatment": "animal", "control": "urban", "benchmarks": [bench]}
    for name, bench in (("harm", "ahb"), ("concern", "concern"))
]


def small(*overrides: str, seeds: list[int] | None = None) -> Study:
    return load_study(SMALL, seeds, list(overrides))


def cells_of(study: Study, base: Path) -> list[Cell]:
    return expand.in_order(expand.analysis(study, base))


def finish(cell: Cell, base: Path) -> None:
    folder = create_cell_dir(cell, base)
    (folder / "manifest.json").write_text(json.dumps({"identity": cell.identity}))


def differences(*overrides: str, seeds: list[int] | None = None) -> list[str]:
    return [*find_differences(content_of(small()), content_of(small(*overrides, seeds=seeds)))]


def three_seeds(tmp_path: Path, **changes: object) -> Path:
    path = tmp_path / "three.yaml"
    spec = yaml.safe_load(SMALL.read_text()) | {"seeds": [0, 1, 2]} | changes
    path.write_text(yaml.safe_dump(spec))
    return path


def test_the_whole_file_is_declared_by_a_run_of_one_seed(tmp_path: Path) -> None:
    path = three_seeds(tmp_path)
    whole = content_of(load_study(path))
    assert content_of(load_study(path, [1])) == whole
    assert content_of(load_study(path, [1, 7]))["seeds"] == [0, 1, 2, 7]
    assert whole["seeds"] == [0, 1, 2] and whole["alpha"] == ALPHA
    assert whole["doses"] == {"animal": [0, 80], "urban": [0, 80]}
    assert len(whole["benchmarks"]["ahb"]["files"]["questions"]) == 64
    assert (whole["benchmarks"]["ahb"]["judge"], whole["contrasts"][0]["family"]) == (
        "dummy",
        "primary",
    )


def test_it_is_written_once_and_before_the_first_evaluation_is_finished(tmp_path: Path) -> None:
    base = tmp_path / "runs/small"
    study = small()
    cells = cells_of(study, base)
    for cell in cells:
        if cell.stage in ("model", "documents", "midtrain", "sft", "contamination"):
            finish(cell, base)
    record = declare(study, base, cells)
    assert record and record["sha256"] == content_sha256(content_of(study))
    before = (base / FILE).read_bytes()
    edited = small("benchmarks.ahb.epochs=5")
    assert declare(edited, base, cells_of(edited, base)) == record
    assert (base / FILE).read_bytes() == before
    (base / FILE).unlink()
    finish(next(cell for cell in cells if cell.stage == "generate"), base)
    assert declare(study, base, cells) is None and not (base / FILE).exists()
    assert expand.analysis(study, base).settings["declaration"] is None
    # in another study of the runs folder too: its scores were there before this one
    other = tmp_path / "runs/other"
    assert declare(study, other, cells_of(study, other)) is None


def _write(base: Path, content: dict[str, Any], read: Path) -> None:
    write_declaration(base, content)
    read.write_bytes((base / FILE).read_bytes())


def test_that_of_a_copy_from_another_machine_is_taken_over_with_its_scores(
    tmp_path: Path,
) -> None:
    base, copy = tmp_path / "runs/small", tmp_path / "runs/small-cluster"
    scored = next(cell for cell in cells_of(small(), copy) if cell.stage == "generate")
    write_declaration(copy, content_of(small()), "2026-01-01T00:00:00Z")
    finish(scored, copy)
    cells = cells_of(small(), base)
    assert cells[-1].settings["declaration"] == {
        "sha256": content_sha256(content_of(small())),
        "differences": [],
    }
    record = declare(small(), base, cells)
    assert record and record["time"] == "2026-01-01T00:00:00Z"
    # Another one there, or none, declares nothing here.
    (base / FILE).unlink()
    other = small("contrasts.0.name=other")
    assert declare(other, base, cells_of(other, base)) is None
    (copy / FILE).unlink()
    assert declare(small(), base, cells_of(small(), base)) is None


@pytest.mark.multiprocess
def test_of_several_processes_at_once_one_declares(tmp_path: Path) -> None:
    contents = [{"seeds": [n] * 2000} for n in range(8)]
    copies = [tmp_path / str(n) for n in range(8)]
    processes = [
        FORK.Process(target=_write, args=(tmp_path / "s", content, copy))
        for content, copy in zip(contents, copies, strict=True)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    record = read_declaration(tmp_path / "s")
    assert record and record["declared"] in contents
    assert {copy.read_bytes() for copy in copies} == {(tmp_path / "s" / FILE).read_bytes()}


def test_an_edited_declaration_is_refused(tmp_path: Path) -> None:
    write_declaration(tmp_path, {"seeds": [0]})
    path = tmp_path / FILE
    path.write_text(path.read_text().replace("0\n", "1\n", 1))
    with pytest.raises(UserError, match=r"declaration.json: was edited"):
        read_declaration(tmp_path)
    path.write_text("{")
    with pytest.raises(UserError, match=r"was edited"):
        read_declaration(tmp_path)


def test_each_edit_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert differences() == differences("concurrency=3", "endpoints.dummy.timeout=9") == []
    (family,) = differences("contrasts.0.margin=0.1")
    assert family == "contrast animal - urban: margin 0.1 (declared none)"
    assert differences(seeds=[5]) == ["seeds 0, 5 (declared 0)"]
    assert differences("benchmarks.ahb.epochs=5") == ["benchmarks: ahb: epochs 5 (declared 2)"]
    assert differences("benchmarks.ahb.exclude=['7']") == [
        "benchmarks: ahb: exclude 7 (declared none)"
    ]
    assert "doses: animal 0 (declared 0, 80)" in differences("sft.doses=[0]")
    questions = tmp_path / "questions.jsonl"
    source = ROOT / yaml.safe_load(SMALL.read_text())["benchmarks"]["ahb"]["questions"]
    questions.write_text(source.read_text())
    assert differences(f"benchmarks.ahb.questions={questions}") == []
    study_declaration.identities.__globals__["content_hash"].cache_clear()
    questions.write_text("".join(source.read_text().splitlines(keepends=True)[1:]))
    assert differences(f"benchmarks.ahb.questions={questions}") == [
        "benchmarks: ahb: files: questions: another content than declared"
    ]


def test_contrasts_and_regrouped_families_are_named() -> None:
    declared = content_of(small(f"contrasts={json.dumps(CONTRASTS)}"))
    moved = [CONTRASTS[0], CONTRASTS[1] | {"family": "second"}]
    now = content_of(small(f"contrasts={json.dumps(moved)}"))
    assert [*find_differences(declared, now)] == [
        "contrast concern: family second (declared primary)",
        "families regrouped: primary has harm (declared harm, concern); "
        "second has concern (declared none)",
    ]
    fewer = content_of(small(f"contrasts={json.dumps(CONTRASTS[:1])}"))
    assert next(find_differences(declared, fewer)) == "contrast concern: declared, and left out now"
    assert next(find_differences(fewer, declared)) == "contrast concern: not declared"


def test_the_analysis_keeps_to_the_declared_seeds_and_names_the_rest(tmp_path: Path) -> None:
    base = tmp_path / "small"
    study = load_study(three_seeds(tmp_path))
    first = expand.analysis(study, base)
    record = declare(study, base, [])
    assert record
    again = expand.analysis(study, base)
    assert again.identity == first.identity == expand.analysis(study).identity
    edited = load_study(three_seeds(tmp_path, looks=[2, 4]), [0, 3])
    more = expand.analysis(edited, base).settings
    assert (more["seeds"], more["looks"]) == ([0, 1, 2], [])
    assert more["declaration"] == {
        "sha256": record["sha256"],
        "differences": ["looks 2, 4 (declared none)", "seeds 0, 1, 2, 3 (declared 0, 1, 2)"],
    }


@pytest.fixture
def events(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[tuple[str, bool]]]:
    """The stages that `run` begins, each with whether the study is declared by then. One fails."""
    begun: list[tuple[str, bool]] = []

    def run(cells: list[Cell], base: Path, *args: Any) -> list[Failure]:
        for cell in cells:
            args[1]("started", cell, {})
            begun.append((cell.stage, (base / FILE).exists()))
            if cell.stage == "generate":
                break
        return [Failure(cells[0], base, 1, [])]

    monkeypatch.setattr(local_executor, "run", run)
    yield begun


@pytest.mark.multiprocess  # it asks for GPUs
def test_run_declares_when_its_first_evaluation_begins(
    tmp_path: Path, events: list[tuple[str, bool]], capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["run", str(SMALL), "--runs", str(tmp_path / "runs")]
    base = tmp_path / "runs/small"
    assert cli.main([*arguments, "--set", "corpora.animal.preview=2"]) == 1
    assert not (base / FILE).exists() and {stage for stage, _ in events} == {"documents"}
    events.clear()
    assert cli.main(arguments) == 1
    declared = {is_declared: stages for is_declared, stages in _by_second(events).items()}
    assert declared[True] == {"generate"} and {"documents", "sft"} <= declared[False]
    record = read_declaration(base)
    assert record and f"declared as {record['sha256']}" in capsys.readouterr().out


def _by_second(events: list[tuple[str, bool]]) -> dict[bool, set[str]]:
    return {value: {stage for stage, of in events if of == value} for _, value in events}


@pytest.mark.multiprocess
def test_submit_declares_and_prints_how_to_date_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    base = tmp_path / "runs/small"

    def submit(cells: list[Cell], base: Path, *args: Any, **options: Any) -> dict[str, Any]:
        assert (base / FILE).exists()
        facts = {"study": "small", "cells": 16, "finished": 0, "queued": 0, "submitted": 16}
        facts |= {"held": [], "left": 0, "jobs": [], "continues": None, "code": None}
        facts |= {"behind": [], "login": []}
        return facts | {"remaining": [], "waits": [], "orphans": [], "queued_code": []}

    monkeypatch.setattr(slurm_submit, "submit", submit)
    cluster = str(ROOT / "tests/small/cluster.yaml")
    arguments = ["submit", str(SMALL), "--cluster", cluster, "--runs", str(tmp_path / "runs")]
    assert cli.main(arguments) is not None
    record = read_declaration(base)
    output = capsys.readouterr().out
    assert record and f"declared as {record['sha256']}" in output
    assert cli.main([*arguments, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["declaration"] == record["sha256"]
    # The printed line works when it is typed.
    if not shutil.which("git"):
        pytest.skip("no git on this machine")
    (line,) = (line for line in output.splitlines() if "git tag -a" in line)
    for words in (
        ["git", "init", "-q", "--bare", "there"],
        ["git", "init", "-q", "here"],
        ["git", "-C", "here", "remote", "add", "origin", "../there"],
        ["git", "-C", "here", "config", "user.name", "a"],
        ["git", "-C", "here", "config", "user.email", "a@b"],
        ["git", "-C", "here", "commit", "-q", "--allow-empty", "-m", "first"],
    ):
        subprocess.run(words, cwd=tmp_path, check=True)
    subprocess.run(["bash", "-c", line], cwd=tmp_path / "here", check=True, capture_output=True)
    shown = subprocess.run(
        ["git", "-C", "there", "tag", "-n1"], cwd=tmp_path, check=True, capture_output=True
    )
    assert record["sha256"] in shown.stdout.decode()
