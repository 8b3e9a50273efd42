"""Ask an endpoint, keep each answer in a ledger the moment it has been paid for, and outlast what passes."""

import asyncio
import hashlib
import io
import json
import os
import random
import re
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from core.cell.context import StageContext
from core.endpoints.api_errors import (
    MalformedResponse,
    completion,
    error_kind,
    explain,
    is_request_error,
    is_transient,
    retry_after,
)
from core.endpoints.connect import Endpoint, open_endpoint
from core.endpoints.ledger import CHARACTERS_PER_TOKEN, LedgerEntry, read_ledger
from core.endpoints.rate_limit import RateLimiter
from core.errors import UserError
from core.files import append, cut_torn_line

if TYPE_CHECKING:
    import openai


RETRIES = 9  # of one request after faults: 5xx, 408, 409, dropped connections, hangs, bodies without a completion
UNANSWERED_IN_A_ROW = (
    3  # calls that may fail for good, each for itself; one more, and it is the endpoint's matter
)
# 429 is no fault: it is waited out for as long as other calls get through, and for this many seconds when none does.
PATIENCE = 600.0
BACKOFF_SECONDS, BACKOFF_MOST = (
    0.5,
    30.0,
)  # a wait is drawn from 0 to 0.5, 1, 2 ... 30 s ("full jitter")
# Set aside on the ledger's disk, so that the answers under way can be kept when it fills up: some 300 documents.
RESERVE_BYTES = 4 << 20


class RequestFailed(UserError):
    """A call that fails for good, though others may get through."""


