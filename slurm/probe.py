"""The job that `doctor` runs on a node: it inspects the node and writes the facts to a file.

The file is rewritten after each section, so a section that hangs or dies hides none before it.
"""

import contextlib
import errno
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

from core.files import locked, write_atomically
from slurm.job import export_ranks

ANSWER_SECONDS = 60
COLLECTIVE_SECONDS = 60
IMPORT_SECONDS = 240
REPLACED_BYTES = 64 * 1024  # size of the file that is replaced while doctor reads it
VERSIONS = ("torch", "vllm", "transformers", "submitit")
# Prints a line per module: one that kills the interpreter is the first that is missing.
_IMPORTS = """
import importlib, sys
for name in sys.argv[1:]:
    importlib.import_module(name)
    print("imported", name, flush=True)
"""


@dataclass(frozen=True)
class Probe:
    """Inspect a node.

    submitit pickles it by the name of this module, which the job imports from `code`, as CellJob.
    """

    folder: str  # shared with doctor
    code: str
    token: str  # the content of `folder`/token, as doctor sees it
    interface: str | None
    gpus: int
    modules: tuple[str, ...]  # imported by the cells of these jobs
    writable: tuple[str, ...] = ()  # scratch and cache folders
    addresses: tuple[tuple[str, int], ...] = ()  # host and port
    paths: tuple[str, ...] = ()
    keys: tuple[str, ...] = ()  # names of environment variables

    def __call__(self) -> None:
        """Write facts-<job>-<rank>.json: section -> facts, or {"error": reason}."""
        sys.path.insert(0, self.code)
        rank = int(os.environ.get("SLURM_PROCID", 0))
        name = f"{os.environ['SLURM_JOB_ID']}-{rank}"
        export_ranks(self.interface)
        facts: dict[str, Any] = {"host": socket.gethostname()}
        sections = self._sections(rank, name)
        facts["sections"] = list(sections)
        for section, inspect in sections.items():
            try:
                facts[section] = inspect()
            except Exception as error:
                message = f"{type(error).__name__}: {error}"
                facts[section] = {"error": message.splitlines()[0]}
            write_atomically(Path(self.folder) / f"facts-{name}.json", json.dumps(facts))

    def _sections(self, rank: int, name: str) -> dict[str, Callable[[], Any]]:
        sections: dict[str, Callable[[], Any]] = {
            "shared": lambda: shared(Path(self.folder), self.token, name),
            "commands": missing_commands,
            "python": lambda: list(sys.version_info[:3]),
            "writable": lambda: writable(self.writable),
            "keys": lambda: [key for key in self.keys if not os.environ.get(key)],
            "paths": lambda: [path for path in self.paths if not os.path.exists(path)],
            "addresses": lambda: {
                f"{host}:{port}": reach(host, port) for host, port in self.addresses
            },
        }
        if self.gpus:
            sections["gpus"] = gpus
        if "RANK" in os.environ:
            sections["all-reduce"] = lambda: all_reduce(self.gpus > 0)
        # All nodes share one environment, which takes long to import. It comes last, so that no
        # rank waits for it.
        if rank == 0:
            sections["packages"] = lambda: packages(self.modules)
        return sections


def missing_commands() -> list[str]:
    """Slurm's commands that jobs need and that are not on PATH."""
    return [name for name in ("scontrol", "sbatch", "squeue") if not shutil.which(name)]


def shared(folder: Path, token: str, name: str) -> dict[str, Any]:
    """Facts about the shared `folder`, seen from this node.

    Returns `same` (whether doctor's token is in it), `seconds` until doctor's answer to a ping
    shows (by this node's clock alone; None: it does not), and `doctor lock` and `own lock` (held,
    taken, or an error). Meanwhile a file is replaced again and again, for doctor to read; an error
    of that is in `rename`.
    """
    facts: dict[str, Any] = {"same": (folder / "token").read_text() == token}
    replaced = folder / f"replaced-{name}"
    stop = threading.Event()
    write_atomically(replaced, "a" * REPLACED_BYTES)
    thread = threading.Thread(target=replace_repeatedly, args=(replaced, stop, facts), daemon=True)
    thread.start()
    started = time.monotonic()
    write_atomically(folder / f"ping-{name}", token)
    pong = folder / f"pong-{name}"
    while not pong.exists() and time.monotonic() - started < ANSWER_SECONDS:
        time.sleep(0.02)
    facts["seconds"] = time.monotonic() - started if pong.exists() else None
    time.sleep(1)  # doctor is still reading
    stop.set()
    thread.join(10)
    facts["doctor lock"] = _try_lock(folder / "lock")
    facts["own lock"] = _try_lock(folder / f"lock-{name}")
    return facts


def _try_lock(path: Path) -> str | None:
    try:
        with locked(path, wait=False) as free:
            return "taken" if free else "held"
    except OSError as error:
        return error.strerror


def replace_repeatedly(path: Path, stop: threading.Event, facts: dict[str, Any]) -> None:
    """Replace a file by one of other content until `stop`. An error ends it, as facts["rename"]."""
    letters = "ab"
    while not stop.wait(0.02):
        letters = letters[::-1]
        try:
            write_atomically(path, letters[0] * REPLACED_BYTES)
        except OSError as error:
            facts["rename"] = error.strerror
            return


