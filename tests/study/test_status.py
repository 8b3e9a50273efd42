"""The status screen for studies that ran on one machine. Cells are run by core, as in a study."""

import json
import multiprocessing
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from core.cell.context import StageContext
from core.cell.identity import Cell, create_cell_dir
from core.cell.log import log_to
from core.cell.restarts import retry_text
from core.cell.run import run_cell
from core.cell.waiting import Waiting
from core.errors import UserError
from core.stages import STAGE_INFO
from study.commands import status as module
from study.commands.status import look, print_status, show

pytestmark = pytest.mark.multiprocess

AGAIN = "python -m study run s.yaml"
WATCH = "python -m study status s.yaml --watch"
FORK = multiprocessing.get_context("fork")


def cell(stage: str, name: str, *inputs: Cell) -> Cell:
    return Cell(stage, name, {"name": name}, {c.name: c for c in inputs})


def states(data: dict[str, Any]) -> dict[str, str]:
    return {row["cell"]: row["state"] for row in data["cells"]}


DOCUMENTS = [cell("documents", name) for name in "abc"]
TRAININGS = [cell("midtrain", f"{c.name}-t", c) for c in DOCUMENTS]
LAST = cell("judge", "last", *TRAININGS)
CELLS = [*DOCUMENTS, *TRAININGS, LAST]


Stage = Callable[[StageContext], dict[str, int]]


@dataclass
class Runner:
    """Runs cells in processes that write a log, as a study does. Stages are functions."""

    base: Path

    def run(self, *cells: tuple[Cell, Stage]) -> None:
        process = self.start(*cells)
        process.join()

    def start(self, *cells: tuple[Cell, Stage]) -> BaseProcess:
        process = FORK.Process(target=self._run, args=cells)
        process.start()
        return process

    def _run(self, *cells: tuple[Cell, Stage]) -> None:
        # pytest has replaced both by files of its own.
        sys.stdout = open(1, "w", closefd=False)  # noqa: SIM115
        sys.stderr = open(2, "w", closefd=False)  # noqa: SIM115
        for cell, stage in cells:
            folder = create_cell_dir(cell, self.base)
            STAGE_INFO[cell.stage] = replace(STAGE_INFO[cell.stage], module="stage_of_test")
            sys.modules["stage_of_test"] = SimpleNamespace(run=stage, RESUMABLE=False)  # type: ignore[assignment]
            with suppress(Exception), log_to(folder):
                run_cell(folder)

    def finish(self, *cells: Cell) -> None:
        self.run(*((cell, lambda context: {}) for cell in cells))

    def fail(self, *errors: tuple[Cell, Exception]) -> None:
        self.run(*((cell, raising(error)) for cell, error in errors))

    @contextmanager
    def running(self, cell: Cell) -> Iterator[Callable[[], None]]:
        """Run the cell in another process, which is killed at the end.

        Gives a function that lets the process finish the cell.
        """
        working = FORK.Event()
        go_on = FORK.Event()

        def stage(context: StageContext) -> dict[str, int]:
            context.progress(12, 1240, "documents")
            working.set()
            go_on.wait()
            return {}

        process = self.start((cell, stage))

        def finish() -> None:
            go_on.set()
            process.join()

        try:
            assert working.wait(60)
            yield finish
        finally:
            process.kill()
            process.join()


def raising(error: Exception) -> Stage:
    def stage(context: StageContext) -> dict[str, int]:
        raise error

    return stage


@pytest.fixture
def runner(tmp_path: Path) -> Runner:
    return Runner(tmp_path / "s")


def test_an_error_of_the_kit_is_shown_with_its_cure_and_once(runner: Runner) -> None:
    cure = "to make it anew: rm -rf " + "/a/long/path" * 20
    for _ in range(2):
        runner.fail((DOCUMENTS[0], UserError(where="model", what="is cut short", fix=cure)))
    text = show(look(CELLS, runner.base, "s.yaml"))
    assert "documents a: see the error" in text
    assert text.count(f"  | error: model: is cut short; {cure}\n") == 1


def test_restarts_are_counted_and_those_that_get_nowhere_are_warned_of(runner: Runner) -> None:
    a, b, _ = DOCUMENTS
    runner.fail((a, OSError()), (b, OSError()))
    with (runner.base / b.relpath / "log.txt").open("a") as log:
        log.write("2026-01-01T00:00:00Z " + retry_text("7", 1, 2, "killed") + "\n")
    with runner.running(a):
        (row, *_) = look(CELLS, runner.base, "s.yaml")["cells"]
        assert (row["restarts"], row["without_progress"]) == (1, False), "it has begun to write"
    with runner.running(a):
        assert "no progress" not in show(look(CELLS, runner.base, "s.yaml"))
    with runner.running(a), runner.running(b):
        data = look(CELLS, runner.base, "s.yaml")
        text = show(data)
    assert "restarts: 4, of 2 cells; 1 of them retries of a failure\n" in text
    assert (
        "warning: documents a: no progress between its last two starts (12 of 1,240 documents)\n"
        "  fix: raise the stage's minutes in the cluster profile, or see its log.txt\n"
    ) in text
    assert "documents b: no progress" not in text


