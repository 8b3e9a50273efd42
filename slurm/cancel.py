"""Cancel the jobs of one study."""

import time
from pathlib import Path
from typing import Any

from core.errors import UserError
from slurm import slurm_cli, submissions

SECONDS = 60
"""How long a cancelled job may still be listed."""
_STAY = {"PENDING", "RUNNING", "SUSPENDED", "REQUEUED", "CONFIGURING"}


def cancel(base: Path) -> dict[str, Any]:
    """Cancel every recorded job of the study in the folder `base` that has not ended.

    Other jobs are not touched, and finished cells stay: the next `submit` runs those missing.

    Returns {"study", "cancelled": ids}. Raises UserError where Slurm does not answer.
    """
    if not (base / "slurm" / submissions.FILE).exists():
        return {"study": base.name, "cancelled": []}
    slurm_cli.require_slurm()
    with submissions.locked(base.absolute()) as folder:
        groups = submissions.read(folder)
        queue = submissions.ask_queue(groups)
        jobs = [job.job for group in groups for job in group.in_queue(queue).values()]
        # Jobs that wait for others first, so that none starts in between.
        slurm_cli.scancel(jobs[::-1])
        submissions.write_cancelled(folder, jobs)
        _check_gone(jobs)
        return {"study": base.name, "cancelled": jobs}


def _check_gone(jobs: list[str]) -> None:
    """Raise UserError where some of `jobs` still wait or run."""
    deadline = time.monotonic() + SECONDS
    while stay := [j.job for j in slurm_cli.queue() if j.job in jobs and j.state in _STAY]:
        if time.monotonic() > deadline:
            raise UserError(
                where=", ".join(stay),
                what=f"still queued {SECONDS} s after scancel",
                fix=f"scancel {' '.join(stay)}",
            )
        time.sleep(1)