def torn_reads(path: Path, times: int = 20) -> int:
    """Read a file that is being replaced. Counts reads of a missing or half-written file."""
    torn = 0
    for _ in range(times):
        time.sleep(0.01)
        try:
            content = path.read_bytes()
        except FileNotFoundError:
            torn += 1
        except OSError as error:
            # On NFS, ESTALE means that the file was replaced between opening and reading. The next
            # read finds the new file.
            torn += error.errno != errno.ESTALE
        else:
            torn += len(content) != REPLACED_BYTES or len(set(content)) != 1
    return torn


def writable(folders: tuple[str, ...]) -> dict[str, str]:
    """Folder (with this node's variables filled in) -> why it can't be written, or "".

    TMPDIR does not show it: Slurm sets TMPDIR to /tmp where it can't create the folder, and says
    so in its own log only.
    """
    reasons = {}
    for folder in map(os.path.expandvars, folders):
        try:
            os.makedirs(folder, exist_ok=True)
            with tempfile.TemporaryFile(dir=folder):
                reasons[folder] = ""
            with contextlib.suppress(OSError):
                os.rmdir(folder)  # only where it is empty
        except OSError as error:
            reasons[folder] = error.strerror or str(error)
    return reasons


def reach(host: str, port: int) -> str:
    """Why an address, or the proxy for it, can't be connected to; "" where it can."""
    proxy = urlsplit(getproxies().get("http" if port == 80 else "https", ""))
    address = (host, port)
    if proxy.hostname and not proxy_bypass(host):
        address = (proxy.hostname, proxy.port or 80)
    try:
        socket.create_connection(address, timeout=5).close()
        return ""
    except (OSError, UnicodeError) as error:
        return str(error)


def packages(modules: tuple[str, ...]) -> dict[str, Any]:
    """Import the modules in a fresh process.

    Returns `versions` of the main packages, `failed` (the first module that can't be imported) and
    `why` (the last line of its error), and `seconds`.
    """
    started = time.monotonic()
    command = [sys.executable, "-c", _IMPORTS, *modules]
    result = subprocess.run(command, capture_output=True, text=True, timeout=IMPORT_SECONDS)
    imported = re.findall(r"^imported (\S+)$", result.stdout, re.MULTILINE)
    failed = next((name for name in modules if name not in imported), None)
    errors = [line for line in result.stderr.splitlines() if line.strip()]
    why = (errors or [f"exit {result.returncode}"])[-1]
    versions = {}
    for name in VERSIONS:
        with contextlib.suppress(PackageNotFoundError):
            versions[name] = version(name)
    seconds = time.monotonic() - started
    return {
        "versions": versions,
        "failed": failed,
        "why": why if failed else "",
        "seconds": seconds,
    }


def gpus() -> dict[str, Any]:
    """Facts about the GPUs and the driver.

    Returns `torch` (version), `built for` (torch's CUDA), `driver` (the newest CUDA that the
    driver supports) and `cards` (name and GiB of each GPU that torch sees). Raises RuntimeError
    where torch can't compute on one of them.
    """
    import torch

    facts: dict[str, Any] = {
        "torch": torch.__version__,
        "built for": torch.version.cuda,
        "driver": None,
        "error": "",
    }
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        command = ["nvidia-smi"]
        output = subprocess.run(command, capture_output=True, text=True, timeout=60).stdout
        if match := re.search(r"CUDA (?:\w+ )?Version\s*:\s*([\d.]+)", output):
            facts["driver"] = match[1]
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    cards = [torch.cuda.get_device_properties(index) for index in range(count)]
    facts["cards"] = [[card.name, round(card.total_memory / 2**30)] for card in cards]
    for index in range(count):
        torch.ones(8, 8, device=f"cuda:{index}").sum().item()
    return facts


def all_reduce(nccl: bool) -> dict[str, Any]:
    """All-reduce 16 MiB over the ranks, with the address and interface that trainings use.

    Returns `backend`, `right` (whether the sum is), and `seconds` of the second all-reduce; or
    `error`, with this node's network `interfaces`.
    """
    import torch
    import torch.distributed as dist

    cuda = nccl and torch.cuda.is_available()
    device = torch.device("cuda", 0) if cuda else torch.device("cpu")
    backend = "nccl" if cuda else "gloo"
    try:
        dist.init_process_group(backend, timeout=timedelta(seconds=COLLECTIVE_SECONDS))
        numbers = torch.ones(4 * 2**20, device=device)
        for _ in range(2):  # the first also connects
            dist.barrier()
            started = time.monotonic()
            dist.all_reduce(numbers)
            total = numbers[0].item()
        seconds = time.monotonic() - started
        dist.destroy_process_group()
    except Exception as error:
        interfaces = [name for _, name in socket.if_nameindex()]
        reason = re.sub(r"^\[[^]]*\] ", "", str(error).splitlines()[0])
        return {
            "error": f"{reason} (interfaces here: {', '.join(interfaces)})",
            "interfaces": interfaces,
        }
    world = int(os.environ["WORLD_SIZE"])
    return {"backend": backend, "right": total == world * world, "seconds": seconds}
