"""The batch interface of an OpenAI-compatible endpoint: `/files` and `/batches`.

Of a provider's response only what every provider sends is used: the id of a file and of a batch,
`status`, `output_file_id`, `error_file_id`, `errors`, `request_counts`, `input_file_id` and
`metadata`.
"""

import asyncio
import json
import random
from collections.abc import Awaitable, Callable, Iterable, Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from core.endpoints.api_errors import MalformedResponse, explain, is_transient, retry_after
from core.endpoints.connect import Endpoint
from core.errors import UserError

if TYPE_CHECKING:
    import openai

PATH = "/v1/chat/completions"
WINDOW = "24h"
METADATA_KEY = "ledger_batch"
PAGE = 100  # batches in one page of the provider's list
MAX_PAGES = 100
TRANSFER_SECONDS = 600.0  # at least, for a file of 200 MB
TRIES = 6  # of a step that may be repeated
BACKOFF_SECONDS = 1.0
BACKOFF_MOST = 30.0
MAX_WAIT_SECONDS = 60.0  # that an endpoint's `Retry-After` is followed for
ENDED = frozenset(("completed", "failed", "expired", "cancelled"))
# Other spellings, in lower case.
SPELLINGS = {
    "canceled": "cancelled",
    "success": "completed",
    "succeeded": "completed",
    "timed_out": "expired",
    "timeout_exceeded": "expired",
}
NO_LIST = (404, 405, 501)  # statuses of a provider that lists no batches


class BatchRefused(UserError):
    """The provider refuses to take a file or to make a batch: none was made."""


