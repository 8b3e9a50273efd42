"""A vLLM server for one job: a local model as document writer or judge, on loopback."""

import ctypes
import json
import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
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
from core.inference import vllm_log
from core.inference.vllm_engine import SOCKET_NAME_BYTES
from core.paths import ROOT, socket_folder

# Weights come slowly from a busy network disk, but a start that hangs must not hold a GPU for ever.
START_SECONDS = 1800
# The shell stays between job and server. On SIGTERM, which the kernel sends when the job dies, it
# ends the server and all that the server started. 5 s are for vLLM to free shared memory. It also
# removes the server's own folder for temporary files.
SHELL = """
trap 'kill $server; (sleep 5; kill -9 0) & wait $server; rm -rf "$TMPDIR"; kill -9 0' TERM
"$@" & server=$!
wait $server; echo "exit status $?"; rm -rf "$TMPDIR"; kill -9 0
"""
# Of the longest name of a socket in that folder, with the folder's own: vLLM's by a UUID.
TEMPORARY_BYTES = len("vllm-12345678/") + SOCKET_NAME_BYTES
MIDDLEWARE = str(ROOT / "core/inference/server_middleware")  # modules that the server imports
OPTIONS: dict[str, Any] = {
    "generation_config": "vllm",  # sampling is the study's, never the checkpoint's
    "enable_prefix_caching": False,  # an answer must not depend on earlier requests
    "uvicorn_log_level": "warning",
}
ENVIRONMENT = {
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
    "HF_HUB_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "VLLM_USE_FLASHINFER_SAMPLER": "0",  # compiling it needs nvcc (core/inference/vllm_engine.py)
    "VLLM_ENGINE_READY_TIMEOUT_S": str(START_SECONDS),  # vllm/envs.py: 600
}
# For vLLM's CPU build, whose defaults are for a machine of its own; core/inference/vllm_engine.py
# gives the reason for each.
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


@contextmanager
def serve(
    endpoint: dict[str, Any], resources: dict[str, Any], log: Path
) -> Iterator[tuple[str, str]]:
    """Run a vLLM server for the time of the `with` block, and not longer than this process.

    Args:
        endpoint: `model`, the name it is served under.
        resources: `path`, the Hugging Face folder, and `options` of `vllm serve`.
        log: The file for what the server prints.

    Yields:
        `base_url` and key.

    Raises:
        UserError: vLLM is not installed, or the server doesn't start or ends while the block raises
            UserError; with the line of the log that shows the error.
    """
    try:
        on_cpu = "cpu" in version("vllm")
    except PackageNotFoundError:
        raise UserError(
            where="served_by: vllm",
            what="vLLM is not installed",
            fix="install requirements.txt, or use a url",
        ) from None
    with socket.socket() as probe:
        probe.bind((LOOPBACK, 0))
        port = probe.getsockname()[1]
    key = secrets.token_hex(16)  # others on this machine reach the loopback interface too
    options = OPTIONS | (CPU_OPTIONS if on_cpu else {}) | resources["options"]
    options |= {"host": LOOPBACK, "port": port, "served_model_name": endpoint["model"]}
    options |= {"middleware": "require_key.RequireKey"}
    # -P: the checkout's folders must not hide packages of the same names.
    command = [
        sys.executable,
        "-P",
        "-m",
        "vllm.entrypoints.cli.main",
        "serve",
        resources["path"],
        *command_line_options(options),
    ]
    environment = ENVIRONMENT | (CPU_ENVIRONMENT if on_cpu else {}) | os.environ
    paths = [MIDDLEWARE, environment.get("PYTHONPATH")]
    environment |= {"PYTHONPATH": os.pathsep.join(filter(None, paths))}
    temporary = tempfile.mkdtemp(prefix="vllm-", dir=socket_folder(TEMPORARY_BYTES))
    environment |= {"TMPDIR": temporary, "VLLM_RPC_BASE_PATH": temporary}
    with open(log, "wb") as file:
        process = subprocess.Popen(
            ["sh", "-c", SHELL, "sh", *command],
            cwd=ROOT,
            # A shell's VLLM_BATCH_INVARIANT must not change grades or documents.
            env={**environment, "VLLM_API_KEY": key, "VLLM_BATCH_INVARIANT": "0"},
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
        shutil.rmtree(temporary, ignore_errors=True)


def command_line_options(options: dict[str, Any]) -> list[str]:
    """Options of `vllm serve` on its command line.

    {"a_b": 1, "c": True, "d": False} becomes --a-b=1 --c --no-d; lists and mappings become JSON.
    """
    words = []
    for key, value in options.items():
        name = key.replace("_", "-")
        if isinstance(value, bool):
            words.append(f"--{name}" if value else f"--no-{name}")
        else:
            text = json.dumps(value) if isinstance(value, dict | list) else value
            words.append(f"--{name}={text}")
    return words


def _end_with_parent() -> None:
    # Linux: SIGTERM is sent when the thread that started the process dies, even by SIGKILL.
    pr_set_pdeathsig = 1
    ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGTERM)


def _wait(process: subprocess.Popen[bytes], base_url: str, key: str, model: str, log: Path) -> None:
    # Not /health: another server that took the port meanwhile might answer that. It hardly serves
    # this model.
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
                where=str(log),
                what=f"vLLM did not answer within {START_SECONDS} s",
                fix="see how far it came, then run again",
            )
        with (
            suppress(OSError, ValueError, KeyError, IndexError),
            opener.open(request, timeout=5) as reply,
        ):
            if json.load(reply)["data"][0]["id"] == model:
                return
        time.sleep(0.2)


def _ended(log: Path) -> UserError:
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    # Processes that outlive the server may print after its exit status.
    statuses = [line for line in lines if re.search(r"^exit status \d+$", line)]
    last = [*lines, "exit status unknown", *statuses][-1]
    errors = vllm_log.errors(lines) or [last]
    failure = diagnose("\n".join(errors), int(last.split()[-1]) if statuses else None)
    reason = (vllm_log.first_error(lines) or last)[:300]
    return UserError(
        where=str(log),
        what=f"vLLM ended ({reason})",
        fix=failure.fix if failure else "correct the model or the options",
    )
