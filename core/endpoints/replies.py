"""Read what an endpoint sent back: an answer, the reason why there is none, or an error.

Endpoints that speak the OpenAI API differ in the form of their answers. Every form that is read
here is in tests/core/test_replies.py.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from core.endpoints.api_errors import WAITS, MalformedResponse, error_status
from core.endpoints.error_words import shown, words_in

# Tokens beyond the characters of the prompt, such as a provider's own instructions, and beyond the
# limit of the answer, such as thoughts. A count above that is not believed.
PROMPT_TOKENS_BESIDE = 10_000
COMPLETION_TOKENS_BESIDE = 100_000
# Beginnings of the lines of a stream; those that begin with a colon are comments.
STREAM = (b"data:", b"event:", b"id:", b"retry:")
# finish_reason of an answer that the provider withheld, in lower case.
WITHHELD = ("content_filter", "safety", "refusal", "recitation", "blocklist", "prohibited_content")


@dataclass(frozen=True)
class Reply:
    """What a call brought.

    Attributes:
        text: The answer, "" where there is none.
        finish_reason: As the endpoint reports it, or "none".
        no_answer: Why there is no answer, though the call ended and is paid.
        model: The name of the model that answered, as the endpoint reports it.
        usage: What the endpoint reports of its tokens, unchecked.
    """

    text: str
    finish_reason: str
    no_answer: str | None
    model: str | None
    usage: Any


def read_reply(response: Any) -> Reply:
    """The reply in a response of HTTP 200, of the HTTP library that `openai` uses.

    Raises:
        MalformedResponse: It holds no chat completion.
        openai.APIStatusError: It holds an error in place of an answer. The error has the status
            that it names.
    """
    body = _parsed(response.content)
    choices = body.get("choices")
    choice = choices[0] if isinstance(choices, list) and choices else {}
    choice = choice if isinstance(choice, dict) else {"message": choice}
    reply = _reply(body, choice)
    error = body.get("error") or choice.get("error")
    if not isinstance(choices, list) and words_in(body):
        error = error or body  # {"object": "error", "message": ..., "code": ...}
    if error and (not reply.text or reply.finish_reason == "error"):
        raise _status_error(error, response)
    if not isinstance(choices, list):
        raise MalformedResponse("body without choices", response.content)
    return reply


def _parsed(content: bytes) -> dict[str, Any]:
    content = content.strip()
    while content.startswith(b":"):  # a comment, which keeps the connection
        content = content.partition(b"\n")[2].lstrip()
    if not content:
        raise MalformedResponse("empty body")
    if content.startswith(STREAM):
        return _joined(content)
    try:
        body = _from_json(content)
    except RecursionError:
        raise MalformedResponse("JSON nested too deep") from None
    except ValueError:
        kind = "HTML body" if content.startswith(b"<") else "body not JSON"
        raise MalformedResponse(kind, content) from None
    if isinstance(body, list) and len(body) == 1:
        body = body[0]  # Google wraps errors in a list
    if not isinstance(body, dict):
        raise MalformedResponse("body without choices", content)
    return body


def _from_json(content: bytes) -> Any:
    """The value of JSON in UTF-8, 16 or 32. What is in none of them, which is paid, has U+FFFD."""
    try:
        return json.loads(content)
    except UnicodeDecodeError:
        return json.loads(content.decode(errors="replace"))


def _joined(content: bytes) -> dict[str, Any]:
    """The completion that the chunks of a stream make up, for servers that always stream."""
    text = ""
    body: dict[str, Any] = {}
    choice: dict[str, Any] = {}
    for line in content.splitlines():
        data = line.removeprefix(b"data:").strip()
        if not line.startswith(b"data:") or data == b"[DONE]":
            continue
        try:
            chunk = _from_json(data)
            body |= {name: value for name, value in chunk.items() if value is not None}
            for part in chunk.get("choices") or []:
                # Some send the whole message as one chunk.
                message = part.get("delta") or part.get("message") or {}
                text += _text(message.get("content"))[0]
                choice["finish_reason"] = part.get("finish_reason") or choice.get("finish_reason")
        except (ValueError, TypeError, AttributeError, RecursionError):
            raise MalformedResponse("stream not JSON", line) from None
    if not choice.get("finish_reason") and b"[DONE]" not in content and "error" not in body:
        raise MalformedResponse("stream without an end", content[-1000:])
    return body | {"choices": [choice | {"message": {"content": text}}] if choice else []}


def _reply(body: Mapping[str, Any], choice: Mapping[str, Any]) -> Reply:
    finish_reason = choice.get("finish_reason")
    finish_reason = finish_reason if isinstance(finish_reason, str) else "none"
    message = choice.get("message")
    message = message if isinstance(message, dict) else {"content": message}
    text, no_answer = _text(message.get("content"))
    refusal = message.get("refusal")
    if not choice:
        no_answer = "no choice"
    elif isinstance(refusal, str) and refusal.strip() and not text.strip():
        no_answer = f"refused: {shown(refusal)}"
    elif finish_reason.lower() in WITHHELD:
        no_answer = f"withheld: {shown(finish_reason)}"
    model = body.get("model")
    return Reply(
        text,
        finish_reason or "none",
        no_answer,
        shown(model) if isinstance(model, str) and model else None,
        body.get("usage"),
    )


def _text(content: Any) -> tuple[str, str | None]:
    """The text of a message's content, and why there is none."""
    if isinstance(content, str):
        return content, None
    if content is None:
        return "", "no content"
    if not isinstance(content, list):
        return "", f"the content is no text ({type(content).__name__})"
    texts = [_part(part) for part in content]
    if not any(texts):
        return "", "no text among the content's parts"
    return "".join(texts), None


def _part(part: Any) -> str:
    """The text of a part of a message; "" of thoughts and of whatever is no text."""
    if isinstance(part, str):
        return part
    if not isinstance(part, dict) or part.get("type") not in ("text", "output_text", None):
        return ""
    text = part.get("text")
    return text if isinstance(text, str) else ""


def _status_error(error: Any, response: Any) -> Exception:
    """The error that HTTP would have reported by the status that `error` names."""
    import openai

    headers = {name: response.headers[name] for name in WAITS if name in response.headers}
    text = json.dumps({"error": error})
    message = error.get("message") if isinstance(error, dict) else error
    reported = type(response)(
        error_status(error), headers=headers, text=text, request=response.request
    )
    return openai.APIStatusError(
        message if isinstance(message, str) and message else text, response=reported, body=error
    )


def token_counts(
    usage: Any, prompt_characters: int, text: str, max_tokens: int
) -> tuple[int | None, int | None]:
    """(prompt tokens, completion tokens) by an endpoint's report; None for what it doesn't say.

    A count that can't be true is not believed. Tokens that only the total holds are those of
    thoughts, and are paid as completion tokens.
    """
    if not isinstance(usage, dict):
        return None, None
    most_prompt = 4 * prompt_characters + PROMPT_TOKENS_BESIDE
    most_completion = max(4 * len(text), max_tokens) + COMPLETION_TOKENS_BESIDE
    prompt = _count(usage.get("prompt_tokens"), most_prompt)
    completion = _count(usage.get("completion_tokens"), most_completion)
    total = _count(usage.get("total_tokens"), most_prompt + most_completion)
    if prompt and total:
        completion = min(most_completion, max(completion or 0, total - prompt))
    return prompt or None, completion if completion or not text else None


def _count(value: Any, most: int) -> int | None:
    if isinstance(value, str) and value.isascii() and value.isdigit():
        value = float(value)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return int(value) if 0 <= value <= most else None
