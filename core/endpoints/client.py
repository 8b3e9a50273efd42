"""Calls to an endpoint: each response is appended to a ledger, transient errors are retried."""

import asyncio
import hashlib
import json
import random
import re
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from core.endpoints.api_errors import (
    MalformedResponse,
    completion,
    error_kind,
    explain,
    is_request_error,
    is_transient,
    retry_after,
)
from core.endpoints.call_index import CallIndex
from core.endpoints.connect import Endpoint
from core.endpoints.ledger import (
    CHARACTERS_PER_TOKEN,
    LedgerEntry,
    LedgerWriter,
    read_ledger,
)
from core.endpoints.loopback import http_client
from core.endpoints.rate_limit import RateLimiter
from core.errors import UserError

if TYPE_CHECKING:
    import openai


# Retries of one request after errors: 5xx, 408, 409, dropped connections, hangs, bodies without a
# completion.
RETRIES = 9
# Consecutive requests that may fail for good each on its own. One more, and the endpoint is taken
# to be down.
UNANSWERED_IN_A_ROW = 3
# 429 is not counted as an error. It is waited out as long as other calls get through, and for this
# many seconds when none does.
PATIENCE = 600.0
# A wait is drawn from 0 to 0.5, 1, 2 ... 30 s ("full jitter").
BACKOFF_SECONDS = 0.5
BACKOFF_MOST = 30.0
# Seconds to wait for another cell that is making the same request. Then it is made, and paid, here.
CLAIM_PATIENCE = 300.0
PAID = ("paid_calls", "paid_prompt_tokens", "paid_completion_tokens", "paid_cost")


class RequestFailed(UserError):
    """A request that fails for good, though others may succeed."""


@dataclass
class _Attempts:
    """The attempts at one request so far."""

    failed: int = 0
    errors: int = 0  # failed attempts other than 429
    first_failure: float = 0.0  # time.monotonic()


