"""Send requests to an endpoint: transient errors are retried, others end the request or the run."""

import asyncio
import random
import re
import time
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from core.endpoints.api_errors import (
    MalformedResponse,
    RedirectRefused,
    error_kind,
    explain,
    is_flagged,
    is_request_error,
    is_transient,
    refused_parameter,
    retry_after,
)
from core.endpoints.connect import Endpoint
from core.endpoints.error_words import without_prompt
from core.endpoints.loopback import http_client
from core.endpoints.rate_limit import RateLimiter
from core.endpoints.replies import Reply, read_reply
from core.errors import UserError

if TYPE_CHECKING:
    import openai


# Retries of one request after errors: 5xx, 408, 409, dropped connections, hangs, bodies without a
# completion.
RETRIES = 9
# Prompts that may fail for good in a row, each on its own. One more, and the endpoint is taken to
# be down.
UNANSWERED_IN_A_ROW = 3
# 429 is not counted as an error. It is waited out as long as other calls get through, and for this
# many seconds when none does.
PATIENCE = 600.0
# A wait is drawn from 0 to 0.5, 1, 2 ... 30 s ("full jitter").
BACKOFF_SECONDS = 0.5
BACKOFF_MOST = 30.0


class RequestFailed(UserError):
    """A request that fails for good, though others may succeed.

    Attributes:
        endpoint_is_up: Whether the endpoint read this prompt, or answered others meanwhile.
    """

    endpoint_is_up = False


@dataclass(frozen=True)
class Completion:
    """An answered request.

    Attributes:
        reply: What came.
        seconds: Latency of the attempt that succeeded.
        estimated: Tokens that the rate limiter was asked for.
    """

    reply: Reply
    seconds: float
    estimated: int


@dataclass
class _Attempts:
    """The attempts at one request so far."""

    failed: int = 0
    errors: int = 0  # failed attempts other than 429
    first_failure: float = 0.0  # time.monotonic()


