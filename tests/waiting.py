"""Waiting for what other processes do."""

import time
from collections.abc import Callable

HANGS = 1800.0
"""Seconds after which what does not come is taken to hang: a busy machine is slow, not wrong."""


def until(
    condition: Callable[[], object], shown: Callable[[], object] = lambda: "it hangs"
) -> None:
    """Wait until `condition` holds. `shown`: what to show where it never does."""
    end = time.monotonic() + HANGS
    while not condition():
        assert time.monotonic() < end, shown()
        time.sleep(0.1)
