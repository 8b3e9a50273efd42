"""The loopback interface, on which the kit's own servers listen."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

LOOPBACK = "127.0.0.1"


@contextmanager
def no_proxy_for_loopback() -> Iterator[None]:
    """Exempt the loopback interface from the environment's proxy in the `with` block.

    Clusters often set http_proxy for everything; a proxy can't reach this process' loopback.
    """
    original = os.environ.get("no_proxy")
    hosts = original if original is not None else os.environ.get("NO_PROXY", "")
    os.environ["no_proxy"] = ",".join(filter(None, [hosts, LOOPBACK]))
    try:
        yield
    finally:
        if original is None:
            os.environ.pop("no_proxy", None)
        else:
            os.environ["no_proxy"] = original
