"""Times as logs and records hold them."""

import time


def date() -> str:
    """Today's date, UTC: 2026-04-01."""
    return text()[:10]


def text(seconds: float | None = None) -> str:
    """A time in seconds since 1970 (None: now) as text, UTC: 2026-04-01T12:00:00Z."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds))
