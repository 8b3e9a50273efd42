"""The shared budget: several processes together keep to one rate, and use it up."""

import asyncio
import subprocess
import sys
import time
from pathlib import Path

import pytest

from sdf import budget
from sdf.budget import Budget

ROOT = Path(__file__).parents[2]
CALLER = """
import asyncio, sys, time
from pathlib import Path
from sdf.budget import Budget
shared = Budget(Path(sys.argv[1]), requests_per_minute=3000)
async def main():
    for _ in range(int(sys.argv[2])):
        await shared.turn(0)
        print(time.time(), flush=True)
asyncio.run(main())
"""


def test_four_processes_share_a_rate_and_use_it(tmp_path: Path) -> None:
    command = [sys.executable, "-c", CALLER, str(tmp_path / "budget.json"), "100"]
    callers = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) for _ in range(4)]
    times = sorted(float(line) for caller in callers for line in caller.communicate()[0].splitlines())
    assert len(times) == 400
    seconds, a_second = times[-1] - times[0], 50
    print(f"{len(times) / seconds:.1f} calls a second of {a_second}")
    for start in times:
        inside = sum(start <= t < start + 2 for t in times)
        assert inside <= a_second * (2 + budget.CATCH_UP_SECONDS) + 1


def test_tokens_are_settled_and_a_pause_holds_everybody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now, slept = [1000.0], []
    monkeypatch.setattr(time, "time", lambda: now[0])

    async def sleep(seconds: float) -> None:
        slept.append(round(seconds, 3))
        now[0] += seconds

    monkeypatch.setattr(asyncio, "sleep", sleep)
    one, other = (Budget(tmp_path / "b", requests_per_minute=600, tokens_per_minute=60_000) for _ in range(2))
    asyncio.run(one.turn(3000))  # three seconds' worth
    asyncio.run(other.turn(1000))
    assert slept == [0.0, 3.0]
    asyncio.run(one.settle(1000, 200))
    asyncio.run(one.turn(1000))
    assert slept[-1] == 0.2
    now[0] += 60
    for wait in (0, 0, 1):  # late by a minute: one second of it is made up for
        asyncio.run(one.turn(1000))
        assert slept[-1] == wait
    asyncio.run(other.pause(30))
    asyncio.run(one.turn(10))
    assert slept[-1] == 30
    (tmp_path / "b").write_text('{"requ')
    asyncio.run(one.turn(10))
    assert slept[-1] == 0, "torn by a kill"


def test_without_rates_nothing_is_written(tmp_path: Path) -> None:
    shared = Budget(tmp_path / "b")
    for _ in range(3):
        asyncio.run(shared.turn(10**9))
    asyncio.run(shared.pause(60))
    assert not (tmp_path / "b").exists()