def test_a_study_from_nothing_to_its_end(runner: Runner) -> None:
    base = runner.base
    data = look(CELLS, base, "s.yaml")
    assert set(states(data).values()) == {"to do"}
    assert data["next"] == AGAIN and not data["goes_on"]
    assert not base.exists(), "looking changes nothing"
    a, b, c = DOCUMENTS
    runner.finish(a)
    runner.fail((b, OSError(122, "Disk quota exceeded")))
    with runner.running(c):
        data = look(CELLS, base, "s.yaml")
        expected = {"a": "done", "b": "failed", "c": "running"}
        expected |= {"a-t": "to do", "b-t": "blocked", "c-t": "to do", "last": "blocked"}
        assert states(data) == expected
        assert data["next"] == WATCH, "a second process would only wait"
        counts = {key: value for key, value in data["stages"][0].items() if value}
        assert counts == {"stage": "documents", "done": 1, "running": 1, "failed": 1}
        failed = next(row for row in data["cells"] if row["state"] == "failed")
        assert failed["cause"] == "no disk space" and failed["next"] == AGAIN
        assert "quota" in failed["last_lines"][-1]
        text = show(data)
        assert "done 1 of 7, running 1, failed 1, blocked 2, to do 2" in text
        assert "running: documents c: 12 of 1,240 documents, 0 s" in text
        assert "2 cells are blocked by it" in text
        assert text.splitlines()[-1] == f"next: {WATCH}" and text.count("next:") == 1
        json.dumps(data)
    data = look(CELLS, base, "s.yaml")
    assert states(data)["c"] == "failed" and data["next"] == AGAIN and not data["goes_on"]
    causes = [row["cause"] for row in data["cells"] if row["state"] == "failed"]
    assert causes == ["no disk space", "stopped"]
    runner.finish(*CELLS[1:])
    data = look(CELLS, base, "s.yaml")
    assert set(states(data).values()) == {"done"}
    assert data["next"] == "python -m study report s.yaml"


def test_what_waits_for_a_batch_is_no_failure(runner: Runner) -> None:
    a, b, _ = DOCUMENTS
    waiting = Waiting("batch batch_7 of 40 requests, sent 2026-01-01T00:00:00Z (in_progress)", 60)
    for _ in range(3):
        runner.fail((a, waiting))
    runner.finish(b)
    data = look(CELLS, runner.base, "s.yaml")
    assert states(data)["a"] == "to do" and states(data)["a-t"] == "to do"
    assert data["next"] == AGAIN
    text = show(data)
    assert f"waiting: documents a: {waiting.awaited}\n" in text
    assert "failed" not in text.splitlines()[0] and "no progress" not in text
    with runner.running(a):
        row = look(CELLS, runner.base, "s.yaml")["cells"][0]
    assert row["state"] == "running" and "waits_for" not in row
    runner.finish(a)
    assert "waiting:" not in show(look(CELLS, runner.base, "s.yaml"))


def test_a_thousand_cells_fit_on_a_screen(runner: Runner) -> None:
    cells = [cell("sft", f"base-animal-s{n}", DOCUMENTS[0]) for n in range(1000)]
    runner.finish(DOCUMENTS[0])
    errors = [
        "CUDA out of memory",
        "KeyError: 'x7'",
        "KeyError: 'x8'",
        "HTTP 401",
        "Address already in use",
    ]
    errors += ["x error"] * (600 - len(errors))
    long_line = "a long line " * 30
    texts = [f"{long_line}\nerror {number}: {error}" for number, error in enumerate(errors)]
    failing = zip(cells, map(RuntimeError, texts), strict=False)
    runner.fail(*failing)
    started = time.monotonic()
    data = look([*DOCUMENTS, *cells], runner.base, "s.yaml")
    lines = show(data).splitlines()
    seconds = time.monotonic() - started
    print(f"1,003 cells, 600 of them failed: {seconds:.2f} s, {len(lines)} lines")
    assert len(lines) < 45
    # A path is never cut: it is there to be copied.
    assert max(len(line) for line in lines if not line.startswith("  log:")) <= 102
    same_cause = [line for line in lines if "1 more with the same cause" in line]
    assert any(line.endswith("sft base-animal-s2") for line in same_cause), "numbers may differ"
    assert "and 595 more failing cells, of other causes; --json lists all" in lines


def clock(sleep: Callable[[float], Any]) -> SimpleNamespace:
    """The module `time` of `status` alone: subprocess sleeps too, while it waits for squeue."""
    return SimpleNamespace(**vars(time) | {"sleep": sleep})


def test_watching_prints_changes_and_ends_with_the_study(
    runner: Runner, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (a, *_) = DOCUMENTS
    base = runner.base
    with runner.running(a) as finish:
        steps = iter([lambda: None, finish])
        with monkeypatch.context() as patch:
            patch.setattr(module, "time", clock(lambda seconds: next(steps)()))
            print_status([a], base, "s.yaml", watch=15)
    assert capsys.readouterr().out.count("next:") == 2, "running, no change, done"

    def interrupt(seconds: float) -> None:
        raise KeyboardInterrupt

    b = DOCUMENTS[1]
    with runner.running(b), monkeypatch.context() as patch:
        patch.setattr(module, "time", clock(interrupt))
        print_status([b], base, "s.yaml", watch=15)
    capsys.readouterr()
    print_status([DOCUMENTS[2]], base, "s.yaml", as_json=True)
    assert json.loads(capsys.readouterr().out)["total"]["to do"] == 1
