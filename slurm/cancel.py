"""Cancel the jobs of one study."""

import time
from pathlib import Path
from typing import Any

from core.cell.identity import Cell
from core.cell.manifest import read_manifest
from core.errors import UserError
from slurm import queued_jobs, slurm_cli, submissions

SECONDS = 60
"""How long a cancelled job may still be listed."""
_STAY = {"PENDING", "RUNNING", "SUSPENDED", "REQUEUED", "CONFIGURING"}


def cancel(base: Path, keep: list[Cell] | None = None) -> dict[str, Any]:
    """Cancel every recorded job of the study in the folder `base` that has not ended.

    Other jobs are not touched, and finished cells stay: the next `submit` runs those missing.

    `keep`: the study's cells; only the jobs that run none of them are cancelled. None: all.

    Returns {"study", "cancelled": ids, "waiting": ids of queued jobs that waited for one of those
    and never start}. Raises UserError where Slurm does not answer, or the jobs are another user's.
    """
    if not (base / "slurm" / submissions.FILE).exists():
        return {"study": base.name, "cancelled": [], "waiting": []}
    slurm_cli.require_slurm()
    with submissions.locked(base.absolute()) as folder:
        groups = submissions.read(folder)
        queued = queued_jobs.listed(groups, submissions.ask_queue(groups))
        jobs = [job.job for _, by_index in queued for job in by_index.values()]
        if keep is not None:
            done = {cell.identity for cell in keep if read_manifest(base / cell.relpath)}
            jobs = list(queued_jobs.orphans(queued, keep, done))
        # Jobs that wait for others first, so that none starts in between.
        slurm_cli.scancel(jobs[::-1])
        _check_gone(jobs)
        submissions.write_cancelled(folder, jobs)
        waiting = queued_jobs.waiting_for(jobs, queued)
        return {"study": base.name, "cancelled": jobs, "waiting": waiting}


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
