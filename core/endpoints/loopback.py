"""The loopback interface, on which the kit's own servers listen."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

LOOPBACK = "127.0.0.1"


@contextmanager
def _no_proxy_for_loopback() -> Iterator[None]:
    # Clusters often set http_proxy for everything; a proxy can't reach this process's loopback interface.
    before = os.environ.get("no_proxy")
    listed = before if before is not None else os.environ.get("NO_PROXY", "")
    os.environ["no_proxy"] = ",".join(filter(None, [listed, LOOPBACK]))
    try:
        yield
    finally:
        if before is None:
            os.environ.pop("no_proxy", None)
        else:
            os.environ["no_proxy"] = before
