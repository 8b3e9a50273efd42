"""A process that has imported what a kind of cell needs, and forks a child for each batch of cells.

torch, vLLM and Inspect take seconds to import, a fork takes milliseconds. Each batch still runs in
a process of its own: a crash, a signal, memory and global state stay with it. The server starts no
thread and does not touch a GPU, because neither survives a fork.

The executor holds `ForkServer` and `Child`. `python -m core.cell.fork_server` is the server.
"""

import atexit
import contextlib
import ctypes
import gc
import itertools
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.context import ForkProcess
from pathlib import Path
from typing import Any

from core.cell.log import log_to
from core.cell.run import run_cells
from core.cell.stage import preload
from core.paths import ROOT

POLL_SECONDS = 0.02
INTERRUPTED = 128 + signal.SIGINT
# A shell that ran torchrun, or a job's, may have these. Only the executor makes ranks here, all of
# them on this machine.
OF_RANKS = {
    *("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"),
    *("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"),
}
IMPORTS = -1  # stands for a child's number, when the server has imported everything


class ForkServer:
    """A server of some stages' cells, seen from the executor that starts it.

    The server and its children end with the executor, even by SIGKILL.

    Args:
        stages: The stages whose modules it imports.
        log_folder: The cell whose log.txt gets what the imports print.
    """

    def __init__(self, stages: Sequence[str], log_folder: Path) -> None:
        self._connection, theirs = multiprocessing.Pipe()
        self._numbers = itertools.count()
        self._statuses: dict[int, int] = {}
        # One thread per process: two busy ones on two cores slow torch down many times, and results
        # stay the same whatever else runs. `python -m` puts the checkout first on sys.path, before
        # the `recipes` that torchtune installs.
        environment = {
            **{name: value for name, value in os.environ.items() if name not in OF_RANKS},
            "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1"),
            "PYTHONUNBUFFERED": "1",
            # torch then asks NVML, not CUDA, whether there are GPUs: CUDA does not survive a fork.
            "PYTORCH_NVML_BASED_CUDA_CHECK": "1",
        }
        module = "core.cell.fork_server"
        self.process = subprocess.Popen(
            [sys.executable, "-m", module, str(theirs.fileno()), str(log_folder), *stages],
            cwd=ROOT,
            env=environment,
            stdin=subprocess.DEVNULL,
            pass_fds=[theirs.fileno()],
            preexec_fn=_die_with_parent,
        )
        theirs.close()

    def start(self, folders: Sequence[Path], environment: dict[str, str]) -> "Child":
        """Run these cells one after another in a child; `environment` is added to its own."""
        number = next(self._numbers)
        self._send((number, tuple(folders), environment))
        return Child(self, number)

    def signal(self, number: int, signal_number: int) -> None:
        """Send a signal to a child, unless it has ended."""
        self._send((number, signal_number))

    def _send(self, message: object) -> None:
        with contextlib.suppress(OSError):  # that it is dead shows in its children's status
            self._connection.send(message)

    @property
    def ready(self) -> bool:
        """Whether it has imported everything, or died."""
        return self.status(IMPORTS) is not None

    def status(self, number: int) -> int | None:
        """The exit status of a child, as Popen's returncode; None while it runs.

        Where the server has died, its children have too: the status is the server's.
        """
        died = self.process.poll()
        with contextlib.suppress(EOFError, OSError):
            while self._connection.poll():
                ended, status = self._connection.recv()
                self._statuses[ended] = status
        return self._statuses.get(number, died)

    def close(self) -> None:
        """End the server, whose children have ended."""
        self._connection.close()
        self.process.wait()


@dataclass(frozen=True)
class Child:
    """A batch of cells in a process of its own, seen from the executor."""

    server: ForkServer
    number: int

    def poll(self) -> int | None:
        """The exit status (negative: a signal); None while it runs."""
        return self.server.status(self.number)

    def send_signal(self, signal_number: int) -> None:
        """Send a signal, unless it has ended."""
        self.server.signal(self.number, signal_number)

    def wait(self) -> int:
        """Block until it has ended; returns the exit status."""
        while (status := self.poll()) is None:
            time.sleep(POLL_SECONDS)
        return status


def _die_with_parent() -> None:
    """Ask the kernel (Linux) to end this process when its parent dies, even by SIGKILL."""
    if sys.platform == "linux":
        pr_set_pdeathsig = 1
        ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL)


def main(descriptor: str, log_folder: str, *stages: str) -> None:
    """The server: import, then fork a child for each batch until the executor closes."""
    # Ctrl-C reaches all processes of the terminal. The children act on it as the executor would.
    on_interrupt = signal.signal(signal.SIGINT, signal.SIG_IGN)
    connection: Connection[Any, Any] = Connection(int(descriptor))
    _import(stages, Path(log_folder))
    # Else each child's collections would write to, and so copy, the pages of all that is imported.
    gc.freeze()
    with contextlib.suppress(BrokenPipeError):  # the executor closed, or was killed
        _serve(connection, on_interrupt)


def _serve(connection: Connection, on_interrupt: Any) -> None:
    connection.send((IMPORTS, 0))
    children: dict[int, ForkProcess] = {}
    context = multiprocessing.get_context("fork")
    while True:
        if connection.poll(POLL_SECONDS if children else None):
            try:
                message = connection.recv()
            except EOFError:
                return
            match message:
                case number, folders, environment:
                    arguments = (folders, environment, connection, on_interrupt, os.getpid())
                    children[number] = context.Process(target=_run, args=arguments)
                    children[number].start()
                case number, signal_number:
                    child = children.get(number)
                    if child and child.exitcode is None and child.pid:
                        os.kill(child.pid, signal_number)
        for number, child in list(children.items()):
            if child.exitcode is not None:
                connection.send((number, child.exitcode))
                del children[number]


def _import(stages: Sequence[str], log_folder: Path) -> None:
    """Import the stages and what they need.

    What can't be imported is left to its cells, which then have the error in their logs.
    """
    with log_to(log_folder):
        for stage in stages:
            with contextlib.suppress(Exception):
                preload(stage)


def _run(
    folders: Sequence[Path],
    environment: dict[str, str],
    connection: Connection,
    on_interrupt: Any,
    server: int,
) -> None:
    """A child: run the cells of a batch, and exit as `python -m study cell` would."""
    _die_with_parent()
    if os.getppid() != server:
        os._exit(1)  # it died before the kernel had been asked
    signal.signal(signal.SIGINT, on_interrupt)
    connection.close()
    os.environ.update(environment)
    atexit._clear()  # what the imports have registered is for the server's end
    try:
        if _uses_cuda():
            command = [sys.executable, "-m", "study", "cell", "--log", *map(str, folders)]
            os.execv(sys.executable, command)
        status = run_cells(folders)
    except KeyboardInterrupt:
        status = INTERRUPTED
    atexit._run_exitfuncs()
    sys.exit(status)


def _uses_cuda() -> bool:
    """Whether an import has initialized CUDA, which then works in no fork: a process that has holds
    this device open."""
    return any(
        path.is_symlink() and os.readlink(path) == "/dev/nvidia-uvm"
        for path in Path("/proc/self/fd").iterdir()
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
