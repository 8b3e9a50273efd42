"""What a Slurm job runs: some cells, one after another, from the snapshot of the code."""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from submitit.helpers import DelayedSubmission
from submitit.slurm.slurm import SlurmJobEnvironment

from core.cell import status_page
from core.cell.log import log_to
from core.cell.run import run_cell
from core.cell.waiting import STATUS, Waiting
from core.errors import UserError
from slurm import slurm_cli
from slurm.executor import requeue_flag
from slurm.notify import tell_of_results
from slurm.rendezvous import check_interfaces, first_address

_by_scontrol = SlurmJobEnvironment._requeue
_RANKS = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


@dataclass(frozen=True)
class CellJob:
    """Run the cells in `folders`.

    submitit pickles it by the name of this module, which the job imports from `code`.
    """

    code: str
    folders: tuple[str, ...]
    interface: str | None = None
    name: str = ""
    """The job's name in squeue. Slurm gives all tasks of an array the name of the array."""
    notify: str | None = None
    """Of the cluster profile."""

    def __call__(self) -> None:
        """Run all cells, those after a failed one too.

        Where a cell waits for something outside, the batch script queues the job again, to start
        when it is time to look again.

        Raises RuntimeError that names the cells that failed.
        """
        sys.path.insert(0, self.code)  # before the `recipes` that torchtune installs
        if scratch := os.environ.get("TMPDIR"):
            # Here, because every node has a disk of its own.
            Path(scratch).mkdir(parents=True, exist_ok=True)
        SlurmJobEnvironment._requeue = _requeue_or_request  # type: ignore[assignment, method-assign]
        export_ranks(self.interface)
        rank = os.environ.get("RANK", "0")  # ranks above 0 write to Slurm's own log of the task
        if rank == "0" and self.name and "SLURM_ARRAY_TASK_ID" in os.environ:
            _rename(self.name)
        failed = []
        waits: list[float] = []
        for folder in map(Path, self.folders):
            try:
                with log_to(folder) if rank == "0" else contextlib.nullcontext():
                    run_cell(folder)
            except Waiting as waiting:
                waits.append(waiting.seconds)
            except Exception:
                failed.append(folder)
            except SystemExit as exit_request:
                if exit_request.code == 128 + signal.SIGTERM:
                    _requeue()
                raise
            finally:
                if rank == "0":
                    status_page.update(folder.resolve().parents[1])
                    if self.notify:
                        tell_of_results(self.notify, folder)
        if failed:
            logs = ", ".join(f"{folder}/log.txt" for folder in failed)
            raise RuntimeError(f"failed: {logs}")
        if waits:
            _ask_for_requeue(round(min(waits)))
            sys.exit(STATUS)

    def checkpoint(self) -> DelayedSubmission:
        """Called by submitit at a time limit or a preemption: queue the same job again.

        A cell continues from its folder. submitit then writes the pickle, which nobody else may
        change.
        """
        os.umask(os.umask(0o022) | 0o022)
        return DelayedSubmission(self)


def _rename(name: str) -> None:
    """Have squeue show what this task of an array runs; a refusal changes nothing else."""
    if shutil.which("scontrol"):
        with contextlib.suppress(UserError):
            job = SlurmJobEnvironment().job_id
            slurm_cli.call("scontrol", "update", f"JobId={job}", f"JobName={name}")


def _requeue() -> None:
    """Queue the job again after a training stopped for SIGTERM, unless Slurm is ending the job.

    Many clusters announce a preemption by SIGTERM, and do not restart a job that then ends by
    itself. A cancelled job receives the same signal, but its state is no longer RUNNING. In a
    container the batch script looks at the state.
    """
    if shutil.which("squeue"):
        # Not SLURM_JOB_ID: for the last task of an array that is the id of the whole array.
        job = SlurmJobEnvironment().job_id
        if slurm_cli.state(job) != "RUNNING":
            return
    signal.raise_signal(signal.SIGUSR2)  # submitit requeues in rank 0, and ends the process
    # The other ranks wait: srun would end rank 0 as soon as one of them exits.
    time.sleep(60)


def _requeue_or_request(environment: SlurmJobEnvironment, countdown: int) -> None:
    """Queue the job again, or have the batch script do that when this process has ended.

    In place of submitit's own: a container lacks scontrol, and a busy controller may not answer it.
    """
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        return _by_scontrol(environment, countdown)
    _ask_for_requeue()
    print(f"The batch script requeues the job ({countdown} remaining timeouts)", flush=True)


def _ask_for_requeue(seconds: int | None = None) -> None:
    """Have the batch script queue the job again, to start in so many seconds or at once."""
    flag = Path(requeue_flag(os.environ["SUBMITIT_FOLDER"], os.environ["SLURM_JOB_ID"]))
    flag.write_text("" if seconds is None else str(seconds))


def export_ranks(interface: str | None) -> None:
    """Set torch.distributed's variables for a job of several tasks; unset them for a job of one.

    All tasks derive the same address without communication: the first host of the job, and a port
    from the job's id. `interface`: the network interface for NCCL and gloo.

    Raises UserError where this node does not resolve the first host or has no such interface.
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
        # submitit's parser: a container has no scontrol.
        "MASTER_ADDR": (
            first_address(SlurmJobEnvironment().hostnames[0]) if nodes > 1 else "127.0.0.1"
        ),
        # Below the ephemeral ports (from 32768 on), any of which another program may be using.
        "MASTER_PORT": str(15000 + int(os.environ["SLURM_JOB_ID"]) % 15000),
    }
    if interface:
        os.environ |= {"NCCL_SOCKET_IFNAME": interface, "GLOO_SOCKET_IFNAME": interface}
    check_interfaces()