class LedgerClient:
    """Calls to one endpoint, each kept in the ledger the moment it has been paid for.

    `connect` gives the endpoint at the first call that no ledger knows. `sampling`: what goes into every request:
    temperature, max_tokens (tokens) ... `known`: other ledgers whose answers are used too; they are only read, so
    another process may be writing them. `prices`: per million prompt tokens and completion tokens. `timeout`: seconds
    for one call, from its start to the last byte.

    Besides answers the ledger holds a line for every failed attempt, with an `error_kind` and without a text.
    `counts`: calls, calls_reused, calls_estimated (their tokens), failed_attempts, prompt_tokens, completion_tokens and
    `cost` cover all answers used, also those of earlier, killed runs. After a failure for good no further call is made
    by this writer.
    """

    def __init__(
        self,
        model: str,
        connect: Callable[[], Endpoint],
        sampling: dict[str, Any],
        ledger: Path,
        known: Iterable[Path] = (),
        budget: RateLimiter | None = None,
        prices: tuple[float, float] = (0, 0),
        timeout: float = 120,
    ) -> None:
        self.counts = Counter(
            dict.fromkeys(("calls", "calls_reused", "calls_estimated", "failed_attempts"), 0)
        )
        self.counts.update(prompt_tokens=0, completion_tokens=0)
        self.cost = 0.0
        self.ledger, self._model, self._connect = ledger, model, connect
        self._sampling, self._others = sampling, list(known)
        self._budget, self._prices, self._timeout = budget, prices, timeout
        self._reserve = ledger.with_name(ledger.name + ".reserve")

    async def __aenter__(self) -> "LedgerClient":
        """Raises UserError when the ledger can't be written."""
        self._stopped: UserError | None = None
        self._hold = self._answered = (
            time.monotonic()
        )  # when calls may start again; when the last answer came
        # One at a time waits for its turn: a killed process then takes no more than one turn with it.
        self._turn, self._writing, self._connecting = asyncio.Lock(), asyncio.Lock(), asyncio.Lock()
        self._client: openai.AsyncOpenAI | None = None
        self._unwritten: list[str] = []
        self._unanswered = 0  # calls that failed for good since the last answer
        self._lost = False  # whether an answer could not be kept
        self._known: dict[str, LedgerEntry] = {}
        self._failures: Counter[str] = Counter()
        try:
            self._file = io.FileIO(self.ledger, "ab")
            cut_torn_line(self.ledger)
            for path in [self.ledger, *self._others]:
                answers, failures = read_ledger(path)
                self._known = answers | self._known
                self._failures += failures
            # Random bytes, for file systems that compress.
            self._reserve.write_bytes(os.urandom(RESERVE_BYTES))
        except OSError as error:
            self._reserve.unlink(missing_ok=True)
            raise self._disk(error) from None
        return self

    async def __aexit__(self, *error: object) -> None:
        self._reserve.unlink(missing_ok=True)
        if self._unwritten:  # of calls that ended while this one was being cancelled
            self._append("".join(self._unwritten).encode())
        self._file.close()
        if self._client:
            await self._client.close()

    async def complete(
        self, i: int | str, draw: int, role: str, prompt: str, seed: int
    ) -> LedgerEntry:
        """The answer to `prompt`: from the ledgers if the very same request is there, else by a call.

        A request is known by the hash of all that is sent, so that nothing is paid twice and nothing stale is used.
        Raises Unanswered when this call alone fails for good, and UserError when the endpoint does, its key can't be
        sent or the ledger can't be written.
        """
        request, digest = self._request(prompt, seed)
        self.counts["failed_attempts"] += self._failures[digest]
        if digest in self._known:
            answer = replace(self._known[digest], id=i, draw=draw, role=role)
            self.counts["calls_reused"] += 1
        else:
            answer = await self._call(
                request, {"id": i, "draw": draw, "role": role, "request_sha256": digest}
            )
            self._known[digest] = answer
        self.counts.update(
            calls=1, prompt_tokens=answer.prompt_tokens, completion_tokens=answer.completion_tokens
        )
        self.counts["calls_estimated"] += answer.estimated
        self.cost += answer.cost
        return answer

    def known(self, prompt: str, seed: int) -> LedgerEntry | None:
        """The answer that `ask` would give without a call."""
        return self._known.get(self._request(prompt, seed)[1])

    def _request(self, prompt: str, seed: int) -> tuple[dict[str, Any], str]:
        messages = [{"role": "user", "content": prompt}]
        request = {"model": self._model, "messages": messages, "seed": seed, **self._sampling}
        return request, hashlib.sha256(json.dumps(request, sort_keys=True).encode()).hexdigest()

    async def _open(self) -> "openai.AsyncOpenAI":
        import openai

        async with self._connecting:
            if self._client is None:
                try:
                    self._endpoint = await asyncio.to_thread(self._connect)
                    if not re.fullmatch(r"[!-~]+", self._endpoint.api_key):
                        raise UserError(
                            "the key has a space, a line break or a letter beyond ASCII; endpoint "
                            f"{self._endpoint.base_url}; put the bare key in the variable key_env names"
                        )
                except UserError as error:
                    self._stopped = error
                    raise
                self._client = openai.AsyncOpenAI(
                    base_url=self._endpoint.base_url,
                    api_key=self._endpoint.api_key,
                    max_retries=0,
                    timeout=self._timeout,
                )
        return self._client

    async def _call(self, request: dict[str, Any], of: dict[str, Any]) -> LedgerEntry:
        import openai

        if self._stopped:
            raise self._stopped
        client = await self._open()
        tries, faults, first = 0, 0, 0.0
        while True:
            estimate = self._estimate(request)
            await self._may_start(estimate)
            started = time.monotonic()
            try:
                async with asyncio.timeout(
                    self._timeout
                ):  # the client's own is per read: a trickle would never end
                    raw = await client.chat.completions.with_raw_response.create(
                        model=request["model"],
                        messages=request["messages"],
                        extra_body={
                            name: request[name]
                            for name in request
                            if name not in ("model", "messages")
                        },
                    )
                reply = completion(raw.content)
            except (openai.APIError, TimeoutError, MalformedResponse) as error:
                ended = time.monotonic()
                await self._keep(
                    {**of, "outcome": error_kind(error), "seconds": round(ended - started, 3)}
                )
                self.counts["failed_attempts"] += 1
                tries, faults = tries + 1, faults + (not isinstance(error, openai.RateLimitError))
                first = first or ended
                asked = retry_after(error)
                wait = asked + random.uniform(
                    0, min(BACKOFF_MOST, BACKOFF_SECONDS * 2 ** min(tries - 1, 9))
                )
                late = ended + wait - max(first, self._answered) > PATIENCE
                if not is_transient(error) or faults > RETRIES or late:
                    why = explain(error, self._endpoint)
                    self._unanswered += 1
                    about_one = is_request_error(error) or (is_transient(error) and not late)
                    if about_one and self._unanswered <= UNANSWERED_IN_A_ROW:
                        raise RequestFailed(*why.lines) from None
                    self._stopped = why
                    raise why from None
                self._hold = max(self._hold, ended + asked)
                if self._budget:
                    await self._budget.adjust(estimate, 0)
                    if asked:
                        await self._budget.back_off(asked)
                await asyncio.sleep(wait)
                continue
            self._answered, self._unanswered = time.monotonic(), 0
            choice = reply["choices"][0]
            text = choice["message"].get("content") or ""
            usage = reply.get("usage") or {}
            read, written = usage.get("prompt_tokens") or 0, usage.get("completion_tokens") or 0
            if unsaid := not read or bool(text and not written):
                read, written = _tokens(request["messages"][0]["content"]), _tokens(text)
            answer = LedgerEntry(
                **of,
                model=request["model"],
                prompt_tokens=read,
                completion_tokens=written,
                cost=(read * self._prices[0] + written * self._prices[1]) / 1e6,
                seconds=round(self._answered - started, 3),
                finish_reason=choice.get("finish_reason") or "none",
                text=text.strip(),
                estimated=unsaid,
            )
            await self._keep(asdict(answer))
            if self._budget:
                await self._budget.adjust(estimate, read + written)
            return answer

    def _estimate(self, request: dict[str, Any]) -> int:
        # Of the answer: what answers had so far, before the first one the most there may be.
        calls, limit = self.counts["calls"], self._sampling.get("max_tokens", 0)
        written = self.counts["completion_tokens"] // calls if calls else limit
        return _tokens(request["messages"][0]["content"]) + written

    async def _may_start(self, tokens: int) -> None:
        if (hold := self._hold - time.monotonic()) > 0:
            await asyncio.sleep(hold + random.uniform(0, BACKOFF_SECONDS))
        if self._budget:
            async with self._turn:
                await self._budget.acquire(tokens)
        if self._stopped:
            raise self._stopped

    async def _keep(self, line: dict[str, Any]) -> None:
        # On disk before anything else happens; lines that came while the disk was busy go together.
        self._unwritten.append(json.dumps(line) + "\n")
        async with self._writing:
            if self._unwritten:
                lines, self._unwritten = self._unwritten, []
                await asyncio.to_thread(self._append, "".join(lines).encode())
        if self._lost:
            raise self._stopped or AssertionError

    def _append(self, lines: bytes) -> None:
        try:
            append(self._file, lines)
        except OSError as error:
            self._stopped = self._disk(error)
            self._reserve.unlink(missing_ok=True)
            try:
                append(self._file, lines)
            except OSError:
                self._lost = True

    def _disk(self, error: OSError) -> UserError:
        return UserError(
            f"{os.strerror(error.errno or 0)}; ledger {self.ledger}; "
            "make room or mend the disk (or choose another --runs), then run the cell again (finished calls are kept)"
        )


