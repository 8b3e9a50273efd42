"""Forms of replies and errors from public reports: read, or told in the provider's own words."""

import json
from pathlib import Path
from typing import Any

import openai
import pytest

from core.endpoints import sender
from core.endpoints.api_errors import MalformedResponse, is_flagged
from core.endpoints.error_words import without_prompt, words_of
from core.endpoints.ledger import FINISHED, LedgerEntry
from core.endpoints.replies import read_reply
from core.endpoints.sender import RequestFailed
from core.endpoints.thoughts import without_thoughts
from core.errors import UserError
from tests.core.test_replies import ask, body, response, status_error

DONE = b"data: [DONE]\n\n"


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(sender, "BACKOFF_SECONDS", 0.001)
    monkeypatch.setattr(sender, "RETRIES", 1)


def chunk(delta: dict[str, Any] | None, finish_reason: str | None = None) -> bytes:
    choice = {"index": 0, "delta": delta, "finish_reason": finish_reason}
    return b"data: " + json.dumps({"choices": [choice]}).encode() + b"\n\n"


GOOD = json.dumps(body("Good day.")).encode()
WHOLE = chunk({"content": "Good day."}, "stop")
THOUGHT = {"type": "thinking", "thinking": [{"type": "text", "text": "Bad?"}]}
PARTS = chunk({"content": [THOUGHT]}) + chunk({"content": [{"text": "Good day."}]}, "stop")


@pytest.mark.parametrize(
    "content",
    [
        b"\n   \n" * 50 + GOOD,  # OpenRouter's padding
        b"\xef\xbb\xbf" + GOOD,
        GOOD.decode().encode("utf-16"),
        b": PROCESSING\n\n" + GOOD,
        b": PROCESSING\n\n: PROCESSING\n\n" + WHOLE + DONE,
        b"event: message\nid: 1\n" + WHOLE + b"event: done\n" + DONE,
        b"retry: 10\n" + WHOLE,
        chunk(None) + WHOLE,
        PARTS + DONE,  # Magistral's
        b"data: " + GOOD + b"\n\n" + DONE,
    ],
)
def test_a_completion_is_read_in_whatever_it_is_wrapped(content: bytes) -> None:
    reply = read_reply(response(content))
    assert (reply.text, reply.finish_reason, reply.no_answer) == ("Good day.", "stop", None)


def test_a_paid_answer_in_another_encoding_is_kept(tmp_path: Path) -> None:
    latin = json.dumps(body("Good caf\xe9."), ensure_ascii=False).encode("latin-1")
    _, outcomes, hostile = ask(tmp_path / "c", (200, {}, latin))
    answer = outcomes["one"]
    assert isinstance(answer, LedgerEntry) and answer.text == "Good caf\ufffd."
    assert hostile.requests == 1


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"error_code": 17, "error_msg": "Daily limit reached"}, "Daily limit reached"),
        ({"code": "1305", "msg": "The model is busy"}, "The model is busy"),
        ({"detail": "Model is loading"}, "Model is loading"),
        ({"errors": [{"message": "Worker is gone"}]}, "Worker is gone"),
        ({"choices": None, "base_resp": {"status_msg": "Busy"}}, "Busy"),
        (b"<html><title>Sign in\n to go on</title></html>", "HTML body: Sign in to go on"),
        (b"upstream connect error", "body not JSON: upstream connect error"),
        ({"output": "Good day."}, 'body without choices: {"output": "Good day."}'),
        (b"data: {", "stream not JSON: data: {"),
    ],
)
def test_what_is_no_completion_is_told_in_its_own_words(
    tmp_path: Path, content: Any, words: str
) -> None:
    _, outcomes, hostile = ask(tmp_path / "c", (200, {}, content))
    assert words in str(outcomes["one"]) and hostile.requests == 2
    assert "\x1b" not in words_of("\x1b[31mred")


@pytest.mark.parametrize("begin", ['{"error": ', "["])
def test_no_nesting_is_too_deep_for_a_message(begin: str) -> None:
    end = "}" if begin.startswith("{") else "]"
    text = begin * 400 + '"words"' + end * 400
    assert words_of(text).startswith(begin)
    with pytest.raises((MalformedResponse, openai.APIStatusError)):
        read_reply(response(text.encode()))


def test_an_account_without_money_within_http_200_stops_at_once(tmp_path: Path) -> None:
    reply = {
        "choices": None,
        "base_resp": {"status_code": 1008, "status_msg": "insufficient balance"},
    }
    _, outcomes, hostile = ask(tmp_path / "c", (200, {}, reply), prompts=("a", "b"))
    assert "the quota is exhausted" in str(outcomes["b"]) and hostile.requests == 1


@pytest.mark.parametrize(
    ("status", "words"),
    [
        (400, "Billing hard limit has been reached"),
        (429, "Your account is not active, please check your billing details"),
        (429, "You have run out of credits"),
        (403, "Insufficient account balance"),
    ],
)
def test_an_account_without_money_is_no_rate_limit_and_no_key(
    tmp_path: Path, status: int, words: str
) -> None:
    reply = (status, {}, {"error": {"message": words}})
    _, outcomes, hostile = ask(tmp_path / "c", reply, prompts=("a", "b"))
    assert f"quota is exhausted (HTTP {status}: {words})" in str(outcomes["a"])
    assert hostile.requests == 1


