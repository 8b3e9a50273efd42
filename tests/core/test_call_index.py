"""Calls of all cells of a runs folder: each request is paid once, whoever makes it and whenever."""

import asyncio
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from core.endpoints import call_index, client, sender
from core.endpoints.call_index import FILE, RECORD, CallIndex
from core.endpoints.client import LedgerClient, gather_limited
from core.endpoints.connect import Endpoint
from core.endpoints.ledger import LedgerEntry, read_ledger
from core.paths import ROOT
from tests.endpoint import Hostile, serving

MODEL = {"served_by": "url", "model": "a-judge"}
SAMPLING = {"temperature": 1.0, "max_tokens": 2500}


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sender, "BACKOFF_SECONDS", 0.02)


def ledger_of(runs: Path, cell: str) -> Path:
    path = runs / cell / "calls.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


async def ask(
    endpoint: Endpoint,
    runs: Path,
    cell: str,
    numbers: range,
    model: dict[str, Any] = MODEL,
    **sampling: float,
) -> LedgerClient:
    """Ask from a cell STUDY/STAGE/CELL what these numbers stand for."""
    caller = LedgerClient(
        model,
        lambda: endpoint,
        SAMPLING | sampling,
        ledger_of(runs, cell),
        CallIndex(runs),
        prices=(0.1, 0.4),
        timeout=10,
    )

    async def one(i: int) -> None:
        answer = await caller.complete(f"{cell} {i}", 0, "grade", f"Write on animals, {i}.", i)
        assert answer.id == f"{cell} {i}"

    async with caller:
        await gather_limited(numbers, one, 8)
    return caller


def test_a_request_is_paid_once_in_a_runs_folder(tmp_path: Path) -> None:
    with serving(Hostile()) as (endpoint, hostile):

        def asked(cell: str, count: int, **others: Any) -> int:
            before = hostile.requests
            asyncio.run(ask(endpoint, tmp_path, cell, range(count), **others))
            return hostile.requests - before

        assert asked("one/judge/a-01", 20) == 20
        assert asked("one/judge/b-02", 20) == 0, "another cell"
        assert asked("two/judge/a-01", 25) == 5, "another study"
        assert asked("two/drafts/c.1of2-03", 25) == 0, "another stage"
        assert asked("one/judge/a-01", 25) == 0, "its own again, and those of others"
        assert asked("one/judge/d-04", 3, temperature=0.0) == 3
        assert asked("one/judge/e-05", 3, model={**MODEL, "model": "another"}) == 3
        dummy = {"served_by": "dummy", "model": "a-judge", "rules_sha256": "1"}
        assert asked("one/judge/f-06", 3, model=dummy) == 3
        assert asked("one/judge/g-07", 3, model=dummy | {"rules_sha256": "2"}) == 3
        served = {"served_by": "vllm", "model": "old-1a", "files": {"x": "1-a"}, "options": {}}
        assert asked("one/judge/h-08", 3, model=served) == 3
        assert asked("one/judge/i-09", 3, model={**served, "model": "moved-1a"}) == 0
        assert asked("one/judge/j-10", 3, model=served | {"files": {"x": "1-b"}}) == 3


