"""An endpoint with a batch interface, served in a thread, that counts what it is paid for."""

import json
import socket
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import uvicorn

from core.endpoints import dummy_endpoint
from core.endpoints.connect import Endpoint
from core.endpoints.dummy_batches import Body, DummyBatches

KEY = "sk-of-the-batch-tests"
# (server, batch, its lines) -> (status, results, errors): how a batch ends.
Ending = Callable[["Provider", str, list[Body]], tuple[str, list[Body], list[Body]]]


def completed(
    server: "Provider", batch: str, lines: list[Body]
) -> tuple[str, list[Body], list[Body]]:
    return "completed", [server.paid(line) for line in lines], []


def reply_of(body: Body, text: str | None = None) -> Body:
    reply = dummy_endpoint.complete(body)
    if text is not None:
        reply["choices"][0]["message"]["content"] = text
    return reply


@dataclass
class Provider(DummyBatches):
    """The dummy's answers by batches that end as `endings` say, one after the other.

    Attributes:
        endings: Of the first batches; later ones are completed.
        refuse: (step, number of such steps so far) -> an error in place of the step's answer.
        on_step: Called before a step is answered: upload, create, retrieve, content.
        payments: Answers by custom_id.
        calls: Single calls.
        steps: How often each step was asked for.
        bodies: The requests of all batches.
    """

    answer: Callable[[Body], Body] = reply_of
    endings: list[Ending] = field(default_factory=list)
    refuse: Callable[[str, int], tuple[int, Body] | None] = lambda step, number: None
    on_step: Callable[[str], None] = lambda step: None
    payments: Counter[str] = field(default_factory=Counter)
    calls: int = 0
    steps: Counter[str] = field(default_factory=Counter)
    bodies: list[Body] = field(default_factory=list)

    def paid(self, line: Body) -> Body:
        """The result of a request, which is paid for."""
        self.payments[line["custom_id"]] += 1
        return self.result(line)

    def finish(self, batch: str) -> None:
        lines = self.requests(batch)
        self.bodies += [line["body"] for line in lines]
        ending = self.endings.pop(0) if self.endings else completed
        status, results, errors = ending(self, batch, lines)
        self.end(batch, status, results, errors)


class App:
    """The dummy's application behind a key and the provider's refusals."""

    def __init__(self, provider: Provider) -> None:
        self.provider = provider
        self.inner = dummy_endpoint.app(provider)

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        from starlette.responses import JSONResponse

        if scope["type"] != "http":
            return await self.inner(scope, receive, send)
        step = self._step(scope["method"], scope["path"])
        headers = dict(scope["headers"])
        self.provider.steps[step] += 1
        refusal = self.provider.refuse(step, self.provider.steps[step])
        if headers.get(b"authorization") != f"Bearer {KEY}".encode():
            refusal = 401, {"error": {"message": "Incorrect API key", "code": "invalid_api_key"}}
        if step == "call":
            self.provider.calls += 1
        if refusal and refusal[0] != 599:
            return await JSONResponse(refusal[1], refusal[0])(scope, receive, send)
        if refusal:  # it is done, and the answer is lost

            async def lose(message: Any) -> None:
                pass

            await self.inner(scope, receive, lose)
            return await JSONResponse({"error": {"message": "lost"}}, 500)(scope, receive, send)

        async def answer(message: Any) -> None:
            # What was asked for is done by now.
            if message["type"] == "http.response.start":
                self.provider.on_step(step)
            await send(message)

        await self.inner(scope, receive, answer)

    @staticmethod
    def _step(method: str, path: str) -> str:
        if path.endswith("/chat/completions"):
            return "call"
        if "/files" in path:
            return "upload" if method == "POST" else "content"
        if path.endswith("/batches"):
            return "create" if method == "POST" else "list"
        return "cancel" if path.endswith("/cancel") else "retrieve"


@contextmanager
def serving(provider: Provider) -> Iterator[Endpoint]:
    """The provider on a free port of the loopback interface, in a thread."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        config = uvicorn.Config(App(provider), log_level="error", access_log=False, lifespan="off")
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, args=([listener],), daemon=True)
        thread.start()
        while not server.started:
            assert thread.is_alive()
            thread.join(0.01)
        try:
            yield Endpoint(f"http://127.0.0.1:{listener.getsockname()[1]}/v1", KEY, "dummy")
        finally:
            server.should_exit = True
            thread.join(10)


def error_line(line: Body, code: str, message: str = "no") -> Body:
    """The line of a request that has no response."""
    error = {"code": code, "message": message}
    return {"id": "x", "custom_id": line["custom_id"], "response": None, "error": error}


def refused_line(server: Provider, line: Body, status: int, message: str) -> Body:
    """The line of a request that was answered by an error."""
    return server.result(line, status, {"error": {"message": message}})


def ledger_lines(path: Any) -> list[Body]:
    return [json.loads(line) for line in path.read_text().splitlines()]
