"""Trainings that receive a signal at any moment: they end soon, and resume bitwise."""

import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from core.cell.run import run_cell
from recipes import checkpoint, finetune, prepare, step_checkpoint
from tests.recipes.toy import (
    assert_same,
    ends,
    in_process,
    lines,
    on_ranks,
    start_ranks,
    training,
    until,
)

pytestmark = pytest.mark.multiprocess


def test_a_signal_to_one_rank_saves_and_stops_all(base: Path, two: Path) -> None:
    folder = training(base, "told")
    processes = start_ranks(folder, 2)
    until(lambda: len(lines(folder)) > 4, processes)
    os.kill(processes[1].pid or 0, signal.SIGUSR1)
    assert ends(processes) == [-signal.SIGUSR1] * 2, "the exit status must tell the signal"
    (saved,) = step_checkpoint.list_checkpoints(folder / "steps")
    assert saved == len(lines(folder)) < len(lines(two)), "saved at the update at which it stopped"
    assert not (folder / "manifest.json").exists() and not (folder / "model").exists()
    assert_same(on_ranks(folder, 2), two)


@contextmanager
def handled(*numbers: int, before: Callable[[], None] = lambda: None) -> Iterator[list[int]]:
    """Handlers like submitit's. Yields the signals handled; USR2 ends the process, others don't."""
    calls: list[int] = []

    def handler(number: int, frame: Any) -> None:
        before()
        calls.append(number)
        if number == signal.SIGUSR2:
            sys.exit(9)

    former = {number: signal.signal(number, handler) for number in numbers}
    try:
        yield calls
        assert all(signal.getsignal(number) is handler for number in numbers), "given back"
    finally:
        for number, action in former.items():
            signal.signal(number, action)


def told_at(update: int, number: int) -> Any:
    """A progress report that sends this process a signal when an update is done."""
    return lambda done, total, unit: os.kill(os.getpid(), number) if done == update else None


@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGUSR2, signal.SIGTERM])
def test_the_handler_of_before_is_called_once_all_is_saved(
    base: Path, alone: Path, number: int
) -> None:
    folder = training(base, f"handler_{number}")

    def saved() -> None:
        assert step_checkpoint.list_checkpoints(folder / "steps") == [6]

    with handled(number, before=saved) as calls, pytest.raises(SystemExit):
        finetune.run(in_process(folder, report=told_at(6, number)))
    assert calls == [number]
    run_cell(folder)
    assert_same(folder, alone)


@pytest.mark.parametrize(
    ("room", "window"), [(prepare, "prepare_rows"), (checkpoint, "load"), (step_checkpoint, "load")]
)
def test_before_the_first_update_a_signal_ends_it_at_once(
    base: Path,
    alone: Path,
    killed_alone: Path,
    monkeypatch: pytest.MonkeyPatch,
    room: Any,
    window: str,
) -> None:
    folder = training(base, f"told_in_{room.__name__}_{window}", like=killed_alone)
    before = sorted(folder.rglob("*"))

    def told(*_: Any, **__: Any) -> None:
        os.kill(os.getpid(), signal.SIGUSR2)
        raise AssertionError("went on")

    with (
        monkeypatch.context() as patch,
        handled(signal.SIGUSR2) as calls,
        pytest.raises(SystemExit, match="9"),
    ):
        patch.setattr(room, window, told)
        finetune.run(in_process(folder))
    assert calls == [signal.SIGUSR2] and sorted(folder.rglob("*")) == before
    run_cell(folder)
    assert_same(folder, alone)


def test_all_of_slurms_signals_during_a_save_let_it_end(
    base: Path, alone: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """During a commit: the step after it is saved too, and the signal of precedence raised."""
    folder = training(base, "told_saving", checkpoint_minutes=0.0)
    publish = step_checkpoint.commit

    def told(temporary: Path, final: Path) -> None:
        if final.name == "6":
            for number in (signal.SIGUSR2, signal.SIGTERM, signal.SIGCONT):
                os.kill(os.getpid(), number)
        publish(temporary, final)

    with monkeypatch.context() as patch, handled(signal.SIGTERM, signal.SIGUSR2) as calls:
        patch.setattr(step_checkpoint, "commit", told)
        with pytest.raises(SystemExit, match="9"):
            finetune.run(in_process(folder))
    assert calls == [signal.SIGUSR2]
    assert step_checkpoint.list_checkpoints(folder / "steps") == [6, 7] and len(lines(folder)) == 7
    run_cell(training(base, "told_saving"))
    assert_same(folder, alone)


@pytest.mark.parametrize("when", ["in the last update", "while the model is written"])
def test_near_the_end_the_model_is_written_first(
    base: Path, alone: Path, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    """What took days must not be lost for minutes; and the next run has nothing left to train."""
    folder = training(base, "told_" + when.replace(" ", "_"))
    write = checkpoint.save

    def save(*args: Any, **more: Any) -> None:
        os.kill(os.getpid(), signal.SIGUSR2)
        write(*args, **more)

    report = told_at(len(lines(alone)), signal.SIGUSR2) if "step" in when else None
    with (
        monkeypatch.context() as patch,
        handled(signal.SIGUSR2),
        pytest.raises(SystemExit, match="9"),
    ):
        if not report:
            patch.setattr(checkpoint, "save", save)
        finetune.run(in_process(folder, report=report))
    assert (folder / "model").exists()
    monkeypatch.setattr(finetune.Trainer, "train", None)
    run_cell(folder)
    assert_same(folder, alone)
