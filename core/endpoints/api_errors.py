"""Errors of calls to an endpoint: their names, which are transient, what to tell the user."""

import math
import re
import time
from collections.abc import Iterable
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any

from core.endpoints.connect import Endpoint
from core.endpoints.error_words import shown, words_of
from core.endpoints.loopback import CERTIFICATES, PROXIES, variables
from core.errors import UserError

if TYPE_CHECKING:
    import openai


# Providers report by 429 that a minute's quota is used up, and by 429 or 400 that there is no money
# left. Only the texts differ.
_NO_MONEY = re.compile(
    r"insufficient_quota|credit balance is too low|PerDay|"
    r"(insufficient|not enough) (account )?(credits|balance|funds)|out of credits|in arrears|"
    r"billing[ _](hard[ _]limit|not[ _]active)|account is not active",
    re.IGNORECASE,
)
# Google reports this of a minute's quota too, but then with a delay.
_QUOTA = re.compile(r"exceeded your current quota", re.IGNORECASE)
# The provider has closed the account, by 400, 401 or 403: OpenAI, Anthropic, Groq, Google. Some
# name the rules on content that it broke.
_ACCOUNT_CLOSED = re.compile(
    r"account_deactivated|(account|organi[sz]ation|project|consumer|api[ _]?key|access)\b[^.]{0,60}"
    r"\b(disabled|deactivated|terminated|suspended|banned|revoked)|"
    r"organi[sz]ation has been restricted",
    re.IGNORECASE,
)
# Google reports by 400 that it does not know the key.
_KEY_UNKNOWN = re.compile(r"api[ _]key (is )?(not valid|invalid)|api_key_invalid", re.IGNORECASE)
# A prompt or an answer that the provider's rules do not allow: OpenAI, Azure, OpenRouter, xAI,
# Anthropic, Google; Alibaba, DeepSeek, Moonshot.
_FLAGGED = re.compile(
    r"moderation|flagged|content[ _-]?(filter|policy|management)|safety|responsible ?ai|"
    r"usage (guidelines|polic)|acceptable use|prohibited_content|guardrail|"
    r"inappropriate content|data_?inspection_?failed|content exists risk|considered high risk",
    re.IGNORECASE,
)
_REFUSES_PARAMETER = re.compile(
    r"unsupported|(not|n't) (currently )?(support(ed)?|permitted|allowed|accepted)|forbidden|"
    r"unknown|unrecognized|unexpected|extra (inputs|fields)|additional propert|deprecated|"
    r"incompatible|use '?max_completion_tokens",
    re.IGNORECASE,
)
WAITS = ("retry-after-ms", "retry-after")  # headers
_RETRY_DELAY = re.compile(r'"retryDelay":\s*"([\d.]+)s"')  # Google's Retry-After, in the body
_NUMBER_OF_TIME = (
    r"\d+(?:\.\d+)?\s?(?:ms|milliseconds?|h|hours?|m|min|minutes?|s|sec|seconds?)(?![a-z])"
)
# In words only: "Please retry in 1.57s", "try again in 7m12s", "in 450ms", "after 20 seconds".
_WAIT_IN_WORDS = re.compile(
    rf"(?:retry|try again|wait)\b[^.:;\d]{{0,20}}?\b((?:{_NUMBER_OF_TIME}\s?)+)",
    re.IGNORECASE,
)
_DURATION = re.compile(r"(\d+(?:\.\d+)?)\s?(ms|h|m|s)", re.IGNORECASE)
_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}
# Names of errors that stand for a status, in bodies of HTTP 200.
_STATUSES = {
    "insufficient_quota": 402,
    "insufficient_credits": 402,
    "rate_limit_exceeded": 429,
    "rate_limit_error": 429,
    "resource_exhausted": 429,
    "too_many_requests": 429,
    "authentication_error": 401,
    "invalid_api_key": 401,
    "unauthenticated": 401,
    "permission_error": 403,
    "permission_denied": 403,
    "not_found_error": 404,
    "model_not_found": 404,
    "not_found": 404,
    "invalid_request_error": 400,
    "invalid_argument": 400,
    "content_filter": 400,
}
# Parameter -> the setting of an endpoint's `request` that leaves it out.
_SETTINGS = {
    "seed": "seed: false",
    "temperature": "temperature: null",
    "max_tokens": "max_tokens_key: max_completion_tokens",
    "max_completion_tokens": "max_tokens_key: max_tokens",
}
UNNAMED_STATUS = 502  # of an error that names none: another try may succeed


