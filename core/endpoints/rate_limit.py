"""A limit of requests and tokens per minute that several processes share, on one node or on many.

The generic cell rate algorithm (ITU-T I.371). Its one number per resource is in a small file: the
time at which the next call may start. Whoever starts a call moves that time on, under the file's
lock; no process has to stay alive for it.
"""

import asyncio
import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from core.errors import UserError
from core.files import file_system_time, locked

# Time that a late process may make up for. Longer would be a burst that providers answer with 429.
CATCH_UP_SECONDS = 1.0
# Calls are spread over a little less than the minute. What is made up for, and calls that take half
# a second longer to arrive than others, then never add up to more than the rate in any minute,
# however the provider's minute begins.
PACE = (60 - CATCH_UP_SECONDS - 0.5) / 60
# The file's size never changes: a full disk can't stop it, and a kill can't tear it.
BYTES = 256
CLOCKS = ("requests", "tokens", "hold")


@dataclass(frozen=True)
class RateLimiter:
    """A shared rate limit; its state is in the file `path`.

    Time is that of the file system with the file, since the clocks of nodes differ. (On Lustre
    files carry the time of the node that writes them: `doctor` compares the nodes' clocks.)

    Attributes:
        path: The file; it and its folder are made where they are missing.
        requests_per_minute: None: no limit.
        tokens_per_minute: Tokens of prompts and answers together. None: no limit.

    Raises:
        UserError: By all methods: the file can't be written or locked.
    """

    path: Path
    requests_per_minute: float | None = None
    tokens_per_minute: float | None = None

    @property
    def unlimited(self) -> bool:
        """Whether there is no limit at all."""
        return not (self.requests_per_minute or self.tokens_per_minute)

    async def acquire(self, tokens: int) -> None:
        """Wait until a call of about `tokens` (prompt and answer) may start."""
        if self.unlimited:
            return

        def next_start(times: dict[str, float], now: float) -> float:
            return self._next(times, now, tokens)

        await asyncio.sleep(max(0.0, await asyncio.to_thread(self._update, next_start)))

    async def adjust(self, estimated: int, used: int) -> None:
        """Correct the estimate of a finished call, so that the rate is that of the tokens used."""
        if not self.tokens_per_minute or used == estimated:
            return
        seconds = (used - estimated) * 60 / (self.tokens_per_minute * PACE)

        def move_tokens(times: dict[str, float], now: float) -> float:
            times["tokens"] = times.get("tokens", now) + seconds
            return times["tokens"]

        await asyncio.to_thread(self._update, move_tokens)

    async def back_off(self, seconds: float) -> None:
        """Let no call acquire a start for so long, as the endpoint asks.

        Calls that have acquired their start already are not held back.
        """
        if self.unlimited:
            return

        def hold(times: dict[str, float], now: float) -> float:
            times["hold"] = max(times.get("hold", 0.0), now + seconds)
            return times["hold"]

        await asyncio.to_thread(self._update, hold)

    def _next(self, times: dict[str, float], now: float, tokens: int) -> float:
        # A hold isn't added to the times: after it, too, CATCH_UP_SECONDS are made up for.
        hold = max(now, times.get("hold", now))
        earliest = hold - CATCH_UP_SECONDS
        start = max(earliest, times.get("requests", now), times.get("tokens", now))
        if self.requests_per_minute:
            times["requests"] = start + 60 / (self.requests_per_minute * PACE)
        if self.tokens_per_minute:
            times["tokens"] = start + tokens * 60 / (self.tokens_per_minute * PACE)
        return max(start, hold)

    def _update(self, change: Callable[[dict[str, float], float], float]) -> float:
        """Change the times in the file under its lock; returns how far from now is the time that
        `change` returns."""
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with locked(self.path), open(self.path, "r+b", buffering=0) as file:
                try:
                    state = json.loads(os.pread(file.fileno(), BYTES, 0))
                    times = {name: float(state[name]) for name in CLOCKS if name in state}
                except (ValueError, TypeError):
                    times = {}  # new or damaged: at worst one burst
                now = file_system_time(file.fileno())
                seconds = change(times, now) - now
                os.pwrite(file.fileno(), json.dumps(times).ljust(BYTES).encode(), 0)
                return seconds
        except OSError as error:
            raise UserError(
                where=str(self.path),
                what=f"the shared rate limit can't be kept ({error.strerror})",
                fix="see that there is room, and that the file system has locks (flock)",
            ) from None
