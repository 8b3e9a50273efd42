"""Restarts of a cell, as its log and progress.json tell them."""

import json
from contextlib import redirect_stdout
from pathlib import Path
from types import SimpleNamespace

import pytest

from core.cell import run
from core.cell.context import StageContext
from core.cell.failures import KNOWN_FAILURES, ON_RESTART, end
from core.cell.identity import Cell, create_cell_dir
from core.cell.restarts import count_retries, read_progress, read_restarts, retry_text
from core.cell.stage import import_stage, is_resumable
from core.stages import STAGES


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return create_cell_dir(Cell("documents", "a", {}, {}), tmp_path / "study")


def start(
    folder: Path, monkeypatch: pytest.MonkeyPatch, *progress: int, resumable: bool = True
) -> None:
    """Run the cell until it dies, after these reports of its progress."""

    def stage(context: StageContext) -> dict[str, int]:
        for number in progress:
            (folder / "progress.json").unlink(missing_ok=True)
            context.progress(number, 780, "answers")
            if not (folder / "progress.json").exists():  # reported less than half a second ago
                report = {"done": number, "total": 780, "unit": "answers"}
                (folder / "progress.json").write_text(json.dumps(report))
        raise TimeoutError

    module = SimpleNamespace(run=stage, RESUMABLE=resumable)
    monkeypatch.setattr(run, "_import_stage", lambda config: module)
    with (
        pytest.raises(TimeoutError),
        open(folder / "log.txt", "a") as log,
        redirect_stdout(log),
    ):
        run.run_cell(folder)


@pytest.mark.parametrize("resumable", [True, False])
def test_restarts_and_their_progress_are_counted(
    folder: Path, monkeypatch: pytest.MonkeyPatch, resumable: bool
) -> None:
    def begins(*progress: int) -> tuple[int, bool]:
        start(folder, monkeypatch, *progress, resumable=resumable)
        restarts = read_restarts(folder)
        return restarts.count, restarts.without_progress

    assert begins(100) == (0, False)
    assert begins(100, 300) == (1, False)
    assert begins(300) == (2, False), "the one before made progress"
    assert begins(300) == (3, True)
    assert begins(300, 301) == (4, False), "now it goes on"
    first, *others = [
        line for line in (folder / "log.txt").read_text().splitlines() if "starts" in line
    ]
    assert first.endswith(")") and " after " not in first
    assert others[-1].endswith(", after 300 of 780 answers)")
    assert end(folder / "log.txt")[0] == others[-1], "the log's end begins with the last start"


def test_a_stage_that_counts_something_else_has_gone_on(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    start(folder, monkeypatch, 300)
    start(folder, monkeypatch, 300)
    steps = {"done": 4, "total": 9, "unit": "steps"}
    (folder / "progress.json").write_text(json.dumps(steps))
    start(folder, monkeypatch)
    assert not read_restarts(folder).without_progress
    start(folder, monkeypatch)
    assert read_restarts(folder).without_progress


def test_retries_are_counted_by_job(folder: Path) -> None:
    assert count_retries(folder) == 0 and read_restarts(folder).count == 0
    lines = [retry_text(job, 1, 2, "killed") for job in ("7_1", "7_11", "7_1")]
    (folder / "log.txt").write_text("".join(f"now {line}\n" for line in lines))
    assert count_retries(folder, "7_1") == 2 and count_retries(folder) == 3
    assert read_restarts(folder).retries == 3


@pytest.mark.vllm  # imports all stages
def test_the_fix_of_a_time_limit_is_true_for_each_stage() -> None:
    anew = [stage for stage in STAGES if not is_resumable(import_stage(stage))]
    assert f"it continues ({', '.join(anew[:-1])} and {anew[-1]} start again)" == ON_RESTART
    for failure in KNOWN_FAILURES:
        if failure.name in ("time limit", "preempted"):
            assert failure.fix.endswith(ON_RESTART)


@pytest.mark.parametrize("content", ["", "{", "[]", "1", "null", "{}", '{"done": 1}', "\udcff"])
def test_a_damaged_report_of_progress_is_none(folder: Path, content: str) -> None:
    (folder / "progress.json").write_bytes(content.encode("utf-8", "surrogateescape"))
    assert read_progress(folder) is None
