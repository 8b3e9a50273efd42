"""The client against a hostile endpoint: nothing lost, nothing paid twice, failures reported."""

import asyncio
import json
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from core.endpoints import dummy_endpoint, sender
from core.endpoints import ledger as ledger_module
from core.endpoints.client import LedgerClient, gather_limited
from core.endpoints.connect import Endpoint
from core.endpoints.ledger import LedgerEntry, read_ledger
from core.endpoints.rate_limit import RateLimiter
from core.errors import UserError
from tests.endpoint import FAULTS, KEY, Hostile, serving

ROOT = Path(__file__).parents[2]
SAMPLING = {"temperature": 1.0, "max_tokens": 2500}


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sender, "BACKOFF_SECONDS", 0.02)
    monkeypatch.setattr(sender, "BACKOFF_MOST", 0.1)
    monkeypatch.setattr(sender, "PATIENCE", 20.0)


def write(
    endpoint: Endpoint, ledger: Path, count: int = 20, concurrency: int = 8, **options: Any
) -> tuple[LedgerClient, dict[int, LedgerEntry]]:
    """Ask for `count` documents; the writer and the answers."""
    answers: dict[int, LedgerEntry] = {}
    writer = LedgerClient(
        {"served_by": "url", "model": endpoint.model},
        lambda: endpoint,
        SAMPLING,
        ledger,
        **({"prices": (0.1, 0.4), "timeout": 10} | options),
    )

    async def one(i: int) -> None:
        answers[i] = await writer.complete(i, 0, "document", f"Write on animals, {i}.", i)

    async def share() -> None:
        async with writer:
            await gather_limited(range(count), one, concurrency)

    asyncio.run(share())
    return writer, answers


def lines(ledger: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in ledger.read_text().splitlines()]


HERE = {"ALL_PROXY": "socks5h://127.0.0.1:9", "SSL_CERT_FILE": "/nowhere/ca.pem"}


