"""Which nodes have failed under a study's jobs, so that later ones can leave them out."""

import re
from collections import defaultdict
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from core.errors import UserError
from slurm import slurm_cli
from slurm.status import Job

# Causes (core.cell.failures) that are of the node on which a job ran.
OF_NODE = ("node failure", "GPU fault")
_NAMED = re.compile(
    r"Node failure on ([\w.-]+)|JOB \d+ ON ([\w.-]+) CANCELLED AT \S+ DUE TO NODE FAILURE|"
    rf" retry \d+ of \d+ of job \S+ on ([\w.-]+): (?:{'|'.join(OF_NODE)}): "
)


def failed_nodes(jobs: dict[Path, Job]) -> dict[str, list[str]]:
    """Node -> the jobs under which it failed.

    Slurm's messages in the logs name it, the kit's `retry` lines, and sacct a job of one node.

    `jobs`: folder of a cell -> its last job.
    """
    nodes: dict[str, set[str]] = defaultdict(set)
    for folder, job in jobs.items():
        for log in (folder / "log.txt", *job.logs):
            with suppress(OSError):
                for names in _NAMED.findall(log.read_text(errors="replace")):
                    nodes["".join(names)].add(job.job)
    for job_id, node in _by_sacct({job.job for job in jobs.values()}):
        nodes[node].add(job_id)
    return {node: sorted(nodes[node]) for node in sorted(nodes)}


def _by_sacct(jobs: Iterable[str]) -> list[tuple[str, str]]:
    """(job, node) of each life of these jobs that ended by a failure of its one node."""
    ids = ",".join(sorted({job.split("_")[0] for job in jobs}))
    command = ("sacct", "--duplicates", "--allocations", "--noheader", "--parsable2")
    try:
        output = slurm_cli.call(*command, "--format=JobID,State,NodeList", f"--jobs={ids}").stdout
    except UserError:  # a cluster without accounting
        return []
    rows = [line.split("|") for line in output.splitlines() if line.count("|") == 2]
    return [
        (job, node)
        for job, state, node in rows
        if state.startswith(("NODE_FAIL", "BOOT_FAIL")) and re.fullmatch(r"[\w.-]+", node)
    ]
