"""What endpoints send back: each form has one outcome in the ledger, and what was paid is kept."""

import asyncio
import json
from pathlib import Path
from typing import Any

import httpx2
import openai
import pytest

from core.endpoints import sender
from core.endpoints.api_errors import (
    MalformedResponse,
    error_status,
    is_flagged,
    is_transient,
    refused_parameter,
    retry_after,
)
from core.endpoints.client import LedgerClient, gather_limited
from core.endpoints.connect import Endpoint
from core.endpoints.ledger import FAILED, LedgerEntry, read_ledger
from core.endpoints.replies import read_reply, token_counts
from core.endpoints.request_form import RequestForm
from core.endpoints.sender import RequestFailed
from core.endpoints.thoughts import without_thoughts
from core.errors import UserError
from tests.endpoint import Hostile, Reply, serving

CASES = Path(__file__).parents[3] / "shared/cases/replies.json"
USAGE = {"prompt_tokens": 12, "completion_tokens": 3, "total_tokens": 15}


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(sender, "BACKOFF_SECONDS", 0.001)
    monkeypatch.setattr(sender, "BACKOFF_MOST", 0.01)
    monkeypatch.setattr(sender, "RETRIES", 2)


def body(content: Any, finish_reason: Any = "stop", **others: Any) -> dict[str, Any]:
    """A chat completion. `others` are its other keys; a key of the message is `message_KEY`."""
    message = {"role": "assistant", "content": content}
    for key in [key for key in others if key.startswith("message_")]:
        message[key.removeprefix("message_")] = others.pop(key)
    choice = {"index": 0, "message": message, "finish_reason": finish_reason}
    return {"choices": [choice], "model": "dummy", "usage": USAGE} | others


def response(content: Any, status: int = 200, **headers: str) -> httpx2.Response:
    raw = content if isinstance(content, bytes) else json.dumps(content).encode()
    request = httpx2.Request("POST", "http://example.org/v1/chat/completions")
    return httpx2.Response(status, headers=headers, content=raw, request=request)


def ask(
    ledger: Path, *replies: Reply, prompts: tuple[str, ...] = ("one",), **options: Any
) -> tuple[LedgerClient, dict[str, LedgerEntry | UserError], Hostile]:
    """Ask for each prompt in turn; the n-th request gets the n-th reply, the last one for ever."""
    outcomes: dict[str, LedgerEntry | UserError] = {}

    async def run(endpoint: Endpoint) -> LedgerClient:
        client = LedgerClient(
            {"model": "dummy"},
            lambda: endpoint,
            {"temperature": 1.0, "max_tokens": 99},
            ledger,
            **({"prices": (1.0, 2.0)} | options),
        )

        async def one(i: int) -> None:
            try:
                outcomes[prompts[i]] = await client.complete(i, 0, "document", prompts[i], i)
            except UserError as error:
                outcomes[prompts[i]] = error

        async with client:
            await gather_limited(range(len(prompts)), one, 1)
        return client

    hostile = Hostile(scripted=lambda sent, n: replies[min(n, len(replies)) - 1])
    with serving(hostile) as (endpoint, _):
        return asyncio.run(run(endpoint)), outcomes, hostile


def entry(ledger: Path) -> LedgerEntry:
    [only] = read_ledger(ledger)[0].values()
    return only


PARTS = [{"type": "text", "text": "Good "}, {"type": "text", "text": "day."}]
THINKING = [{"type": "thinking", "thinking": [{"type": "text", "text": "Bad?"}]}, *PARTS]


