"""What the ranks of a cell write of their steps, and when they count as stalled."""

import json
import os
from pathlib import Path

import pytest

from core.cell import heartbeat
from core.cell.heartbeat import Heartbeat, stalled
from tests.waiting import until


def write(folder: Path, rank: int, age: float = 0.0, **facts: object) -> None:
    """As `Heartbeat` does: a rank of two that has been in step 7 for 20 minutes."""
    beat = {"host": f"n{rank}", "world_size": 2, "step": 7, "seconds": 1200.0, "median": 8.0}
    path = folder / "ranks" / f"{rank}.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(beat | {"limit": 300.0} | facts))
    os.utime(path, (1e9 - age, 1e9 - age))  # of whatever clock


def test_who_hangs_by_what_the_ranks_write(tmp_path: Path) -> None:
    assert stalled(tmp_path) is None
    for rank in (0, 1):
        write(tmp_path, rank)
    finding = "no step for 20 min, where one takes 8 s: "
    assert stalled(tmp_path) == finding + "all ranks are in step 7, rank 0 on n0, rank 1 on n1"
    write(tmp_path, 1, step=6)
    assert stalled(tmp_path) == finding + "rank 1 on n1 is still in step 6"
    write(tmp_path, 0, age=600, step=6, seconds=600.0)
    write(tmp_path, 1, step=6)
    assert stalled(tmp_path) == finding + "rank 0 on n0 has stopped"
    # A rank of an earlier run with more of them.
    write(tmp_path, 2, age=9999, step=1)
    assert stalled(tmp_path) == finding + "rank 0 on n0 has stopped"


@pytest.mark.parametrize("facts", [{"seconds": 299.0}, {"limit": None}])
def test_what_takes_steps_is_not_stalled(tmp_path: Path, facts: dict[str, object]) -> None:
    write(tmp_path, 0, world_size=1, **facts)
    assert stalled(tmp_path) is None
    (tmp_path / "ranks/0.json").write_text("{")
    assert stalled(tmp_path) is None


def test_what_an_earlier_run_wrote_does_not_count(tmp_path: Path) -> None:
    """A job that was queued again loads the model for minutes before its first step."""
    write(tmp_path, 0, world_size=1)
    assert stalled(tmp_path)
    (tmp_path / ".lock").touch()
    assert stalled(tmp_path) is None


def test_a_save_is_no_step_that_hangs(tmp_path: Path) -> None:
    beat = Heartbeat(tmp_path, 0, 1)
    for step in range(1, 6):
        beat.begin(step)
    assert beat._facts()["limit"]
    with beat.paused():
        assert beat._facts()["limit"] is None
    assert beat._facts()["limit"]


def test_the_limit_follows_the_steps_and_the_longest_pause(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [0.0]
    monkeypatch.setattr(heartbeat.time, "monotonic", lambda: clock[0])
    beat = Heartbeat(tmp_path, 0, 1)
    for step, now in enumerate([50.0, 150.0, 250.0, 350.0, 450.0], 1):
        assert beat._facts()["limit"] is None or step > heartbeat.STEPS + 1
        clock[0] = now
        beat.begin(step)
    facts = beat._facts()
    assert (facts["median"], facts["limit"]) == (100.0, 1000.0)
    clock[0] += 900  # a save
    beat.begin(6)
    clock[0] += 7
    facts = beat._facts()
    assert (facts["limit"], facts["seconds"], facts["step"]) == (1800.0, 7.0, 6)


def test_it_writes_while_the_block_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heartbeat, "BEAT_SECONDS", 0.01)
    path = tmp_path / "ranks/0.json"
    with Heartbeat(tmp_path, 0, 1) as beat:
        beat.begin(1)
        until(lambda: path.exists() and json.loads(path.read_text())["step"] == 1)
    path.unlink()
    assert not beat._thread.is_alive() and list(path.parent.iterdir()) == []
