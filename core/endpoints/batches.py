"""Answer requests by an endpoint's batch interface.

Requests are gathered until no more come, put into the ledger, uploaded and sent as batches. Each
step is in the ledger before the next one is taken (`core.endpoints.batch_ledger`), so that a kill
at any time loses no batch and sends none twice.
"""

import asyncio
import json
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from core import utc
from core.cell.waiting import Waiting
from core.endpoints.api_errors import explain
from core.endpoints.batch_api import (
    ENDED,
    PATH,
    BatchApi,
    BatchRefused,
    batch_errors,
    batch_status,
    read_lines,
)
from core.endpoints.batch_ledger import Batch, BatchRequest, read_batches
from core.endpoints.batch_results import Answered, Refused, Result, halting_error, read_result
from core.endpoints.call_store import CallStore
from core.endpoints.ledger import LedgerEntry
from core.endpoints.sender import UNANSWERED_IN_A_ROW, RequestFailed
from core.errors import UserError

# A batch is sent when no request has come for so long.
SETTLE_SECONDS = 0.5
# A process waits so long for a batch; then it ends, and another run of the cell looks again.
PATIENCE = 60.0
POLL_SECONDS = 0.2  # before the second look at a batch; twice as long before each later one
POLL_MOST = 15.0
# Until a cell should look again: a quarter of the time that its oldest batch has been out.
WAIT_LEAST = 30.0
WAIT_MOST = 1800.0
WAIT_AFTER_REFUSAL = 900.0  # of a batch for which the provider's queue has no room
MAX_FILE_BYTES = 95_000_000  # of a file of requests: OpenAI takes 200 MB, Together 100 MB
# Batches that bring no answer to a request, after which it fails for good. Those that expire or are
# cancelled don't count.
TRIES = 3
QUEUE_FULL = ("token_limit_exceeded", "rate_limit_exceeded", "enqueued token limit", "queue")


@dataclass(frozen=True)
class BatchSettings:
    """How a cell uses the batch interface.

    Attributes:
        max_requests: In one batch.
    """

    max_requests: int = 50_000


