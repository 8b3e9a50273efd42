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
import sysconfig
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

from core import shell_limits
from core.cell.failures import explain
from core.errors import Problem, UserError
from core.files import locked, write_atomically
from core.gpu import why_no_gpu
from slurm import slurm_cli
from slurm.collectives import all_reduce
from slurm.job import export_ranks

ANSWER_SECONDS = 60
MEET_SECONDS = 120  # the other ranks of a node wait this long for what the first one inspects
IMPORT_SECONDS = 240
START_SECONDS = 240
WRITE_BYTES = 512 * 2**20  # to measure how fast the runs folder is written
WRITABLE_BYTES = 4 * 2**20  # written into scratch and cache: a full disk takes an empty file
REPLACED_BYTES = 64 * 1024  # size of the file that is replaced while doctor reads it
VERSIONS = ("torch", "vllm", "transformers", "submitit")
# Prints a line per module: one that kills the interpreter is the first that is missing.
_IMPORTS = """
import importlib, sys
for name in sys.argv[1:]:
    importlib.import_module(name)
    print("imported", name, flush=True)
"""
# Triton compiles its launcher in C, and the kernel for the GPU. Kernels of CPUs are C++.
_KERNEL = """
import sys
sys.path.insert(0, sys.argv[1])
import torch
from core.gpu import check_capability
if sys.argv[2] == "cuda":
    check_capability()
add = torch.compile(lambda x: x * 2 + 1)
assert add(torch.ones(64, device=sys.argv[2])).sum().item() == 192
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
    script: str = ""  # that a job which submits more would give to sbatch
    trains: bool = False  # whether trainings run on these nodes
    vllm: bool = False  # whether vLLM does
    compiles: bool = False  # whether torch.compile does

    def __call__(self) -> None:
        """Write facts-<job>-<rank>.json: section -> facts, or {"error": reason}."""
        sys.path.insert(0, self.code)
        rank = int(os.environ.get("SLURM_PROCID", 0))
        name = f"{os.environ['SLURM_JOB_ID']}-{rank}"
        facts: dict[str, Any] = {"host": socket.gethostname()}
        network: UserError | None = None
        try:
            export_ranks(self.interface)
        except UserError as error:
            network = error
        sections = self._sections(rank, name, network)
        facts["sections"] = list(sections)
        for section, inspect in sections.items():
            try:
                facts[section] = inspect()
            except Exception as error:
                message = f"{type(error).__name__}: {error}"
                facts[section] = {"error": message.splitlines()[0]}
            write_atomically(Path(self.folder) / f"facts-{name}.json", json.dumps(facts))

    def _sections(
        self, rank: int, name: str, network: UserError | None
    ) -> dict[str, Callable[[], Any]]:
        """What this rank inspects: all of its node, or, after the node's first, the ranks alone.

        network: why the ranks can't find each other.
        """
        ranks: dict[str, Callable[[], Any]] = {}
        if network:
            problem = network.problems[0]
            verdict = {"error": f"{problem.where}: {problem.what}", "fix": problem.fix}
            ranks = {"all-reduce": lambda: verdict}
        elif "RANK" in os.environ:
            ranks = {"all-reduce": lambda: self._all_reduce(rank)}
        if os.environ.get("SLURM_LOCALID", "0") != "0":
            return ranks
        sections: dict[str, Callable[[], Any]] = {
            "shared": lambda: shared(Path(self.folder), self.token, name),
            "submit": lambda: refusal(self.script),
            "python": lambda: list(sys.version_info[:3]),
            "limits": shell_limits.tight,
            "writable": lambda: writable(self.writable),
            "keys": lambda: [key for key in self.keys if not os.environ.get(key)],
            "paths": lambda: [path for path in self.paths if not os.path.exists(path)],
            "addresses": lambda: {
                f"{host}:{port}": reach(host, port) for host, port in self.addresses
            },
        }
        if self.trains:
            sections["write rate"] = lambda: write_rate(Path(self.folder) / f"written-{name}")
        if self.gpus:
            sections["gpus"] = gpus
        if self.compiles:
            sections["compiler"] = lambda: compiler(self.folder, self.code, self.gpus > 0)
        sections |= ranks
        # All nodes share one environment, which takes long to import. It comes last, so that no
        # rank waits for it.
        if rank == 0:
            sections["packages"] = lambda: packages(self.modules)
            if self.gpus and self.vllm:
                sections["vLLM"] = lambda: start_vllm(Path(self.folder) / f"model-{name}")
        return sections

    def _all_reduce(self, rank: int) -> dict[str, Any]:
        job, world = os.environ["SLURM_JOB_ID"], int(os.environ["WORLD_SIZE"])
        (Path(self.folder) / f"rank-{job}-{rank}").touch()
        deadline = time.monotonic() + MEET_SECONDS
        while len(list(Path(self.folder).glob(f"rank-{job}-*"))) < world:
            if time.monotonic() > deadline:
                break  # the error of the all-reduce says more
            time.sleep(0.1)
        return all_reduce(self.gpus > 0)


def refusal(script: str) -> str:
    """Why this node could not submit a job; "" where it could."""
    try:
        slurm_cli.require_slurm()
        return slurm_cli.test_submission(script) or ""
    except UserError as error:
        return str(Problem(error.problems[0].where, error.problems[0].what))


def shared(folder: Path, token: str, name: str) -> dict[str, Any]:
    """Facts about the shared `folder`, seen from this node.

    Returns `same` (whether doctor's token is in it), `seconds` until doctor's answer to a ping
    shows (by this node's clock alone; None: it does not), by how many seconds this node's clock is
    `ahead` of doctor's, which writes its time into the answer, and `doctor lock` and `own lock`
    (held, taken, or an error). Meanwhile a file is replaced again and again, for doctor to read; an
    error of that is in `rename`.
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
    if facts["seconds"] is not None:
        facts["ahead"] = time.time() - facts["seconds"] / 2 - float(pong.read_text())
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
    except UserError as error:
        return error.problems[0].what.removeprefix("flock: ")
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
            with tempfile.TemporaryFile(dir=folder) as file:
                file.write(bytes(WRITABLE_BYTES))
                file.flush()
                os.fsync(file.fileno())
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
    driver supports; None: nvidia-smi doesn't say), `cards` (name and GiB of each GPU that torch
    sees) and `why` (torch's own words where it sees none). Raises RuntimeError where torch can't
    compute on one of them.
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
    facts["why"] = "" if count else why_no_gpu()
    cards = [torch.cuda.get_device_properties(index) for index in range(count)]
    facts["cards"] = [[card.name, round(card.total_memory / 2**30)] for card in cards]
    for index in range(count):
        torch.ones(8, 8, device=f"cuda:{index}").sum().item()
    return facts


def write_rate(path: Path) -> float:
    """Bytes a second at which one process writes a file of WRITE_BYTES, down to the disk."""
    block = os.urandom(8 * 2**20)
    started = time.monotonic()
    with open(path, "wb") as file:
        for _ in range(WRITE_BYTES // len(block)):
            file.write(block)
        file.flush()
        os.fsync(file.fileno())
    seconds = time.monotonic() - started
    path.unlink()
    return WRITE_BYTES / seconds


def compiler(folder: str, code: str, on_gpu: bool) -> dict[str, Any]:
    """Compile what torch and vLLM compile on a node: a C file with Python.h, and a kernel.

    Returns `seconds`. Raises RuntimeError with the compiler's own error.
    """
    started = time.monotonic()
    compile_extension(folder)
    result = subprocess.run(
        [sys.executable, "-c", _KERNEL, code, "cuda" if on_gpu else "cpu"],
        capture_output=True,
        text=True,
        timeout=START_SECONDS,
    )
    if result.returncode:
        raise RuntimeError(f"a compiled kernel does not run: {_last_line(result.stderr)}")
    return {"seconds": time.monotonic() - started}


def compile_extension(folder: str) -> None:
    """Compile a C file that includes Python.h, by the compiler that Triton takes.

    Raises RuntimeError where there is none, or where it fails.
    """
    # The order of triton.runtime.build.
    names = [os.environ.get("CC"), "gcc", "clang"]
    command = next((path for name in names if name and (path := shutil.which(name))), None)
    if not command:
        raise RuntimeError("no C compiler on PATH (CC, gcc or clang)")
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        source = Path(scratch) / "one.c"
        source.write_text(
            "#include <Python.h>\nlong one(void) { return PyLong_AsLong(Py_None); }\n"
        )
        words = [
            "-shared",
            "-fPIC",
            f"-I{sysconfig.get_path('include')}",
            "-o",
            f"{scratch}/one.so",
        ]
        result = subprocess.run([command, *words, source], capture_output=True, text=True)
    if result.returncode:
        errors = [line for line in result.stderr.splitlines() if "error" in line]
        raise RuntimeError(f"{command}: {(errors or ['it failed'])[0]}")


def start_vllm(folder: Path) -> dict[str, Any]:
    """Start vLLM in a fresh process on a checkpoint of random weights, and answer one request.

    Returns `seconds`, or `error` with the telling line.
    """
    started = time.monotonic()
    command = [sys.executable, "-m", "core.inference.vllm_check", str(folder)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=START_SECONDS)
    if result.returncode:
        failure, line = explain([(result.stdout + result.stderr).splitlines()])
        reason = line or _last_line(result.stderr)
        return {"error": reason.strip(), "fix": failure.fix if failure else ""}
    return {"seconds": time.monotonic() - started}


def _last_line(text: str) -> str:
    return next((line for line in reversed(text.splitlines()) if line.strip()), "no message")
