"""Results are published whole or not at all, each study's of each runs folder beside it."""

import fcntl
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from core.cell import manifest as manifests
from core.cell.identity import Cell, create_cell_dir, read_config
from core.cell.manifest import write_manifest
from core.cell.publish import publish, read_start, record_start, results
from core.cell.run import run_cell
from core.declaration import lock_of
from core.errors import UserError
from core.stages import STAGE_INFO

CELL = Cell("analysis", "s", {})


@pytest.fixture
def analysis(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(manifests, "code_version", lambda: {"commit": None, "dirty": None})
    return finished(tmp_path / "runs/s")


def finished(base: Path) -> Path:
    folder = create_cell_dir(CELL, base)
    for name in ("results.json", "report.html"):
        (folder / name).write_text(f"{name} of {base.parent.name}")
    write_manifest(folder, read_config(folder), "", "", counts={}, warnings=[])
    return folder


@pytest.mark.multiprocess
@pytest.mark.parametrize("text", [None, "", "report.html of runz"])
def test_an_incomplete_analysis_never_replaces_results(analysis: Path, text: str | None) -> None:
    published = publish(analysis)
    before = {path.name: path.read_text() for path in published.iterdir()}
    if text is None:
        (analysis / "report.html").unlink()
    else:
        (analysis / "report.html").write_text(text)
    with pytest.raises(UserError, match=r"report.html: 1 files of .* missing or changed") as error:
        publish(analysis)
    assert {path.name: path.read_text() for path in published.iterdir()} == before
    (problem,) = error.value.problems
    command = problem.fix.partition("to make it anew: ")[2].partition(" and run the study")[0]
    subprocess.run(command.split(), check=True)
    finished(analysis.parents[1])
    assert (publish(analysis) / "report.html").read_text() == "report.html of runs"


def test_two_runs_folders_side_by_side_have_results_of_their_own(
    analysis: Path, tmp_path: Path
) -> None:
    assert publish(analysis) == tmp_path / "results/s"
    other = finished(tmp_path / "runs2/s")
    assert publish(other) == results(tmp_path / "runs2/s") == tmp_path / "runs2-results/s"
    assert (tmp_path / "results/s/results.json").read_text() == "results.json of runs"


@pytest.mark.parametrize("last", [True, False])
def test_an_analysis_that_ends_publishes_only_if_it_was_started_last(
    last: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its job was queued before the study file was edited and the study started again."""
    monkeypatch.setattr(manifests, "code_version", lambda: {"commit": None, "dirty": None})
    base = tmp_path / "runs/s"
    results(base).mkdir(parents=True)
    (results(base) / "results.json").write_text("newer")

    def run(context: SimpleNamespace) -> dict[str, int]:
        (context.folder / "results.json").write_text("older")
        record_start(base, "0" * 64 if not last else CELL.identity)
        return {}

    info = replace(STAGE_INFO["analysis"], module="analysis_of_test")
    monkeypatch.setitem(STAGE_INFO, "analysis", info)
    stage = SimpleNamespace(run=run, RESUMABLE=False)
    monkeypatch.setitem(sys.modules, "analysis_of_test", stage)
    folder = create_cell_dir(CELL, base)
    run_cell(folder)
    assert (folder / "manifest.json").exists(), "it is finished all the same"
    assert (results(base) / "results.json").read_text() == ("older" if last else "newer")


def test_without_a_record_of_starts_an_analysis_is_published(analysis: Path) -> None:
    assert read_start(analysis.parents[1]) == {}
    assert publish(analysis, last_only=True).is_dir()
    record_start(analysis.parents[1], "0" * 64)
    with pytest.raises(UserError, match=r"ends in another analysis .00000000.; to publish this"):
        publish(analysis, last_only=True)
    record_start(analysis.parents[1], CELL.identity)
    publish(analysis, last_only=True)


def test_a_full_disk_while_results_are_copied_leaves_the_former_ones(
    analysis: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    published = publish(analysis)
    copies = []

    def copy(source: str, target: str, **options: object) -> str:
        if copies:
            raise OSError(28, "No space left on device")
        copies.append(source)
        return str(shutil.copyfile(source, target))

    copytree = shutil.copytree
    monkeypatch.setattr(
        shutil, "copytree", lambda *args, **options: copytree(*args, copy_function=copy, **options)
    )
    with pytest.raises(UserError, match=r"is not published: .*No space left on device; make room"):
        publish(analysis)
    assert len(list(published.parent.iterdir())) == 1, "nothing half-copied stays"
    assert (published / "report.html").read_text() == "report.html of runs"


def test_nothing_is_left_of_a_copy_that_failed(
    analysis: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    published = publish(analysis)
    copies: list[Path] = []

    def fail(source: Path, target: Path, ignore: object) -> None:
        target.mkdir()
        copies.append(target)
        raise OSError("no space")

    monkeypatch.setattr("shutil.copytree", fail)
    with pytest.raises(OSError, match="no space"):
        publish(analysis)
    assert copies and [path.name for path in published.parent.iterdir()] == [published.name]


def test_one_publishes_at_a_time_and_removes_what_a_killed_one_left(
    analysis: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    published = publish(analysis)
    (published.parent / ".s.123").mkdir()
    (other := published.parent / ".other.123").mkdir()
    refused: list[bool] = []

    def copy(source: Path, target: Path, ignore: Callable[..., set[str]]) -> None:
        with open(lock_of(analysis.parents[1], "results"), "a") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                refused.append(True)
        copytree(source, target, ignore=ignore)

    copytree = shutil.copytree
    monkeypatch.setattr("shutil.copytree", copy)
    assert publish(analysis) == published and refused == [True]
    assert sorted(published.parent.iterdir()) == [other, published]