@pytest.mark.parametrize(
    ("reply", "text", "no_answer"),
    [
        (body(PARTS), "Good day.", None),
        (body(THINKING), "Good day.", None),
        (body(["Good ", "day."]), "Good day.", None),
        (body([{"type": "reasoning", "text": "Bad?"}]), "", "no text among the content's parts"),
        (body(5), "", "the content is no text (int)"),
        (body({"text": "Good day."}), "", "the content is no text (dict)"),
        (body(None), "", "no content"),
        (body(None, message_refusal="I can't."), "", "refused: I can't."),
        (body(None, message_refusal="I\n\x1bcan't.\ud83d"), "", "refused: I ?can't.?"),
        (body(None, "content_filter"), "", "withheld: content_filter"),
        (body(None, "SAFETY"), "", "withheld: SAFETY"),
        (body("", "content_filter"), "", "withheld: content_filter"),
        ({"choices": [], "usage": USAGE}, "", "no choice"),
        ({"choices": [None], "usage": USAGE}, "", "no content"),
        ({"choices": [{"finish_reason": "SAFETY"}], "usage": USAGE}, "", "withheld: SAFETY"),
        (body("Good day.", error=None), "Good day.", None),
        (body("Good day. \ud83d"), "Good day. \ud83d", None),
        (body("Good day.\x00"), "Good day.\x00", None),
    ],
)
def test_what_comes_back_is_kept_once(
    tmp_path: Path, reply: Any, text: str, no_answer: str | None
) -> None:
    ledger = tmp_path / "calls.jsonl"
    _, outcomes, hostile = ask(ledger, (200, {}, reply))
    answer = outcomes["one"]
    assert isinstance(answer, LedgerEntry) and answer == entry(ledger)
    assert (answer.text, answer.no_answer) == (text, no_answer)
    assert (answer.prompt_tokens, answer.completion_tokens) == (12, 3) and answer.cost > 0
    assert answer.finished == (no_answer is None)
    again, same, silent = ask(ledger, (500, {}, {}))
    assert same == outcomes and silent.requests == 0, "nothing is paid again"
    assert hostile.requests == 1 and again.paid["paid_calls"] == 1


def test_json_that_is_nested_too_deep_is_a_failed_attempt(tmp_path: Path) -> None:
    deep = b'{"choices": ' + b"[" * 50_000 + b"]" * 50_000 + b"}"
    _, outcomes, hostile = ask(tmp_path / "c", (200, {}, deep), (200, {}, body("Good day.")))
    assert outcomes["one"].text == "Good day." and hostile.requests == 2
    lines = [json.loads(line) for line in (tmp_path / "c").read_text().splitlines()]
    assert lines[0]["outcome"] == "JSON nested too deep"


@pytest.mark.parametrize("finish_reason", ["stop", "STOP", "end_turn", "eos_token", None])
def test_an_answer_that_the_model_ended_is_finished(tmp_path: Path, finish_reason: Any) -> None:
    _, outcomes, _ = ask(tmp_path / "c", (200, {}, body("Good day.", finish_reason)))
    assert outcomes["one"].finished and outcomes["one"].answer == "Good day."


@pytest.mark.parametrize("finish_reason", ["length", "MAX_TOKENS", "tool_calls", "error?"])
def test_an_answer_that_was_cut_off_is_not(tmp_path: Path, finish_reason: str) -> None:
    _, outcomes, _ = ask(tmp_path / "c", (200, {}, body("Good day.", finish_reason)))
    assert not outcomes["one"].finished and outcomes["one"].answer == ""


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("<think>A.</think>B.", "B."),
        ("<think>\nA <think>C</think> D.</think>\n\nB.", "B."),
        ("<think>A.</think>B.<think>C.</think>", "B."),
        ('<thinking budget="9">A.</thinking>B.', "B."),
        ("A.</think>\nB.", "B."),
        ("<think>A.", "<think>A."),  # as on the official route: only closed blocks go
        ("I think <b>so</b>.", "I think <b>so</b>."),
    ],
)
def test_thoughts_are_no_part_of_an_answer(text: str, answer: str) -> None:
    assert without_thoughts(text) == answer


