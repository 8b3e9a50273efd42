"""What `doctor` runs on a node: a tiny job that looks around and writes what it sees, section by section, to a file.

Every section is asked for in turn and written at once, so that one that hangs or dies hides none before it.
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
TURNED = 64 * 1024  # bytes of the file that is replaced again and again
VERSIONS = ("torch", "vllm", "transformers", "submitit")
# Each module in a line of its own, so that one that kills the interpreter is known by what is missing.
_IMPORTS = """
import importlib, sys
for name in sys.argv[1:]:
    importlib.import_module(name)
    print("imported", name, flush=True)
"""


@dataclass(frozen=True)
class Probe:
    """Look at a node. submitit pickles it by this module's name, which the job finds in `code`, as it finds CellJob.

    `token` is what `folder`/token holds where doctor runs; `modules` are those the cells of these jobs import, `places`
    their scratch and cache; `addresses` (host, port), `paths` and `keys` (names only) what they need besides.
    """

    folder: str
    code: str
    token: str
    interface: str | None
    gpus: int
    modules: tuple[str, ...]
    places: tuple[str, ...] = ()
    addresses: tuple[tuple[str, int], ...] = ()
    paths: tuple[str, ...] = ()
    keys: tuple[str, ...] = ()

    def __call__(self) -> None:
        """Write facts-<job>-<rank>.json: section -> what was found, or {"error": why it could not be}."""
        sys.path.insert(0, self.code)
        rank = int(os.environ.get("SLURM_PROCID", 0))
        name = f"{os.environ['SLURM_JOB_ID']}-{rank}"
        export_ranks(self.interface)
        sections: dict[str, Callable[[], Any]] = {
            "shared": lambda: shared(Path(self.folder), self.token, name),
            "commands": lambda: [command for command in ("scontrol", "sbatch", "squeue") if not shutil.which(command)],
            "python": lambda: list(sys.version_info[:3]),
            "writable": lambda: writable(self.places),
            "keys": lambda: [key for key in self.keys if not os.environ.get(key)],
            "paths": lambda: [path for path in self.paths if not os.path.exists(path)],
            "addresses": lambda: {f"{host}:{port}": reach(host, port) for host, port in self.addresses},
        }
        if self.gpus:
            sections["gpus"] = gpus
        if "RANK" in os.environ:
            sections["all-reduce"] = lambda: all_reduce(self.gpus > 0)
        if rank == 0:  # the environment is one for all nodes, and takes long to load: last, so that no rank waits
            sections["packages"] = lambda: packages(self.modules)
        facts: dict[str, Any] = {"host": socket.gethostname(), "sections": list(sections)}
        for section, look in sections.items():
            try:
                facts[section] = look()
            except Exception as error:
                facts[section] = {"error": f"{type(error).__name__}: {error}".splitlines()[0]}
            write_atomically(Path(self.folder) / f"facts-{name}.json", json.dumps(facts))


def shared(folder: Path, token: str, name: str) -> dict[str, Any]:
    """How `folder` looks from here: the token in it, whether doctor's lock holds, seconds until doctor's answer shows.

    The round trip goes by this clock alone. Meanwhile a file is replaced again and again for doctor to read.
    """
    found: dict[str, Any] = {"same": (folder / "token").read_text() == token}
    turning = threading.Event()
    write_atomically(folder / f"turning-{name}", "a" * TURNED)
    turner = threading.Thread(target=_turn, args=(folder / f"turning-{name}", turning, found), daemon=True)
    turner.start()
    started = time.monotonic()
    write_atomically(folder / f"ping-{name}", token)
    while not (answered := (folder / f"pong-{name}").exists()) and time.monotonic() - started < ANSWER_SECONDS:
        time.sleep(0.02)
    found["seconds"] = time.monotonic() - started if answered else None
    time.sleep(1)  # doctor still reads
    turning.set()
    turner.join(10)
    for lock, field in (("lock", "doctor"), (f"lock-{name}", "own")):
        try:
            with locked(folder / lock, wait=False) as free:
                found[f"{field} lock"] = "taken" if free else "held"
        except OSError as error:
            found[f"{field} lock"] = error.strerror
    return found


def _turn(path: Path, enough: threading.Event, found: dict[str, Any]) -> None:
    letters = "ab"
    while not enough.wait(0.02):
        letters = letters[::-1]
        try:
            write_atomically(path, letters[0] * TURNED)
        except OSError as error:
            found["rename"] = error.strerror
            return


def torn(path: Path, times: int = 20) -> int:
    """How often, of `times` readings of a file that is being replaced, it was missing or neither old nor new."""
    bad = 0
    for _ in range(times):
        time.sleep(0.01)
        try:
            content = path.read_bytes()
        except FileNotFoundError:
            bad += 1
        except OSError as error:
            # NFS, where it is replaced between opening and reading. The next reading finds the new one.
            bad += error.errno != errno.ESTALE
        else:
            bad += len(content) != TURNED or len(set(content)) != 1
    return bad


def writable(places: tuple[str, ...]) -> dict[str, str]:
    """Folders, with this node's variables filled in -> "" or why they can't be made and written.

    Not by TMPDIR: Slurm sets it to /tmp where it can't make the folder, and says so in its own log only.
    """
    found = {}
    for place in map(os.path.expandvars, places):
        try:
            os.makedirs(place, exist_ok=True)
            with tempfile.TemporaryFile(dir=place):
                found[place] = ""
            with contextlib.suppress(OSError):
                os.rmdir(place)  # only where it is empty
        except OSError as error:
            found[place] = error.strerror or str(error)
    return found


def reach(host: str, port: int) -> str:
    """Why no connection to an address, or to the proxy that leads there, can be opened, or "" where one can."""
    proxy = urlsplit(getproxies().get("http" if port == 80 else "https", ""))
    if proxy.hostname and not proxy_bypass(host):
        host, port = proxy.hostname, proxy.port or 80
    try:
        socket.create_connection((host, port), timeout=5).close()
        return ""
    except (OSError, UnicodeError) as error:
        return str(error)


def packages(modules: tuple[str, ...]) -> dict[str, Any]:
    """Versions of the main packages, and the first of `modules` that can't be imported, with its last words."""
    started = time.monotonic()
    command = [sys.executable, "-c", _IMPORTS, *modules]
    result = subprocess.run(command, capture_output=True, text=True, timeout=240)
    done = re.findall(r"^imported (\S+)$", result.stdout, re.MULTILINE)
    failed = next((name for name in modules if name not in done), None)
    words = [line for line in result.stderr.splitlines() if line.strip()] or [f"exit {result.returncode}"]
    versions = {}
    for name in VERSIONS:
        with contextlib.suppress(PackageNotFoundError):
            versions[name] = version(name)
    seconds = time.monotonic() - started
    return {"versions": versions, "failed": failed, "why": words[-1] if failed else "", "seconds": seconds}


