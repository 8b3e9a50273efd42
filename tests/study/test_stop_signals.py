"""What `run` says when a signal stops it."""

import os
import signal
from pathlib import Path
from typing import Any

import pytest

from core.cell import local_executor
from study.cli import main
from study.stop_signals import Stopped, stop_signals
from tests.place import SMALL


@pytest.mark.multiprocess
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_run_says_what_a_signal_has_stopped(
    number: signal.Signals,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def begin(cells: Any, base: Path, jobs: int, on_event: Any, *devices: Any) -> None:
        on_event("started", cells[0], {})
        on_event("progress", cells[0], {"done": 1, "total": 2, "unit": "rows"})
        signal.raise_signal(number)

    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr(local_executor, "run", begin)
    status = main(["run", str(SMALL), "--runs", str(tmp_path)])
    by = "" if number == signal.SIGINT else f" by {number.name}"
    assert status == 128 + number
    assert capsys.readouterr().err == (
        f"stopped{by}: model base; finished cells are kept, the same command continues\n"
    )
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_second_signal_does_not_end_the_tidying_up() -> None:
    is_tidy = False
    with pytest.raises(Stopped), stop_signals():
        try:
            os.kill(os.getpid(), signal.SIGTERM)
        finally:
            os.kill(os.getpid(), signal.SIGHUP)
            is_tidy = True
    assert is_tidy


def test_what_nohup_ignores_stays_ignored() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with stop_signals():
            os.kill(os.getpid(), signal.SIGHUP)
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)
