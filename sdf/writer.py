"""Ask the writer for every document, and keep each answer in a ledger the moment it has been paid for."""

import asyncio
import hashlib
import json
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from study.endpoints import Endpoint
from study.errors import UserError

if TYPE_CHECKING:
    import openai

RETRIES = 6  # by the client: connection errors, 408, 409, 429 and 5xx, after Retry-After or up to 8 s
DRAWS = 3
GIVE_UP_AFTER = 5  # documents without an acceptable draw: the cause is then likely common, and each call costs


@dataclass(frozen=True)
class Answer:
    """One finished call: a line of the ledger. `id` is the document, `draw` counts its attempts from 0."""

    id: int
    draw: int
    request_sha256: str
    model: str
    prompt_tokens: int
    completion_tokens: int
    finish_reason: str
    text: str


async def write_all(
    prompts: list[str],
    sampling: dict[str, Any],
    seed: Callable[[int, int], int],
    reject: Callable[[Answer], str | None],
    ledger: Path,
    endpoint: Endpoint,
    concurrency: int,
    progress: Callable[[int], None],
) -> tuple[list[str], dict[str, int]]:
    """The accepted text of every prompt, in order, and counts of calls and tokens.

    `seed(i, draw)` is the request's seed. `reject` gives the reason why an answer won't do, or None; a rejected
    document is asked for again, DRAWS times in all. Answers already in the ledger are taken from there: a request is
    known by the hash of all that was sent, so that nothing is paid twice and nothing stale is used. The counts cover
    all calls of the corpus, also those of earlier, killed runs (`calls_reused`).
    Raises UserError when the endpoint fails for good or documents stay rejected; finished calls are kept even then.
    """
    import openai

    known = read_ledger(ledger)
    texts: dict[int, str] = {}
    counts = Counter({"calls": 0, "calls_reused": 0, "rejected": 0, "prompt_tokens": 0, "completion_tokens": 0})
    reasons: Counter[str] = Counter()  # why the last draw of each given-up document was rejected
    failures: list[UserError] = []
    queue = iter(range(len(prompts)))

    async def ask(i: int, draw: int) -> Answer:
        messages = [{"role": "user", "content": prompts[i]}]
        request = {"model": endpoint.model, "messages": messages, "seed": seed(i, draw), **sampling}
        digest = hashlib.sha256(json.dumps(request, sort_keys=True).encode()).hexdigest()
        if digest in known:
            counts["calls_reused"] += 1
            return known[digest]
        reply = await client.chat.completions.create(**request)
        if not getattr(reply, "choices", None):
            raise UserError(f"no chat completion came back; writer {endpoint.base_url}; base_url usually ends in /v1")
        answer = Answer(
            id=i,
            draw=draw,
            request_sha256=digest,
            model=endpoint.model,
            prompt_tokens=reply.usage.prompt_tokens if reply.usage else 0,
            completion_tokens=reply.usage.completion_tokens if reply.usage else 0,
            finish_reason=reply.choices[0].finish_reason or "none",
            text=(reply.choices[0].message.content or "").strip(),
        )
        file.write(json.dumps(asdict(answer)) + "\n")
        file.flush()
        return answer

    async def document(i: int) -> None:
        reason = None
        for draw in range(DRAWS):
            answer = await ask(i, draw)
            counts.update(calls=1, prompt_tokens=answer.prompt_tokens, completion_tokens=answer.completion_tokens)
            reason = reject(answer)
            if reason is None:
                texts[i] = answer.text
                progress(len(texts))
                return
            counts["rejected"] += 1
        reasons[reason or ""] += 1

    async def worker() -> None:
        # After a failure the calls under way may still finish: they are paid for, so they belong in the ledger.
        for i in queue:
            try:
                await document(i)
            except openai.APIError as error:
                failures.append(explain(error, endpoint))
            except UserError as error:
                failures.append(error)
            if failures or reasons.total() >= GIVE_UP_AFTER:
                return

    with ledger.open("a", encoding="utf-8") as file:
        async with openai.AsyncOpenAI(
            base_url=endpoint.base_url, api_key=endpoint.api_key, max_retries=RETRIES
        ) as client:
            await asyncio.gather(*(worker() for _ in range(min(concurrency, len(prompts)))))
    if failures:
        raise failures[0]
    if reasons:
        why = ", ".join(f"{count} x {reason}" for reason, count in sorted(reasons.items()))
        raise UserError(
            f"{reasons.total()} of {reasons.total() + len(texts)} documents rejected in each of {DRAWS} draws ({why}); "
            f"{ledger}; mend the template, max_tokens or the writer (a changed setting makes a new cell)"
        )
    return [texts[i] for i in range(len(prompts))], dict(counts)


def read_ledger(path: Path) -> dict[str, Answer]:
    """The finished calls by `request_sha256`. A line torn by a kill is cut off the file, so that appending is safe."""
    if not path.exists():
        return {}
    content = path.read_bytes()
    whole = content[: content.rfind(b"\n") + 1]
    if len(whole) < len(content):
        with path.open("r+b") as file:
            file.truncate(len(whole))
    answers: dict[str, Answer] = {}
    for line in whole.splitlines():
        try:
            answer = Answer(**json.loads(line))
        except (ValueError, TypeError):  # damaged on disk: that call is made again
            continue
        answers.setdefault(answer.request_sha256, answer)
    return answers


def explain(error: "openai.APIError", endpoint: Endpoint) -> UserError:
    """What failed, where, and what to do, in one line without the key."""
    import openai

    where = f"writer {endpoint.base_url}, model {endpoint.model!r}"
    again = "then run the cell again (finished calls are kept)"
    if isinstance(error, openai.APIConnectionError):
        what, cure = f"no answer ({error.message})", f"see that the server is up and base_url is right, {again}"
    elif isinstance(error, openai.AuthenticationError | openai.PermissionDeniedError):
        # The server's own words are left out: some repeat the key.
        what, cure = f"the key was refused (HTTP {error.status_code})", "put a valid key in the variable key_env names"
    elif isinstance(error, openai.NotFoundError):
        what, cure = (
            "no such model or address (HTTP 404)",
            "check the model's name and base_url (it usually ends in /v1)",
        )
    elif isinstance(error, openai.RateLimitError):
        what = f"still over the rate limit or quota after {RETRIES} retries (HTTP 429)"
        cure = f"lower concurrency or wait, {again}"
    else:
        said = " ".join(error.message.split()).replace(endpoint.api_key, "<key>")[:300]
        what, cure = f"the call failed ({said})", f"see what the endpoint says, {again}"
    return UserError(f"{what}; {where}; {cure}")