def test_a_ledger_is_complete_and_says_who_paid(tmp_path: Path) -> None:
    with serving(Hostile()) as (endpoint, _):
        first = asyncio.run(ask(endpoint, tmp_path, "one/judge/a-01", range(10)))
        asyncio.run(ask(endpoint, tmp_path, "one/judge/b-02", range(10)))
        third = asyncio.run(ask(endpoint, tmp_path, "one/judge/c-03", range(12)))
    entries = read_ledger(third.ledger)[0].values()
    assert sorted(entry.id for entry in entries) == sorted(f"one/judge/c-03 {i}" for i in range(12))
    origins = [entry.copied_from for entry in entries]
    assert origins.count(None) == 2 and len({*origins} - {None, "one/judge/a-01/calls.jsonl"}) <= 1
    assert first.paid["paid_calls"] == 10 and third.paid["paid_calls"] == 2
    assert third.counts["calls"] == 12 and third.counts["calls_reused"] == 10
    paid = sum(entry.cost for entry in entries if entry.copied_from is None)
    assert third.paid["paid_cost"] == pytest.approx(paid, abs=1e-6)
    assert third.cost == pytest.approx(sum(entry.cost for entry in entries))
    # All of it can be had again from this ledger alone.
    for path in tmp_path.glob("one/judge/[ab]*/calls.jsonl"):
        path.unlink()
    (tmp_path / FILE).unlink()
    nowhere = Endpoint("http://127.0.0.1:9/v1", "k", "m")
    again = asyncio.run(ask(nowhere, tmp_path, "one/judge/c-03", range(12)))
    assert again.paid == third.paid and again.cost == pytest.approx(third.cost)


def test_two_cells_at_the_same_time_pay_once(tmp_path: Path) -> None:
    async def both(endpoint: Endpoint) -> None:
        cells = (f"s/judge/{name}" for name in ("a-01", "b-02"))
        # Clients share nothing but the runs folder, as processes do.
        await asyncio.gather(*(ask(endpoint, tmp_path, cell, range(40)) for cell in cells))

    with serving(Hostile(latency=0.02, faults=0.1, hang=0.1)) as (endpoint, hostile):
        asyncio.run(both(endpoint))
    assert set(hostile.delivered.values()) == {1} and len(hostile.delivered) == 40
    for name in ("a-01", "b-02"):
        assert len(read_ledger(tmp_path / f"s/judge/{name}/calls.jsonl")[0]) == 40


def test_the_same_request_twice_in_one_cell_is_paid_once(tmp_path: Path) -> None:
    async def twice(endpoint: Endpoint) -> None:
        ledger = ledger_of(tmp_path, "s/judge/a-01")
        caller = LedgerClient(MODEL, lambda: endpoint, SAMPLING, ledger, CallIndex(tmp_path))
        async with caller:
            await asyncio.gather(*(caller.complete(i, 0, "grade", "a", 0) for i in range(3)))

    with serving(Hostile(latency=0.05)) as (endpoint, hostile):
        asyncio.run(twice(endpoint))
    assert hostile.requests == 1


@pytest.mark.multiprocess
def test_a_claim_ends_with_its_holder(tmp_path: Path) -> None:
    script = """
import sys, time
from pathlib import Path
from core.endpoints.call_index import CallIndex
index = CallIndex(Path(sys.argv[1]))
index.open()
assert index.claim("aa")
print("claimed", flush=True)
time.sleep(60)
"""
    command = [sys.executable, "-c", script, str(tmp_path)]
    holder = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE)
    assert holder.stdout and holder.stdout.readline()
    index = CallIndex(tmp_path)
    index.open()
    assert not index.claim("aa") and index.claim("bb")
    other = CallIndex(tmp_path)  # of this process: its claims are its own
    other.open()
    assert not other.claim("bb")
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    assert index.claim("aa")
    index.release("bb")
    assert other.claim("bb")
    index.close()
    assert other.claim("aa")


def test_a_job_that_never_answers_is_not_waited_for_for_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client, "CLAIM_PATIENCE", 0.1)
    monkeypatch.setattr(CallIndex, "claim", lambda self, digest: False)
    with serving(Hostile()) as (endpoint, hostile):
        asyncio.run(ask(endpoint, tmp_path, "s/judge/a-01", range(3)))
    assert hostile.requests == 3
    assert client.CLAIM_PATIENCE == 0.1
    monkeypatch.undo()
    assert client.CLAIM_PATIENCE <= 300


def entry(number: int, text: str = "text") -> bytes:
    fields = LedgerEntry(number, 0, "grade", f"{number:064x}", "m", 1, 1, 0.0, 0.1, "stop", text)
    return json.dumps(fields.__dict__).encode() + b"\n"