@pytest.mark.parametrize(
    ("usage", "tokens", "estimated"),
    [
        (USAGE, (12, 3), False),
        ({"prompt_tokens": "12", "completion_tokens": "3"}, (12, 3), False),
        ({"prompt_tokens": 12.0, "completion_tokens": 3.0}, (12, 3), False),
        ({"prompt_tokens": 12, "completion_tokens": 3, "total_tokens": 40}, (12, 28), False),
        ({"prompt_tokens": 12, "total_tokens": 15}, (12, 3), False),
        ({"prompt_tokens": 12, "total_tokens": 12}, (12, 3), True),
        ({"completion_tokens": 3}, (1, 3), True),
        ([USAGE], (1, 3), True),
        ("12", (1, 3), True),
        (7, (1, 3), True),
        (None, (1, 3), True),
        ({}, (1, 3), True),
        ({"prompt_tokens": -5, "completion_tokens": 3}, (1, 3), True),
        ({"prompt_tokens": 10**18, "completion_tokens": 3}, (1, 3), True),
        ({"prompt_tokens": 1e18, "completion_tokens": 1e18}, (1, 3), True),
        ({"prompt_tokens": 10**400, "completion_tokens": 3}, (1, 3), True),
        ({"prompt_tokens": float("nan"), "completion_tokens": float("nan")}, (1, 3), True),
        ({"prompt_tokens": float("inf"), "completion_tokens": 3}, (1, 3), True),
        ({"prompt_tokens": True, "completion_tokens": [3]}, (1, 3), True),
    ],
)
def test_usage_poisons_neither_the_cost_nor_the_rate_limit(
    tmp_path: Path, usage: Any, tokens: tuple[int, int], estimated: bool
) -> None:
    adjusted: list[int] = []

    class Limiter:
        async def acquire(self, tokens: int) -> None:
            pass

        async def adjust(self, estimated: int, used: int) -> None:
            adjusted.append(used)

    reply = body("Good day.", usage=usage)  # 9 characters, 3 tokens
    client, outcomes, _ = ask(tmp_path / "c", (200, {}, reply), rate_limiter=Limiter())
    answer = outcomes["one"]
    assert isinstance(answer, LedgerEntry)
    assert (answer.prompt_tokens, answer.completion_tokens) == tokens
    assert answer.estimated == estimated == client.counts["calls_estimated"]
    assert answer.cost == pytest.approx((tokens[0] + 2 * tokens[1]) / 1e6)
    assert adjusted == [sum(tokens)]
    assert any("are estimated" in remark for remark in client.remarks) == estimated


def test_a_missing_usage_is_estimated(tmp_path: Path) -> None:
    reply = body("Good day.")
    del reply["usage"]
    _, outcomes, _ = ask(tmp_path / "c", (200, {}, reply))
    assert outcomes["one"].estimated and outcomes["one"].completion_tokens == 3
    assert token_counts(None, 4, "", 9) == (None, None)


MONEY = {"error": {"message": "Not enough credits on this account", "code": 402}}
BUSY = {"error": {"message": "The provider is busy", "code": 429}}
FAILED_UPSTREAM = {"message": "The provider failed", "code": 502}
IN_CHOICE = {"choices": [{"message": {"content": ""}, "error": FAILED_UPSTREAM}]}


@pytest.mark.parametrize(
    ("reply", "requests", "says"),
    [
        (MONEY, 1, "quota is exhausted.*402.*Not enough credits on this account"),
        ([MONEY], 1, "quota is exhausted"),
        ({"error": {"message": "no", "code": "insufficient_quota"}}, 1, "quota is exhausted"),
        ({"error": {"message": "bad key", "type": "authentication_error"}}, 1, "key was refused"),
        ({"error": {"message": "The provider failed"}}, 3, r"call failed \(The provider failed"),
        ({"error": "Model overloaded"}, 3, "Model overloaded"),
        ({"object": "error", "message": "no such model", "code": 404}, 1, "no such model"),
        (body(None, error=FAILED_UPSTREAM), 3, "The provider failed"),
        (body("Half of", "error", error=FAILED_UPSTREAM), 3, "The provider failed"),
        (IN_CHOICE, 3, "The provider failed"),
    ],
)
def test_an_error_within_http_200_is_that_error(
    tmp_path: Path, reply: Any, requests: int, says: str
) -> None:
    _, outcomes, hostile = ask(tmp_path / "c", (200, {}, reply))
    with pytest.raises(UserError, match=says):
        raise outcomes["one"]  # type: ignore[misc]
    assert hostile.requests == requests and not read_ledger(tmp_path / "c")[0]