class LedgerClient:
    """Calls to one endpoint. Each response is appended to the ledger before it is used.

    Use it by `async with`. Besides responses the ledger holds a line for every failed attempt, with
    an `outcome` and without a text. After a failure of the endpoint no further call is made.

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

    Attributes:
        counts: calls, calls_reused, calls_estimated (their tokens), failed_attempts, prompt_tokens
            and completion_tokens of all responses used, also those of earlier, killed runs.
        cost: Of the same, in the currency of the prices.
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
    ) -> None:
        names = ("calls", "calls_reused", "calls_estimated", "failed_attempts")
        self.counts = Counter(dict.fromkeys(names, 0))
        self.counts.update(prompt_tokens=0, completion_tokens=0)
        self.cost = 0.0
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

    @property
    def paid(self) -> dict[str, int | float]:
        """PAID: what of `counts` and `cost` was not copied from another ledger."""
        return {**self._paid, PAID[-1]: round(self._paid_cost, 6)}

    async def __aenter__(self) -> "LedgerClient":
        """Open and read the ledgers.

        Raises:
            UserError: The ledger can't be read or written.
        """
        self._stopped: UserError | None = None
        self._hold_until = time.monotonic()  # when calls may start again
        self._last_answer = time.monotonic()
        # One request at a time waits for the rate limiter: a killed process then wastes at most one
        # start.
        self._acquiring = asyncio.Lock()
        self._connecting = asyncio.Lock()
        self._client: openai.AsyncOpenAI | None = None
        self._unanswered = 0  # requests that failed for good since the last answer
        self._writer = LedgerWriter(self.ledger, self._index.extend if self._index else None)
        try:
            self._entries, self._failures = read_ledger(self.ledger)
        except UserError:
            self._writer.close()
            raise
        if self._index:
            await asyncio.to_thread(self._index.open)
        return self

    async def __aexit__(self, *error: object) -> None:
        self._writer.close()
        if self._index:
            self._index.close()
        if self._client:
            await self._client.close()

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
            RequestFailed: This request alone fails for good.
            UserError: The endpoint fails, its key can't be sent, or the ledger can't be written.
        """
        request, digest = self._request(prompt, seed)
        labels = {"id": id, "attempt": attempt, "role": role}
        self.counts["failed_attempts"] += self._failures[digest]
        answer = await self._recorded(digest, labels)
        if not answer:
            async with self._claimed(digest):
                # Whoever had the claim before may have been answered.
                answer = await self._recorded(digest, labels)
                self.counts["calls_reused"] += answer is not None
                if not answer:
                    labels["request_sha256"] = digest
                    answer = self._entries[digest] = await self._call(request, labels)
        else:
            self.counts["calls_reused"] += 1
        self._count(answer)
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
            self._raise_if_stopped()
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

    async def _open(self) -> "openai.AsyncOpenAI":
        import openai

        async with self._connecting:
            if self._client is None:
                try:
                    self._endpoint = await asyncio.to_thread(self._connect)
                    if not re.fullmatch(r"[!-~]+", self._endpoint.api_key):
                        raise UserError(
                            where=f"endpoint {self._endpoint.base_url}",
                            what="the key has a space, a line break or a letter beyond ASCII",
                            fix="put the bare key in the variable key_env names",
                        )
                    http = http_client(self._endpoint.base_url)
                except UserError as error:
                    self._stopped = error
                    raise
                self._client = openai.AsyncOpenAI(
                    base_url=self._endpoint.base_url,
                    api_key=self._endpoint.api_key,
                    max_retries=0,
                    timeout=self._timeout,
                    http_client=http,
                )
        return self._client

    async def _call(self, request: dict[str, Any], labels: dict[str, Any]) -> LedgerEntry:
        """Send a request until it is answered or fails for good."""
        import openai

        self._raise_if_stopped()
        client = await self._open()
        attempts = _Attempts()
        while True:
            estimated = self._estimate(request)
            await self._wait_for_start(estimated)
            started = time.monotonic()
            try:
                # The client's own timeout is per read: a trickle of bytes would never end.
                async with asyncio.timeout(self._timeout):
                    raw = await client.chat.completions.with_raw_response.create(
                        model=request["model"],
                        messages=request["messages"],
                        extra_body={
                            name: value
                            for name, value in request.items()
                            if name not in ("model", "messages")
                        },
                    )
                reply = completion(raw.content)
            except (openai.APIError, TimeoutError, MalformedResponse) as error:
                ended = time.monotonic()
                seconds = round(ended - started, 3)
                await self._writer.append(
                    {**labels, "outcome": error_kind(error), "seconds": seconds}
                )
                await asyncio.sleep(await self._after_failure(error, attempts, ended, estimated))
                continue
            return await self._after_answer(reply, request, labels, started, estimated)

    async def _after_failure(
        self, error: Exception, attempts: _Attempts, ended: float, estimated: int
    ) -> float:
        """Seconds until the next attempt. Raises where there is none."""
        import openai

        self.counts["failed_attempts"] += 1
        attempts.failed += 1
        attempts.errors += not isinstance(error, openai.RateLimitError)
        attempts.first_failure = attempts.first_failure or ended
        delay = retry_after(error)
        longest = BACKOFF_SECONDS * 2 ** min(attempts.failed - 1, 9)
        wait = delay + random.uniform(0, min(BACKOFF_MOST, longest))
        late = ended + wait - max(attempts.first_failure, self._last_answer) > PATIENCE
        if not is_transient(error) or attempts.errors > RETRIES or late:
            reason = explain(error, self._endpoint)
            self._unanswered += 1
            about_request = is_request_error(error) or (is_transient(error) and not late)
            if about_request and self._unanswered <= UNANSWERED_IN_A_ROW:
                raise RequestFailed.of(reason.problems) from None
            self._stopped = reason
            raise reason from None
        self._hold_until = max(self._hold_until, ended + delay)
        if self._rate_limiter:
            await self._rate_limiter.adjust(estimated, 0)
            if delay:
                await self._rate_limiter.back_off(delay)
        return wait

    async def _after_answer(
        self,
        reply: dict[str, Any],
        request: dict[str, Any],
        labels: dict[str, Any],
        started: float,
        estimated: int,
    ) -> LedgerEntry:
        """Keep the answer in the ledger and correct the rate limiter."""
        self._last_answer = time.monotonic()
        self._unanswered = 0
        choice = reply["choices"][0]
        text = choice["message"].get("content") or ""
        usage = reply.get("usage") or {}
        prompt_tokens = usage.get("prompt_tokens") or 0
        completion_tokens = usage.get("completion_tokens") or 0
        unreported = not prompt_tokens or bool(text and not completion_tokens)
        if unreported:
            prompt_tokens = _tokens(request["messages"][0]["content"])
            completion_tokens = _tokens(text)
        prompt_price, completion_price = self._prices
        answer = LedgerEntry(
            **labels,
            model=request["model"],
            prompt_tokens=prompt_tokens,
            completion_tokens=completion_tokens,
            cost=(prompt_tokens * prompt_price + completion_tokens * completion_price) / 1e6,
            seconds=round(self._last_answer - started, 3),
            finish_reason=choice.get("finish_reason") or "none",
            text=text.strip(),
            estimated=unreported,
        )
        await self._writer.append(asdict(answer))
        if self._rate_limiter:
            await self._rate_limiter.adjust(estimated, prompt_tokens + completion_tokens)
        return answer

    def _estimate(self, request: dict[str, Any]) -> int:
        """Tokens of a request and its answer.

        For the answer the mean of the answers so far counts, before the first one the limit.
        """
        calls = self.counts["calls"]
        limit = self._sampling.get("max_tokens", 0)
        completion_tokens = self.counts["completion_tokens"] // calls if calls else limit
        return _tokens(request["messages"][0]["content"]) + completion_tokens

    async def _wait_for_start(self, tokens: int) -> None:
        hold = self._hold_until - time.monotonic()
        if hold > 0:
            await asyncio.sleep(hold + random.uniform(0, BACKOFF_SECONDS))
        if self._rate_limiter:
            async with self._acquiring:
                await self._rate_limiter.acquire(tokens)
        self._raise_if_stopped()

    def _raise_if_stopped(self) -> None:
        if error := self._writer.error or self._stopped:
            raise error


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