def gpus() -> dict[str, Any]:
    """GPUs that torch sees (name, GiB) and can compute on, the CUDA that torch is built for and the driver allows."""
    import torch

    found: dict[str, Any] = {"torch": torch.__version__, "built for": torch.version.cuda, "driver": None, "error": ""}
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        text = subprocess.run(["nvidia-smi"], capture_output=True, text=True, timeout=60).stdout
        if match := re.search(r"CUDA (?:\w+ )?Version\s*:\s*([\d.]+)", text):
            found["driver"] = match[1]
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    seen = [torch.cuda.get_device_properties(k) for k in range(count)]
    found["cards"] = [[card.name, round(card.total_memory / 2**30)] for card in seen]
    for k in range(count):
        torch.ones(8, 8, device=f"cuda:{k}").sum().item()
    return found


def all_reduce(nccl: bool) -> dict[str, Any]:
    """Sum 16 MiB over the ranks, as trainings do, by the address and interface that they use. Seconds of the second."""
    import torch
    import torch.distributed as dist

    device = torch.device("cuda", 0) if nccl and torch.cuda.is_available() else torch.device("cpu")
    backend = "nccl" if device.type == "cuda" else "gloo"
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
        there = ", ".join(name for _, name in socket.if_nameindex())
        words = re.sub(r"^\[[^]]*\] ", "", str(error).splitlines()[0])
        return {"error": f"{words} (interfaces here: {there})"}
    world = int(os.environ["WORLD_SIZE"])
    return {"backend": backend, "right": total == world * world, "seconds": seconds}