@pytest.mark.parametrize("reply", [BUSY, body(None, error=FAILED_UPSTREAM), IN_CHOICE])
def test_an_error_that_passes_within_http_200_is_waited_out(tmp_path: Path, reply: Any) -> None:
    _, outcomes, hostile = ask(tmp_path / "c", (200, {}, reply), (200, {}, body("Good day.")))
    assert outcomes["one"].text == "Good day." and hostile.requests == 2


def test_an_answer_beside_an_error_is_kept() -> None:
    assert read_reply(response(body("Good day.", error=FAILED_UPSTREAM))).text == "Good day."


def stream(*chunks: Any, end: bool = True) -> bytes:
    lines = [f"data: {json.dumps(chunk)}\n\n" for chunk in chunks]
    return "".join([*lines, *(["data: [DONE]\n\n"] if end else [])]).encode()


def chunk(content: str | None, finish_reason: str | None = None, **others: Any) -> dict[str, Any]:
    delta = {"content": content} if content is not None else {}
    return {"choices": [{"delta": delta, "finish_reason": finish_reason}], **others}


def test_a_stream_that_nobody_asked_for_is_read(tmp_path: Path) -> None:
    chunks = (chunk("Good "), chunk("day.", model="dummy"), chunk(None, "stop"))
    sent = stream(*chunks, {"choices": [], "usage": USAGE})
    _, outcomes, hostile = ask(tmp_path / "c", (200, {}, sent))
    answer = outcomes["one"]
    assert (answer.text, answer.finish_reason) == ("Good day.", "stop")
    assert (answer.prompt_tokens, answer.answered_by) == (12, "dummy")
    assert hostile.last["stream"] is False
    with pytest.raises(MalformedResponse, match="stream without an end"):
        read_reply(response(stream(chunks[0], end=False)))
    with pytest.raises(MalformedResponse, match="stream not JSON"):
        read_reply(response(b"data: {"))


def status_error(status: int, content: Any, **headers: str) -> openai.APIStatusError:
    return openai.APIStatusError("x", response=response(content, status, **headers), body=content)


GOOGLE = {"error": {"message": "You exceeded your current quota.", "code": 429}}


@pytest.mark.parametrize(
    ("error", "seconds"),
    [
        (status_error(429, {"error": {"message": "Please retry in 1.57s."}}), 1.57),
        (status_error(429, {"error": {"message": "Please try again in 7m12s."}}), 432),
        (status_error(429, {"error": {"message": "Try again in 450ms"}}), 0.45),
        (status_error(429, {"error": {"message": "Retry after 20 seconds"}}), 20),
        (status_error(429, [GOOGLE | {"details": [{"retryDelay": "0s"}]}]), 0),
        (status_error(429, GOOGLE | {"details": [{"retryDelay": "3.5s"}]}), 3.5),
        (status_error(429, GOOGLE, **{"retry-after": "0"}), 0),
        (status_error(429, {}, **{"retry-after-ms": "250"}), 0.25),
        (status_error(429, {}, **{"retry-after": "inf"}), 0),
        (status_error(429, {"error": {"message": "slow down"}}), 0),
        (status_error(504, {"error": {"message": "timed out after waiting 600 seconds"}}), 0),
        (status_error(502, {"error": {"message": "waited 60s for upstream"}}), 0),
        (status_error(500, {"error": {"message": "try again with 5 messages"}}), 0),
        (status_error(503, {"error": {"message": "Try again in 2 minutes"}}), 120),
    ],
)
def test_the_wait_that_an_endpoint_asks_for(error: openai.APIStatusError, seconds: float) -> None:
    assert retry_after(error) == pytest.approx(seconds)
    assert is_transient(error), "the quota is not exhausted"


def test_a_quota_without_a_wait_is_exhausted() -> None:
    assert not is_transient(status_error(429, GOOGLE))
    assert not is_transient(
        status_error(429, {"error": {"code": "insufficient_quota"}}, **{"retry-after": "1"})
    )


