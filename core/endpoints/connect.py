"""Open an LLM endpoint (document writer, judge): a URL, a local vLLM server, or the dummy."""

import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from core.endpoints.loopback import LOOPBACK
from core.errors import UserError

START_SECONDS = 30


@dataclass(frozen=True)
class Endpoint:
    """An open endpoint that speaks the OpenAI API.

    Attributes:
        base_url: The address, up to and without "/chat/completions".
        api_key: The key. It is left out of the repr.
        model: The model's name in requests.
    """

    base_url: str
    api_key: str = field(repr=False)
    model: str


@contextmanager
def open_endpoint(
    endpoint: dict[str, Any], resources: dict[str, Any], log: Path = Path(os.devnull)
) -> Iterator[Endpoint]:
    """Make an endpoint ready for calls for the time of the `with` block.

    Args:
        endpoint: `model`, and `served_by`:
            "dummy": the dummy, started in a thread of this process on a free loopback port.
            "url": a server that runs already.
            "vllm": a server of this process' own (`core.inference.vllm_server.serve`).
        resources: For "url": `base_url`, and `key_env`, the environment variable with the key (None
            for a server that asks for no key). For "vllm": see there.
        log: Where a vLLM server prints to.

    Raises:
        UserError: The address or the key is missing, or the server doesn't start.
    """
    if endpoint["served_by"] == "dummy":
        with _serve_dummy() as address:
            yield Endpoint(address, "dummy", endpoint["model"])
        return
    if endpoint["served_by"] == "vllm":
        from core.inference.vllm_server import serve

        with serve(endpoint, resources, log) as (address, key):
            yield Endpoint(address, key, endpoint["model"])
        return
    base_url = resources.get("base_url")
    key_env = resources.get("key_env")
    if not base_url:
        raise UserError(
            where="study file, endpoints",
            what=f"no address for the model {endpoint['model']!r}",
            fix="give base_url",
        )
    if key_env and not os.environ.get(key_env):
        raise UserError(
            where=f"environment variable {key_env}",
            what=f"the key for {base_url} is missing",
            fix=f"set it before you start (export {key_env}=...) and see that jobs inherit it",
        )
    api_key = os.environ[key_env] if key_env else "none"
    yield Endpoint(base_url, api_key, endpoint["model"])


@contextmanager
def _serve_dummy() -> Iterator[str]:
    import socket

    import uvicorn

    from core.endpoints import dummy_endpoint

    dummy_endpoint.data()  # reads and checks its file here, not in the thread
    with socket.socket() as listener:
        listener.bind((LOOPBACK, 0))
        config = uvicorn.Config(
            dummy_endpoint.app(),
            log_level="error",
            access_log=False,
            lifespan="off",
            timeout_graceful_shutdown=1,
        )
        server = uvicorn.Server(config)
        thread = threading.Thread(
            target=server.run, args=([listener],), name="dummy endpoint", daemon=True
        )
        thread.start()
        try:
            deadline = time.monotonic() + START_SECONDS
            while not server.started:
                if not thread.is_alive() or time.monotonic() > deadline:
                    raise RuntimeError(f"the dummy endpoint did not start within {START_SECONDS} s")
                time.sleep(0.005)
            yield f"http://{LOOPBACK}:{listener.getsockname()[1]}/v1"
        finally:
            server.should_exit = True
            thread.join()
