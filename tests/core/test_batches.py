"""Requests by the batch interface: the same answers as by calls, none lost, none paid twice."""

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from core.cell.waiting import Waiting
from core.endpoints import batch_api, batches, dummy_endpoint
from core.endpoints.batch_ledger import read_batches
from core.endpoints.batches import BatchSettings
from core.endpoints.call_index import CallIndex
from core.endpoints.client import LedgerClient, gather_limited
from core.endpoints.connect import Endpoint
from core.endpoints.dummy_batches import Body
from core.endpoints.ledger import LedgerEntry
from core.endpoints.request_form import RequestForm
from core.endpoints.sender import RequestFailed
from core.errors import UserError
from tests.batch_endpoint import (
    Provider,
    completed,
    error_line,
    ledger_lines,
    refused_line,
    serving,
)

COUNT = 6
SETTINGS = BatchSettings()
SAMPLING = {"temperature": 1.0, "max_tokens": 2500}


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batches, "SETTLE_SECONDS", 0.02)
    monkeypatch.setattr(batches, "POLL_SECONDS", 0.001)
    monkeypatch.setattr(batch_api, "BACKOFF_SECONDS", 0.001)


class Asked:
    """What came of asking for COUNT documents."""

    def __init__(self) -> None:
        self.answers: dict[int, LedgerEntry] = {}
        self.failed: dict[int, str] = {}
        self.client: LedgerClient | None = None


def ask(
    endpoint: Endpoint,
    ledger: Path,
    count: int = COUNT,
    batch: BatchSettings | None = SETTINGS,
    **options: Any,
) -> Asked:
    """Ask for documents; those that fail alone are noted."""
    asked = Asked()
    client = asked.client = LedgerClient(
        {"served_by": "url", "model": endpoint.model},
        lambda: endpoint,
        SAMPLING,
        ledger,
        **({"prices": (1.0, 2.0), "batch": batch, "log": lambda line: None} | options),
    )

    async def one(i: int) -> None:
        try:
            asked.answers[i] = await client.complete(i, 0, "document", f"On animals, {i}.", i)
        except RequestFailed as failure:
            asked.failed[i] = failure.problems[0].what

    async def all_of_them() -> None:
        async with client:
            await gather_limited(range(count), one, count)

    asyncio.run(all_of_them())
    return asked


def texts(asked: Asked) -> dict[int, str]:
    return {i: entry.text for i, entry in asked.answers.items()}


def right(count: int = COUNT) -> dict[int, str]:
    """The answers of single calls."""
    bodies = [
        {"messages": [{"role": "user", "content": f"On animals, {i}."}], "seed": i}
        for i in range(count)
    ]
    replies = [dummy_endpoint.complete(body) for body in bodies]
    return {i: reply["choices"][0]["message"]["content"] for i, reply in enumerate(replies)}


def digests(ledger: Path) -> dict[int, str]:
    return {
        line["id"]: line["request_sha256"] for line in ledger_lines(ledger) if "characters" in line
    }


def test_a_batch_gives_the_answers_of_calls_and_the_same_cost(tmp_path: Path) -> None:
    provider = Provider(looks=2)
    with serving(provider) as endpoint:
        by_batch = ask(endpoint, tmp_path / "calls.jsonl")
        assert provider.calls == 0 and len(provider.batches) == 1
        by_calls = ask(endpoint, tmp_path / "others.jsonl", batch=None)
        again = ask(endpoint, tmp_path / "calls.jsonl")
    assert texts(by_batch) == texts(by_calls) == texts(again) == right()
    assert by_batch.client and by_calls.client and again.client
    assert by_batch.client.counts == by_calls.client.counts
    assert again.client.cost == pytest.approx(by_batch.client.cost) != 0
    assert by_calls.client.cost == pytest.approx(by_batch.client.cost)
    assert again.client.counts["calls_reused"] == COUNT
    assert set(provider.payments.values()) == {1}
    shas = {entry.request_sha256 for entry in by_calls.answers.values()}
    assert set(provider.payments) == shas, "the custom_id is the ledger's key"