class Batches:
    """The batches of one ledger. To be made in a running event loop.

    Args:
        api: The provider's interface.
        calls: The ledger.
        settings: How it is used.
        parameters: Gives the body of a request, without model and messages.
        log: Called with a line for each step.
    """

    def __init__(
        self,
        api: BatchApi,
        calls: CallStore,
        settings: BatchSettings,
        parameters: Callable[[Mapping[str, Any]], dict[str, Any]],
        log: Callable[[str], None],
    ) -> None:
        self._api = api
        self._calls = calls
        self._settings = settings
        self._parameters = parameters
        self._log = log
        self._queue: dict[str, BatchRequest] = {}
        self._bodies: dict[str, dict[str, Any]] = {}
        self._futures: dict[str, asyncio.Future[LedgerEntry]] = {}
        self._open = {
            key: batch for key, batch in read_batches(calls.path).items() if not batch.ended
        }
        self._seen: dict[str, str] = {}  # batch -> what its last look showed
        self._is_up = False  # whether a batch has brought an answer
        self._arrived = 0.0
        self._worker: asyncio.Task[None] | None = None
        self._closing = asyncio.Event()
        self._stopped: UserError | None = None

    async def complete(
        self, request: Mapping[str, Any], labels: Mapping[str, Any], digest: str
    ) -> LedgerEntry:
        """The answer to a request, which no ledger holds yet.

        Raises:
            RequestFailed: This request alone fails for good.
            Waiting: Its batch takes longer than PATIENCE.
            UserError: The endpoint fails.
        """
        if self._stopped:
            raise self._stopped
        if digest not in self._futures:
            prompt = request["messages"][0]["content"]
            self._queue[digest] = BatchRequest(digest, **labels, characters=len(prompt))
            self._bodies[digest] = dict(request)
            self._futures[digest] = asyncio.get_running_loop().create_future()
            self._arrived = time.monotonic()
            if self._worker is None or self._worker.done():
                self._worker = asyncio.create_task(self._work())
        return await asyncio.shield(self._futures[digest])

    async def close(self, at_once: bool = False) -> None:
        """Stop after the step that is under way, or `at_once`. The ledger has all that was done."""
        self._closing.set()
        if self._worker:
            if at_once:
                self._worker.cancel()
            await asyncio.gather(self._worker, return_exceptions=True)
        self._fail(UserError(what="stopped while a batch was awaited"))

    async def _work(self) -> None:
        """Send what is queued and look for answers, until every request has one."""
        progress = time.monotonic()
        pause = POLL_SECONDS
        try:
            await self._find_created()
            while self._is_awaited():
                await self._settle()
                is_sent = await self._send()
                if await self._look() or is_sent:
                    progress = time.monotonic()
                    pause = POLL_SECONDS
                    continue
                if time.monotonic() - progress > PATIENCE:
                    raise Waiting(self._awaited(), self._wait_seconds())
                await self._sleep(pause)
                pause = min(POLL_MOST, 2 * pause)
        except UserError as error:
            self._fail(error)
        except Exception as error:  # a bug: whoever awaits an answer must see it
            for future in self._futures.values():
                if not future.done():
                    future.set_exception(error)

    def _fail(self, error: UserError) -> None:
        self._stopped = error
        for future in self._futures.values():
            if not future.done():
                future.set_exception(error)
                future.exception()  # so that nobody is told that it was never retrieved

    async def _settle(self) -> None:
        """Wait until no request has come for SETTLE_SECONDS."""
        while (wait := self._arrived + SETTLE_SECONDS - time.monotonic()) > 0:
            await self._sleep(wait)

    async def _sleep(self, seconds: float) -> None:
        """Wait for so long. Raises UserError where the client is closed meanwhile."""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._closing.wait()
            raise UserError(what="stopped while a batch was awaited")

    def _is_awaited(self) -> bool:
        return any(not future.done() for future in self._futures.values())

    async def _find_created(self) -> None:
        """Find the batches for which a kill came before their ids were written."""
        for batch in [*self._open.values()]:
            if batch.batch_id is None:
                batch_id = await self._api.find(batch.file, batch.key) if batch.file else None
                if batch_id:
                    await self._created(batch, batch_id)
                else:
                    await self._end(batch, "not created")

    async def _send(self) -> bool:
        """Send the queued requests that no batch holds and nobody else makes.

        Returns:
            Whether a batch was sent.
        """
        for batch in self._open.values():
            for digest in batch.requests:
                self._queue.pop(digest, None)
        claimed = [request for request in [*self._queue.values()] if await self._claimed(request)]
        for requests in self._portions(claimed):
            await self._create(Batch(uuid.uuid4().hex, requests, time.time()))
        return bool(claimed)

    async def _claimed(self, request: BatchRequest) -> bool:
        """Whether a request is this cell's to make."""
        digest = request.request_sha256
        if not await self._calls.claim(digest):
            return False
        # Whoever had the claim before may have been answered, or have put it into a batch.
        if answer := await self._calls.recorded(digest, request.labels):
            self._resolve(digest, answer)
        elif not self._calls.batch_elsewhere(digest):
            return True
        self._calls.release(digest)
        return False

    def _portions(self, requests: list[BatchRequest]) -> Iterator[dict[str, BatchRequest]]:
        """The requests of each batch, within the limits on their number and bytes."""
        portion: dict[str, BatchRequest] = {}
        size = 0
        for request in requests:
            line_bytes = len(json.dumps(self._line(request))) + 1
            is_full = len(portion) >= self._settings.max_requests
            if portion and (is_full or size + line_bytes > MAX_FILE_BYTES):
                yield portion
                portion, size = {}, 0
            portion[request.request_sha256] = request
            size += line_bytes
        if portion:
            yield portion

    def _line(self, request: BatchRequest) -> dict[str, Any]:
        """The line of a request in the file for the provider."""
        body = self._bodies[request.request_sha256]
        parameters = self._parameters(body)
        parameters.pop("stream", None)
        return {
            "custom_id": request.request_sha256,
            "method": "POST",
            "url": PATH,
            "body": {"model": body["model"], "messages": body["messages"], **parameters},
        }

    async def _create(self, batch: Batch) -> None:
        await asyncio.gather(*map(self._calls.append, batch.request_lines()))
        self._open[batch.key] = batch
        for digest in batch.requests:
            self._queue.pop(digest, None)
            self._calls.release(digest)
        lines = [self._line(request) for request in batch.requests.values()]
        try:
            batch.file = await self._api.upload(batch.key, lines)
            await self._calls.append(batch.event_line("uploaded", file=batch.file))
            batch_id = await self._api.create(batch.file, batch.key)
        except BatchRefused:
            await self._end(batch, "refused")
            raise
        await self._created(batch, batch_id)
        self._log(f"batch {batch.batch_id}: {len(batch.requests)} requests sent")

    async def _created(self, batch: Batch, batch_id: str) -> None:
        await self._calls.append(batch.event_line("created", batch_id=batch_id))
        batch.batch_id = batch_id

    async def _end(self, batch: Batch, status: str, **counts: int) -> None:
        """Note that nothing more comes from a batch. Requests without an answer are queued."""
        await self._calls.append(batch.event_line("ended", status=status, **counts))
        batch.ended = status
        del self._open[batch.key]
        for digest, request in batch.requests.items():
            future = self._futures.get(digest)
            if future and not future.done():
                self._queue[digest] = request

    async def _look(self) -> bool:
        """Ask for each batch that is out. Returns whether one has ended."""
        ended = False
        for batch in [*self._open.values()]:
            assert batch.batch_id, "it was created or found"
            facts = await self._api.retrieve(batch.batch_id)
            status = batch_status(facts)
            counts = facts.get("request_counts")
            done = counts.get("completed") if isinstance(counts, dict) else None
            progress = f", {done} of {len(batch.requests)} done" if done else ""
            self._seen[batch.key] = f"{status}{progress}"
            if status in ENDED:
                await self._take(batch, status, facts)
                ended = True
        return ended

    async def _take(self, batch: Batch, status: str, facts: Mapping[str, Any]) -> None:
        """Take the answers of a batch that has ended into the ledger.

        Raises:
            UserError: No answer came: the provider refused the batch, or somebody cancelled it.
        """
        results = await self._results(batch, facts)
        halting = halting_error(results, self._parameters_of_any())
        answered = sum(isinstance(result, Answered) for result in results.values())
        self._is_up = self._is_up or answered > 0
        await asyncio.gather(
            *(
                self._keep(batch, batch.requests[digest], result)
                for digest, result in results.items()
                if not halting or isinstance(result, Answered)
            )
        )
        unanswered = len(batch.requests) - answered
        await self._end(batch, status, answered=answered, unanswered=unanswered)
        self._log(
            f"batch {batch.batch_id}: {status}, {answered} of {len(batch.requests)} requests "
            "answered"
        )
        if halting:
            raise await self._explained(halting)
        is_useless = not answered and (status != "completed" or not self._is_up)
        if is_useless and batch.requests.keys() & self._queue.keys():
            kinds = sorted({result.kind for result in results.values()})
            raise await self._without_answers(batch, status, facts, ", ".join(kinds))

    async def _results(self, batch: Batch, facts: Mapping[str, Any]) -> dict[str, Result]:
        """request_sha256 -> what came of it, in the order of the batch."""
        lines: dict[str, dict[str, Any]] = {}
        strays: Counter[str] = Counter()
        for key in ("output_file_id", "error_file_id"):
            file = facts.get(key)
            for line in read_lines(await self._api.download(file)) if file else ():
                digest = line.get("custom_id")
                if not isinstance(digest, str) or digest not in batch.requests:
                    strays["of no request of it"] += 1
                elif digest in lines:
                    strays["for a request that has one"] += 1
                else:
                    lines[digest] = line
        for kind, count in strays.items():
            self._log(f"warning: batch {batch.batch_id}: {count} results {kind} were left out")
        seconds = _seconds(facts)
        return {digest: read_result(lines.get(digest), seconds) for digest in batch.requests}

    async def _keep(self, batch: Batch, request: BatchRequest, result: Result) -> None:
        """Put what came of a request into the ledger, and give it to whoever awaits it."""
        digest = request.request_sha256
        # A kill may have come after some of a batch's results were written.
        if recorded := await self._calls.recorded(digest, request.labels):
            self._resolve(digest, recorded)
        elif isinstance(result, Answered):
            labels, characters = request.labels, request.characters
            answer = await self._calls.keep_answer(result.reply, result.seconds, labels, characters)
            self._resolve(digest, answer)
        elif isinstance(result, Refused) and result.is_final:
            failure = RequestFailed.of((await self._explained(result.error)).problems)
            failure.endpoint_is_up = True  # it has read this one
            await self._give_up(request, failure)
        elif result.counts:
            await self._calls.keep_failed_attempt(request.labels, result.kind)
            is_alone = self._is_up or len(batch.requests) <= UNANSWERED_IN_A_ROW
            if self._calls.failed_attempts(digest) >= TRIES and is_alone:
                what = f"{TRIES} batches brought no answer, the last one: {result.kind}"
                failure = RequestFailed(where=str(self._calls.path), what=what)
                failure.endpoint_is_up = self._is_up
                await self._give_up(request, failure)

    async def _give_up(self, request: BatchRequest, failure: RequestFailed) -> None:
        await self._calls.keep_failure(failure, request.labels)
        future = self._futures.get(request.request_sha256)
        if future and not future.done():
            future.set_exception(failure)
            future.exception()

    def _resolve(self, digest: str, answer: LedgerEntry) -> None:
        self._queue.pop(digest, None)
        future = self._futures.get(digest)
        if future and not future.done():
            future.set_result(answer)

    async def _explained(self, error: Exception) -> UserError:
        _, endpoint = await self._api.connected()
        return explain(error, endpoint, self._parameters_of_any())

    def _parameters_of_any(self) -> dict[str, Any]:
        body = next(iter(self._bodies.values()), None)
        return self._parameters(body) if body else {}

    async def _without_answers(
        self, batch: Batch, status: str, facts: Mapping[str, Any], kinds: str
    ) -> UserError:
        """Why a batch brought nothing, for whoever awaits its answers."""
        _, endpoint = await self._api.connected()
        batch_name = f"endpoint {endpoint.base_url}, batch {batch.batch_id}"
        again = f"run the cell again to send its {len(batch.requests)} requests again"
        if status == "cancelled":
            return UserError(where=batch_name, what="it was cancelled", fix=again)
        if status == "completed":
            what = f"it brought no answer ({kinds})"
            if all(self._calls.failed_attempts(digest) >= TRIES for digest in batch.requests):
                what = f"it and {TRIES - 1} before it brought no answer ({kinds})"
                return UserError(where=batch_name, what=what, fix=again)
            return Waiting(f"another try: {batch_name}: {what}", WAIT_AFTER_REFUSAL)
        if status == "expired":
            what = f"room at {endpoint.base_url}: batch {batch.batch_id} expired without an answer"
            return Waiting(what, WAIT_AFTER_REFUSAL)
        words = [
            f"{row.get('code') or ''} {row.get('message') or ''}" for row in batch_errors(facts)
        ]
        reason = " ".join("; ".join(words[:3]).split())[:300] or "no reason given"
        if any(name in reason.lower() for name in QUEUE_FULL):
            return Waiting(f"room at {endpoint.base_url} ({reason})", WAIT_AFTER_REFUSAL)
        return UserError(where=batch_name, what=f"the provider refused it ({reason})", fix=again)

    def _awaited(self) -> str:
        """What is awaited, in words."""
        if not self._open:
            cells = {self._calls.batch_elsewhere(digest) for digest in self._queue}
            names = sorted(str(path.parent) for path in cells if path)
            return f"answers that other cells ask for: {', '.join(names) or 'running now'}"
        batches = sorted(self._open.values(), key=lambda batch: batch.time)
        shown = [
            f"batch {batch.batch_id} of {len(batch.requests)} requests, sent "
            f"{utc.text(batch.time)} ({self._seen.get(batch.key, 'unknown')})"
            for batch in batches[:3]
        ]
        more = f" and {len(batches) - 3} more" if len(batches) > 3 else ""
        return "; ".join(shown) + more

    def _wait_seconds(self) -> float:
        oldest = min((batch.time for batch in self._open.values()), default=time.time())
        return min(WAIT_MOST, max(WAIT_LEAST, (time.time() - oldest) / 4))


def _seconds(facts: Mapping[str, Any]) -> float:
    """How long a batch took, by the provider; 0 where it doesn't say."""
    times = (facts.get("created_at"), facts.get("completed_at"))
    if all(isinstance(moment, int | float) for moment in times):
        return max(0.0, float(times[1]) - float(times[0]))  # type: ignore[arg-type]
    return 0.0
