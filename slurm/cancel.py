"""Cancel what is in the queue of one study."""

from pathlib import Path
from typing import Any

from slurm import ledger, scheduler


def cancel(base: Path) -> dict[str, Any]:
    """Cancel every job of the study in the folder `base` that is on record and not over, and nothing else.

    Returns {"study", "cancelled": ids}. What was finished stays; the next `submit` runs what is missing.
    """
    if not (base / "slurm" / "jobs.jsonl").exists():
        return {"study": base.name, "cancelled": []}
    scheduler.must_be_here()
    with ledger.locked(base.absolute()) as folder:
        queue = scheduler.queue()
        jobs = [q.job for group in ledger.read(folder) for q in group.in_queue(queue).values()]
        # Those that wait for others first, so that none starts in between.
        scheduler.scancel(jobs[::-1])
        ledger.write(folder, "cancelled", jobs=jobs)
        return {"study": base.name, "cancelled": jobs}