def test_the_requests_are_those_of_calls_without_a_stream(tmp_path: Path) -> None:
    form = RequestForm("max_completion_tokens", seed=False)
    provider = Provider()
    with serving(provider) as endpoint:
        ask(endpoint, tmp_path / "calls.jsonl", 1, form=form)
    message = {"role": "user", "content": "On animals, 0."}
    assert provider.bodies == [
        {
            "model": "dummy",
            "messages": [message],
            "temperature": 1.0,
            "max_completion_tokens": 2500,
        }
    ]
    assert {key: provider.batches["batch_1"][key] for key in ("endpoint", "completion_window")} == {
        "endpoint": "/v1/chat/completions",
        "completion_window": "24h",
    }


def test_each_step_is_in_the_ledger_before_the_next_one(tmp_path: Path) -> None:
    ledger = tmp_path / "calls.jsonl"
    seen: dict[str, list[Body]] = {}
    provider = Provider()
    provider.on_step = lambda step: seen.setdefault(step, ledger_lines(ledger))  # type: ignore[assignment]
    with serving(provider) as endpoint:
        ask(endpoint, ledger)
    assert len(seen["upload"]) == COUNT and all("characters" in line for line in seen["upload"])
    assert seen["create"][-1]["event"] == "uploaded"
    assert seen["retrieve"][-1] == {
        "batch": seen["retrieve"][0]["batch"],
        "event": "created",
        "batch_id": "batch_1",
    }
    last = ledger_lines(ledger)[-1]
    assert (last["event"], last["status"], last["answered"]) == ("ended", "completed", COUNT)


def shuffled(server: Provider, batch: str, lines: list[Body]) -> tuple[str, list[Body], list[Body]]:
    """Results in another order, doubled, and of requests that nobody has made."""
    results = [server.paid(line) for line in reversed(lines)]
    double = server.result(lines[0], body=server.answer({**lines[0]["body"], "seed": 99}))
    stray = server.result({**lines[0], "custom_id": "0" * 64})
    return "completed", [stray, *results, double, {"custom_id": 7}], []


def test_results_in_any_order_doubled_and_strange_change_nothing(tmp_path: Path) -> None:
    said: list[str] = []
    provider = Provider(endings=[shuffled])
    with serving(provider) as endpoint:
        asked = ask(endpoint, tmp_path / "calls.jsonl", log=said.append)
    assert texts(asked) == right() and len(provider.batches) == 1
    assert "warning: batch batch_1: 2 results of no request of it were left out" in said
    assert "warning: batch batch_1: 1 results for a request that has one were left out" in said


def test_damaged_lines_of_results_are_asked_for_again(tmp_path: Path) -> None:
    provider = Provider()

    def torn(server: Provider, batch: str, lines: list[Body]) -> tuple[str, list[Body], list[Body]]:
        result = completed(server, batch, lines[:-1])
        server.refuse = lambda step, number: None
        return result

    provider.endings = [torn]
    with serving(provider) as endpoint:
        asked = ask(endpoint, tmp_path / "calls.jsonl")
    assert texts(asked) == right()
    assert [len(provider.requests(batch)) for batch in provider.batches] == [COUNT, 1]
    (line,) = [line for line in ledger_lines(tmp_path / "calls.jsonl") if "outcome" in line]
    assert line["outcome"] == "no result in the batch"


def test_what_expired_is_sent_again_and_the_rest_is_kept(tmp_path: Path) -> None:
    def expired(server: Provider, batch: str, lines: list[Body]) -> Any:
        errors = [error_line(line, "batch_expired") for line in lines[4:]]
        return "expired", [server.paid(line) for line in lines[:4]], errors

    provider = Provider(endings=[expired])
    with serving(provider) as endpoint:
        asked = ask(endpoint, tmp_path / "calls.jsonl")
    assert texts(asked) == right() and set(provider.payments.values()) == {1}
    assert [len(provider.requests(batch)) for batch in provider.batches] == [COUNT, 2]
    lines = ledger_lines(tmp_path / "calls.jsonl")
    assert not any("outcome" in line for line in lines), "no attempt at them was made"


