"""What a shakedown says of the trainings that it stops and kills: what their logs show, no more."""

from pathlib import Path
from typing import Any

import pytest

from slurm.profile import Profile, Resources
from study.commands import shakedown_stops
from study.commands.shakedown_stops import Stops, read_ends

START = "2026-12-01T12:00:00Z midtrain a starts (process 7)\n"
AGAIN = "2026-12-01T12:01:00Z midtrain a starts (process 9, after 4 of 12 steps)\n"
SAVED = "2026-12-01T12:00:50Z step 4 of 12 is being saved (copied in 0.1 s)\n"
KILLED = (
    "2026-12-01T12:00:50Z retry 1 of 2 of job 5 on n1: killed: srun: error: n1: task 0: Killed\n"
)
LOST = "2026-12-01T12:00:50Z retry 1 of 2 of job 5 on n1: node failure: Slurm: NODE_FAIL\n"
RESUMES = "2026-12-01T12:01:10Z resumes after step 4\n"
TRACE = "Traceback (most recent call last):\nRuntimeError: no\n"
PROFILE = Profile({"default": Resources(10)})


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    commands: list[list[str]] = []
    monkeypatch.setattr(
        shakedown_stops.subprocess, "run", lambda words, **more: commands.append(words)
    )
    return commands


def state(base: Path, name: str, log: str = START, **more: Any) -> dict[str, Any]:
    """A row of `status` for a training with this log."""
    folder = base / f"midtrain/{name}"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "log.txt").write_text(log)
    (folder / "metrics.jsonl").touch()
    row = {"stage": "midtrain", "cell": name, "folder": f"midtrain/{name}", "state": "running"}
    return row | {"job": f"5_{name}"} | more


def found(stops: Stops, *states: dict[str, Any]) -> list[tuple[str, str]]:
    return [(row["state"], row["finding"]) for row in stops.rows(list(states))]


@pytest.mark.parametrize(
    "log, resumed",
    [
        (START, {}),
        (START + SAVED, {}),
        (START + SAVED + AGAIN + RESUMES, {"stopped": "resumes after step 4"}),
        (START + KILLED + AGAIN + RESUMES, {"killed": "resumes after step 4"}),
        (START + KILLED + AGAIN, {}),
        (START + LOST + AGAIN + RESUMES, {}),
        (START + SAVED + TRACE + AGAIN + RESUMES, {}),
    ],
)
def test_a_log_shows_how_a_training_ended_and_resumed(
    log: str, resumed: dict[str, str], tmp_path: Path
) -> None:
    state(tmp_path, "a", log)
    assert read_ends(tmp_path / "midtrain/a") == (log.count(" starts "), resumed)


def test_where_no_training_was_met_the_page_claims_nothing(
    tmp_path: Path, sent: list[list[str]]
) -> None:
    stops = Stops(tmp_path, PROFILE)
    stops.send([state(tmp_path, "a", state="queued")])
    assert sent == []
    for is_seen, finding in found(stops, state(tmp_path, "a", state="done")):
        assert is_seen == "not seen" and "was met running" in finding


def test_one_training_is_stopped_and_another_killed(tmp_path: Path, sent: list[list[str]]) -> None:
    stops = Stops(tmp_path, PROFILE)
    rows = [state(tmp_path, "a"), state(tmp_path, "b")]
    stops.send(rows)
    assert sent == [["scancel", "--signal=TERM", "5_a"]]
    (tmp_path / "midtrain/a/steps/4").mkdir(parents=True)
    stops.send(rows)
    assert len(sent) == 1, "the one that was told to stop has not ended yet"
    (tmp_path / "midtrain/b/steps/4").mkdir(parents=True)
    stops.send(rows)
    stops.send(rows)
    assert sent[1:] == [["scancel", "--signal=KILL", "5_b.0"]]
    assert [word for word, _ in found(stops, *rows)] == ["still waits", "still waits"]
    late = [state(tmp_path, name, state="done") for name in "ab"]
    assert found(stops, *late) == [
        ("not seen", "midtrain a had ended before the signal"),
        ("not seen", "midtrain b had ended before the signal"),
    ]
    anew = [
        state(tmp_path, "a", START + SAVED + AGAIN, state="done"),
        state(tmp_path, "b", START + KILLED, state="failed"),
    ]
    assert found(stops, *anew) == [
        ("fails", "midtrain a began anew"),
        ("fails", "midtrain b was not resumed: failed"),
    ]
    well = [
        state(tmp_path, "a", START + SAVED + AGAIN + RESUMES, state="done"),
        state(tmp_path, "b", START + KILLED + AGAIN + RESUMES, state="done"),
    ]
    assert found(stops, *well) == [
        ("works", "midtrain a resumes after step 4"),
        ("works", "midtrain b resumes after step 4"),
    ]


@pytest.mark.parametrize(
    "settings, off", [({"requeue": 0}, [True, True]), ({"retries": 0}, [False, True])]
)
def test_where_nothing_is_queued_again_nothing_is_stopped(
    settings: dict[str, int], off: list[bool], tmp_path: Path, sent: list[list[str]]
) -> None:
    stops = Stops(tmp_path, Profile({"default": Resources(10)}, **settings))
    rows = [state(tmp_path, "a"), state(tmp_path, "b")]
    for name in "ab":
        (tmp_path / f"midtrain/{name}/steps/4").mkdir(parents=True)
    stops.send(rows)
    assert len(sent) == off.count(False)
    assert ["nothing is queued again" in text for _, text in found(stops, *rows)] == off