@pytest.mark.parametrize(
    ("status", "content", "words"),
    [
        (400, [{"error": {"message": "Not served here", "status": "FAILED_PRECONDITION"}}], "Not served here"),
        (403, {"error": {"message": "Country not supported"}}, "key was refused (HTTP 403: Country not supported)"),
        (403, b"<title>Attention!</title>", "HTTP 403: Attention!"),
        (404, {"error": {"message": "No endpoints match your data policy"}}, "HTTP 404: No endpoints match"),
        (400, [{"error": {"message": "API key not valid."}}], "key was refused (HTTP 400: API key not valid.)"),
        (418, b"teapot", "the call failed (HTTP 418: teapot)"),
        (302, b"", "the call failed (HTTP 302)"),
    ],
)  # fmt: skip
def test_an_error_that_stops_is_told_in_the_providers_words(
    tmp_path: Path, status: int, content: Any, words: str
) -> None:
    _, outcomes, hostile = ask(tmp_path / "c", (status, {}, content), prompts=("a", "b"))
    assert words in str(outcomes["a"]) and hostile.requests == 1
    assert not isinstance(outcomes["a"], RequestFailed)


def test_the_place_of_a_refused_value_is_told(tmp_path: Path) -> None:
    detail = [{"loc": ["body", "messages", 0], "msg": "too long", "input": "x"}]
    _, outcomes, _ = ask(tmp_path / "c", (422, {}, {"detail": detail}))
    assert "HTTP 422: body.messages.0: too long" in str(outcomes["one"])


@pytest.mark.parametrize(
    "words",
    [
        "Input data may contain inappropriate content.",
        "data_inspection_failed",
        "Content Exists Risk",
        "The request was rejected because it was considered high risk",
        "Blocked by the guardrail policy",
    ],
)
def test_a_prompt_that_breaks_a_rule_is_known_by_more_words(words: str) -> None:
    assert is_flagged(status_error(400, {"error": {"message": words}}))


ABOUT_HENS = (
    "Write on hens that eat seed. Say why cages are not allowed. Mention the temperature, "
    'which is unknown.\nEnd with food safety; "moderation" isn\'t caf\xe9.'
)


@pytest.mark.parametrize("cut", [None, 60])
def test_a_prompt_that_an_error_quotes_decides_nothing(tmp_path: Path, cut: int | None) -> None:
    """Else its seed were a refused parameter, and its food safety a broken rule."""
    quoted = ABOUT_HENS[:cut]
    bad = (422, {}, {"detail": [{"loc": ["body", "messages"], "msg": "too long", "input": quoted}]})
    good = (200, {}, body("Good day."))
    _, outcomes, _ = ask(tmp_path / "c", bad, good, prompts=(ABOUT_HENS, "two"))
    failed = outcomes[ABOUT_HENS]
    assert isinstance(failed, RequestFailed) and "too long" in str(failed)
    assert "rules on content" not in str(failed) and "parameter" not in str(failed)
    assert isinstance(outcomes["two"], LedgerEntry)
    said = status_error(400, {"error": {"message": f"Bad request: {ABOUT_HENS}"}})
    cleaned = without_prompt(said, ABOUT_HENS)
    assert is_flagged(said) and not is_flagged(cleaned)


def test_a_parameter_that_no_setting_leaves_out_has_no_such_cure(tmp_path: Path) -> None:
    refusal = {"error": {"message": "Extra inputs are not permitted: stream"}}
    _, outcomes, _ = ask(tmp_path / "c", (400, {}, refusal))
    assert "not permitted: stream" in str(outcomes["one"])
    assert "give the endpoint" not in str(outcomes["one"])


@pytest.mark.parametrize(
    "text",
    [
        "[THINK]As an AI I [Your Name][/THINK]Good day.",
        "◁think▷hm◁/think▷Good day.",
        "<seed:think>hm</seed:think>\nGood day.",
        "<thought>\nhm</thought>\nGood day.",
        "<THINK>hm</THINK>Good day.",
        "<|START_THINKING|>hm<|END_THINKING|>Good day.",
        "hm[/THINK]Good day.",
        "<|channel|>analysis<|message|>hm<|end|><|start|>assistant<|channel|>final<|message|>Good day.",
        "analysisWe need a greeting.assistantfinalGood day.",
        "Good day.",
    ],
)
def test_thoughts_in_the_marks_of_other_models_are_no_part_of_an_answer(text: str) -> None:
    assert without_thoughts(text) == "Good day."


def test_an_analysis_is_no_thought() -> None:
    for text in ("analysis of hens, assistantfinal", "Analysis: hens.", "I [think] so"):
        assert without_thoughts(text) == text


@pytest.mark.parametrize("finish_reason", ["completed", "FINISH_REASON_STOP", "normal"])
def test_more_names_of_the_end_are_known(finish_reason: str) -> None:
    assert finish_reason.lower() in FINISHED


def test_a_malformed_response_has_one_name_in_the_ledger() -> None:
    with pytest.raises(MalformedResponse) as caught:
        read_reply(response(b"<html>one</html>"))
    assert str(caught.value) == "HTML body" and caught.value.words == "one"


def test_no_key_is_told(tmp_path: Path) -> None:
    from tests.endpoint import KEY

    for status in (200, 403, 404, 418):
        _, outcomes, _ = ask(tmp_path / str(status), (status, {}, {"detail": f"bad key {KEY}"}))
        assert isinstance(outcomes["one"], UserError)
        assert KEY not in str(outcomes["one"]) and "bad key <key>" in str(outcomes["one"])
