"""A hostile endpoint: the dummy's answers behind errors, rate limit and latency of a provider.

It counts what it delivers, and what that costs. `python -m tests.endpoint '{"faults": 0.2}'` serves
it in a process of its own and prints its address; GET /stats of that gives the counts.
"""

import asyncio
import hashlib
import json
import math
import random
import sys
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from core.endpoints import dummy_endpoint
from core.endpoints.connect import Endpoint

KEY = "sk-never-to-be-seen-1234"
FAULTS = ("429", "500", "dropped", "hang", "empty", "truncated", "not JSON")
Reply = tuple[int, dict[str, str], Any]  # status, headers, body: JSON, or bytes as they are


@dataclass
class Hostile:
    """The server and its counts.

    An answer counts as delivered, and is paid, once it is written completely, whether or not the
    client still lives.

    Attributes:
        faults: The share of requests that meet one of FAULTS.
        limit: Requests in any `window` seconds; one more is answered 429.
        latency: Seconds before an answer.
        hang: Seconds that a hanging request lasts.
        retry_after: Seconds, of the fault 429.
        prices: Per million prompt and completion tokens.
        scripted: `scripted(body, n)` may give the reply to the n-th request instead, n from 1.
    """

    faults: float = 0.0
    limit: int | None = None
    window: float = 60.0
    latency: float = 0.0
    hang: float = 3600.0
    retry_after: float = 1.0
    prices: tuple[float, float] = (0.1, 0.4)
    seed: int = 0
    scripted: Callable[[dict[str, Any], int], Reply | None] | None = None
    requests: int = 0
    cost: float = 0.0
    cost_once: float = 0.0  # without what was delivered again
    met: Counter[str] = field(default_factory=Counter)  # what requests were met with
    delivered: Counter[str] = field(
        default_factory=Counter
    )  # answers by the hash of the request's body
    prompts: Counter[str] = field(default_factory=Counter)  # answers by prompt
    times: list[float] = field(default_factory=list)  # of delivery, seconds since the epoch
    last: dict[str, Any] = field(default_factory=dict)  # the last request's body

    def __post_init__(self) -> None:
        self._rng, self._admitted = random.Random(self.seed), deque[float]()

    def stats(self) -> dict[str, Any]:
        return {
            "requests": self.requests,
            "delivered": self.delivered.total(),
            "different": len(self.delivered),
            "cost": self.cost,
            "cost_once": self.cost_once,
            "met": dict(self.met),
            "times": self.times,
        }

    async def connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Requests of one connection, one after the other."""
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
                headers = {
                    name.lower(): value
                    for name, _, value in (line.partition(": ") for line in head[1:] if line)
                }
                body = await reader.readexactly(int(headers.get("content-length", 0)))
                if head[0].startswith("GET /stats"):
                    writer.write(_message(200, {}, self.stats()))
                elif not await self._answer(json.loads(body), headers, writer):
                    return
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            pass  # the client is gone, or this server ends
        finally:
            writer.close()

    async def _answer(
        self, body: dict[str, Any], headers: dict[str, str], writer: asyncio.StreamWriter
    ) -> bool:
        # Whether the connection goes on.
        self.requests, self.last = self.requests + 1, body
        if self.scripted and (reply := self.scripted(body, self.requests)):
            writer.write(_message(*reply))
            return True
        if headers.get("authorization") != f"Bearer {KEY}":
            said = f"Incorrect API key provided: {headers.get('authorization')}"
            writer.write(_message(401, {}, {"error": {"message": said, "code": "invalid_api_key"}}))
            return True
        if not body.get("messages"):  # as some clients ask to see the headers
            writer.write(_message(400, {}, {"error": {"message": "messages must not be empty"}}))
            return True
        if self.limit and (wait := self._over(time.monotonic())):
            self.met["over the limit"] += 1
            after = {"Retry-After": f"{math.ceil(wait * 10) / 10}"}
            writer.write(
                _message(429, after, {"error": {"message": "Rate limit reached for requests"}})
            )
            return True
        fault = self._rng.choice(FAULTS) if self._rng.random() < self.faults else "answer"
        self.met[fault] += 1
        if fault == "429":
            writer.write(
                _message(
                    429, {"Retry-After": f"{self.retry_after}"}, {"error": {"message": "slow down"}}
                )
            )
            return True
        if fault == "hang":
            await self._hang(writer)
            return False
        await asyncio.sleep(self.latency)
        reply = dummy_endpoint.complete(body)
        content = json.dumps(reply).encode()
        whole = _message(200, {}, content)
        if fault == "answer":
            self._pay(body, reply["usage"])
            writer.write(whole)
        elif fault == "500":
            writer.write(_message(500, {}, {"error": {"message": "internal error"}}))
        elif fault == "empty":
            writer.write(_message(200, {}, b""))
        elif fault == "not JSON":
            writer.write(
                _message(
                    200, {"Content-Type": "text/html"}, b"<html><body>502 Bad Gateway</body></html>"
                )
            )
        elif fault == "truncated" and self._rng.random() < 0.5:
            writer.write(_message(200, {}, content[: len(content) // 2]))
        elif fault == "truncated":
            writer.write(whole[: len(whole) // 2])
            await writer.drain()
        return fault == "answer" or fault in ("500", "empty", "not JSON")

    async def _hang(self, writer: asyncio.StreamWriter) -> None:
        # In silence, or with a byte now and then, as some gateways do to keep the connection.
        trickles, end = self._rng.random() < 0.5, time.monotonic() + self.hang
        if trickles:
            writer.write(
                b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"
                b"Content-Length: 100000\r\n\r\n"
            )
        while time.monotonic() < end:
            await asyncio.sleep(0.2)
            if trickles:
                writer.write(b" ")
                await writer.drain()

    def _over(self, now: float) -> float:
        # Seconds until the limit has room again.
        while self._admitted and self._admitted[0] <= now - self.window:
            self._admitted.popleft()
        if len(self._admitted) < (self.limit or 0):
            self._admitted.append(now)
            return 0.0
        return self._admitted[0] + self.window - now

    def _pay(self, body: dict[str, Any], usage: dict[str, int]) -> None:
        cost = (
            usage["prompt_tokens"] * self.prices[0] + usage["completion_tokens"] * self.prices[1]
        ) / 1e6
        digest = hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
        self.cost, self.cost_once = (
            self.cost + cost,
            self.cost_once + cost * (digest not in self.delivered),
        )
        self.delivered[digest] += 1
        self.prompts[body["messages"][0]["content"]] += 1
        self.times.append(time.time())


def _message(status: int, headers: dict[str, str], body: Any) -> bytes:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    every = {"Content-Type": "application/json", "Content-Length": str(len(content))} | headers
    head = "".join(f"{name}: {value}\r\n" for name, value in every.items())
    return f"HTTP/1.1 {status} It is\r\n{head}\r\n".encode() + content


@contextmanager
def serving(hostile: Hostile) -> Iterator[tuple[Endpoint, Hostile]]:
    """The endpoint on a free port of the loopback interface, in a thread."""
    ready = threading.Event()
    started: dict[str, Any] = {}

    async def serve() -> None:
        server = await asyncio.start_server(hostile.connected, "127.0.0.1", 0, backlog=1024)
        started["address"] = "http://{}:{}/v1".format(*server.sockets[0].getsockname())
        started["loop"], started["stop"] = asyncio.get_running_loop(), asyncio.Event()
        ready.set()
        await started["stop"].wait()
        server.close()

    thread = threading.Thread(target=lambda: asyncio.run(serve()), daemon=True)
    thread.start()
    ready.wait(10)
    try:
        yield Endpoint(started["address"], KEY, "dummy"), hostile
    finally:
        started["loop"].call_soon_threadsafe(started["stop"].set)
        thread.join(10)


if __name__ == "__main__":
    with serving(Hostile(**json.loads(sys.argv[1]))) as (here, _):
        print(here.base_url, flush=True)
        sys.stdin.read()  # until whoever started it closes the pipe or dies
