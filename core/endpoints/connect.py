"""LLM endpoints (document writer, judge): whatever speaks the OpenAI API, a local vLLM, or the kit's stand-in."""

import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from core.endpoints.loopback import LOOPBACK, _no_proxy_for_loopback
from core.errors import UserError

START_SECONDS = 30


@dataclass(frozen=True)
class Endpoint:
    """An open endpoint. `base_url` ends where "/chat/completions" begins; the key never shows in a repr."""

    base_url: str
    api_key: str = field(repr=False)
    model: str


@contextmanager
def open_endpoint(
    endpoint: dict[str, Any], resources: dict[str, Any], log: Path = Path(os.devnull)
) -> Iterator[Endpoint]:
    """The endpoint ready for calls, for the time of the `with` block.

    `endpoint` holds `model` and `served_by`. "kit": the stand-in is started on a free port of the loopback interface,
    in a thread of this process, and stopped at the end. "url": `resources` holds `base_url` and `key_env`, the name of
    the environment variable with the key (None for a server that asks for no key). "vllm": a server of this
    process's own (`core.inference.vllm_server.serve`), which prints to the file `log`.
    Raises UserError when the address or the key is missing, or the server doesn't start.
    """
    if endpoint["served_by"] == "kit":
        with _serve_stand_in() as address:
            yield Endpoint(address, "stand-in", endpoint["model"])
        return
    if endpoint["served_by"] == "vllm":
        from core.inference.vllm_server import serve

        with _no_proxy_for_loopback(), serve(endpoint, resources, log) as (address, key):
            yield Endpoint(address, key, endpoint["model"])
        return
    base_url, key_env = resources.get("base_url"), resources.get("key_env")
    if not base_url:
        raise UserError(
            f"no address for the model {endpoint['model']!r}; study file, endpoints; give base_url"
        )
    if key_env and not os.environ.get(key_env):
        raise UserError(
            f"the key for {base_url} is missing; environment variable {key_env}; "
            f"set it before you start (export {key_env}=...) and see that jobs inherit it"
        )
    yield Endpoint(base_url, os.environ[key_env] if key_env else "none", endpoint["model"])


@contextmanager
def _serve_stand_in() -> Iterator[str]:
    import socket

    import uvicorn

    from core.endpoints import dummy_endpoint as stand_in

    stand_in.data()
    with socket.socket() as listener, _no_proxy_for_loopback():
        listener.bind((LOOPBACK, 0))
        config = uvicorn.Config(
            stand_in.app(),
            log_level="error",
            access_log=False,
            lifespan="off",
            timeout_graceful_shutdown=1,
        )
        server = uvicorn.Server(config)
        thread = threading.Thread(
            target=server.run, args=([listener],), name="stand-in", daemon=True
        )
        thread.start()
        try:
            deadline = time.monotonic() + START_SECONDS
            while not server.started:
                if not thread.is_alive() or time.monotonic() > deadline:
                    raise RuntimeError(f"the stand-in did not start within {START_SECONDS} s")
                time.sleep(0.005)
            yield f"http://{LOOPBACK}:{listener.getsockname()[1]}/v1"
        finally:
            server.should_exit = True
            thread.join()
