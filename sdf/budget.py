"""A budget of requests and tokens per minute that several processes share, on one node or on many.

The generic cell rate algorithm (ITU-T I.371) with its one number per resource in a small file: the time at which the
next call may start. Whoever starts a call moves that time on, under the file's lock; nobody has to stay alive for it.
"""

import asyncio
import fcntl
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

# Time that a late process may make up for. Longer would be a burst that providers answer with 429.
CATCH_UP_SECONDS = 1.0


@dataclass(frozen=True)
class Budget:
    """`None` for a rate: no limit. The clocks of the nodes must agree to a fraction of a second, as NTP keeps them."""

    path: Path
    requests_per_minute: float | None = None
    tokens_per_minute: float | None = None

    async def turn(self, tokens: int) -> None:
        """Wait until a call of about `tokens` (prompt and answer) may start."""
        if self.requests_per_minute or self.tokens_per_minute:
            start = await asyncio.to_thread(self._move, lambda times, now: self._next(times, now, tokens))
            await asyncio.sleep(max(0.0, start - time.time()))

    async def settle(self, estimated: int, used: int) -> None:
        """Correct the estimate of a finished call, so that the rate is that of the tokens really used."""
        if self.tokens_per_minute:
            more = (used - estimated) * 60 / self.tokens_per_minute
            await asyncio.to_thread(self._move, lambda times, now: self._add(times, "tokens", more))

    async def pause(self, seconds: float) -> None:
        """Nobody starts a call for so long: the endpoint has said so."""
        if self.requests_per_minute or self.tokens_per_minute:
            await asyncio.to_thread(self._move, lambda times, now: self._hold(times, now + seconds))

    def _next(self, times: dict[str, float], now: float, tokens: int) -> float:
        start = max(now - CATCH_UP_SECONDS, *(times.get(name, now) for name in ("requests", "tokens")))
        for name, rate, amount in (
            ("requests", self.requests_per_minute, 1),
            ("tokens", self.tokens_per_minute, tokens),
        ):
            if rate:
                times[name] = start + amount * 60 / rate
        return start

    def _add(self, times: dict[str, float], name: str, seconds: float) -> float:
        times[name] = times.get(name, time.time()) + seconds
        return times[name]

    def _hold(self, times: dict[str, float], until: float) -> float:
        for name in ("requests", "tokens"):
            times[name] = max(times.get(name, until), until)
        return until

    def _move(self, change: Callable[[dict[str, float], float], float]) -> float:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with open(self.path, "a+", encoding="utf-8") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            file.seek(0)
            try:
                times = json.loads(file.read() or "{}")
            except json.JSONDecodeError:
                times = {}  # torn by a kill: at worst one burst
            start = change(times, time.time())
            file.seek(0)
            file.truncate()
            json.dump(times, file)
            return start