@pytest.mark.parametrize("name", [*HERE, "http_proxy"])
def test_calls_to_loopback_use_no_proxy_and_no_certificate(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setenv(name, HERE.get(name, "http://127.0.0.1:9"))
    with serving(Hostile()) as (endpoint, _):
        _, answers = write(endpoint, tmp_path / "calls.jsonl", 2)
    assert len(answers) == 2


@pytest.mark.parametrize("name", HERE)
def test_calls_that_can_not_go_out_name_the_variable_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    for other in ("SSL_CERT_FILE", "SSL_CERT_DIR"):
        monkeypatch.delenv(other, raising=False)
    monkeypatch.setenv(name, HERE[name])
    with pytest.raises(UserError) as raised:
        write(Endpoint("https://llm.invalid/v1", "key", "m"), tmp_path / "calls.jsonl", 2)
    (problem,) = raised.value.problems
    assert problem.where == name and problem.fix.startswith(f"unset {name},")


def test_a_proxy_that_is_not_there_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:9")
    monkeypatch.setattr(sender, "RETRIES", 0)
    with pytest.raises(UserError, match=r"no answer .*calls go out by HTTPS_PROXY"):
        write(Endpoint("https://llm.invalid/v1", "key", "m"), tmp_path / "calls.jsonl", 9, 1)


@pytest.mark.slow
def test_every_prompt_is_answered_and_paid_once_whatever_the_endpoint_does(tmp_path: Path) -> None:
    ledger, count = tmp_path / "calls.jsonl", 150
    with serving(
        Hostile(
            faults=0.2, limit=60, window=1.0, latency=0.02, hang=12, retry_after=0.2, prices=(3, 15)
        )
    ) as (
        endpoint,
        hostile,
    ):
        budget = RateLimiter(tmp_path / "budget.json", requests_per_minute=60 * 60)
        writer, answers = write(
            endpoint, ledger, count, 16, rate_limiter=budget, prices=(3, 15), timeout=4
        )
        again, same = write(endpoint, ledger, count, 16, prices=(3, 15))
    assert set(hostile.met) >= {"answer", *FAULTS}, "so that it was hostile"
    assert (
        sorted(answers) == [*range(count)]
        and set(hostile.delivered.values()) == {1}
        and same == answers
    )
    for i, answer in answers.items():
        body = {"messages": [{"role": "user", "content": f"Write on animals, {i}."}], "seed": i}
        assert answer.text == dummy_endpoint.complete(body)["choices"][0]["message"]["content"]
    kept = lines(ledger)
    failed = Counter(line["outcome"] for line in kept if "outcome" in line)
    assert sum(line["cost"] for line in kept if "text" in line) == pytest.approx(
        hostile.cost, abs=1e-12
    )
    assert writer.cost == pytest.approx(hostile.cost, abs=1e-12) == again.cost
    assert failed.total() == hostile.requests - count == writer.counts["failed_attempts"]
    assert failed["http 429"] == hostile.met["429"] + hostile.met["over the limit"]
    assert failed["http 500"] == hostile.met["500"] and failed["timeout"] == hostile.met["hang"]
    assert (
        failed["empty body"] == hostile.met["empty"]
        and failed["HTML body"] == hostile.met["not JSON"]
    )
    assert (
        failed["connection"] + failed["body not JSON"]
        == hostile.met["dropped"] + hostile.met["truncated"]
    )
    assert not any("text" in line for line in kept if "outcome" in line)
    assert again.counts == writer.counts | {"calls_reused": count}
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["budget.json", "calls.jsonl"]


# Imported once and forked, so that a process costs no second of its own.
KILLED = """
import asyncio, os, signal, sys, time
from pathlib import Path
import openai
from core.endpoints import sender
from core.endpoints.call_index import CallIndex
from core.endpoints.rate_limit import RateLimiter
from core.endpoints.client import LedgerClient, gather_limited
from core.endpoints.connect import Endpoint

def share(number):
    async def all_of_it():
        ledger = folder / f"study/drafts/{number}/calls.jsonl"
        ledger.parent.mkdir(parents=True, exist_ok=True)
        limiter = RateLimiter(folder / "budget.json", requests_per_minute=6000)
        sampling = {"max_tokens": 2500}
        writer = LedgerClient(
            {"model": endpoint.model},
            lambda: endpoint,
            sampling,
            ledger,
            CallIndex(folder),
            limiter,
            (0.1, 0.4),
        )
        async def one(i):
            await writer.complete(i, 0, "document", f"Write on animals, {i}.", i)
        async with writer:
            await gather_limited(range(number, 240, 3), one, 4)
    asyncio.run(all_of_it())

folder, endpoint = Path(sys.argv[1]), Endpoint(sys.argv[2], sys.argv[3], "dummy")
sender.BACKOFF_SECONDS = 0.02
for wanted in (60, 120, 180, None):
    pids = []
    for number in range(3):
        if (pid := os.fork()) == 0:
            share(number)
            os._exit(0)
        pids.append(pid)
    ledgers = lambda: folder.glob("*/*/*/calls.jsonl")
    while wanted and sum(path.read_bytes().count(b"\\n") for path in ledgers()) < wanted:
        time.sleep(0.005)
    for pid in pids if wanted else []:
        os.kill(pid, signal.SIGKILL)
    for pid in pids:
        assert os.waitpid(pid, 0)[1] in (0, 9)
"""


@pytest.mark.multiprocess
def test_killing_three_processes_three_times_costs_at_most_the_calls_under_way(
    tmp_path: Path,
) -> None:
    with serving(Hostile(latency=0.05)) as (endpoint, hostile):
        subprocess.run(
            [sys.executable, "-c", KILLED, tmp_path, endpoint.base_url, KEY], cwd=ROOT, check=True
        )
    kept = {
        digest: a
        for n in range(3)
        for digest, a in read_ledger(tmp_path / f"study/drafts/{n}/calls.jsonl")[0].items()
    }
    assert (
        sorted(answer.id for answer in kept.values())
        == [*range(240)]
        == sorted(
            line["id"]
            for n in range(3)
            for line in lines(tmp_path / f"study/drafts/{n}/calls.jsonl")
            if "text" in line
        )
    )
    assert len(hostile.delivered) == 240 and hostile.delivered.total() <= 240 + 3 * 3 * 4
    paid_twice = hostile.delivered.total() - 240
    print(f"{paid_twice} of at most 36 calls under way were lost")
    assert sum(answer.cost for answer in kept.values()) <= hostile.cost
    if not paid_twice:
        assert sum(answer.cost for answer in kept.values()) == pytest.approx(hostile.cost)


QUOTA = {
    "error": {
        "message": "You exceeded your current quota, please check your plan",
        "code": "insufficient_quota",
    }
}
DAY = [{"error": {"message": "You exceeded your current quota", "details": [
    {"quotaId": "GenerateRequestsPerDayPerProjectPerModel"}, {"retryDelay": "0.1s"}]}}]  # fmt: skip
PAGE = b"<html>hello</html>"


@pytest.mark.parametrize(
    ("reply", "says", "requests"),
    [
        (
            (401, {}, {"error": {"message": f"Incorrect API key provided: {KEY}"}}),
            "key was refused.*401.*key_env",
            1,
        ),
        ((403, {}, {"error": {"message": "no"}}), "key was refused.*403", 1),
        ((404, {}, {"error": {"message": "no"}}), "no such model.*HTTP 404", 1),
        (
            (400, {}, {"error": {"message": f"no\n seed for {KEY}"}}),
            "the call failed.*no seed for <key>",
            1,
        ),
        ((429, {}, QUOTA), "quota is exhausted.*HTTP 429.*billing", 1),
        ((429, {"Retry-After": "0.1"}, DAY), "quota is exhausted", 1),
        ((402, {}, {"error": {"message": "no"}}), "quota is exhausted.*HTTP 402", 1),
        (
            (400, {}, {"error": {"message": "Your credit balance is too low"}}),
            "quota is exhausted",
            1,
        ),
        ((429, {"Retry-After": "3600"}, {}), "HTTP 429.*asks to wait 3600 s.*lower concurrency", 1),
        ((503, {}, {"error": {"message": "busy"}}), "the call failed.*busy", 3),
        (
            (200, {"Content-Type": "text/html"}, PAGE),
            "no chat completion.*HTML.*base_url: it usually ends in /v1",
            3,
        ),
        ((200, {}, {"error": {"message": "upstream"}}), "the call failed.*upstream", 3),
        ((200, {}, {"answer": "upstream"}), "body without choices", 3),
    ],
)
def test_a_failure_for_good_names_the_endpoint_and_never_the_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reply: Any, says: str, requests: int
) -> None:
    monkeypatch.setattr(sender, "RETRIES", 2)
    with serving(Hostile(scripted=lambda body, n: reply)) as (endpoint, hostile):
        with pytest.raises(UserError, match=says) as caught:
            write(endpoint, tmp_path / "calls.jsonl", concurrency=1)
        (line,) = caught.value.lines
        assert "\n" not in line and endpoint.base_url in line and "'dummy'" in line
        assert hostile.requests == requests == len(lines(tmp_path / "calls.jsonl"))
    assert (
        KEY not in line + (tmp_path / "calls.jsonl").read_text()
        and caught.value.__suppress_context__
    )