def test_errors_of_single_requests(tmp_path: Path) -> None:
    """One prompt is flagged, one fails once, one always."""

    def ending(server: Provider, batch: str, lines: list[Body]) -> Any:
        results, errors = [], []
        for line in lines:
            number = line["body"]["seed"]
            if number == 1:
                text = "Your request was flagged by our content policy"
                errors.append(refused_line(server, line, 400, text))
            elif number == 2 and batch == "batch_1":
                errors.append(refused_line(server, line, 500, "internal error"))
            elif number == 3:
                errors.append(error_line(line, "server_error"))
            else:
                results.append(server.paid(line))
        return "completed", results, errors

    provider = Provider(endings=[ending] * 3)
    ledger = tmp_path / "calls.jsonl"
    with serving(provider) as endpoint:
        asked = ask(endpoint, ledger)
        again = ask(endpoint, ledger)
    assert [len(provider.requests(batch)) for batch in provider.batches] == [COUNT, 2, 1]
    assert texts(asked) == texts(again)
    assert texts(asked) == {i: text for i, text in right().items() if i not in (1, 3)}
    assert "refuses the prompt by its rules on content" in asked.failed[1]
    assert "3 batches brought no answer, the last one: http 502" in asked.failed[3]
    assert set(again.failed) == {1, 3} and set(provider.payments.values()) == {1}
    outcomes = [(line["id"], line["outcome"]) for line in ledger_lines(ledger) if "outcome" in line]
    assert sorted(outcomes) == [(2, "http 500"), (3, "http 502"), (3, "http 502"), (3, "http 502")]


def test_an_endpoint_that_answers_nothing_uses_up_no_requests(tmp_path: Path) -> None:
    def ending(server: Provider, batch: str, lines: list[Body]) -> Any:
        return "completed", [], [refused_line(server, line, 500, "no") for line in lines]

    provider = Provider(endings=[ending] * 3)
    ledger = tmp_path / "calls.jsonl"
    with serving(provider) as endpoint:
        for _ in range(2):
            with pytest.raises(Waiting, match=r"it brought no answer \(http 500\)"):
                ask(endpoint, ledger)
        with pytest.raises(UserError, match="it and 2 before it brought no answer"):
            ask(endpoint, ledger)
        assert texts(ask(endpoint, ledger)) == right()


def _seed(line: Body) -> int:
    seed: int = line["body"]["seed"]
    return seed


def test_a_refused_key_stops_after_the_answers_are_kept(tmp_path: Path) -> None:
    def ending(server: Provider, batch: str, lines: list[Body]) -> Any:
        errors = [refused_line(server, line, 401, "key expired") for line in lines[3:]]
        return "completed", [server.paid(line) for line in lines[:3]], errors

    provider = Provider(endings=[ending])
    ledger = tmp_path / "calls.jsonl"
    with serving(provider) as endpoint:
        with pytest.raises(UserError, match="the key was refused"):
            ask(endpoint, ledger)
        assert len(provider.batches) == 1
        asked = ask(endpoint, ledger)
    assert texts(asked) == right() and set(provider.payments.values()) == {1}
    assert len(provider.requests("batch_2")) == 3


def test_a_refused_parameter_is_named(tmp_path: Path) -> None:
    def ending(server: Provider, batch: str, lines: list[Body]) -> Any:
        words = "Unsupported parameter: 'seed' is not supported"
        return "completed", [], [refused_line(server, line, 400, words) for line in lines]

    with (
        serving(Provider(endings=[ending])) as endpoint,
        pytest.raises(UserError, match=r"refuses the parameter seed.*seed: false"),
    ):
        ask(endpoint, tmp_path / "calls.jsonl", 1)


