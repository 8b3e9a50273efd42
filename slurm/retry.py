"""Queue a failed job again where its failure passes by itself: a node, a GPU, the network, a kill.

    python -m slurm.retry LOGS RETRIES

The job's batch script calls it when srun has failed: a process that was killed can't. It leaves the
file by which the script queues the job again, and a line in the log of each cell that it is for.
"""

import os
import sys
from pathlib import Path

from submitit.core.utils import DelayedSubmission
from submitit.slurm.slurm import SlurmJobEnvironment

from core import utc
from core.cell.failures import end, explain
from core.cell.manifest import read_manifest
from core.cell.restarts import count_retries, retry_text
from slurm.executor import requeue_flag
from slurm.job import CellJob
from slurm.status import Job


def retry(logs: Path, job: str, retries: int) -> list[str]:
    """The cells of a failed job for which it should be queued again; each gets a line in its log.

    These are unfinished, failed by a cause that passes, and have been retried fewer times than
    `retries` in this job. The first unfinished one may have been killed before it wrote to its log.

    Args:
        logs: The folder of the study's jobs.
        job: The job's id.
        retries: Of the cluster profile.
    """
    call = DelayedSubmission.load(logs / f"{job}_submitted.pkl").function
    if not isinstance(call, CellJob):
        return []
    ends = Job(job, "over", logs=tuple(sorted(logs.glob(f"{job}_*_log.*")))).ends().values()
    again = []
    unfinished = [folder for folder in map(Path, call.folders) if not read_manifest(folder)]
    for index, folder in enumerate(unfinished):
        log = folder / "log.txt"
        if index and not log.exists():
            continue
        failure, line = explain([end(log), *ends])
        number = count_retries(folder, job) + 1
        if failure and failure.is_transient and number <= retries:
            now = utc.text()
            text = retry_text(job, number, retries, f"{failure.name}: {line}", _node())
            with open(log, "a", encoding="utf-8") as file:
                file.write(f"{now} {text}\n")
            again.append(str(folder))
    return again


def _node() -> str:
    """The node that this job runs on; empty where it has several, of which any may have failed."""
    is_alone = os.environ.get("SLURM_JOB_NUM_NODES") == "1"
    return os.environ.get("SLURMD_NODENAME", "") if is_alone else ""


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    if retry(folder, SlurmJobEnvironment().job_id, int(sys.argv[2])):
        Path(requeue_flag(folder, os.environ["SLURM_JOB_ID"])).touch()