def test_a_server_that_is_not_there_and_a_key_that_can_not_be_sent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sender, "RETRIES", 1)
    nowhere = "http://127.0.0.1:9/v1"
    with pytest.raises(UserError, match=rf"{nowhere}, .*no answer \(.*server is up"):
        write(Endpoint(nowhere, KEY, "m"), tmp_path / "calls.jsonl")
    for key in (KEY + "\n", "two words", "ключ", ""):
        with pytest.raises(UserError, match="the key has a space, a line break") as caught:
            write(Endpoint(nowhere, key, "m"), tmp_path / "calls.jsonl")
        assert not key.strip() or key.strip() not in str(caught.value)


@pytest.mark.slow
def test_calls_under_way_are_kept_when_another_fails_for_good_and_no_more_are_made(
    tmp_path: Path,
) -> None:
    fail = lambda body, n: (401, {}, {}) if body["seed"] == 3 else None  # noqa: E731
    with serving(Hostile(scripted=fail, latency=0.3)) as (endpoint, hostile):
        with pytest.raises(UserError, match="key was refused"):
            write(endpoint, tmp_path / "calls.jsonl", 50, 8)
        assert hostile.requests == 8 and hostile.delivered.total() == 7
        hostile.scripted = None
        writer, _ = write(endpoint, tmp_path / "calls.jsonl", 50, 8)
    assert writer.counts["calls_reused"] == 7 and writer.counts["calls"] == 50
    assert writer.counts["failed_attempts"] == 1, "also those of earlier runs"


