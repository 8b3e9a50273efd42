"""Addresses, keys and request parameters of a study file's endpoints that can't be right."""

import re
from typing import Any
from urllib.parse import urlsplit

from study.spec.checks import Mistake, Mistakes

# Keys of a request that the kit sets itself.
OWN_PARAMETERS = (
    "model",
    "messages",
    "stream",
    "n",
    "seed",
    "temperature",
    "max_tokens",
    "max_completion_tokens",
)
# How keys of known providers begin, and how random text looks. A variable's name does neither.
KEY_PREFIXES = ("sk_", "gsk_", "hf_", "AIza", "xai_", "r8_", "Bearer")
RANDOM = re.compile(r"(?=.*[a-z])(?=.*[A-Z])(?=.*\d)\w{20,}|[0-9a-f]{32,}")


def endpoint_mistakes(raw: dict[str, Any]) -> Mistakes:
    """Mistakes that would send a key or a text to the wrong place, or write a key to a file."""
    endpoints = raw.get("endpoints")
    mistakes: Mistakes = []
    for name, endpoint in endpoints.items() if isinstance(endpoints, dict) else ():
        if not isinstance(endpoint, dict):
            continue
        at = ("endpoints", name)
        if isinstance(address := endpoint.get("base_url"), str):
            mistakes += _address(at, address)
        if isinstance(key_env := endpoint.get("key_env"), str) and not _is_variable(key_env):
            # The value isn't shown: it may be the key.
            what = "should be the NAME of an environment variable, and looks like a key"
            fix = "export the key in a variable and give its name; change a key that was in a file"
            mistakes.append(Mistake((*at, "key_env"), what, fix))
        if endpoint.get("batch") is True and endpoint.get("served_by", "url") != "url":
            what = "is for a server with a batch interface (served_by: url)"
            mistakes.append(Mistake((*at, "batch"), what, "remove it"))
        request = endpoint.get("request")
        extra = request.get("extra_body") if isinstance(request, dict) else None
        for key in extra if isinstance(extra, dict) else ():
            if key in OWN_PARAMETERS:
                fix = "remove it; seed, temperature and the limit have keys of `request`"
                mistakes.append(
                    Mistake((*at, "request", "extra_body", key), "the kit sets it", fix)
                )
    return mistakes


def _address(at: tuple[Any, ...], address: str) -> Mistakes:
    at = (*at, "base_url")
    try:
        parts = urlsplit(address)
        is_valid = parts.scheme in ("http", "https") and bool(parts.hostname)
        has_password = "@" in parts.netloc
    except ValueError:
        return [Mistake(at, "is no address", "give one that starts with https:// or http://")]
    if has_password:
        return [Mistake(at, "has a user or a password in it", "give the key by key_env")]
    if not is_valid:
        return [Mistake(at, f"{address!r}: should start with https:// or http://", "write it out")]
    return []


def _is_variable(text: str) -> bool:
    """Whether a text can be the name of an environment variable, and doesn't look like a key."""
    return bool(re.fullmatch(r"[A-Za-z_]\w*", text, re.ASCII)) and not (
        text.startswith(KEY_PREFIXES) or RANDOM.fullmatch(text)
    )