def test_a_batch_that_the_provider_refuses(tmp_path: Path) -> None:
    def ending(server: Provider, batch: str, lines: list[Body]) -> Any:
        row = {"code": "invalid_json_line", "message": "line 3 is no JSON", "line": 3}
        server.batches[batch]["errors"] = {"object": "list", "data": [row]}
        return "failed", [], []

    ledger = tmp_path / "calls.jsonl"
    provider = Provider(endings=[ending])
    with serving(provider) as endpoint:
        with pytest.raises(UserError, match=r"refused it .*line 3 is no JSON") as raised:
            ask(endpoint, ledger)
        assert not isinstance(raised.value, Waiting)
        assert texts(ask(endpoint, ledger)) == right()


def test_a_full_queue_of_the_provider_is_waited_for(tmp_path: Path) -> None:
    def ending(server: Provider, batch: str, lines: list[Body]) -> Any:
        row = {"code": "token_limit_exceeded", "message": "Enqueued token limit reached"}
        server.batches[batch]["errors"] = {"object": "list", "data": [row]}
        return "failed", [], []

    ledger = tmp_path / "calls.jsonl"
    provider = Provider(endings=[ending])
    with serving(provider) as endpoint:
        with pytest.raises(Waiting, match="Enqueued token limit reached") as raised:
            ask(endpoint, ledger)
        assert raised.value.seconds == batches.WAIT_AFTER_REFUSAL
        assert texts(ask(endpoint, ledger)) == right()


@pytest.mark.parametrize("status", ["cancelled", "CANCELED"])
def test_a_cancelled_batch_is_not_sent_again_by_itself(tmp_path: Path, status: str) -> None:
    def ending(server: Provider, batch: str, lines: list[Body]) -> Any:
        return status, [], [error_line(line, "batch_cancelled") for line in lines]

    ledger = tmp_path / "calls.jsonl"
    provider = Provider(endings=[ending])
    with serving(provider) as endpoint:
        with pytest.raises(UserError, match=r"was cancelled.*run the cell again to send its 6"):
            ask(endpoint, ledger)
        assert len(provider.batches) == 1
        assert texts(ask(endpoint, ledger)) == right()


@pytest.mark.parametrize("status", ["SUCCEEDED", "timed_out"])
def test_a_status_in_another_spelling_ends_a_batch(tmp_path: Path, status: str) -> None:
    provider = Provider(endings=[lambda *given: (status, *completed(*given)[1:])])
    with serving(provider) as endpoint:
        assert texts(ask(endpoint, tmp_path / "calls.jsonl")) == right()
    assert len(provider.batches) == 1


def waited(endpoint: Endpoint, ledger: Path, monkeypatch: pytest.MonkeyPatch, **more: Any) -> str:
    """Ask without patience; what is awaited."""
    with monkeypatch.context() as patience:
        patience.setattr(batches, "PATIENCE", 0.0)
        with pytest.raises(Waiting) as raised:
            ask(endpoint, ledger, **more)
    return raised.value.awaited


def test_a_batch_of_hours_is_left_and_taken_up_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger = tmp_path / "calls.jsonl"
    provider = Provider(looks=10**9)
    with serving(provider) as endpoint:
        for _ in range(3):
            awaited = waited(endpoint, ledger, monkeypatch)
            assert awaited.startswith("batch batch_1 of 6 requests, sent 20")
            assert awaited.endswith("(in_progress)")
        provider.looks = 0
        assert texts(ask(endpoint, ledger)) == right()
    assert len(provider.batches) == 1 and set(provider.payments.values()) == {1}


def test_a_kill_between_the_batch_and_its_id_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger = tmp_path / "calls.jsonl"
    provider = Provider(looks=10**9)
    with serving(provider) as endpoint:
        waited(endpoint, ledger, monkeypatch)
        lines = ledger.read_text().splitlines(keepends=True)
        assert '"created"' in lines[-1]
        ledger.write_text("".join(lines[:-1]))
        provider.looks = 0
        assert texts(ask(endpoint, ledger)) == right()
    assert len(provider.batches) == 1 and set(provider.payments.values()) == {1}


