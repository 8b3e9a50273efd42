"""What a provider says in the body of an error, and what of it is only our own prompt."""

import json
import re
from typing import Any

SHOWN_CHARACTERS = 300  # of a provider's words
MAX_DEPTH = 10  # of lists and objects around them
# Where bodies hold words, the innermost error first: OpenAI, FastAPI, Baidu, MiniMax, Z.AI.
_KEYS = ("error", "errors", "message", "detail", "msg", "error_msg", "base_resp", "status_msg")
_TITLE = re.compile(r"<title[^>]*>(.*?)</title>", re.DOTALL | re.IGNORECASE)
_TAGS = re.compile(r"<(script|style)\b.*?</\1>|<[^<>]*>", re.DOTALL | re.IGNORECASE)
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+|\n+")
_SHORTEST_QUOTE = 12  # characters of a sentence of the prompt that is looked for in an error


def words_in(body: Any, depth: int = 0) -> str:
    """A provider's words in the parsed body of an error; "" where there are none."""
    if isinstance(body, str):
        return body
    if depth > MAX_DEPTH:
        return ""
    if isinstance(body, list):
        return next((words for value in body if (words := words_in(value, depth + 1))), "")
    if not isinstance(body, dict):
        return ""
    location = body.get("loc")  # FastAPI's
    before = ".".join(map(str, location)) + ": " if isinstance(location, list) else ""
    candidates = (words_in(body.get(key), depth + 1) for key in _KEYS)
    return next((before + words for words in candidates if words), "")


def words_of(text: str) -> str:
    """A provider's words in a body: of JSON its message, of a web page its title, else the text."""
    try:
        body = json.loads(text)
    except (ValueError, RecursionError):
        title = _TITLE.search(text)
        words = title[1] if title else _TAGS.sub(" ", text[: 100 * SHOWN_CHARACTERS])
    else:
        words = words_in(body) or ("" if body in ({}, [], None) else text)
    return shown(words)


def shown(text: str) -> str:
    """A provider's words as a log and a manifest may hold them."""
    text = " ".join(text.split())[:SHOWN_CHARACTERS]
    return "".join(letter if letter.isprintable() else "?" for letter in text)


def without_prompt(error: Exception, prompt: str) -> Exception:
    """The error without sentences of the prompt, which some providers quote in it.

    A prompt about seeds and food safety is no refused parameter and broke no rule.
    """
    import openai

    if not isinstance(error, openai.APIStatusError):
        return error
    response = error.response
    text = response.text
    for sentence in (prompt, *_SENTENCE_END.split(prompt)):
        if len(sentence.strip()) >= _SHORTEST_QUOTE:
            for form in (sentence, *(json.dumps(sentence, ensure_ascii=a) for a in (True, False))):
                text = text.replace(form.strip('"'), "...")
    if text == response.text:
        return error
    headers = {
        name: value
        for name, value in response.headers.items()
        if name not in ("content-length", "content-encoding", "transfer-encoding")
    }
    cut = type(response)(response.status_code, headers=headers, text=text, request=response.request)
    return openai.APIStatusError(words_of(text), response=cut, body=None)
