"""Errors of calls to an endpoint: their names, which are transient, what to tell the user."""

import json
import re
import time
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any

from core.endpoints.connect import Endpoint
from core.endpoints.loopback import CERTIFICATES, PROXIES, variables
from core.errors import UserError

if TYPE_CHECKING:
    import openai


# Providers report by 429 that a minute's quota is used up, and by 429 or 400 that there is no money
# left. Only the texts differ.
_EXHAUSTED = re.compile(
    r"insufficient_quota|exceeded your current quota|credit balance is too low|"
    r"insufficient (credits|balance)|PerDay",
    re.IGNORECASE,
)
_RETRY_DELAY = re.compile(r'"retryDelay":\s*"([\d.]+)s"')  # Google's Retry-After, in the body


class MalformedResponse(Exception):
    """A response of HTTP 200 without a completion; its message says what it holds."""


def completion(body: bytes) -> dict[str, Any]:
    """The chat completion in a response's body.

    Raises:
        MalformedResponse: There is none.
    """
    if not body.strip():
        raise MalformedResponse("empty body")
    try:
        reply: dict[str, Any] = json.loads(body)
    except ValueError:
        is_html = body.lstrip()[:1] == b"<"
        raise MalformedResponse("HTML body" if is_html else "body not JSON") from None
    try:
        if isinstance(reply["choices"][0]["message"], dict):
            return reply
    except (KeyError, IndexError, TypeError):
        pass
    raise MalformedResponse("body without choices")


def error_kind(error: Exception) -> str:
    """The name of an error in the ledger, such as "http 429", "timeout" or "connection"."""
    import openai

    if isinstance(error, openai.APIStatusError):
        return f"http {error.status_code}"
    if isinstance(error, TimeoutError | openai.APITimeoutError):
        return "timeout"
    return str(error) if isinstance(error, MalformedResponse) else "connection"


def _quota_exhausted(error: "openai.APIStatusError") -> bool:
    text = error.response.text
    if error.status_code == 402 or "PerDay" in text:
        return True
    # Google reports "exceeded your current quota" of a minute's quota too, but then with a delay.
    only_for_now = error.status_code == 429 and retry_after(error) > 0
    return _EXHAUSTED.search(text) is not None and not only_for_now


def is_transient(error: Exception) -> bool:
    """Whether the same request may succeed later."""
    import openai

    if not isinstance(error, openai.APIStatusError):
        return True
    passes = error.status_code in (408, 409, 429) or error.status_code >= 500
    return passes and not _quota_exhausted(error)


def is_request_error(error: Exception) -> bool:
    """Whether an endpoint refuses this request alone: too long, or against its rules."""
    import openai

    if not isinstance(error, openai.APIStatusError):
        return False
    return error.status_code in (400, 413, 422) and not _quota_exhausted(error)


def retry_after(error: Exception) -> float:
    """Seconds that the endpoint asks to wait; 0 where it asks for nothing."""
    import openai

    if not isinstance(error, openai.APIStatusError):
        return 0.0
    delay = error.response.headers.get("retry-after", "")
    if in_body := _RETRY_DELAY.search(error.response.text):
        delay = delay or in_body[1]
    try:
        return max(0.0, float(delay))
    except ValueError:
        pass
    try:
        return max(0.0, parsedate_to_datetime(delay).timestamp() - time.time())
    except ValueError:
        return 0.0


def explain(error: Exception, endpoint: Endpoint) -> UserError:
    """What failed, where, and what to do, without the key."""
    what, fix = _what_and_fix(error, endpoint)
    return UserError(
        where=f"endpoint {endpoint.base_url}, model {endpoint.model!r}", what=what, fix=fix
    )


def _what_and_fix(error: Exception, endpoint: Endpoint) -> tuple[str, str]:
    import openai

    rerun = "then run the cell again (finished calls are kept)"
    message = " ".join(f"{getattr(error, 'message', '')} {error.__cause__ or ''}".split())
    message = message.replace(endpoint.api_key, "<key>")[:300]
    call_failed = f"the call failed ({message})", f"see what the endpoint reports, {rerun}"
    if isinstance(error, MalformedResponse):
        return (
            f"no chat completion came back ({error})",
            "check base_url: it usually ends in /v1",
        )
    if isinstance(error, TimeoutError | openai.APITimeoutError):
        return "no answer (timeout)", f"see that the server is up, or raise timeout, {rerun}"
    if isinstance(error, openai.APIConnectionError):
        kind = CERTIFICATES if "certificate" in message.lower() else PROXIES
        names = variables(endpoint.base_url, kind)
        by = f", calls go out by {', '.join(names)}" if names else ""
        see = f"{' and '.join(names)} holds on this machine, " if names else ""
        return (
            f"no answer ({message}){by}",
            f"see that {see}the server is up and base_url is right, {rerun}",
        )
    if not isinstance(error, openai.APIStatusError):
        return call_failed
    http = f"HTTP {error.status_code}"
    if _quota_exhausted(error):
        return f"the quota is exhausted ({http})", f"see the account's plan and billing, {rerun}"
    if error.status_code in (401, 403):
        # The server's own message is left out: some repeat the key.
        return f"the key was refused ({http})", "put a valid key in the variable key_env names"
    if error.status_code == 404:
        return (
            f"no such model or address ({http})",
            "check the model's name and base_url (it usually ends in /v1)",
        )
    if error.status_code == 429:
        delay = retry_after(error)
        asks = f", which asks to wait {delay:.0f} s" if delay else ""
        return f"still over the rate limit ({http}){asks}", f"lower concurrency or wait, {rerun}"
    return call_failed