FLAGGED = [
    (403, {"error": {"message": "The input was flagged", "metadata": {"reasons": ["violence"]}}}),
    (400, {"error": {"message": "Filtered", "code": "content_filter", "status": 400}}),
    (403, {"code": "x", "error": "Content violates usage guidelines. Failed check: SAFETY_CHECK"}),
    (400, {"error": {"innererror": {"code": "ResponsibleAIPolicyViolation"}, "message": "no"}}),
]


@pytest.mark.parametrize(("status", "content"), FLAGGED)
def test_a_prompt_that_is_flagged_stops_no_other(tmp_path: Path, status: int, content: Any) -> None:
    ledger = tmp_path / "calls.jsonl"
    bad, good = (status, {}, content), (200, {}, body("Good day."))
    prompts = ("a", "b", "c", "d", "e", "f")
    replies = (good, *[bad] * 4, good)
    _, outcomes, hostile = ask(ledger, *replies, prompts=prompts)
    assert [isinstance(outcomes[name], RequestFailed) for name in prompts] == [
        *(False, True, True, True, True, False)
    ]
    assert "key was refused" not in str(outcomes["b"])
    assert "rules on content" in str(outcomes["b"])
    kept = [entry.finish_reason for entry in read_ledger(ledger)[0].values()]
    assert kept == ["stop", *[FAILED] * 4, "stop"]
    _, again, silent = ask(ledger, good, prompts=prompts)
    assert silent.requests == 0 and isinstance(again["b"], RequestFailed)
    assert again["a"] == outcomes["a"] and hostile.requests == 6


CLOSED = [
    (403, "Your account has been disabled after a review of activities against our usage policy."),
    (400, "This organization has been disabled."),
    (401, "The OpenAI account associated with this API key has been deactivated."),
    (403, "Permission denied: Consumer 'project_number:1' has been suspended."),
    (400, "Organization has been restricted. Please reach out to support."),
    (403, "Your access was terminated due to violation of our policies (content policy)."),
]


@pytest.mark.parametrize(("status", "text"), CLOSED)
def test_an_account_that_is_closed_ends_the_cell_at_once(
    tmp_path: Path, status: int, text: str
) -> None:
    closed = (status, {}, {"error": {"message": text}})
    prompts = ("a", "b", "c", "d", "e", "f")
    _, outcomes, hostile = ask(tmp_path / "calls.jsonl", closed, prompts=prompts)
    assert hostile.requests == 1
    assert all("has closed the account" in str(outcome) for outcome in outcomes.values())


def test_a_403_without_such_words_is_about_the_key() -> None:
    assert not is_flagged(status_error(403, {"error": {"message": "no permission"}}))
    assert not is_flagged(status_error(401, {"error": {"message": "flagged"}}))


def test_one_prompt_that_always_fails_is_no_endpoint_that_is_down(tmp_path: Path) -> None:
    """It is asked with five seeds, and nothing else is answered meanwhile."""

    def scripted(sent: dict[str, Any], n: int) -> Reply:
        prompt = sent["messages"][0]["content"]
        return (500, {}, {}) if prompt == "bad" else (200, {}, body("Good day."))

    async def run(endpoint: Endpoint) -> list[Any]:
        client = LedgerClient({"model": "dummy"}, lambda: endpoint, {}, tmp_path / "calls.jsonl")
        async with client:
            calls = [client.complete(i, 0, "grade", "bad", i) for i in range(5)]
            return await asyncio.gather(*calls, return_exceptions=True)

    with serving(Hostile(scripted=scripted)) as (endpoint, _):
        outcomes = asyncio.run(run(endpoint))
    assert all(isinstance(outcome, RequestFailed) for outcome in outcomes)


