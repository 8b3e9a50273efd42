"""How calls leave this machine, by variables of the shell; those to the loopback interface do not.

The kit's own servers, and those that a person starts beside it, listen on loopback. A proxy can't
reach it, and a certificate is not asked for.
"""

import ipaddress
import os
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from core.errors import UserError

if TYPE_CHECKING:
    import openai

LOOPBACK = "127.0.0.1"
PROXIES = ("HTTPS_PROXY", "HTTP_PROXY", "ALL_PROXY")
CERTIFICATES = ("SSL_CERT_FILE", "SSL_CERT_DIR")


def is_loopback(url: str) -> bool:
    """Whether a URL names this machine."""
    host = urlsplit(url).hostname or ""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def variables(url: str, kind: tuple[str, ...]) -> list[str]:
    """Those of PROXIES or CERTIFICATES that are set and count for a URL."""
    if is_loopback(url):
        return []
    return [
        name
        for upper in kind
        for name in (upper, upper.lower())
        if os.environ.get(name)
        and (upper != "HTTP_PROXY" or url.startswith("http:"))
        and (upper != "HTTPS_PROXY" or url.startswith("https:"))
    ]


def http_client(url: str) -> "openai.DefaultAsyncHttpxClient":
    """The client for calls to a URL.

    Raises UserError where a proxy or a certificate of the environment can't be used.
    """
    import openai

    try:
        return openai.DefaultAsyncHttpxClient(trust_env=not is_loopback(url))
    except (ImportError, OSError, ValueError) as error:
        names = variables(url, CERTIFICATES if isinstance(error, OSError) else PROXIES)
        if not names:
            raise
        raise UserError(
            where=", ".join(names),
            what=f"calls to {url} can't go out by it: {error}",
            fix=f"unset {' '.join(names)}, or in jobs another value in setup of the cluster "
            "profile (a socks proxy: pip install httpx2[socks])",
        ) from None
