"""The dummy endpoint: a rule-based server of OpenAI's chat-completions API.

It needs no model, key or network, and plays the two roles that a study needs: a *writer*, who
shuffles the canned sentences of dummy_endpoint.yaml, and a *judge*, who counts word stems. A prompt
with a submission between Inspect's [BEGIN DATA] and [END DATA] is for the judge, and so is
StrongREJECT's; all others are for the writer. The same request always gets the same answer. Its
answers measure nothing.
"""

import hashlib
import json
import random
import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from core.endpoints.dummy_batches import DummyBatches
from core.yaml_text import from_yaml

CHOICE = re.compile(r"\[([^\]]+)\]")
# The last [Criterion] is the grading template's own, whatever a submission may hold.
GRADING = re.compile(
    r"\[BEGIN DATA\].*?\n\[Submission\]:(.*)\n\*{3,}\n\[Criterion\]:[ \t]*([^\n]*)", re.DOTALL
)
RATING = re.compile(  # StrongREJECT's; again the last heading is the template's own
    r"\A\s*Below is an interaction between a user and an AI model\.\s+User instruction:.*?"
    r"\nAI model response:(.*)\n\nEvaluate the AI model's response according to",
    re.DOTALL,
)
REFUSAL = re.compile(r"\b(sorry|cannot|can't|won't|unable|refuse)\b", re.IGNORECASE)
WORD = re.compile(r"[a-z][a-z-]*")


@dataclass(frozen=True)
class Bank:
    """The sentences about one topic.

    Attributes:
        topic: Its name in prompts.
        things: Singular and plural of its nouns.
        places: Names for {place}.
        workers: Names for {worker}.
        openings: First sentences.
        sentences: Sentences for the middle.
        closings: Last sentences.
    """

    topic: str
    things: list[tuple[str, str]]
    places: list[str]
    workers: list[str]
    openings: list[str]
    sentences: list[str]
    closings: list[str]


@dataclass(frozen=True)
class Rule:
    """A criterion is met when words with at least `at_least` of the `stems` occur."""

    at_least: int
    stems: list[str]


@dataclass(frozen=True)
class Data:
    """dummy_endpoint.yaml, parsed."""

    model: str
    slots: dict[str, tuple[re.Pattern[str], str]]
    banks: list[Bank]
    criteria: dict[str, Rule]
    any_other: Rule


@cache
def data() -> Data:
    """The sentence banks and word lists beside this file."""
    raw = from_yaml(Path(__file__).with_suffix(".yaml").read_text(encoding="utf-8"))
    judge = raw["judge"]
    return Data(
        model=raw["model"],
        slots={
            name: (re.compile(slot["pattern"]), slot["otherwise"])
            for name, slot in raw["slots"].items()
        },
        banks=[_bank(bank) for bank in raw["banks"]],
        criteria={name.casefold(): _rule(rule) for name, rule in judge["criteria"].items()},
        any_other=_rule(judge["any other"]),
    )


def write(prompt: str, seed: int | None) -> str:
    """A document of some 120 to 180 words.

    It is on the topic that the prompt names most, and mentions the prompt's slots.
    """
    lowered = prompt.lower()
    *named, neutral = data().banks
    bank = max(named, key=lambda bank: lowered.count(bank.topic))
    if bank.topic not in lowered:
        bank = neutral
    slots = {}
    for name, (pattern, otherwise) in data().slots.items():
        match = pattern.search(prompt)
        slots[name] = match[1] if match else otherwise

    rng = random.Random(f"{seed}\n{prompt}")
    length = rng.randint(120, 150)
    closing = _fill(rng.choice(bank.closings), bank, slots, rng)
    text = [_fill(rng.choice(bank.openings), bank, slots, rng)]
    words = len(text[0].split()) + len(closing.split())
    for sentence in rng.sample(bank.sentences, len(bank.sentences)):
        if words >= length:
            break
        text.append(_fill(sentence, bank, slots, rng))
        words += len(text[-1].split())
    text.append(closing)
    return "\n\n".join(" ".join(text[i : i + 4]) for i in range(0, len(text), 4))


def grade(submission: str, criterion: str) -> str:
    """One line of reasoning, then `GRADE: C` or `GRADE: I`, from the submission's words alone."""
    rule = data().criteria.get(criterion.strip().casefold(), data().any_other)
    words = set(WORD.findall(submission.lower()))
    stems = [stem for stem in rule.stems if any(word.startswith(stem) for word in words)]
    verdict = "C" if len(stems) >= rule.at_least else "I"
    seen = f" ({', '.join(stems)})" if stems else ""
    reason = f"{len(stems)} of the stems looked for{seen}; {rule.at_least} are enough"
    return f"Dummy rule for {criterion.strip()}: {reason}.\nGRADE: {verdict}"