def test_after_a_failure_nothing_new_begins_and_the_rest_ends() -> None:
    begun, ended = [], []

    async def one(i: int) -> None:
        begun.append(i)
        await asyncio.sleep(0.01 if i == 1 else 0.05)
        if i == 1:
            raise UserError(what="no")
        ended.append(i)

    with pytest.raises(UserError, match=r"^no$"):
        asyncio.run(gather_limited(range(100), one, 3))
    assert begun == [0, 1, 2] and ended == [0, 2]


@pytest.mark.slow
def test_retry_after_holds_every_process_that_shares_the_rate_limit(tmp_path: Path) -> None:
    arrived = []

    def limited(body: Any, n: int) -> Any:
        arrived.append(time.monotonic())
        return (429, {"Retry-After": "1"}, {}) if n == 1 else None

    async def both(endpoint: Endpoint) -> None:
        # Two writers are what two processes are: they share no more than the budget's file.
        one, other = (
            LedgerClient(
                {"model": endpoint.model},
                lambda: endpoint,
                SAMPLING,
                tmp_path / name,
                rate_limiter=RateLimiter(tmp_path / "budget", 60_000),
            )
            for name in "xy"
        )
        async with one, other:
            (tmp_path / "budget").touch()
            first = asyncio.create_task(one.complete(0, 0, "document", "a", 0))
            while b'"hold"' not in (tmp_path / "budget").read_bytes():
                await asyncio.sleep(0.01)
            await asyncio.gather(
                first,
                *(
                    writer.complete(i, 0, "document", "a", i)
                    for i in (1, 2)
                    for writer in (one, other)
                ),
            )

    with serving(Hostile(scripted=limited)) as (endpoint, _):
        asyncio.run(both(endpoint))
    assert len(arrived) == 6 and arrived[1] - arrived[0] >= 1


@pytest.mark.slow
def test_a_rate_limit_is_waited_out_while_others_get_through_but_not_for_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sender, "RETRIES", 0)
    minute = {
        "error": {
            "message": "You exceeded your current quota",
            "details": [{"retryDelay": "0.05s"}],
        }
    }
    with serving(Hostile(scripted=lambda body, n: None if n % 4 == 0 else (429, {}, minute))) as (
        endpoint,
        hostile,
    ):
        writer, _ = write(endpoint, tmp_path / "calls.jsonl", 10, 4)
    assert writer.counts["failed_attempts"] >= 30
    monkeypatch.setattr(sender, "PATIENCE", 0.5)
    with serving(Hostile(scripted=lambda body, n: (429, {}, {}))) as (endpoint, hostile):
        with pytest.raises(UserError, match="still over the rate limit"):
            write(endpoint, tmp_path / "other.jsonl", 10, 4)
        assert hostile.requests > 8


def test_each_call_acquires_a_start_and_adjusts_its_tokens(tmp_path: Path) -> None:
    turns, settled = [], []

    class Counting(RateLimiter):
        async def acquire(self, tokens: int) -> None:
            turns.append(tokens)

        async def adjust(self, estimated: int, used: int) -> None:
            settled.append((estimated, used))

    fail = lambda body, n: (500, {}, {}) if n in (2, 3) else None  # noqa: E731
    with serving(Hostile(scripted=fail)) as (endpoint, hostile):
        _, answers = write(endpoint, tmp_path / "a", 10, 1, rate_limiter=Counting(tmp_path / "b"))
    assert len(turns) == hostile.requests == 12 and [estimated for estimated, _ in settled] == turns
    assert turns[0] > 2500 > 300 > turns[-1], "the most at first, then what answers had"
    used = sum(answer.prompt_tokens + answer.completion_tokens for answer in answers.values())
    assert sum(used for _, used in settled) == used and settled[1][1] == 0


