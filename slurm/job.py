"""What a Slurm job runs: some cells, one after another, from the snapshot of the code."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from submitit.helpers import DelayedSubmission

from core.cell.log import log_to
from core.cell.run import run_cell

_RANKS = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


@dataclass(frozen=True)
class CellJob:
    """Run the cells in `folders`. submitit pickles it by the name of this module, which the job finds in `code`."""

    code: str
    folders: tuple[str, ...]
    interface: str | None = None

    def __call__(self) -> None:
        """Raises RuntimeError that names the cells that failed; the cells behind one that failed are still run."""
        sys.path.insert(0, self.code)  # before the `recipes` that torchtune installs
        if scratch := os.environ.get("TMPDIR"):
            Path(scratch).mkdir(parents=True, exist_ok=True)  # here, because every node has its own
        export_ranks(self.interface)
        failed = []
        for folder in map(Path, self.folders):
            try:
                # Ranks above 0 keep to Slurm's own log of the task.
                with log_to(folder) if os.environ.get("RANK", "0") == "0" else contextlib.nullcontext():
                    run_cell(folder)
            except Exception:
                failed.append(folder)
            except SystemExit as end:
                if end.code == 128 + signal.SIGTERM:
                    _queue_again()
                raise
        if failed:
            raise RuntimeError("failed: " + ", ".join(f"{folder}/log.txt" for folder in failed))

    def checkpoint(self) -> DelayedSubmission:
        """Told to stop (a time limit, a preemption), the same job is queued again: a cell continues from its folder."""
        return DelayedSubmission(self)


def _queue_again() -> None:
    """After a TERM that a training stopped for: be queued again, unless Slurm is ending the job anyway.

    Many clusters announce a preemption so, and never start again a job that then ends by itself. A job that is
    cancelled hears the same, but no longer counts as running.
    """
    state = ["squeue", "--noheader", f"--jobs={os.environ['SLURM_JOB_ID']}", "--format=%T"]
    if subprocess.run(state, capture_output=True, text=True).stdout.strip() != "RUNNING":
        return
    signal.raise_signal(signal.SIGUSR2)  # submitit does it, in rank 0, and ends the process
    time.sleep(60)  # the other ranks: one that ended now would take rank 0 along


def export_ranks(interface: str | None) -> None:
    """Describe a job of several tasks to torch.distributed; clear what a shell may have left for a job of one.

    All tasks of a job derive the same address without talking: the first host of the job and a port from its id.
    """
    for name in _RANKS:
        os.environ.pop(name, None)
    world = int(os.environ.get("SLURM_NTASKS", "1"))
    if world == 1:
        return
    nodes = int(os.environ["SLURM_JOB_NUM_NODES"])
    os.environ |= {
        "RANK": os.environ["SLURM_PROCID"],
        "WORLD_SIZE": str(world),
        "LOCAL_RANK": os.environ["SLURM_LOCALID"],
        "LOCAL_WORLD_SIZE": str(world // nodes),
        "MASTER_ADDR": _first_host() if nodes > 1 else "127.0.0.1",
        # Below the ephemeral ports (from 32768 on), where another program's connection may sit at any moment.
        "MASTER_PORT": str(15000 + int(os.environ["SLURM_JOB_ID"]) % 15000),
    }
    if interface:
        os.environ |= {"NCCL_SOCKET_IFNAME": interface, "GLOO_SOCKET_IFNAME": interface}


def _first_host() -> str:
    command = ["scontrol", "show", "hostnames", os.environ["SLURM_JOB_NODELIST"]]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[0]
