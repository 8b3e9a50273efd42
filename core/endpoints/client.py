"""Calls to an endpoint: each response is appended to a ledger before it is used."""

import asyncio
import hashlib
import json
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from core.endpoints.batch_api import BatchApi
from core.endpoints.batches import Batches, BatchSettings
from core.endpoints.call_index import CallIndex
from core.endpoints.call_store import CallStore, tokens_of
from core.endpoints.connect import Endpoint
from core.endpoints.ledger import FAILED, LedgerEntry
from core.endpoints.rate_limit import RateLimiter
from core.endpoints.request_form import PLAIN, RequestForm
from core.endpoints.sender import RequestFailed, Sender

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
        batch: How requests are sent as batches. None: each is a call.
        log: Called with a line for each step of a batch.

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
        batch: BatchSettings | None = None,
        log: Callable[[str], None] = print,
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
        self._batch = batch
        self._log = log

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
        limit = self._sampling.get("max_tokens", 0)
        name = self._model["model"]
        self._calls = CallStore(self.ledger, self._index, name, limit, self._prices)
        self._sender = Sender(
            self._connect, self._rate_limiter, self._timeout, self._calls.disk_error
        )
        await self._calls.open_index()
        self._batches = None
        if self._batch:
            api = BatchApi(self._sender.connected, self._timeout)
            self._batches = Batches(api, self._calls, self._batch, self._parameters, self._log)
        return self

    async def __aexit__(self, kind: type[BaseException] | None, *error: object) -> None:
        under_way = list(self._under_way)
        interrupted = kind is not None and not issubclass(kind, Exception)  # Ctrl-C
        if interrupted:
            for task in under_way:
                task.cancel()
        if self._batches:
            await self._batches.close(interrupted)
        await asyncio.gather(*under_way, return_exceptions=True)
        self._calls.close()
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
        self.counts["failed_attempts"] += self._calls.failures[digest]
        answer = await self._calls.recorded(digest, labels)
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
        if self._batches:
            answer = await self._batches.complete(request, labels, digest)
            return replace(answer, **labels)
        async with self._claimed(digest):
            # Whoever had the claim before may have been answered.
            if recorded := await self._calls.recorded(digest, labels):
                self.counts["calls_reused"] += recorded.finish_reason != FAILED
                return recorded
            return await self._send(request, {**labels, "request_sha256": digest})

    async def recorded(
        self, id: int | str, attempt: int, role: str, prompt: str, seed: int
    ) -> LedgerEntry | None:
        """The answer that `complete` would give without a call; None where it would call."""
        _, digest = self._request(prompt, seed)
        labels = {"id": id, "attempt": attempt, "role": role}
        return await self._calls.recorded(digest, labels)

    @asynccontextmanager
    async def _claimed(self, digest: str) -> AsyncIterator[None]:
        """Hold the claim on a request, or have waited for its holder for CLAIM_PATIENCE."""
        wait = 0.02
        deadline = time.monotonic() + CLAIM_PATIENCE
        while not (held := await self._calls.claim(digest)):
            self._sender.raise_if_stopped()
            if time.monotonic() > deadline:
                break
            await asyncio.sleep(wait)
            wait = min(1.0, 2 * wait)
        try:
            yield
        finally:
            if held:
                self._calls.release(digest)

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
            await self._calls.keep_failed_attempt(labels, outcome, seconds)

        parameters = self._parameters(request)
        estimate = partial(self._estimate, request)
        try:
            sent = await self._sender.send(request, parameters, estimate, failed)
        except RequestFailed as failure:
            await self._calls.keep_failure(failure, labels)
            raise
        characters = len(request["messages"][0]["content"])
        answer = await self._calls.keep_answer(sent.reply, sent.seconds, labels, characters)
        if self._rate_limiter:
            used = answer.prompt_tokens + answer.completion_tokens
            await self._rate_limiter.adjust(sent.estimated, used)
        return answer

    def _parameters(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """The body of a request, without model and messages."""
        return self._form.parameters(request, self._model)

    def _estimate(self, request: dict[str, Any]) -> int:
        """Tokens of a request and its answer.

        For the answer the mean of the answers so far counts, before the first one the limit.
        """
        calls = self.counts["calls"]
        limit = self._sampling.get("max_tokens", 0)
        completion_tokens = self.counts["completion_tokens"] // calls if calls else limit
        return tokens_of(len(request["messages"][0]["content"])) + completion_tokens


async def gather_limited(
    ids: Iterable[int], process: Callable[[int], Awaitable[None]], concurrency: int
) -> None:
    """Await `process` for every id, `concurrency` at a time.

    After a failure none is begun; those under way finish, since they are paid for.

    Raises:
        Exception: The first failure.
    """
    numbers = [*ids]
    queue = iter(numbers)
    failures: list[Exception] = []

    async def worker() -> None:
        for number in queue:
            try:
                await process(number)
            except Exception as error:  # a bug too: the others must reach the ledger first
                failures.append(error)
            if failures:
                return

    await asyncio.gather(*(worker() for _ in range(min(concurrency, len(numbers)))))
    if failures:
        raise failures[0]