@pytest.fixture
def small_disk(tmp_path: Path) -> Any:
    """A file system of 512 KiB, and a function that makes it larger."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=512k", "tmpfs", str(disk)]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("may not mount a file system")
    yield disk, lambda: subprocess.run(["mount", "-o", "remount,size=8m", str(disk)], check=True)
    subprocess.run(["umount", "-l", str(disk)], check=True)


@pytest.mark.multiprocess
def test_a_full_disk_loses_no_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, small_disk: Any
) -> None:
    disk, enlarge = small_disk
    monkeypatch.setattr(ledger_module, "RESERVE_BYTES", 128 << 10)
    ledger, budget = (
        disk / "calls.jsonl",
        RateLimiter(disk / "budget.json", requests_per_minute=10**6),
    )
    with serving(Hostile(latency=0.02)) as (endpoint, hostile):
        for _ in range(2):  # the second time there is no room to begin with
            with pytest.raises(
                UserError, match=f"ledger {ledger}: No space left on device; make room"
            ) as caught:
                write(endpoint, ledger, 700, 16, rate_limiter=budget)
            assert len(caught.value.lines) == 1
            kept = hostile.delivered.total()
            assert 200 < kept == len(read_ledger(ledger)[0]) == len(lines(ledger)) < 600
        enlarge()
        writer, answers = write(endpoint, ledger, 700, 16, rate_limiter=budget)
    assert (
        writer.counts["calls_reused"] == kept and len(answers) == 700 == hostile.delivered.total()
    )


def test_what_not_even_the_reserve_keeps_is_told_and_leaves_no_half_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    room = 20_000

    class Full(ledger_module.io.FileIO):
        def write(self, data: Any) -> int:
            if self.tell() >= room:
                raise OSError(28, "")
            return super().write(
                bytes(data)[:700]
            )  # a short write first, as on a disk that fills up

    monkeypatch.setattr(ledger_module.io, "FileIO", Full)
    ledger = tmp_path / "calls.jsonl"
    with serving(Hostile()) as (endpoint, hostile):
        with pytest.raises(UserError, match="No space left on device"):
            write(endpoint, ledger, 100, 4)
        assert (
            hostile.delivered.total() - 4 <= len(read_ledger(ledger)[0]) == len(lines(ledger)) < 25
        )
        room = 0
        with pytest.raises(
            UserError, match="No space left on device"
        ):  # even when no other call would tell it
            write(endpoint, tmp_path / "one.jsonl", 1)


@pytest.mark.parametrize("usage", [None, {}, {"prompt_tokens": 9, "completion_tokens": 0}])
def test_a_server_that_does_not_tell_its_tokens_is_not_taken_for_free(
    tmp_path: Path, usage: Any
) -> None:
    def silent(body: dict[str, Any], n: int) -> Any:
        reply = dummy_endpoint.complete(body)
        del reply["usage"]
        return (200, {}, reply | ({} if usage is None else {"usage": usage})) if n > 1 else None

    with serving(Hostile(scripted=silent)) as (endpoint, _):
        writer, answers = write(endpoint, tmp_path / "calls.jsonl", 4, 1)
        again, _ = write(endpoint, tmp_path / "calls.jsonl", 4, 1)
    assert [line["estimated"] for line in lines(tmp_path / "calls.jsonl")] == [
        False,
        True,
        True,
        True,
    ]
    for i, answer in answers.items():  # the dummy's own counts are a quarter of the letters too
        told = dummy_endpoint.complete(
            {"messages": [{"content": f"Write on animals, {i}."}], "seed": i}
        )["usage"]
        reported = (usage or told)["prompt_tokens"] if i else told["prompt_tokens"]
        assert (answer.prompt_tokens, answer.completion_tokens) == (
            reported,
            told["completion_tokens"],
        )
        assert (
            answer.cost == (answer.prompt_tokens * 0.1 + answer.completion_tokens * 0.4) / 1e6 > 0
        )
    assert (
        writer.counts["calls_estimated"] == again.counts["calls_estimated"] == 3
        and again.cost == writer.cost
    )