class Sender:
    """Sends requests to one endpoint. After a failure of the endpoint it sends nothing more.

    To be made in a running event loop.

    Args:
        connect: Gives the endpoint; called at the first request.
        rate_limiter: Shared with other processes.
        timeout: Seconds for one call, from its start to the last byte.
        disk_error: Why nothing more should be paid for, or None.
        retries: Of one request after errors. None: RETRIES.
        patience: Seconds that 429 is waited out where no call gets through. None: PATIENCE.
    """

    def __init__(
        self,
        connect: Callable[[], Endpoint],
        rate_limiter: RateLimiter | None,
        timeout: float,
        disk_error: Callable[[], UserError | None],
        retries: int | None = None,
        patience: float | None = None,
    ) -> None:
        self._connect = connect
        self._rate_limiter = rate_limiter
        self._timeout = timeout
        self._disk_error = disk_error
        self._retries = RETRIES if retries is None else retries
        self._patience = PATIENCE if patience is None else patience
        self._stopped: UserError | None = None
        self._stop = asyncio.Event()  # set with `_stopped`
        self._hold_until = time.monotonic()  # when calls may start again
        self._last_answer = time.monotonic()
        # One request at a time waits for the rate limiter: a killed process then wastes at most one
        # start.
        self._acquiring = asyncio.Lock()
        self._connecting = asyncio.Lock()
        self._client: openai.AsyncOpenAI | None = None
        self._unanswered: set[str] = set()  # prompts that failed for good since the last answer

    async def close(self) -> None:
        """Close the connections."""
        if self._client:
            await self._client.close()

    async def send(
        self,
        request: Mapping[str, Any],
        parameters: Mapping[str, Any],
        estimate: Callable[[], int],
        failed: Callable[[str, float], Awaitable[None]],
    ) -> Completion:
        """Send a request until it is answered or fails for good.

        Args:
            request: Its model and messages.
            parameters: The rest of its body.
            estimate: Gives the tokens of the request and its answer, by what is known so far.
            failed: Awaited after each failed attempt, with the error's name and the seconds.

        Raises:
            RequestFailed: This request alone fails for good.
            UserError: The endpoint fails, or its key can't be sent.
        """
        import openai

        self.raise_if_stopped()
        client, _ = await self.connected()
        attempts = _Attempts()
        while True:
            estimated = estimate()
            await self._wait_for_start(estimated)
            started = time.monotonic()
            try:
                # The client's own timeout is per read: a trickle of bytes would never end.
                async with asyncio.timeout(self._timeout):
                    raw = await client.chat.completions.with_raw_response.create(
                        model=request["model"],
                        messages=request["messages"],
                        extra_body=dict(parameters),
                    )
                reply = read_reply(raw.http_response)
            except (openai.APIError, TimeoutError, MalformedResponse, RedirectRefused) as caught:
                ended = time.monotonic()
                await failed(error_kind(caught), round(ended - started, 3))
                prompt = request["messages"][0]["content"]
                error = without_prompt(caught, prompt)
                wait = self._wait_after(error, attempts, ended, prompt, parameters)
                await self._share_wait(error, estimated)
                await self._sleep(wait)
                continue
            self._last_answer = time.monotonic()
            self._unanswered.clear()
            return Completion(reply, round(self._last_answer - started, 3), estimated)

    def raise_if_stopped(self) -> None:
        """Raise the UserError after which nothing is sent, if there is one."""
        if error := self._disk_error() or self._stopped:
            raise error

    async def connected(self) -> "tuple[openai.AsyncOpenAI, Endpoint]":
        """The client of the endpoint, which is opened at the first call.

        Raises:
            UserError: The endpoint can't be opened, or its key can't be sent.
        """
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
                    self._halt(error)
                    raise
                http.event_hooks["request"].append(_same_host(self._endpoint.base_url))
                self._client = openai.AsyncOpenAI(
                    base_url=self._endpoint.base_url,
                    api_key=self._endpoint.api_key,
                    max_retries=0,
                    timeout=self._timeout,
                    http_client=http,
                )
        return self._client, self._endpoint

    def _wait_after(
        self,
        error: Exception,
        attempts: _Attempts,
        ended: float,
        prompt: str,
        parameters: Mapping[str, Any],
    ) -> float:
        """Seconds until the next attempt. Raises where there is none."""
        attempts.failed += 1
        attempts.errors += error_kind(error) != "http 429"
        attempts.first_failure = attempts.first_failure or ended
        delay = retry_after(error)
        longest = BACKOFF_SECONDS * 2 ** min(attempts.failed - 1, 9)
        wait = delay + random.uniform(0, min(BACKOFF_MOST, longest))
        late = ended + wait - max(attempts.first_failure, self._last_answer) > self._patience
        if is_transient(error) and attempts.errors <= self._retries and not late:
            self._hold_until = max(self._hold_until, ended + delay)
            return wait
        reason = explain(error, self._endpoint, parameters)
        failure = RequestFailed.of(reason.problems)
        # A parameter that is refused is refused in every request, whatever words its name has.
        is_refused = refused_parameter(error, parameters) is not None
        if is_flagged(error) and not is_refused:
            failure.endpoint_is_up = True
            raise failure from None
        about_request = is_request_error(error) or (is_transient(error) and not late)
        if about_request and not is_refused:
            failure.endpoint_is_up = self._last_answer > attempts.first_failure
            self._unanswered.add(prompt)
            if failure.endpoint_is_up or len(self._unanswered) <= UNANSWERED_IN_A_ROW:
                raise failure from None
        self._halt(reason)
        raise reason from None

    async def _share_wait(self, error: Exception, estimated: int) -> None:
        """Tell the rate limiter of a failed attempt, and of the time that it asks to wait."""
        if self._rate_limiter:
            await self._rate_limiter.adjust(estimated, 0)
            if delay := retry_after(error):
                await self._rate_limiter.back_off(delay)

    def _halt(self, reason: UserError) -> None:
        self._stopped = reason
        self._stop.set()

    async def _sleep(self, seconds: float) -> None:
        """Wait for so long, or until nothing more may be sent."""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._stop.wait()

    async def _wait_for_start(self, tokens: int) -> None:
        hold = self._hold_until - time.monotonic()
        if hold > 0:
            await self._sleep(hold + random.uniform(0, BACKOFF_SECONDS))
        if self._rate_limiter:
            async with self._acquiring:
                await self._rate_limiter.acquire(tokens)
        self.raise_if_stopped()


def _same_host(base_url: str) -> Callable[[Any], Awaitable[None]]:
    """A hook of the HTTP client: no redirect takes the key and the texts to another host."""
    base = _host_and_port(base_url)

    async def check(request: Any) -> None:
        if _host_and_port(str(request.url)) != base:
            raise RedirectRefused(f"{request.url.scheme}://{request.url.netloc.decode()}")

    return check


def _host_and_port(url: str) -> tuple[str | None, int]:
    parts = urlsplit(url)
    return parts.hostname, parts.port or (443 if parts.scheme == "https" else 80)
