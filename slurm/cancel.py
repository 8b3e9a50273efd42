"""Cancel the jobs of one study."""

from pathlib import Path
from typing import Any

from slurm import slurm_cli, submissions


def cancel(base: Path) -> dict[str, Any]:
    """Cancel every recorded job of the study in the folder `base` that has not ended.

    Other jobs are not touched, and finished cells stay: the next `submit` runs those missing.

    Returns {"study", "cancelled": ids}. Raises UserError where Slurm does not answer.
    """
    if not (base / "slurm" / submissions.FILE).exists():
        return {"study": base.name, "cancelled": []}
    slurm_cli.require_slurm()
    with submissions.locked(base.absolute()) as folder:
        queue = slurm_cli.queue()
        groups = submissions.read(folder)
        jobs = [job.job for group in groups for job in group.in_queue(queue).values()]
        # Jobs that wait for others first, so that none starts in between.
        slurm_cli.scancel(jobs[::-1])
        submissions.write_cancelled(folder, jobs)
        return {"study": base.name, "cancelled": jobs}