def rate(response: str) -> str:
    """A rating in StrongREJECT's form.

    The words decide on refusal, their number on convincingness, the number of distinct words on
    specificity.
    """
    words = WORD.findall(response.lower())
    refused = int(not words or REFUSAL.search(response) is not None)
    convincing = min(5, 1 + len(words) // 20)
    specific = min(5, 1 + len(set(words)) // 15)
    grades = enumerate((refused, convincing, specific), 1)
    lines = "".join(f"{number}.a Dummy rule.\n{number}.b {grade}\n" for number, grade in grades)
    return f"#overall_reasoning Dummy rule: {len(words)} words.\n#scores\n{lines}"


def complete(request: dict[str, Any]) -> dict[str, Any]:
    """The reply to the body of POST /v1/chat/completions.

    Token counts are a quarter of the characters.
    """
    prompt = "\n".join(_text(message["content"]) for message in request["messages"])
    rating = RATING.search(prompt)
    grading = GRADING.search(prompt)
    if rating:
        text = rate(rating[1])
    else:
        text = grade(grading[1], grading[2]) if grading else write(prompt, request.get("seed"))
    limit = request.get("max_completion_tokens") or request.get("max_tokens")
    finish_reason = "stop"
    if limit is not None and len(text) > 4 * limit:
        text = text[: 4 * limit]
        finish_reason = "length"
    usage = {"prompt_tokens": -(-len(prompt) // 4), "completion_tokens": -(-len(text) // 4)}
    message = {"role": "assistant", "content": text}
    digest = hashlib.sha256(json.dumps(request, sort_keys=True).encode()).hexdigest()
    return {
        "id": f"dummy-{digest[:16]}",
        "object": "chat.completion",
        "created": 0,
        "model": data().model,
        "choices": [
            {"index": 0, "message": message, "finish_reason": finish_reason, "logprobs": None}
        ],
        "usage": {**usage, "total_tokens": sum(usage.values())},
    }


def app(batches: DummyBatches | None = None) -> Any:
    """The ASGI application: GET /v1/models, POST /v1/chat/completions, and the batch interface.

    `batches`: the files and batches of the server. None: new ones.
    """
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import JSONResponse
    from starlette.routing import Route

    def refuse(status: int, text: str) -> JSONResponse:
        return JSONResponse({"error": {"message": text, "type": "invalid_request_error"}}, status)

    async def models(request: Request) -> JSONResponse:
        model = {"id": data().model, "object": "model", "created": 0, "owned_by": "kit"}
        return JSONResponse({"object": "list", "data": [model]})

    async def chat_completions(request: Request) -> JSONResponse:
        body = await request.json()
        if body.get("model") != data().model:
            return refuse(
                404,
                f"the dummy endpoint serves the model {data().model!r}, not {body.get('model')!r}",
            )
        if body.get("stream") or body.get("n", 1) != 1:
            return refuse(400, "the dummy endpoint neither streams nor gives several choices")
        return JSONResponse(complete(body))

    return Starlette(
        routes=[
            Route("/v1/models", models, methods=["GET"]),
            Route("/v1/chat/completions", chat_completions, methods=["POST"]),
            *(batches or DummyBatches(complete)).routes(),
        ]
    )


def _bank(raw: dict[str, Any]) -> Bank:
    things = []
    for thing in raw["things"]:
        singular, plural = thing.split("/")
        things.append((singular, plural))
    lines = {name: raw[name].splitlines() for name in ("openings", "sentences", "closings")}
    return Bank(raw["topic"], things, raw["places"], raw["workers"], **lines)


def _rule(raw: dict[str, Any]) -> Rule:
    return Rule(raw["at_least"], raw["stems"].split())


def _fill(sentence: str, bank: Bank, slots: dict[str, str], rng: random.Random) -> str:
    (singular, plural), (_, other_plural) = rng.sample(bank.things, 2)
    sentence = CHOICE.sub(lambda match: rng.choice(match[1].split("|")), sentence)
    text = sentence.format(
        one=singular,
        many=plural,
        others=other_plural,
        place=rng.choice(bank.places),
        worker=rng.choice(bank.workers),
        number=rng.randint(11, 68),
        **slots,
    )
    return text[0].upper() + text[1:]


def _text(content: Any) -> str:
    # The API allows a plain string or a list of parts.
    return (
        content
        if isinstance(content, str)
        else "".join(part.get("text", "") for part in content or [])
    )
