"""The shared rate limit: several processes together keep to one rate, and use it up."""

import asyncio
import bisect
import heapq
import json
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest

from core.endpoints import rate_limit
from core.endpoints.rate_limit import RateLimiter
from core.errors import UserError

ROOT = Path(__file__).parents[2]
CALLER = """
import asyncio, sys, time
from pathlib import Path
from core.endpoints.rate_limit import RateLimiter
shared = RateLimiter(Path(sys.argv[1]), requests_per_minute=3000)
async def main():
    for _ in range(int(sys.argv[2])):
        await shared.acquire(0)
        print(time.time(), flush=True)
asyncio.run(main())
"""


@pytest.mark.multiprocess
def test_four_processes_share_a_rate_and_use_it(tmp_path: Path) -> None:
    command = [sys.executable, "-c", CALLER, str(tmp_path / "budget.json"), "100"]
    callers = [
        subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) for _ in range(4)
    ]
    times = sorted(
        float(line) for caller in callers for line in caller.communicate()[0].splitlines()
    )
    assert len(times) == 400
    seconds, a_second = times[-1] - times[0], 50
    print(f"{len(times) / seconds:.1f} calls a second of {a_second}")
    for start in times:
        inside = sum(start <= t < start + 2 for t in times)
        assert inside <= a_second * (2 + rate_limit.CATCH_UP_SECONDS) + 1


def test_tokens_are_adjusted_and_back_off_holds_everybody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now, slept = [1000.0], []
    monkeypatch.setattr(rate_limit, "file_system_time", lambda file: now[0])

    async def sleep(seconds: float) -> None:
        slept.append(round(seconds, 3))
        now[0] += seconds

    monkeypatch.setattr(asyncio, "sleep", sleep)
    monkeypatch.setattr(rate_limit, "PACE", 1.0)
    one, other = (
        RateLimiter(tmp_path / "b", requests_per_minute=600, tokens_per_minute=60_000)
        for _ in range(2)
    )
    asyncio.run(one.acquire(3000))  # three seconds' worth
    asyncio.run(other.acquire(1000))
    assert slept == [0.0, 3.0]
    asyncio.run(one.adjust(1000, 200))
    asyncio.run(one.acquire(1000))
    assert slept[-1] == 0.2
    now[0] += 60
    for wait in (0, 0, 1):  # late by a minute: one second of it is made up for
        asyncio.run(one.acquire(1000))
        assert slept[-1] == wait
    asyncio.run(other.back_off(30))
    size = (tmp_path / "b").stat().st_size
    for wait in (30, 0, 0):  # after a pause, too, one second of it is made up for
        asyncio.run(one.acquire(500))
        assert slept[-1] == wait
    assert (tmp_path / "b").stat().st_size == size == rate_limit.BYTES, (
        "no kill can tear it, no full disk stop it"
    )
    (tmp_path / "b").write_text('{"requ')
    asyncio.run(one.acquire(10))
    assert slept[-1] == 0, "damaged"


def test_a_node_whose_clock_is_fast_holds_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slept = []

    async def sleep(seconds: float) -> None:
        slept.append(seconds)

    monkeypatch.setattr(asyncio, "sleep", sleep)
    shared = RateLimiter(tmp_path / "b", requests_per_minute=600)
    real = time.time
    with monkeypatch.context() as fast:
        fast.setattr(time, "time", lambda: real() + 600)
        asyncio.run(shared.acquire(0))
        asyncio.run(shared.back_off(20))
    asyncio.run(shared.acquire(0))
    assert 0 <= slept[-1] <= 20


@pytest.mark.slow
@pytest.mark.parametrize("rate", [10, 600, 6000])
def test_no_minute_holds_more_than_the_rate_and_most_of_it_is_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rate: int
) -> None:
    now, rng = [1000.0], random.Random(0)
    monkeypatch.setattr(rate_limit, "file_system_time", lambda file: now[0])
    shared = RateLimiter(tmp_path / "b", requests_per_minute=rate)
    # Eight processes: each asks for its next turn when it has used the last one, some of them late.
    calls, free = [], [(1000.0, n) for n in range(8)]
    while now[0] < 1000 + 60 * 5:
        now[0], process = heapq.heappop(free)
        wait = shared._update(lambda times, now: shared._next(times, now, 0))
        start = now[0] + max(0.0, wait)
        calls.append(start + rng.uniform(0, 0.4))  # when it arrives
        heapq.heappush(free, (start + (0.5 if rng.random() < 0.05 else 0.001), process))
    calls.sort()
    for i, start in enumerate(calls):
        assert bisect.bisect_left(calls, start + 60) - i <= rate
    if rate > 10:
        assert len(calls) >= 0.95 * rate * 5


def test_no_change_is_lost_between_many(tmp_path: Path) -> None:
    shared = RateLimiter(tmp_path / "b", tokens_per_minute=60_000)

    async def many() -> None:
        await shared.adjust(0, 1)
        before = json.loads(shared.path.read_text())["tokens"]
        await asyncio.gather(*(shared.adjust(0, 1000) for _ in range(400)))
        assert json.loads(shared.path.read_text())["tokens"] - before == pytest.approx(
            400 / rate_limit.PACE
        )

    asyncio.run(many())


def test_a_file_that_can_not_be_locked_or_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    with pytest.raises(UserError, match=r"/b: .* can't be kept \(Is a directory\); .*flock"):
        asyncio.run(RateLimiter(tmp_path / "b", requests_per_minute=1).acquire(1))


def test_without_rates_nothing_is_written(tmp_path: Path) -> None:
    shared = RateLimiter(tmp_path / "b")
    for _ in range(3):
        asyncio.run(shared.acquire(10**9))
    asyncio.run(shared.back_off(60))
    assert not (tmp_path / "b").exists()
