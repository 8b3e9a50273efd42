"""A budget of requests and tokens per minute that several processes share, on one node or on many.

The generic cell rate algorithm (ITU-T I.371) with its one number per resource in a small file: the time at which the
next call may start. Whoever starts a call moves that time on, under the file's lock; nobody has to stay alive for it.
"""

import asyncio
import fcntl
import json
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from core.errors import UserError

# Time that a late process may make up for. Longer would be a burst that providers answer with 429.
CATCH_UP_SECONDS = 1.0
# Calls are spread over a little less than the minute: what is made up for, and calls that take half a second longer to
# arrive than others, then never add up to more than the rate in any minute, however the provider's minute begins.
PACE = (60 - CATCH_UP_SECONDS - 0.5) / 60
# The file's size never changes: a full disk can't stop it, and a kill can't tear it.
BYTES = 256


@dataclass(frozen=True)
class RateLimiter:
    """`None` for a rate: no limit. The clocks of the nodes must agree to a fraction of a second, as NTP keeps them.

    All raise UserError when the file at `path` can't be written or locked.
    """

    path: Path
    requests_per_minute: float | None = None
    tokens_per_minute: float | None = None

    async def acquire(self, tokens: int) -> None:
        """Wait until a call of about `tokens` (prompt and answer) may start."""
        if self.requests_per_minute or self.tokens_per_minute:
            start = await asyncio.to_thread(
                self._move, lambda times, now: self._next(times, now, tokens)
            )
            await asyncio.sleep(max(0.0, start - time.time()))

    async def adjust(self, estimated: int, used: int) -> None:
        """Correct the estimate of a finished call, so that the rate is that of the tokens really used."""
        if self.tokens_per_minute and used != estimated:
            more = (used - estimated) * 60 / (self.tokens_per_minute * PACE)
            await asyncio.to_thread(
                self._move, lambda times, now: self._add(times, "tokens", more, now)
            )

    async def back_off(self, seconds: float) -> None:
        """Nobody takes a turn for so long: the endpoint has said so. Calls that wait for a turn they have still go."""
        if self.requests_per_minute or self.tokens_per_minute:
            await asyncio.to_thread(self._move, lambda times, now: self._hold(times, now + seconds))

    def _next(self, times: dict[str, float], now: float, tokens: int) -> float:
        # A pause isn't added to the times: after it, too, as much as CATCH_UP_SECONDS is made up for.
        hold = max(now, times.get("hold", now))
        start = max(
            hold - CATCH_UP_SECONDS, *(times.get(name, now) for name in ("requests", "tokens"))
        )
        for name, rate, amount in (
            ("requests", self.requests_per_minute, 1),
            ("tokens", self.tokens_per_minute, tokens),
        ):
            if rate:
                times[name] = start + amount * 60 / (rate * PACE)
        return max(start, hold)

    def _add(self, times: dict[str, float], name: str, seconds: float, now: float) -> float:
        times[name] = times.get(name, now) + seconds
        return times[name]

    def _hold(self, times: dict[str, float], until: float) -> float:
        times["hold"] = max(times.get("hold", until), until)
        return until

    def _move(self, change: Callable[[dict[str, float], float], float]) -> float:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with open(
                os.open(self.path, os.O_RDWR | os.O_CREAT, 0o666), "r+b", buffering=0
            ) as file:
                fcntl.flock(file, fcntl.LOCK_EX)
                try:
                    kept = json.loads(os.pread(file.fileno(), BYTES, 0))
                    times = {
                        name: float(kept[name])
                        for name in ("requests", "tokens", "hold")
                        if name in kept
                    }
                except (ValueError, TypeError):
                    times = {}  # new or damaged: at worst one burst
                start = change(times, time.time())
                os.pwrite(file.fileno(), json.dumps(times).ljust(BYTES).encode(), 0)
                return start
        except OSError as error:
            raise UserError(
                f"the shared budget can't be kept ({error.strerror}); {self.path}; "
                "see that there is room, and that the file system has locks (flock)"
            ) from None