class MalformedResponse(Exception):
    """A response of HTTP 200 without a completion; its message says what it holds.

    Attributes:
        words: What it says, for messages.
    """

    def __init__(self, kind: str, content: bytes = b"") -> None:
        super().__init__(kind)
        self.words = words_of(content.decode(errors="replace"))


class RedirectRefused(Exception):
    """The endpoint redirects to another host, which its message names."""


def error_status(error: Any) -> int:
    """The HTTP status that an error in a body names: a number, or a name that stands for one."""
    if not isinstance(error, dict):
        return UNNAMED_STATUS
    for value in (error.get(name) for name in ("code", "status", "type")):
        text = str(value).lower()
        if text.isdigit() and 400 <= int(text[:4]) < 600:
            return int(text)
        if text in _STATUSES:
            return _STATUSES[text]
    return UNNAMED_STATUS


def error_kind(error: Exception) -> str:
    """The name of an error in the ledger, such as "http 429", "timeout" or "connection"."""
    import openai

    if isinstance(error, openai.APIStatusError):
        return f"http {error.status_code}"
    if isinstance(error, TimeoutError | openai.APITimeoutError):
        return "timeout"
    if isinstance(error, RedirectRefused):
        return "redirect"
    return str(error) if isinstance(error, MalformedResponse) else "connection"


def _quota_exhausted(error: "openai.APIStatusError") -> bool:
    text = error.response.text
    if error.status_code == 402 or _NO_MONEY.search(text):
        return True
    only_for_now = error.status_code == 429 and _requested_wait(error) is not None
    return _QUOTA.search(text) is not None and not only_for_now


def _account_closed(error: "openai.APIStatusError") -> bool:
    return error.status_code < 429 and _ACCOUNT_CLOSED.search(error.response.text) is not None


def _key_refused(error: "openai.APIStatusError") -> bool:
    if error.status_code == 400:
        return _KEY_UNKNOWN.search(error.response.text) is not None
    return error.status_code in (401, 403)


def _about_account(error: "openai.APIStatusError") -> bool:
    unknown_key = error.status_code == 400 and _key_refused(error)
    return unknown_key or _quota_exhausted(error) or _account_closed(error)


def is_transient(error: Exception) -> bool:
    """Whether the same request may succeed later."""
    import openai

    if not isinstance(error, openai.APIStatusError):
        return not isinstance(error, RedirectRefused)
    passes = error.status_code in (408, 409, 429) or error.status_code >= 500
    return passes and not _quota_exhausted(error)


def is_flagged(error: Exception) -> bool:
    """Whether an endpoint refuses this prompt alone by its rules on content."""
    import openai

    if not isinstance(error, openai.APIStatusError) or _about_account(error):
        return False
    return (
        error.status_code in (400, 403, 422, 451)
        and _FLAGGED.search(error.response.text) is not None
    )


def is_request_error(error: Exception) -> bool:
    """Whether an endpoint refuses this request alone: too long, or against its rules."""
    import openai

    if not isinstance(error, openai.APIStatusError):
        return False
    return is_flagged(error) or (
        error.status_code in (400, 413, 422)
        and not _about_account(error)
        and "FAILED_PRECONDITION" not in error.response.text  # Google's, of account and region
    )


def refused_parameter(error: Exception, parameters: Iterable[str]) -> str | None:
    """The one of a request's `parameters` that an endpoint takes no value for."""
    import openai

    if not isinstance(error, openai.APIStatusError) or error.status_code not in (400, 422):
        return None
    text = error.response.text
    if not _REFUSES_PARAMETER.search(text):
        return None
    # The one that stands first: later ones are proposals.
    matches = {
        name: match.start()
        for name in parameters
        if name != "stream"  # which no setting leaves out
        and (match := re.search(rf"(?<![\w.]){re.escape(name)}(?!\w)", text))
    }
    return min(matches, key=matches.__getitem__) if matches else None


def retry_after(error: Exception) -> float:
    """Seconds that the endpoint asks to wait; 0 where it asks for nothing."""
    import openai

    if not isinstance(error, openai.APIStatusError):
        return 0.0
    return _requested_wait(error) or 0.0


