"""The job of slurm/study.sbatch in the queue: it submits a study and ends."""

from contextlib import suppress
from itertools import pairwise
from pathlib import Path

from core.errors import UserError
from slurm import slurm_cli
from slurm.slurm_cli import Queued

SCRIPT = "slurm/study.sbatch"


def ask(study_file: Path, runs: Path) -> str | None:
    """`driver_in` the queue as it is now; None too where Slurm does not answer."""
    with suppress(UserError):
        return driver_in(slurm_cli.queue(), study_file, runs)
    return None


def driver_in(queue: list[Queued], study_file: Path, runs: Path) -> str | None:
    """The job that submits the study of this file into the runs folder; None where there is none.

    Slurm lists the script with its arguments. Their paths are relative to the checkout that holds
    the script.
    """
    for job in queue:
        script, _, arguments = job.command.partition(f"/{SCRIPT} ")
        words = arguments.split()
        if not words:
            continue
        checkout = Path(script)
        options = dict(pairwise([word for part in words for word in part.split("=", 1)]))
        folder = options.get("--runs", "runs")
        files = [checkout / word for word in words if not word.startswith("-")]
        if _same(checkout / folder, runs) and any(_same(file, study_file) for file in files):
            return job.job
    return None


def _same(path: Path, other: Path) -> bool:
    return path.resolve() == other.resolve()
