"""What can go wrong with a call: its name in the ledger, whether it passes, and what to tell the user."""

import json
import re
import time
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any

from core.endpoints.connect import Endpoint
from core.errors import UserError

if TYPE_CHECKING:
    import openai


# Some say by 429 that a minute's quota is used up, some by 400 that there is no money left; hence by their words.
_EXHAUSTED = re.compile(
    r"insufficient_quota|exceeded your current quota|credit balance is too low|insufficient (credits|balance)|PerDay",
    re.IGNORECASE,
)
_RETRY_DELAY = re.compile(r'"retryDelay":\s*"([\d.]+)s"')  # Google's Retry-After, in the body


class MalformedResponse(Exception):
    """A reply of HTTP 200 that holds no completion; its message says what it holds."""


def completion(body: bytes) -> dict[str, Any]:
    """The reply in a body. Raises Fault when there is none."""
    if not body.strip():
        raise MalformedResponse("empty body")
    try:
        reply = json.loads(body)
    except ValueError:
        raise MalformedResponse(
            "HTML body" if body.lstrip()[:1] == b"<" else "body not JSON"
        ) from None
    try:
        if isinstance(reply["choices"][0]["message"], dict):
            return reply
    except (KeyError, IndexError, TypeError):
        pass
    raise MalformedResponse("body without choices")


def error_kind(error: Exception) -> str:
    import openai

    if isinstance(error, openai.APIStatusError):
        return f"http {error.status_code}"
    if isinstance(error, TimeoutError | openai.APITimeoutError):
        return "timeout"
    return str(error) if isinstance(error, MalformedResponse) else "connection"


def _exhausted(error: "openai.APIStatusError") -> bool:
    # Google says "exceeded your current quota" of a minute's quota too, but then when to come again.
    text = error.response.text
    return error.status_code == 402 or bool(
        "PerDay" in text
        or (_EXHAUSTED.search(text) and not (error.status_code == 429 and retry_after(error)))
    )


def is_transient(error: Exception) -> bool:
    import openai

    if not isinstance(error, openai.APIStatusError):
        return True
    return (error.status_code in (408, 409, 429) or error.status_code >= 500) and not _exhausted(
        error
    )


def is_request_error(error: Exception) -> bool:
    """Whether an endpoint refuses this request alone: too long, or against its rules. Others may be answered."""
    import openai

    return (
        isinstance(error, openai.APIStatusError)
        and error.status_code in (400, 413, 422)
        and not _exhausted(error)
    )


def retry_after(error: Exception) -> float:
    """Seconds that the endpoint asks to wait, 0 when it doesn't say."""
    import openai

    if not isinstance(error, openai.APIStatusError):
        return 0.0
    said = error.response.headers.get("retry-after", "")
    if found := _RETRY_DELAY.search(error.response.text):
        said = said or found[1]
    try:
        return max(0.0, float(said))
    except ValueError:
        pass
    try:
        return max(0.0, parsedate_to_datetime(said).timestamp() - time.time())
    except ValueError:
        return 0.0


def explain(error: Exception, endpoint: Endpoint) -> UserError:
    """What failed, where, and what to do, in one line without the key."""
    import openai

    where = f"endpoint {endpoint.base_url}, model {endpoint.model!r}"
    again = "then run the cell again (finished calls are kept)"
    said = " ".join(f"{getattr(error, 'message', '')} {error.__cause__ or ''}".split())
    said = said.replace(endpoint.api_key, "<key>")[:300]
    if isinstance(error, MalformedResponse):
        what, cure = (
            f"no chat completion came back ({error})",
            "check base_url: it usually ends in /v1",
        )
    elif isinstance(error, TimeoutError | openai.APITimeoutError):
        what, cure = "no answer (timeout)", f"see that the server is up, or raise timeout, {again}"
    elif isinstance(error, openai.APIConnectionError):
        what, cure = (
            f"no answer ({said})",
            f"see that the server is up and base_url is right, {again}",
        )
    elif not isinstance(error, openai.APIStatusError):
        what, cure = f"the call failed ({said})", f"see what the endpoint says, {again}"
    elif _exhausted(error):
        what, cure = (
            f"the quota is exhausted (HTTP {error.status_code})",
            f"see the account's plan and billing, {again}",
        )
    elif error.status_code in (401, 403):
        # The server's own words are left out: some repeat the key.
        what, cure = (
            f"the key was refused (HTTP {error.status_code})",
            "put a valid key in the variable key_env names",
        )
    elif error.status_code == 404:
        what, cure = (
            "no such model or address (HTTP 404)",
            "check the model's name and base_url (it usually ends in /v1)",
        )
    elif error.status_code == 429:
        asked = retry_after(error)
        asks = f", which asks to wait {asked:.0f} s" if asked else ""
        what, cure = (
            f"still over the rate limit (HTTP 429){asks}",
            f"lower concurrency or wait, {again}",
        )
    else:
        what, cure = f"the call failed ({said})", f"see what the endpoint says, {again}"
    return UserError(f"{what}; {where}; {cure}")
