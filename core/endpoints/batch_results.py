"""What came of one request of a batch: an answer, a refusal, or nothing."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from core.endpoints.api_errors import (
    MalformedResponse,
    error_kind,
    error_status,
    is_request_error,
    is_transient,
    refused_parameter,
)
from core.endpoints.replies import Reply, read_reply
from core.endpoints.sender import UNANSWERED_IN_A_ROW

# Errors of requests that were not run, and cost nothing.
NOT_RUN = ("batch_expired", "batch_cancelled", "batch_canceled")
BATCH_URL = "https://batch.invalid/v1/chat/completions"  # stands for a request's in error objects


@dataclass(frozen=True)
class Answered:
    """An answer. `seconds`: how long the batch took."""

    reply: Reply
    seconds: float
    kind = "answered"


@dataclass(frozen=True)
class Refused:
    """An error in place of an answer.

    Attributes:
        error: As a call would have raised it.
        is_final: Whether the same request fails again, alone.
    """

    error: Exception
    is_final: bool
    counts = True

    @property
    def kind(self) -> str:
        """The error's name in the ledger."""
        return error_kind(self.error)


@dataclass(frozen=True)
class NotRun:
    """No answer and no error: the batch ended before the request was run, or lost its result.

    Attributes:
        kind: Its name in the ledger.
        counts: Whether it counts as a failed attempt at the request.
    """

    kind: str
    counts: bool


Result = Answered | Refused | NotRun


def read_result(line: Mapping[str, Any] | None, seconds: float) -> Result:
    """What a line of the files of results says. None: there is no line for the request."""
    if line is None:
        return NotRun("no result in the batch", counts=True)
    response = line.get("response")
    error = line.get("error")
    if not isinstance(response, dict):
        code = error.get("code") if isinstance(error, dict) else None
        if code in NOT_RUN:
            return NotRun(str(code).replace("_", " "), counts=False)
        return _refused(error_status(error), {"error": error})
    status = response.get("status_code")
    if isinstance(status, int) and status >= 400:
        return _refused(status, response.get("body"))
    try:
        return Answered(read_reply(_response(200, response.get("body"))), seconds)
    except MalformedResponse as malformed:
        return Refused(malformed, is_final=False)
    except Exception as status_error:
        if not hasattr(status_error, "status_code"):
            raise
        return Refused(status_error, is_request_error(status_error))


def _refused(status: int, body: Any) -> Refused:
    import openai

    error = body.get("error") if isinstance(body, dict) else body
    message = error.get("message") if isinstance(error, dict) else error
    text = message if isinstance(message, str) and message else json.dumps(body)
    refusal = openai.APIStatusError(text, response=_response(status, body), body=error)
    return Refused(refusal, is_request_error(refusal))


def _response(status: int, body: Any) -> Any:
    """A response as the HTTP library gives it."""
    import httpx2

    content = json.dumps(body).encode()
    request = httpx2.Request("POST", BATCH_URL)
    return httpx2.Response(status, content=content, request=request)


def halting_error(results: Mapping[str, Result], parameters: Iterable[str]) -> Exception | None:
    """The error among the results of a batch after which nothing more is sent, if there is one.

    It is of no single request: a key that is refused, an account without money, one of the
    `parameters` of requests that is refused, or an error that all requests have, where these are
    more than UNANSWERED_IN_A_ROW.
    """
    refused = [result for result in results.values() if isinstance(result, Refused)]
    for result in refused:
        is_of_request = result.is_final and not refused_parameter(result.error, parameters)
        if not is_of_request and not is_transient(result.error):
            return result.error
    if len(refused) == len(results) > UNANSWERED_IN_A_ROW and all(r.is_final for r in refused):
        return refused[0].error
    return None