class BatchApi:
    """Calls to the batch interface of one endpoint. Steps that cost nothing are repeated.

    Args:
        connect: Gives the client and its endpoint.
        timeout: Seconds for one call.
    """

    def __init__(
        self,
        connect: Callable[[], Awaitable[tuple["openai.AsyncOpenAI", Endpoint]]],
        timeout: float,
    ) -> None:
        self.connected = connect
        self._timeout = max(timeout, TRANSFER_SECONDS)

    async def upload(self, name: str, lines: Iterable[Mapping[str, Any]]) -> str:
        """Upload a file of requests; returns its id."""
        content = "".join(json.dumps(line) + "\n" for line in lines).encode()

        async def upload(client: "openai.AsyncOpenAI") -> Any:
            file = (f"{name}.jsonl", content, "application/jsonl")
            return (await client.files.create(file=file, purpose="batch")).id

        return _identifier(await self._repeated(upload), "file")

    async def create(self, file: str, key: str) -> str:
        """Create a batch from an uploaded file; returns its id.

        Where the answer does not come, the batch is looked for before the next try.
        """
        body = {
            "input_file_id": file,
            "endpoint": PATH,
            "completion_window": WINDOW,
            "metadata": {METADATA_KEY: key},
        }
        number = 0

        async def create(client: "openai.AsyncOpenAI") -> Any:
            nonlocal number
            number += 1
            if number > 1 and (batch_id := await self.find(file, key)):
                return batch_id
            return _fields(await client.post("/batches", cast_to=object, body=body)).get("id")

        return _identifier(await self._repeated(create), "batch")

    async def retrieve(self, batch_id: str) -> dict[str, Any]:
        """What the provider says of a batch."""
        import openai

        try:
            return await self._get(f"/batches/{batch_id}")
        except openai.NotFoundError:
            _, endpoint = await self.connected()
            raise UserError(
                where=f"endpoint {endpoint.base_url}",
                what=f"it does not know the batch {batch_id}, whose answers are awaited",
                fix="use the base_url and the account with which it was made",
            ) from None

    async def find(self, file: str | None, key: str) -> str | None:
        """The id of the batch that was made from a file or under a key; None: there is none.

        Raises:
            UserError: The provider lists no batches.
        """
        import openai

        after = ""
        for _ in range(MAX_PAGES):
            try:
                page = await self._get(f"/batches?limit={PAGE}{after}")
            except openai.APIStatusError as error:
                if error.status_code not in NO_LIST:
                    raise
                _, endpoint = await self.connected()
                raise UserError(
                    where=f"endpoint {endpoint.base_url}",
                    what=f"it lists no batches: whether one was made from file {file} is unknown",
                    fix=f"look for it at the provider; remove the lines with {key} from the "
                    "ledger to send its requests again",
                ) from None
            batches = [batch for batch in page.get("data") or [] if isinstance(batch, dict)]
            for batch in batches:
                metadata = batch.get("metadata")
                named = metadata.get(METADATA_KEY) if isinstance(metadata, dict) else None
                if named == key or (file and batch.get("input_file_id") == file):
                    return _identifier(batch.get("id"), "batch")
            if not page.get("has_more") or not batches:
                return None
            after = f"&after={batches[-1].get('id')}"
        return None

    async def check(self) -> None:
        """Ask for one batch, which costs nothing. Raises UserError where there is no interface."""
        import openai

        try:
            await self._get("/batches?limit=1")
        except openai.APIStatusError as error:
            _, endpoint = await self.connected()
            raise UserError(
                where=f"endpoint {endpoint.base_url}",
                what=f"it lists no batches (HTTP {error.status_code})",
                fix="remove `batch: true` unless the provider's pages say that it takes batches",
            ) from None

    async def download(self, file: str) -> bytes:
        """The content of a file."""

        async def download(client: "openai.AsyncOpenAI") -> Any:
            return (await client.files.content(file)).content

        content: bytes = await self._repeated(download)
        return content

    async def cancel(self, batch_id: str) -> None:
        """Ask the provider to end a batch. What it has answered by then is paid."""

        async def cancel(client: "openai.AsyncOpenAI") -> Any:
            return await client.post(f"/batches/{batch_id}/cancel", cast_to=object, body={})

        await self._repeated(cancel)

    async def _get(self, path: str) -> dict[str, Any]:
        async def get(client: "openai.AsyncOpenAI") -> Any:
            return _fields(await client.get(path, cast_to=object))

        fields: dict[str, Any] = await self._repeated(get, passed_on=NO_LIST)
        return fields

    async def _repeated(
        self,
        step: Callable[["openai.AsyncOpenAI"], Awaitable[Any]],
        passed_on: tuple[int, ...] = (),
    ) -> Any:
        """The result of a step, which is tried again after transient errors.

        `passed_on`: statuses of errors that are raised as they are.

        Raises:
            UserError: The step fails for good.
        """
        import openai

        client, endpoint = await self.connected()
        for number in range(1, TRIES + 1):
            try:
                async with asyncio.timeout(self._timeout):
                    return await step(client.with_options(timeout=self._timeout))
            except (openai.APIError, TimeoutError, MalformedResponse) as error:
                if getattr(error, "status_code", None) in passed_on:
                    raise
                if number == TRIES or not is_transient(error):
                    kind = BatchRefused if is_refusal(error) else UserError
                    raise kind.of(explain(error, endpoint).problems) from None
                longest = min(BACKOFF_MOST, BACKOFF_SECONDS * 2 ** (number - 1))
                wait = min(MAX_WAIT_SECONDS, retry_after(error))
                await asyncio.sleep(wait + random.uniform(0, longest))
        raise AssertionError


def is_refusal(error: Exception) -> bool:
    """Whether an error says that a step was not done."""
    status = getattr(error, "status_code", None)
    return isinstance(status, int) and 400 <= status < 500 and status != 408


def read_lines(content: bytes) -> list[dict[str, Any]]:
    """The JSON objects of a file of results. Lines that are none are left out."""
    rows = []
    for line in content.split(b"\n"):
        with suppress(ValueError, RecursionError):
            row = json.loads(line)
            if isinstance(row, dict):
                rows.append(row)
    return rows


def batch_status(batch: Mapping[str, Any]) -> str:
    """The status of a batch as OpenAI spells it. Some providers write it in capitals."""
    status = str(batch.get("status") or "unknown").lower()
    return SPELLINGS.get(status, status)


def batch_errors(batch: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What the provider found wrong with a batch as a whole."""
    errors = batch.get("errors")
    rows = errors.get("data") if isinstance(errors, dict) else errors
    if isinstance(rows, str):
        rows = [{"message": rows}]
    return [row for row in rows or [] if isinstance(row, dict)]


def _fields(body: Any) -> dict[str, Any]:
    if not isinstance(body, dict):
        raise MalformedResponse("no JSON object from the batch interface")
    return body


def _identifier(value: Any, kind: str) -> str:
    if not isinstance(value, str) or not value:
        raise UserError(
            what=f"the endpoint gave no id for a {kind}",
            fix="see whether it has a batch interface, or remove `batch: true`",
        )
    return value