@pytest.mark.parametrize("cut", [1, 3, COUNT])
def test_a_kill_before_the_batch_frees_its_requests(tmp_path: Path, cut: int) -> None:
    """The requests were being written, or the file was being uploaded."""
    ledger = tmp_path / "calls.jsonl"
    provider = Provider()
    with serving(provider) as endpoint:
        ask(endpoint, tmp_path / "others.jsonl")
        lines = (tmp_path / "others.jsonl").read_text().splitlines(keepends=True)
        ledger.write_text("".join(lines[:cut]))
        assert texts(ask(endpoint, ledger)) == right()
    first = next(iter(read_batches(ledger).values()))
    assert first.ended == "not created"


def test_a_kill_while_answers_are_written_pays_nothing_twice(tmp_path: Path) -> None:
    ledger = tmp_path / "calls.jsonl"
    provider = Provider()
    with serving(provider) as endpoint:
        ask(endpoint, ledger)
        lines = ledger.read_text().splitlines(keepends=True)
        ledger.write_text("".join(lines[: COUNT + 2 + 3]))  # 3 of its answers
        asked = ask(endpoint, ledger)
    assert texts(asked) == right() and len(provider.batches) == 1
    kept = [line["request_sha256"] for line in ledger_lines(ledger) if "text" in line]
    assert len(kept) == len(set(kept)) == COUNT


def test_a_batch_whose_answer_was_lost_is_found_not_made_twice(tmp_path: Path) -> None:
    provider = Provider()
    provider.refuse = lambda step, number: (599, {}) if (step, number) == ("create", 1) else None
    with serving(provider) as endpoint:
        assert texts(ask(endpoint, tmp_path / "calls.jsonl")) == right()
    assert len(provider.batches) == 1 and provider.steps["create"] == 1


def test_a_provider_that_lists_no_batches_is_not_paid_twice(tmp_path: Path) -> None:
    def refuse(step: str, number: int) -> tuple[int, Body] | None:
        if step == "list":
            return 404, {"error": {"message": "no such page"}}
        return (599, {}) if step == "create" else None

    provider = Provider(refuse=refuse)
    ledger = tmp_path / "calls.jsonl"
    with serving(provider) as endpoint:
        for _ in range(2):
            with pytest.raises(UserError, match="whether one was made from file file-1 is unknown"):
                ask(endpoint, ledger)
    assert len(provider.batches) == 1


def test_a_list_of_many_batches_is_read_to_its_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batch_api, "PAGE", 2)
    provider = Provider()
    provider.refuse = lambda step, number: (599, {}) if (step, number) == ("create", 1) else None
    with serving(provider) as endpoint:

        def others(step: str) -> None:
            if step == "list" and len(provider.batches) < 7:
                for _ in range(6):  # of other people, later ones
                    body = {"endpoint": "/v1", "completion_window": "24h"}
                    provider.create({**body, "input_file_id": provider.upload(b"")["id"]})

        provider.on_step = others
        waiting = ask(endpoint, tmp_path / "calls.jsonl")
    assert texts(waiting) == right() and provider.steps["create"] == 1


def test_transient_errors_of_the_interface_are_tried_again(tmp_path: Path) -> None:
    provider = Provider()
    provider.refuse = lambda step, number: (503, {}) if number < 3 else None
    with serving(provider) as endpoint:
        assert texts(ask(endpoint, tmp_path / "calls.jsonl")) == right()
    assert len(provider.batches) == 1


@pytest.mark.parametrize("step", ["upload", "create"])
def test_a_refused_step_is_reported_and_frees_the_requests(tmp_path: Path, step: str) -> None:
    provider = Provider()
    body = {"error": {"message": "this organization may not use batches"}}
    provider.refuse = lambda asked, number: (403, body) if (asked, number) == (step, 1) else None
    ledger = tmp_path / "calls.jsonl"
    with serving(provider) as endpoint:
        with pytest.raises(UserError, match="the key was refused"):
            ask(endpoint, ledger)
        assert next(iter(read_batches(ledger).values())).ended == "refused"
        assert texts(ask(endpoint, ledger)) == right()
    assert provider.steps["list"] == 0