def opened(runs: Path) -> CallIndex:
    index = CallIndex(runs)
    index.open()
    return index


def test_damaged_ledgers_and_a_damaged_index_are_skipped(tmp_path: Path) -> None:
    good, bad = ledger_of(tmp_path, "s/judge/a-01"), ledger_of(tmp_path, "s/judge/b-02")
    good.write_bytes(b"\0\n[1]\n{\xff}\n" + b'{"outcome": "x"}\n' + entry(1) + entry(2)[:-9])
    bad.write_bytes(b'{"request_sha256": 5, "text": []}\n' + b"[" * 100_000 + b"\n")
    ledger_of(tmp_path, "s/judge/empty-03").touch()
    (tmp_path / FILE).write_bytes(os.urandom(1000))
    for _ in range(2):
        index = opened(tmp_path)
        found = index.find(f"{1:064x}")
        assert found and found.copied_from == "s/judge/a-01/calls.jsonl"
        assert not index.find(f"{2:064x}") and not index.find(f"{3:064x}")
        index.close()
    good.write_bytes(good.read_bytes() + entry(2)[-9:])
    assert opened(tmp_path).find(f"{2:064x}"), "the line was finished since"
    good.write_bytes(entry(4) + entry(5))
    index = opened(tmp_path)  # begun anew
    assert index.find(f"{5:064x}") and not index.find(f"{1:064x}")
    good.unlink()
    assert not index.find(f"{5:064x}")


def test_a_folder_that_was_moved_or_pruned_is_read_where_it_is(tmp_path: Path) -> None:
    ledger_of(tmp_path, "old/judge/a-01").write_bytes(entry(1))
    opened(tmp_path).close()
    (tmp_path / "old").rename(tmp_path / "new")
    found = opened(tmp_path).find(f"{1:064x}")
    assert found and found.copied_from == "new/judge/a-01/calls.jsonl"


def test_an_answer_that_another_job_wrote_since_is_known_after_the_claim(tmp_path: Path) -> None:
    mine, theirs = opened(tmp_path), opened(tmp_path)
    ledger = ledger_of(tmp_path, "s/judge/new-01")
    ledger.write_bytes(entry(1))
    theirs.extend(ledger)
    assert mine.claim(f"{1:064x}") and mine.find(f"{1:064x}")


def test_a_disk_that_takes_no_index_costs_no_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = (ledger_of(tmp_path, f"s/judge/{name}") for name in ("a-01", "b-02"))
    first.write_bytes(entry(1))
    with monkeypatch.context() as full:
        full.setattr(call_index.os, "pwrite", lambda *_: (_ for _ in ()).throw(OSError(28, "")))
        index = opened(tmp_path)
        assert index.find(f"{1:064x}")
        second.write_bytes(entry(2))
        index.extend(second)
        assert index.find(f"{2:064x}") and not (tmp_path / FILE).read_bytes()
    second.write_bytes(second.read_bytes() + entry(3))
    index.extend(second)  # what could not be written before is written now
    records = np.fromfile(tmp_path / FILE, RECORD)
    assert len(records) == 3
    (tmp_path / FILE).unlink()
    (tmp_path / FILE).mkdir()  # no file can be there
    index = opened(tmp_path)
    assert index.find(f"{3:064x}") and index.claim("aa")
    index.release("aa")
    index.close()


def test_many_records_are_sorted_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(call_index, "SORTED_FROM", 50)
    for cell in range(3):
        lines = (entry(100 * cell + n, f"text {cell}") for n in range(100))
        ledger_of(tmp_path, f"s/judge/{cell}").write_bytes(b"".join(lines))
    for _ in range(2):
        index = opened(tmp_path)
        for number in range(300):
            found = index.find(f"{number:064x}")
            assert found and found.text == f"text {number // 100}" and found.id == number
        assert not index.find(f"{300:064x}")
        index.close()
    assert (tmp_path / FILE).stat().st_size == 300 * RECORD.itemsize, "each line once"
