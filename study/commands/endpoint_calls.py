"""One real call for each role of an endpoint, as `doctor` makes it, and what came back."""

import asyncio
from dataclasses import dataclass

from core.endpoints.batch_api import BatchApi
from core.endpoints.connect import open_endpoint
from core.endpoints.replies import token_counts
from core.endpoints.request_form import RequestForm
from core.endpoints.sender import Completion, Sender
from core.endpoints.thoughts import without_thoughts
from core.errors import UserError
from eval.rubric import GRADE_FORMAT, has_grade
from slurm.checks import FAILED, OK, WARNING, Check, of_error
from study.spec.fingerprints import endpoint_address, endpoint_model
from study.spec.schema import Endpoint, Study

DOCUMENT_TOKENS = 20
PATIENCE = 30.0  # seconds that HTTP 429 is waited out
DOCUMENT = "Write one sentence about a harbour town in the morning. Write the sentence only."
GRADE = (
    "[Question]: What is 2 + 2?\n[Submission]: 4\n[Criterion]: The answer is right.\n\n"
    "Does the submission meet the criterion? Answer with one line and nothing else: "
    "GRADE: C where it does, GRADE: I where it doesn't."
)


@dataclass(frozen=True)
class Role:
    """What a study asks an endpoint for."""

    endpoint: str
    name: str  # "writer" or "judge"
    prompt: str
    temperature: float
    max_tokens: int


def check_endpoints(study: Study) -> list[Check]:
    """One check for each address that the study calls and each role it has there.

    A vLLM server of a job's own is not called: it runs in the job alone.
    """
    roles = _roles(study)
    names = dict.fromkeys(role.endpoint for role in roles)
    batched = [name for name in names if study.endpoints[name].batch]
    checks = [_check(study.endpoints[role.endpoint], role) for role in roles]
    return checks + [_check_batches(name, study.endpoints[name]) for name in batched]


def _check_batches(name: str, endpoint: Endpoint) -> Check:
    title = f"batches of {name}"
    try:
        asyncio.run(_list_batches(endpoint))
    except UserError as error:
        return of_error(title, error)
    return Check(title, OK, "it lists batches")


async def _list_batches(endpoint: Endpoint) -> None:
    with open_endpoint(endpoint_model(endpoint), endpoint_address(endpoint)) as opened:
        sender = Sender(lambda: opened, None, endpoint.timeout, lambda: None, 1, PATIENCE)
        try:
            await BatchApi(sender.connected, endpoint.timeout).check()
        finally:
            await sender.close()


def _roles(study: Study) -> list[Role]:
    by_name: dict[tuple[str, str], Role] = {}
    for corpus in study.corpora.values():
        if corpus.writer:
            role = Role(corpus.writer, "writer", DOCUMENT, corpus.temperature, DOCUMENT_TOKENS)
            by_name.setdefault((role.endpoint, role.name), role)
    for bench in study.benchmarks.values():
        for judge in filter(None, [bench.judge, *bench.other_judges]):
            role = Role(judge, "judge", GRADE, bench.judge_temperature, bench.judge_max_tokens)
            by_name.setdefault((role.endpoint, role.name), role)
    return [role for role in by_name.values() if study.endpoints[role.endpoint].served_by == "url"]


def _check(endpoint: Endpoint, role: Role) -> Check:
    name = f"call of {role.endpoint} as {role.name}"
    try:
        answer = asyncio.run(_call(endpoint, role))
    except UserError as error:
        return of_error(name, error)
    reply = answer.reply
    prompt_tokens, completion_tokens = token_counts(
        reply.usage, len(role.prompt), reply.text, role.max_tokens
    )
    if prompt_tokens is None or completion_tokens is None:
        price = "no token counts, they will be estimated"
    else:
        cost = prompt_tokens * endpoint.prompt_price + completion_tokens * endpoint.completion_price
        price = f"{prompt_tokens} + {completion_tokens} tokens, price {cost / 1e6:.6f}"
    answered_by = f"answered by {reply.model!r}" if reply.model else "it gives no model's name"
    finding = (
        f"{reply.text.strip()[-80:]!r} (finish_reason {reply.finish_reason!r}; {price}; "
        f"{answered_by})"
    )
    if reply.no_answer:
        return Check(name, FAILED, f"no answer: {reply.no_answer}", "take another endpoint")
    if role.name == "judge" and not has_grade(without_thoughts(reply.text)):
        fix = f"a judge must write {GRADE_FORMAT}; raise judge_max_tokens or take another one"
        return Check(name, WARNING, finding, fix)
    if not reply.text.strip():
        fix = "thoughts count towards max_tokens: turn them off by `request`, or raise it"
        return Check(name, WARNING, finding, fix)
    if reply.model not in (None, endpoint.model):
        return Check(name, WARNING, finding, f"give model: {reply.model}, if you mean that one")
    return Check(name, OK, finding)


async def _call(endpoint: Endpoint, role: Role) -> Completion:
    model = endpoint_model(endpoint)
    address = endpoint_address(endpoint)
    request = {
        "model": model["model"],
        "messages": [{"role": "user", "content": role.prompt}],
        "seed": 0,
        "temperature": role.temperature,
        "max_tokens": role.max_tokens,
    }
    parameters = RequestForm(**address.get("request", {})).parameters(request, model)

    async def failed(outcome: str, seconds: float) -> None:
        pass

    with open_endpoint(model, address) as opened:
        sender = Sender(lambda: opened, None, endpoint.timeout, lambda: None, 1, PATIENCE)
        try:
            return await sender.send(request, parameters, lambda: 0, failed)
        finally:
            await sender.close()