def test_one_prompt_that_always_fails_is_recorded_with_the_next_answer(tmp_path: Path) -> None:
    ledger = tmp_path / "calls.jsonl"
    bad, good = (500, {}, {"error": {"message": "no"}}), (200, {}, body("Good day."))
    _, outcomes, _ = ask(ledger, bad, bad, bad, good, prompts=("a", "b"))
    assert isinstance(outcomes["a"], RequestFailed) and outcomes["b"].text == "Good day."
    assert [e.finish_reason for e in read_ledger(ledger)[0].values()] == [FAILED, "stop"]
    _, again, silent = ask(ledger, good, prompts=("a", "b"))
    assert isinstance(again["a"], RequestFailed) and silent.requests == 0
    # An endpoint that is down leaves nothing that a later run would take for its answer.
    _, outcomes, _ = ask(tmp_path / "other", bad, prompts=("a", "b", "c", "d"))
    assert all(isinstance(error, UserError) for error in outcomes.values())
    assert not isinstance(outcomes["d"], RequestFailed)
    assert not read_ledger(tmp_path / "other")[0]


SEED = {"detail": [{"type": "extra_forbidden", "loc": ["body", "seed"], "msg": "not permitted"}]}
LIMIT = {
    "error": {
        "message": "'max_tokens' is not supported by this model; use 'max_completion_tokens'",
        "param": "max_tokens",
    }
}
COOL = {"error": {"message": "temperature does not support 0.5 with this model", "code": "x"}}
COOL["error"]["code"] = "unsupported_value"


@pytest.mark.parametrize(
    ("status", "content", "name", "setting"),
    [
        (422, SEED, "seed", "seed: false"),
        (400, LIMIT, "max_tokens", "max_tokens_key: max_completion_tokens"),
        (400, COOL, "temperature", "temperature: null"),
    ],
)
def test_a_refused_parameter_is_named_with_the_setting_that_leaves_it_out(
    tmp_path: Path, status: int, content: Any, name: str, setting: str
) -> None:
    _, outcomes, hostile = ask(tmp_path / "c", (status, {}, content), prompts=("a", "b"))
    assert f"refuses the parameter {name} " in str(outcomes["a"])
    assert f"`request: {{{setting}}}`" in str(outcomes["a"])
    assert not isinstance(outcomes["a"], RequestFailed) and hostile.requests == 1


def test_a_refused_parameter_is_no_flagged_prompt_whatever_else_is_said(tmp_path: Path) -> None:
    said = "Unsupported parameter: 'temperature'; see our usage policies and safety settings"
    refusal = (400, {}, {"error": {"message": said}})
    _, outcomes, hostile = ask(tmp_path / "c", refusal, prompts=("a", "b"))
    assert "refuses the parameter temperature " in str(outcomes["a"])
    assert not isinstance(outcomes["a"], RequestFailed) and hostile.requests == 1


def test_a_bad_request_that_names_no_parameter_is_one() -> None:
    names = ("seed", "max_tokens", "temperature")
    for content in ({"error": {"message": "the prompt is too long"}}, {"error": "max_tokens: 9"}):
        assert refused_parameter(status_error(400, content), names) is None
    assert refused_parameter(status_error(500, SEED), names) is None


def test_requests_are_written_as_the_endpoint_takes_them() -> None:
    request = {"model": "m", "messages": [], "seed": 1, "temperature": 0.5, "max_tokens": 9}
    form = RequestForm(max_tokens_key="max_completion_tokens", seed=False)
    model = {"request": {"temperature": None, "extra_body": {"reasoning_effort": "none"}}}
    assert form.parameters(request, model) == {
        "max_completion_tokens": 9,
        "stream": False,
        "reasoning_effort": "none",
    }
    assert RequestForm().parameters(request, {}) == {
        "seed": 1,
        "temperature": 0.5,
        "max_tokens": 9,
        "stream": False,
    }


def test_an_endpoint_without_seeds_is_asked_again_by_another_seed(tmp_path: Path) -> None:
    replies = [(200, {}, body(f"Answer {n}.")) for n in (1, 2)]
    _, outcomes, hostile = ask(
        tmp_path / "c", *replies, prompts=("same", "same"), form=RequestForm(seed=False)
    )
    assert hostile.requests == 2 and "seed" not in hostile.last
    assert outcomes["same"].text == "Answer 2."