def _requested_wait(error: "openai.APIStatusError") -> float | None:
    """Seconds that an error asks to wait, by a header, a field or in words; None: it doesn't."""
    headers = error.response.headers
    text = error.response.text
    in_milliseconds = _number(headers.get("retry-after-ms", ""))
    if in_milliseconds is not None:
        return in_milliseconds / 1000
    if header := headers.get("retry-after", ""):
        seconds = _number(header)
        if seconds is not None:
            return seconds
        try:
            return max(0.0, parsedate_to_datetime(header).timestamp() - time.time())
        except (ValueError, OverflowError):
            pass
    if in_body := _RETRY_DELAY.search(text):
        return _number(in_body[1])
    if in_words := _WAIT_IN_WORDS.search(text):
        parts = _DURATION.findall(in_words[1])
        return sum(float(number) * _SECONDS[unit.lower()] for number, unit in parts)
    return None


def _number(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return max(0.0, value) if math.isfinite(value) else None


def explain(error: Exception, endpoint: Endpoint, parameters: Iterable[str] = ()) -> UserError:
    """What failed, where, and what to do, without the key.

    `parameters` are those of the request.
    """
    what, fix = _what_and_fix(error, endpoint, parameters)
    return UserError(
        where=f"endpoint {endpoint.base_url}, model {endpoint.model!r}", what=what, fix=fix
    )


def _message(error: Exception) -> str:
    """What an error says, of a response the provider's own words."""
    import openai

    if isinstance(error, MalformedResponse):
        return error.words
    if isinstance(error, openai.APIStatusError):
        return words_of(error.response.text)
    return f"{getattr(error, 'message', '')} {error.__cause__ or ''}"


def _what_and_fix(
    error: Exception, endpoint: Endpoint, parameters: Iterable[str]
) -> tuple[str, str]:
    import openai

    rerun = "then run the cell again (finished calls are kept)"
    message = shown(_message(error).replace(endpoint.api_key, "<key>"))
    call_failed = f"the call failed ({message})", f"see what the endpoint reports, {rerun}"
    if isinstance(error, MalformedResponse):
        came = f"{error}: {message}" if message else str(error)
        return (
            f"no chat completion came back ({came})",
            "check base_url: it usually ends in /v1",
        )
    if isinstance(error, TimeoutError | openai.APITimeoutError):
        return "no answer (timeout)", f"see that the server is up, or raise timeout, {rerun}"
    if isinstance(error, RedirectRefused):
        return (
            f"the endpoint redirects to another host, {error}",
            "give that address as base_url, if you trust it with the key and the texts",
        )
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
    reported = f"{http}: {message}" if message else http
    if _quota_exhausted(error):
        return (
            f"the quota is exhausted ({reported})",
            f"see the account's plan and billing, {rerun}",
        )
    if _account_closed(error):
        return (
            f"the provider has closed the account or its key ({reported})",
            f"see the provider's mail and console, or take another endpoint, {rerun}",
        )
    if name := refused_parameter(error, parameters):
        setting = _SETTINGS.get(name, f"extra_body without {name}")
        return (
            f"the endpoint refuses the parameter {name} ({reported})",
            f"give the endpoint `request: {{{setting}}}` in the study file, {rerun}",
        )
    if is_flagged(error):
        return (
            f"the endpoint refuses the prompt by its rules on content ({reported})",
            f"change the text, or take another endpoint, {rerun}",
        )
    if _key_refused(error):
        fix = "put a valid key in the variable key_env names"
        if error.status_code == 401:  # the server's own message is left out: some repeat the key
            return f"the key was refused ({http})", fix
        return (
            f"the key was refused ({reported})",
            f"{fix}, and see that it may be used for this model and from here",
        )
    if error.status_code == 404:
        return (
            f"no such model or address ({reported})",
            "check the model's name and base_url (it usually ends in /v1)",
        )
    if error.status_code == 429:
        delay = retry_after(error)
        asks = f", which asks to wait {delay:.0f} s" if delay else ""
        return f"still over the rate limit ({http}){asks}", f"lower concurrency or wait, {rerun}"
    if error.status_code == UNNAMED_STATUS:  # of an error within HTTP 200
        return call_failed
    return f"the call failed ({reported})", call_failed[1]