@contextmanager
def open_caller(
    work: StageContext, endpoint: dict[str, Any], sampling: dict[str, Any], known: Iterable[Path]
) -> Iterator[LedgerClient]:
    """A cell's calls to the endpoint with these settings, to be entered by `async with`; their ledger is `calls.jsonl`.

    Nothing is started, and no key is asked for, before the first call that no ledger knows. All jobs of the study that
    call one address share one budget. Resources: address, limits {requests_per_minute, tokens_per_minute,
    prompt_price, completion_price, timeout}.
    """
    address, limits = work.resources["address"], work.resources["limits"]
    name = hashlib.sha256((address.get("base_url") or endpoint["model"]).encode()).hexdigest()[:16]
    path = work.folder.parents[1] / f"budgets/{name}.json"
    with ExitStack() as stack:
        opened = open_endpoint(endpoint, address, work.folder / "server.log")
        yield LedgerClient(
            endpoint["model"],
            cache(lambda: stack.enter_context(opened)),
            sampling,
            work.folder / "calls.jsonl",
            known,
            RateLimiter(path, limits["requests_per_minute"], limits["tokens_per_minute"]),
            (limits["prompt_price"], limits["completion_price"]),
            limits["timeout"],
        )


async def gather_limited(
    ids: Iterable[int], one: Callable[[int], Awaitable[None]], concurrency: int
) -> None:
    """`one` for every id, `concurrency` at a time. Raises the first failure.

    After a failure no new one is begun; those under way finish, since they are paid for.
    """
    queue, failures = iter(ids), []

    async def work() -> None:
        for i in queue:
            try:
                await one(i)
            except (
                Exception
            ) as error:  # a bug too: the others must reach the ledger before it is told
                failures.append(error)
            if failures:
                return

    await asyncio.gather(*(work() for _ in range(concurrency)))
    if failures:
        raise failures[0]


def _tokens(text: str) -> int:
    return -(-len(text) // CHARACTERS_PER_TOKEN)