def test_an_unknown_batch_is_no_reason_to_pay_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger = tmp_path / "calls.jsonl"
    provider = Provider(looks=10**9)
    with serving(provider) as endpoint:
        waited(endpoint, ledger, monkeypatch)
        provider.batches.clear()
        with pytest.raises(UserError, match="does not know the batch batch_1"):
            ask(endpoint, ledger)
    assert not provider.batches


def test_requests_are_split_into_batches_of_the_allowed_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    provider = Provider()
    with serving(provider) as endpoint:
        asked = ask(endpoint, tmp_path / "calls.jsonl", batch=BatchSettings(max_requests=4))
        assert [len(provider.requests(batch)) for batch in provider.batches] == [4, 2]
        monkeypatch.setattr(batches, "MAX_FILE_BYTES", 700)
        ask(endpoint, tmp_path / "others.jsonl")
    assert texts(asked) == right()
    assert all(
        len(content) <= 700
        for file, content in provider.files.items()
        if int(file[5:]) > 4
        if b"custom_id" in content and b"method" in content
    )


def test_the_same_request_twice_is_one_request(tmp_path: Path) -> None:
    provider = Provider()

    async def twice(client: LedgerClient) -> list[LedgerEntry]:
        async with client:
            return await asyncio.gather(
                *(client.complete(name, 0, "grade", "The same.", 1) for name in ("a", "b"))
            )

    with serving(provider) as endpoint:
        client = LedgerClient(
            {"served_by": "url", "model": "dummy"},
            lambda: endpoint,
            SAMPLING,
            tmp_path / "calls.jsonl",
            batch=BatchSettings(),
        )
        first, second = asyncio.run(twice(client))
    assert (first.id, second.id) == ("a", "b") and first.text == second.text
    assert set(provider.payments.values()) == {1}


def test_a_request_in_another_cells_batch_is_awaited_not_paid(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = tmp_path / "runs"
    cells = [runs / f"s/judge/{name}" for name in ("one-1", "two-2")]
    for cell in cells:
        cell.mkdir(parents=True)
    one, two = (cell / "calls.jsonl" for cell in cells)
    provider = Provider(looks=10**9)
    with serving(provider) as endpoint:
        waited(endpoint, one, monkeypatch, index=CallIndex(runs))
        awaited = waited(endpoint, two, monkeypatch, index=CallIndex(runs))
        assert awaited == f"answers that other cells ask for: {cells[0]}"
        (runs / "calls.index").unlink()  # it is a cache
        waited(endpoint, two, monkeypatch, index=CallIndex(runs))
        provider.looks = 0
        assert texts(ask(endpoint, one, index=CallIndex(runs))) == right()
        copied = ask(endpoint, two, index=CallIndex(runs))
    assert texts(copied) == right() and set(provider.payments.values()) == {1}
    assert len(provider.batches) == 1
    assert copied.client and copied.client.paid["paid_calls"] == 0


def test_calls_and_batches_share_a_ledger(tmp_path: Path) -> None:
    ledger = tmp_path / "calls.jsonl"
    provider = Provider()
    with serving(provider) as endpoint:
        ask(endpoint, ledger, 3, batch=None)
        ask(endpoint, ledger, 5)
        assert texts(ask(endpoint, ledger, batch=None)) == right()
    assert provider.calls == 3 + 1 and len(provider.requests("batch_1")) == 2


def test_an_answer_of_a_batch_that_nobody_asks_for_now_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger = tmp_path / "calls.jsonl"
    provider = Provider(looks=10**9)
    with serving(provider) as endpoint:
        waited(endpoint, ledger, monkeypatch)
        provider.looks = 0
        ask(endpoint, ledger, 1)
    assert sum("text" in line for line in ledger_lines(ledger)) == COUNT
    assert json.loads(ledger.read_text().splitlines()[-1])["answered"] == COUNT