def test_a_redirect_to_another_host_is_not_followed(tmp_path: Path) -> None:
    with serving(Hostile(scripted=lambda sent, n: (200, {}, body("No.")))) as (other, elsewhere):
        away = (307, {"Location": f"{other.base_url}/chat/completions"}, {})
        _, outcomes, hostile = ask(tmp_path / "c", away)
        assert "redirects to another host, http://127.0.0.1:" in str(outcomes["one"])
        assert elsewhere.requests == 0 and hostile.requests == 1
    near = (307, {"Location": "/v2/chat/completions"}, {})
    _, outcomes, _ = ask(tmp_path / "d", near, (200, {}, body("Good day.")))
    assert outcomes["one"].text == "Good day."


def test_other_models_that_answer_are_recorded_and_told(tmp_path: Path) -> None:
    replies = [(200, {}, body("Good day.", model=name)) for name in ("dummy", "other-2026")]
    client, outcomes, _ = ask(tmp_path / "c", *replies, prompts=("a", "b"))
    assert [outcomes[name].answered_by for name in "ab"] == ["dummy", "other-2026"]
    assert client.remarks == [
        "model 'dummy' was asked for, several models answered (calls): 'dummy' (1), 'other-2026' (1)"
    ]
    client, _, _ = ask(tmp_path / "d", replies[1])
    assert "it answered (calls): 'other-2026' (1)" in client.remarks[0]
    client, _, _ = ask(tmp_path / "e", replies[0])
    assert not client.remarks


def test_calls_under_way_are_kept_though_whoever_awaits_them_is_cancelled(tmp_path: Path) -> None:
    ledger = tmp_path / "calls.jsonl"

    async def run(endpoint: Endpoint) -> None:
        client = LedgerClient({"model": "dummy"}, lambda: endpoint, {}, ledger)
        async with client:
            calls = [
                asyncio.create_task(client.complete(i, 0, "grade", f"Grade {i}.", i))
                for i in range(5)
            ]
            while hostile.requests < 5:
                await asyncio.sleep(0.01)
            for call in calls:
                call.cancel()
            await asyncio.gather(*calls, return_exceptions=True)

    with serving(Hostile(latency=0.2)) as (endpoint, hostile):
        asyncio.run(run(endpoint))
    assert hostile.delivered.total() == 5 == len(read_ledger(ledger)[0])


@pytest.mark.parametrize(
    ("error", "status"),
    [
        ({"code": 429}, 429),
        ({"code": "429"}, 429),
        ({"status": "RESOURCE_EXHAUSTED"}, 429),
        ({"code": None, "type": "invalid_request_error"}, 400),
        ({"code": 0}, 502),
        ({"code": 10**30}, 502),
        ("text", 502),
    ],
)
def test_the_status_that_an_error_names(error: Any, status: int) -> None:
    assert error_status(error) == status


@pytest.mark.slow  # one of them asks to wait 1.57 s
@pytest.mark.skipif(not CASES.exists(), reason="the cases are not part of the project")
def test_the_collected_cases(tmp_path: Path) -> None:
    """Each ends in a kept answer, a recorded failure or an error that stops; none in a crash."""
    good = (200, {}, body("GRADE: C"))
    stops = {
        "error within 200, money",
        "seed refused",
        "max_tokens refused",
        "error body is a list",
    }
    for number, case in enumerate(json.loads(CASES.read_text())):
        first = (case["status"], case["headers"], case["body"])
        ledger = tmp_path / f"{number}.jsonl"
        _, outcomes, hostile = ask(ledger, first, good, prompts=("a" * 400,))
        outcome = outcomes["a" * 400]
        if case["name"] in stops:
            assert isinstance(outcome, UserError) and not isinstance(outcome, RequestFailed)
        elif case["status"] in (400, 403):
            assert isinstance(outcome, RequestFailed) and entry(ledger).finish_reason == FAILED
        else:
            assert isinstance(outcome, LedgerEntry), case["name"]
            assert outcome.prompt_tokens + outcome.completion_tokens < 1000
        assert hostile.requests <= 2
