"""Results are published whole or not at all, each study's of each runs folder beside it."""

import subprocess
from pathlib import Path

import pytest

from core.cell import manifest as manifests
from core.cell.identity import Cell, create_cell_dir, read_config
from core.cell.manifest import write_manifest
from core.cell.publish import publish, results
from core.errors import UserError

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
