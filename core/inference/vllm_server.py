"""A vLLM server of one job's own: a local model as document writer or judge, on the loopback interface."""

import ctypes
import json
import os
import re
import secrets
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from core.cell.failures import diagnose
from core.endpoints.loopback import LOOPBACK
from core.errors import UserError
from core.files import fingerprints
from core.paths import ROOT

# Weights come slowly from a busy network disk, but a start that hangs must not hold a GPU for ever.
START_SECONDS = 1800
# The shell stays between job and server: it ends the server and all that the server started when it is told to, which
# the kernel does when the job dies. 5 s is for vLLM to free shared memory.
SHELL = """
trap 'kill $server; (sleep 5; kill -9 0) & wait $server; kill -9 0' TERM
"$@" & server=$!
wait $server; echo "exit status $?"; kill -9 0
"""
OPTIONS: dict[str, Any] = {
    "generation_config": "vllm",  # sampling is the study's, never the checkpoint's
    "enable_prefix_caching": False,  # an answer must not depend on those before it
    "uvicorn_log_level": "warning",
}
ENVIRONMENT = {
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
    "HF_HUB_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
}
# Of vLLM's CPU build, whose defaults are for a machine of its own; eval/engine.py tells why for each.
CPU_OPTIONS = {
    "dtype": "float32",
    "enforce_eager": True,
    "kv_cache_memory_bytes": 128 << 20,
    "enable_chunked_prefill": False,
}
CPU_ENVIRONMENT = {
    "TORCHDYNAMO_DISABLE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "OMP_NUM_THREADS": "1",
}
# In the server's log: what tells of a mistake, what does not, and what stands before it in a line.
ERROR, NO_ERROR = (
    re.compile(r"rror[:,] (?!\d+ validation error)"),
    re.compile(r" (INFO|WARNING) \d"),
)
PREFIX = re.compile(r"^\(\w+ pid=\d+\) |[A-Z]+ [-\d]+ [:\d]+ \[\S+\] ")


@contextmanager
def serve(
    endpoint: dict[str, Any], resources: dict[str, Any], log: Path
) -> Iterator[tuple[str, str]]:
    """`base_url` and key of a vLLM server that runs for the time of the `with` block, and not longer than this process.

    `endpoint`: `model`, the name it is served under, and `files`, the fingerprints its folder must have. `resources`:
    `path`, the Hugging Face folder, and `options` of `vllm serve`. What it prints goes to the file `log`.
    Raises UserError, with the log's telling line, when it doesn't start, or ends while the block raises UserError.
    """
    try:
        on_cpu = "cpu" in version("vllm")
    except PackageNotFoundError:
        raise UserError(
            "vLLM is not installed; served_by: vllm; install requirements.txt, or use a url"
        ) from None
    if fingerprints(resources["path"]) != endpoint["files"]:
        raise UserError(
            f"the model is not the one that was planned with; {resources['path']}; put its files back, or plan again"
        )
    with socket.socket() as probe:
        probe.bind((LOOPBACK, 0))
        port = probe.getsockname()[1]
    key = secrets.token_hex(16)  # others on this machine reach the loopback interface too
    options = OPTIONS | (CPU_OPTIONS if on_cpu else {}) | resources["options"]
    options |= {"host": LOOPBACK, "port": port, "served_model_name": endpoint["model"]}
    # -P: the checkout's folders must not hide packages of the same names.
    command = [
        sys.executable,
        "-P",
        "-m",
        "vllm.entrypoints.cli.main",
        "serve",
        resources["path"],
        *words(options),
    ]
    with open(log, "wb") as file:
        process = subprocess.Popen(
            ["sh", "-c", SHELL, "sh", *command],
            cwd=ROOT,
            env=ENVIRONMENT
            | (CPU_ENVIRONMENT if on_cpu else {})
            | os.environ
            | {"VLLM_API_KEY": key},
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=file,
            start_new_session=True,
            preexec_fn=_end_with_parent,
        )
    base_url = f"http://{LOOPBACK}:{port}/v1"
    try:
        _wait(process, base_url, key, endpoint["model"], log)
        yield base_url, key
    except UserError:
        if process.poll() is not None:  # then that is why calls failed
            raise _ended(log) from None
        raise
    finally:
        process.terminate()
        with suppress(subprocess.TimeoutExpired):
            process.wait(10)
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def words(options: dict[str, Any]) -> list[str]:
    """Options as vLLM's command line takes them: {"a_b": 1, "c": True, "d": False} is --a-b=1 --c --no-d."""
    found = []
    for name, value in options.items():
        name = name.replace("_", "-")
        if isinstance(value, bool):
            found.append(f"--{name}" if value else f"--no-{name}")
        else:
            found.append(
                f"--{name}={json.dumps(value) if isinstance(value, dict | list) else value}"
            )
    return found


def _end_with_parent() -> None:
    # Linux: told by SIGTERM when the thread that started it dies, even by SIGKILL.
    pr_set_pdeathsig = 1
    ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGTERM)


def _wait(process: subprocess.Popen[bytes], base_url: str, key: str, model: str, log: Path) -> None:
    # /health would do, but whatever else took the port meanwhile might answer that; it hardly serves this model.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    request = urllib.request.Request(
        f"{base_url}/models", headers={"Authorization": f"Bearer {key}"}
    )
    deadline = time.monotonic() + START_SECONDS
    while True:
        if process.poll() is not None:
            raise _ended(log)
        if time.monotonic() > deadline:
            raise UserError(
                f"vLLM did not answer within {START_SECONDS} s; {log}; see how far it came, then run again"
            )
        with (
            suppress(OSError, ValueError, KeyError, IndexError),
            opener.open(request, timeout=5) as reply,
        ):
            if json.load(reply)["data"][0]["id"] == model:
                return
        time.sleep(0.2)


def _ended(log: Path) -> UserError:
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines() or [
        "exit status unknown"
    ]
    # The first error is nearest to the cause; those after it tell of its consequences.
    errors = [line for line in lines if ERROR.search(line) and not NO_ERROR.search(line)] or lines[
        -1:
    ]
    status = re.search(r"^exit status (\d+)$", lines[-1])
    found = diagnose("\n".join(errors), int(status[1]) if status else None)
    what = " ".join(PREFIX.sub("", errors[0]).split())[:300]
    return UserError(
        f"vLLM ended ({what}); {log}; {found.cure if found else 'mend the model or the options'}"
    )
