"""Calls to an endpoint: each response is appended to a ledger before it is used."""

import asyncio
import hashlib
import json
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

from core.endpoints.call_index import CallIndex
from core.endpoints.connect import Endpoint
from core.endpoints.ledger import (
    CHARACTERS_PER_TOKEN,
    FAILED,
    LedgerEntry,
    LedgerWriter,
    read_ledger,
)
from core.endpoints.rate_limit import RateLimiter
from core.endpoints.replies import token_counts
from core.endpoints.request_form import PLAIN, RequestForm
from core.endpoints.sender import Completion, RequestFailed, Sender
from core.errors import UserError

# Seconds to wait for another cell that is making the same request. Then it is made, and paid, here.
CLAIM_PATIENCE = 300.0
PAID = ("paid_calls", "paid_prompt_tokens", "paid_completion_tokens", "paid_cost")


class LedgerClient:
    """Calls to one endpoint. Each response is appended to the ledger before it is used.

    Use it by `async with`. Besides responses the ledger holds a line for every failed attempt, with
    an `outcome` and without a text. After a failure of the endpoint no further call is made. Calls
    under way end and are kept, also where whoever awaits them is cancelled.

    Args:
        model: The model that answers: its `model` is the name in requests. What else identifies it
            (`study.spec.fingerprints.endpoint_model`) is part of a request's hash.
        connect: Gives the endpoint; called at the first request that no ledger holds.
        sampling: What goes into every request: temperature, max_tokens ...
        ledger: The file that responses are appended to.
        index: The ledgers of all cells of the runs folder. Their responses are used too, and a
            request that another cell is making is waited for. None: only the ledger is used.
        rate_limiter: Shared with other processes.
        prices: Per million prompt tokens and per million completion tokens.
        timeout: Seconds for one call, from its start to the last byte.
        form: How requests are written (`core.endpoints.request_form`); what of it changes answers
            is in `model`.

    Attributes:
        counts: calls, calls_reused, calls_estimated (their tokens), failed_attempts, prompt_tokens
            and completion_tokens of all responses used, also those of earlier, killed runs.
        cost: Of the same, in the currency of the prices.
        answered_by: The names of the models that answered, as the endpoint reports them.
    """

    def __init__(
        self,
        model: dict[str, Any],
        connect: Callable[[], Endpoint],
        sampling: dict[str, Any],
        ledger: Path,
        index: CallIndex | None = None,
        rate_limiter: RateLimiter | None = None,
        prices: tuple[float, float] = (0, 0),
        timeout: float = 120,
        form: RequestForm = PLAIN,
    ) -> None:
        names = ("calls", "calls_reused", "calls_estimated", "failed_attempts")
        self.counts = Counter(dict.fromkeys(names, 0))
        self.counts.update(prompt_tokens=0, completion_tokens=0)
        self.cost = 0.0
        self.answered_by: Counter[str] = Counter()
        self._paid = Counter(dict.fromkeys(PAID[:-1], 0))
        self._paid_cost = 0.0
        self.ledger = ledger
        self._model = model
        self._connect = connect
        self._sampling = sampling
        self._index = index
        self._rate_limiter = rate_limiter
        self._prices = prices
        self._timeout = timeout
        self._form = form

    @property
    def paid(self) -> dict[str, int | float]:
        """PAID: what of `counts` and `cost` was not copied from another ledger."""
        return {**self._paid, PAID[-1]: round(self._paid_cost, 6)}

    @property
    def remarks(self) -> list[str]:
        """What a reader of the results must know of the answers."""
        remarks = []
        name = self._model["model"]
        if self.answered_by.keys() - {name}:
            models = ", ".join(f"{model!r} ({n})" for model, n in self.answered_by.most_common())
            several = "several models answered" if len(self.answered_by) > 1 else "it answered"
            remarks.append(f"model {name!r} was asked for, {several} (calls): {models}")
        if estimated := self.counts["calls_estimated"]:
            remarks.append(
                f"the endpoint gave no token counts, or none that can be true, for {estimated} "
                "calls: their tokens and cost are estimated"
            )
        return remarks

    async def __aenter__(self) -> "LedgerClient":
        """Open and read the ledgers.

        Raises:
            UserError: The ledger can't be read or written.
        """
        self._under_way: set[asyncio.Task[LedgerEntry]] = set()
        self._failed: list[LedgerEntry] = []  # kept when an answer shows that the endpoint is up
        self._writer = LedgerWriter(self.ledger, self._index.extend if self._index else None)
        try:
            self._entries, self._failures = read_ledger(self.ledger)
        except UserError:
            self._writer.close()
            raise
        self._sender = Sender(
            self._connect, self._rate_limiter, self._timeout, lambda: self._writer.error
        )
        if self._index:
            await asyncio.to_thread(self._index.open)
        return self

    async def __aexit__(self, kind: type[BaseException] | None, *error: object) -> None:
        under_way = list(self._under_way)
        if kind and not issubclass(kind, Exception):  # Ctrl-C
            for task in under_way:
                task.cancel()
        await asyncio.gather(*under_way, return_exceptions=True)
        self._writer.close()
        if self._index:
            self._index.close()
        await self._sender.close()

    async def complete(
        self, id: int | str, attempt: int, role: str, prompt: str, seed: int
    ) -> LedgerEntry:
        """The answer to `prompt`: from the ledgers where they hold the request, else by a call.

        A request is known by the hash of the model and of all that is sent, so nothing is paid
        twice and nothing stale is used.

        Args:
            id: What the request is about (`LedgerEntry.id`).
            attempt: The number of the attempt at that, from 0.
            role: What the prompt asks for.
            prompt: The one message of the user.
            seed: The sampling seed.

        Raises:
            RequestFailed: This request alone fails for good, or did so before.
            UserError: The endpoint fails, its key can't be sent, or the ledger can't be written.
        """
        request, digest = self._request(prompt, seed)
        labels = {"id": id, "attempt": attempt, "role": role}
        self.counts["failed_attempts"] += self._failures[digest]
        answer = await self._recorded(digest, labels)
        if answer:
            self.counts["calls_reused"] += answer.finish_reason != FAILED
        else:
            task = asyncio.create_task(self._answered(request, labels, digest))
            self._under_way.add(task)
            task.add_done_callback(self._ended)
            answer = await asyncio.shield(task)
        if answer.finish_reason == FAILED:
            raise RequestFailed(
                where=f"ledger {self.ledger}",
                what=f"the {role} request for {id} failed before: {answer.no_answer}",
                fix="remove its line to send it again",
            )
        self._count(answer)
        return answer

    def _ended(self, task: "asyncio.Task[LedgerEntry]") -> None:
        self._under_way.discard(task)
        if not task.cancelled():
            task.exception()  # so that nobody is told that it was never retrieved

    async def _answered(
        self, request: dict[str, Any], labels: dict[str, Any], digest: str
    ) -> LedgerEntry:
        """The answer to a request that no ledger held yet."""
        async with self._claimed(digest):
            # Whoever had the claim before may have been answered.
            if answer := await self._recorded(digest, labels):
                self.counts["calls_reused"] += answer.finish_reason != FAILED
                return answer
            answer = await self._send(request, {**labels, "request_sha256": digest})
            self._entries[digest] = answer
            return answer

    async def recorded(
        self, id: int | str, attempt: int, role: str, prompt: str, seed: int
    ) -> LedgerEntry | None:
        """The answer that `complete` would give without a call; None where it would call."""
        _, digest = self._request(prompt, seed)
        return await self._recorded(digest, {"id": id, "attempt": attempt, "role": role})

    async def _recorded(self, digest: str, labels: dict[str, Any]) -> LedgerEntry | None:
        """The answer in this ledger, or in another, from which it is then copied to this one."""
        if digest in self._entries:
            return replace(self._entries[digest], **labels)
        if not self._index or not (entry := self._index.find(digest)):
            return None
        copy = self._entries[digest] = replace(entry, **labels)
        await self._writer.append(asdict(copy))
        return copy

    @asynccontextmanager
    async def _claimed(self, digest: str) -> AsyncIterator[None]:
        """Hold the claim on a request, or have waited for its holder for CLAIM_PATIENCE."""
        if not self._index:
            yield
            return
        wait = 0.02
        deadline = time.monotonic() + CLAIM_PATIENCE
        while not (held := await asyncio.to_thread(self._index.claim, digest)):
            self._sender.raise_if_stopped()
            if time.monotonic() > deadline:
                break
            await asyncio.sleep(wait)
            wait = min(1.0, 2 * wait)
        try:
            yield
        finally:
            if held:
                self._index.release(digest)

    def _count(self, answer: LedgerEntry) -> None:
        calls = {
            "calls": 1,
            "prompt_tokens": answer.prompt_tokens,
            "completion_tokens": answer.completion_tokens,
        }
        self.counts.update(calls)
        self.counts["calls_estimated"] += answer.estimated
        self.cost += answer.cost
        if answer.answered_by:
            self.answered_by[answer.answered_by] += 1
        if answer.copied_from is None:
            self._paid.update({f"paid_{name}": count for name, count in calls.items()})
            self._paid_cost += answer.cost

    def _request(self, prompt: str, seed: int) -> tuple[dict[str, Any], str]:
        """The body of a request, and its hash."""
        messages = [{"role": "user", "content": prompt}]
        request = {"messages": messages, "seed": seed, **self._sampling}
        # A served model is its files: the name that it is served by is its folder's.
        identity = {
            k: v for k, v in self._model.items() if k != "model" or "files" not in self._model
        }
        text = json.dumps([identity, request], sort_keys=True)
        return {"model": self._model["model"], **request}, hashlib.sha256(text.encode()).hexdigest()

    async def _send(self, request: dict[str, Any], labels: dict[str, Any]) -> LedgerEntry:
        """Send a request, and keep in the ledger what becomes of it."""

        async def failed(outcome: str, seconds: float) -> None:
            self.counts["failed_attempts"] += 1
            await self._writer.append({**labels, "outcome": outcome, "seconds": seconds})

        parameters = self._form.parameters(request, self._model)
        estimate = partial(self._estimate, request)
        try:
            answer = await self._sender.send(request, parameters, estimate, failed)
        except RequestFailed as failure:
            await self._keep_failure(failure, request, labels)
            raise
        return await self._keep_answer(answer, request, labels)

    async def _keep_failure(
        self, failure: RequestFailed, request: dict[str, Any], labels: dict[str, Any]
    ) -> None:
        """Keep that a request failed for good, so that no later run sends it again.

        Unless the endpoint is known to be up, the line is written before the next answer's: one
        that is down must not use up anybody's attempts.
        """
        entry = LedgerEntry(
            **labels,
            model=request["model"],
            prompt_tokens=0,
            completion_tokens=0,
            cost=0.0,
            seconds=0.0,
            finish_reason=FAILED,
            text="",
            no_answer=failure.problems[0].what,
        )
        self._failed.append(entry)
        if failure.endpoint_is_up:
            await self._write_failures()

    async def _write_failures(self) -> None:
        failed = self._failed
        self._failed = []
        for entry in failed:
            self._entries[entry.request_sha256] = entry
            await self._writer.append(asdict(entry))

    async def _keep_answer(
        self, sent: Completion, request: dict[str, Any], labels: dict[str, Any]
    ) -> LedgerEntry:
        """Keep an answer in the ledger and correct the rate limiter."""
        await self._write_failures()
        reply = sent.reply
        prompt = request["messages"][0]["content"]
        limit = self._sampling.get("max_tokens", 0)
        prompt_tokens, completion_tokens = token_counts(reply.usage, len(prompt), reply.text, limit)
        unreported = prompt_tokens is None or completion_tokens is None
        if prompt_tokens is None:
            prompt_tokens = _tokens(prompt)
        if completion_tokens is None:
            completion_tokens = _tokens(reply.text)
        prompt_price, completion_price = self._prices
        answer = LedgerEntry(
            **labels,
            model=request["model"],
            prompt_tokens=prompt_tokens,
            completion_tokens=completion_tokens,
            cost=(prompt_tokens * prompt_price + completion_tokens * completion_price) / 1e6,
            seconds=sent.seconds,
            finish_reason=reply.finish_reason,
            text=reply.text.strip(),
            estimated=unreported,
            answered_by=reply.model,
            no_answer=reply.no_answer,
        )
        await self._writer.append(asdict(answer))
        if self._rate_limiter:
            await self._rate_limiter.adjust(sent.estimated, prompt_tokens + completion_tokens)
        return answer

    def _estimate(self, request: dict[str, Any]) -> int:
        """Tokens of a request and its answer.

        For the answer the mean of the answers so far counts, before the first one the limit.
        """
        calls = self.counts["calls"]
        limit = self._sampling.get("max_tokens", 0)
        completion_tokens = self.counts["completion_tokens"] // calls if calls else limit
        return _tokens(request["messages"][0]["content"]) + completion_tokens


async def gather_limited(
    ids: Iterable[int], process: Callable[[int], Awaitable[None]], concurrency: int
) -> None:
    """Await `process` for every id, `concurrency` at a time.

    After a failure none is begun; those under way finish, since they are paid for.

    Raises:
        Exception: The first failure.
    """
    queue = iter(ids)
    failures: list[Exception] = []

    async def worker() -> None:
        for number in queue:
            try:
                await process(number)
            except Exception as error:  # a bug too: the others must reach the ledger first
                failures.append(error)
            if failures:
                return

    await asyncio.gather(*(worker() for _ in range(concurrency)))
    if failures:
        raise failures[0]


def _tokens(text: str) -> int:
    return -(-len(text) // CHARACTERS_PER_TOKEN)
