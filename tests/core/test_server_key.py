"""The key of a vLLM server guards every path."""

import asyncio
from typing import Any

import pytest

from core.inference.server_middleware.require_key import RequireKey


@pytest.mark.parametrize("kind", ["http", "websocket"])
@pytest.mark.parametrize(
    ("headers", "is_let_in"),
    [
        ([], False),
        ([(b"authorization", b"Bearer other")], False),
        ([(b"authorization", b"key")], False),
        ([(b"authorization", b"Bearer key")], True),
    ],
)
def test_a_request_without_the_key_reaches_nothing(
    monkeypatch: pytest.MonkeyPatch, kind: str, headers: list[Any], is_let_in: bool
) -> None:
    monkeypatch.setenv("VLLM_API_KEY", "key")
    reached: list[str] = []
    sent: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        reached.append(scope["path"])

    async def receive() -> Any:
        return {}

    async def send(message: Any) -> None:
        sent.append(message)

    for path in ("/invocations", "/tokenize", "/v1/models", "/"):
        scope = {"type": kind, "path": path, "method": "OPTIONS", "headers": headers}
        asyncio.run(RequireKey(app)(scope, receive, send))
    assert len(reached) == (4 if is_let_in else 0)
    refusals = {message.get("status") or message.get("code") for message in sent} - {None}
    assert refusals == (set() if is_let_in else {401 if kind == "http" else 1008})


def test_the_start_of_a_server_needs_no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_API_KEY", "key")
    reached: list[str] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        reached.append(scope["type"])

    asyncio.run(RequireKey(app)({"type": "lifespan"}, None, None))  # type: ignore[arg-type]
    assert reached == ["lifespan"]
