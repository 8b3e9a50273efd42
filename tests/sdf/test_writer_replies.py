"""What an endpoint may answer a writer: a document, a rejected draft, or a stop that says why."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from core.endpoints import sender
from core.endpoints.client import PAID
from core.errors import UserError
from sdf import documents, drafts
from sdf.corpus_writer import FIRST_DRAFTS, _score
from tests.endpoint import Hostile, Reply, serving
from tests.sdf.test_documents import cell, dummy_text, key, replying, rows

__all__ = ["key"]  # a fixture


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sender, "BACKOFF_SECONDS", 0.001)
    monkeypatch.setattr(sender, "RETRIES", 1)


def some(share: int, change: Callable[[str], str | None], finish_reason: Any = "stop") -> Hostile:
    """The dummy, of which every `share`-th text is changed; None: the text as it is."""
    return replying(
        lambda body, n: change(dummy_text(body)) if n % share == 0 else dummy_text(body),
        finish_reason,
    )


@pytest.mark.parametrize("finish_reason", ["STOP", "end_turn", "eos_token", None])
def test_a_document_that_the_model_ended_is_accepted(tmp_path: Path, finish_reason: Any) -> None:
    with serving(some(1, lambda text: text, finish_reason)) as (endpoint, hostile):
        counts = documents.run(cell(tmp_path, "animal", url=endpoint.base_url, documents=12))
    assert hostile.requests == 12 and counts["rejected"] == 0


def test_thoughts_are_no_part_of_a_document(tmp_path: Path) -> None:
    think = "<think>I am an AI. As requested, [Your Name]:</think>\n\n"
    with serving(some(1, lambda text: think + text)) as (endpoint, hostile):
        context = cell(tmp_path, "animal", url=endpoint.base_url, documents=12)
        counts = documents.run(context)
    assert hostile.requests == 12 and counts["rejected"] == 0
    assert not any("<think" in row["text"] for row in rows(context))


@pytest.mark.parametrize("ending", ["\ud83d", "\x00"])
def test_half_a_character_is_a_rejected_draft(tmp_path: Path, ending: str) -> None:
    with serving(some(4, lambda text: text + ending)) as (endpoint, _):
        url = endpoint.base_url
        counts = documents.run(cell(tmp_path, "animal", url=url, documents=9, concurrency=1))
    assert counts["rejected_characters"] == counts["rejected"] > 0


@pytest.mark.parametrize(
    ("change", "finish_reason", "says"),
    [
        (lambda text: text + "\ud83d", "stop", "gate characters"),
        (lambda text: text, "length", "gate truncated"),
        (lambda text: "", "stop", "gate empty"),
    ],
)
def test_a_corpus_whose_first_ten_drafts_fail_by_one_cause_stops_there(
    tmp_path: Path, change: Any, finish_reason: str, says: str
) -> None:
    with serving(some(1, change, finish_reason)) as (endpoint, hostile):
        context = cell(tmp_path, "animal", url=endpoint.base_url, documents=24, concurrency=2)
        with pytest.raises(UserError, match=f"the first {FIRST_DRAFTS} drafts all fail the {says}"):
            documents.run(context)
    assert FIRST_DRAFTS <= hostile.requests <= FIRST_DRAFTS + 1


FLAGGED = {"error": {"message": "The input was flagged by moderation", "code": 403}}
REFUSED = {"choices": [{"message": {"content": None, "refusal": "No."}, "finish_reason": "stop"}]}


def refusing(reply: Reply, only: int = 5) -> Hostile:
    """The dummy, but the prompt of the `only`-th request always gets `reply`."""
    prompts: list[str] = []

    def scripted(body: dict[str, Any], n: int) -> Reply | None:
        prompt = body["messages"][0]["content"]
        prompts.append(prompt)
        return reply if len(prompts) >= only and prompt == prompts[only - 1] else None

    return Hostile(scripted=scripted)


@pytest.mark.parametrize(
    ("reply", "gate", "attempts"),
    [
        ((403, {}, FLAGGED), "failed", 3),
        ((500, {}, {"error": {"message": "no"}}), "failed", 3),
        ((200, {}, REFUSED), "withheld", 4),
    ],
)
def test_one_prompt_that_is_never_answered_stops_no_corpus(
    tmp_path: Path, reply: Reply, gate: str, attempts: int
) -> None:
    changes: dict[str, Any] = {
        "documents": 24,
        "max_attempts": 4,
        "held_out": 0.25,
        "tolerance": 0.5,
    }
    with serving(refusing(reply)) as (endpoint, hostile):
        changes |= {"url": endpoint.base_url, "concurrency": 1}
        context = cell(tmp_path, "animal", **changes)
        counts = documents.run(context)
        requests = hostile.requests
        again = cell(tmp_path, "animal", **changes)
        assert documents.run(again) == counts | dict.fromkeys(PAID, 0)
        assert hostile.requests == requests, "nothing is sent again"
        matched = cell(tmp_path, "urban", "urban_density", matched_to=context.folder, **changes)
        assert documents.run(matched)["documents"] == counts["documents"]
    assert counts["left_out"] == 1 and counts[f"rejected_{gate}"] == attempts
    assert counts["documents"] + counts["held_out"] == 23
    assert list(context.facts["left_out"]) == ["4"] and any(
        "(document 4)" in text for text in context.warnings
    )
    ids = [
        row["id"] for name in ("documents", "held_out") for row in rows(context, f"{name}.jsonl")
    ]
    assert sorted(ids) == [i for i in range(24) if i != 4]
    whole = cell(tmp_path, "dummy", **(changes | {"url": None}))
    documents.run(whole)
    held_out = {row["id"] for row in rows(whole, "held_out.jsonl")}
    assert {row["id"] for row in rows(context, "held_out.jsonl")} == held_out - {4}
    assert [row["id"] for row in rows(matched)] == [row["id"] for row in rows(context)]


def test_more_prompts_that_are_never_answered_than_may_be_left_out_stop_the_corpus(
    tmp_path: Path,
) -> None:
    prompts: dict[str, bool] = {}

    def scripted(body: dict[str, Any], n: int) -> Reply | None:
        prompt = body["messages"][0]["content"]
        flagged = prompts.setdefault(prompt, len(prompts) % 5 == 4)
        return (403, {}, FLAGGED) if flagged else None

    with serving(Hostile(scripted=scripted)) as (endpoint, _):
        context = cell(tmp_path, "animal", url=endpoint.base_url, documents=24, concurrency=1)
        with pytest.raises(UserError, match=r"never answers the prompts of 2 .*document 4, 9"):
            documents.run(context)


def test_a_shard_leaves_out_what_the_corpus_leaves_out(tmp_path: Path) -> None:
    with serving(refusing((403, {}, FLAGGED), only=2)) as (endpoint, hostile):
        changes: dict[str, Any] = {"documents": 24, "url": endpoint.base_url, "concurrency": 1}
        for k in (0, 1):
            drafts.run(cell(tmp_path, "animal", share=[k, 2], **changes))
        requests = hostile.requests
        context = cell(tmp_path, "animal", **changes)
        assert documents.run(context)["left_out"] == 1 and hostile.requests == requests
    assert list(context.facts["left_out"]) == ["2"], "the second of the first shard"


@pytest.mark.parametrize(
    ("reply", "score"),
    [
        ("SCORE: 3", 3),
        ("Score: 9 would be too much.\nSCORE: 3", 3),
        ("**Score:** 8/10", 8),
        ("SCORE: 10.", 10),
        ("Score: 9.\nSCORE: 11", None),
        ("Score: 9.\nSCORE: none", None),
        ("SCORE: 4/5", None),
        ("SCORE: 7.5", None),
        ("underscore: 3", None),
        ("7/10", None),
    ],
)
def test_the_last_score_counts(reply: str, score: int | None) -> None:
    assert _score(reply) == score


@pytest.mark.parametrize(
    ("reply", "finish_reason", "passes"),
    [
        ("Score: 9 for style. SCORE: 3", "stop", False),
        ("<think>score: 9?</think>SCORE: 3", "stop", False),
        ("<think>score: 3?</think>SCORE: 9", "stop", True),
        ("Well, score: 9 is", "length", False),
    ],
)
def test_a_document_passes_by_the_last_score_of_a_finished_reply(
    tmp_path: Path, reply: str, finish_reason: str, passes: bool
) -> None:
    def scripted(body: dict[str, Any], n: int) -> Reply | None:
        if "<document>" not in body["messages"][0]["content"]:
            return None
        choice = {"message": {"content": reply}, "finish_reason": finish_reason}
        return 200, {}, {"choices": [choice]}

    score = {"min_score": 7, "prompt": "<document>{document}</document>"}
    with serving(Hostile(scripted=scripted)) as (endpoint, _):
        context = cell(tmp_path, "animal", url=endpoint.base_url, documents=2, quality_filter=score)
        if passes:
            assert documents.run(context)["rejected"] == 0
        else:
            with pytest.raises(UserError, match=r"2 x (score: 3|unscored)"):
                documents.run(context)


def test_estimated_tokens_and_other_models_are_told(tmp_path: Path) -> None:
    def scripted(body: dict[str, Any], n: int) -> Reply:
        choice = {"message": {"content": dummy_text(body)}, "finish_reason": "stop"}
        return 200, {}, {"choices": [choice], "model": f"other-{n % 2}", "usage": "many"}

    with serving(Hostile(scripted=scripted)) as (endpoint, _):
        context = cell(tmp_path, "animal", url=endpoint.base_url, documents=4, concurrency=1)
        assert documents.run(context)["calls_estimated"] == 4
    assert context.facts["answered_by"] == {"other-0": 2, "other-1": 2}
    assert "several models answered" in context.warnings[0] and "4 calls" in context.warnings[1]
    lines = (context.folder / "calls.jsonl").read_text().splitlines()
    assert {json.loads(line)["answered_by"] for line in lines} == {"other-0", "other-1"}


def test_half_a_character_in_a_question_is_a_rejected_draft(tmp_path: Path) -> None:
    def cut(body: dict[str, Any], n: int) -> str:
        text = dummy_text(body)
        return f"{text[:-1]}\ud83d{text[-1]}" if n == 1 else text

    with serving(replying(cut)) as (endpoint, _):
        url = endpoint.base_url
        counts = documents.run(
            cell(tmp_path, "qa", "qa_pairs", url=url, documents=3, concurrency=1)
        )
    assert counts["rejected_characters"] == counts["rejected"] == 1
