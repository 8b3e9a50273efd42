"""The makespan of a study on a real Slurm cluster of one machine, against lower bounds.

    python -m benchmarks.makespan [STUDY]       studies/tiny.yaml, 5 to 8 minutes on 2 cores

Starts the test cluster (tests/slurmlab), submits the study, waits for its end and stops the
cluster. All durations are measured in that run. The lower bounds of the makespan:
  critical path: the longest path through the cells' dependencies, with a slot for every ready job
  on 8 slots: the same jobs, first come, first served, on as many slots as the cluster has, with no
    time lost in between. Where more jobs are ready than slots, this is the fair bound.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from itertools import pairwise
from pathlib import Path

import yaml
from tabulate import tabulate

from benchmarks.dependencies import longest, schedule
from core.cell.identity import Cell
from core.cell.manifest import read_manifest
from core.errors import UserError
from core.paths import ROOT
from slurm import slurm_cli, submissions
from study.spec import expand as plan
from study.spec.load import load_study

LAB = ROOT / "tests/slurmlab"
# Two nodes of 16 cores, 4 for each job of tests/small/cluster.yaml. No array of the tiny study has
# more than 4 tasks.
SLOTS = 8
PHASES = """\
no slot: every slot was taken; release: from the end of the last input to the start of the job's
script; start-up: srun, Python, submitit; imports: the libraries of the stage (to a second); exit:
after the last manifest, and between two cells of a job"""
# Slurm's own times have whole seconds; each job's script notes its start and end instead.
STAMP = """began=$(date +%s.%N); job=${SLURM_ARRAY_JOB_ID:-$SLURM_JOB_ID}_${SLURM_ARRAY_TASK_ID:-0}
trap 'echo "$job $began $(date +%s.%N)" >> FILE' EXIT"""


@dataclass(frozen=True)
class JobRun:
    """One job as it ran. Times are in seconds since the epoch."""

    kind: str
    cells: list[Cell]
    start: float  # of its batch script
    end: float
    # By a cell's identity:
    locked: dict[str, float]  # when it took the lock of its folder
    started: dict[str, float]  # by its manifest, after the import of its stage
    ended: dict[str, float]  # when its manifest was written


@contextmanager
def cluster() -> Iterator[None]:
    """The test cluster, with accounting where that is installed.

    Raises UserError that names missing programs.
    """
    os.environ["PATH"] += ":/usr/sbin:/sbin"
    missing = [name for name in ("slurmctld", "slurmd", "sbatch") if not shutil.which(name)]
    if missing:
        raise UserError(
            where=", ".join(missing),
            what="not on PATH",
            fix="apt-get install slurmctld slurmd slurm-client",
        )
    full = all(map(shutil.which, ("slurmdbd", "mariadbd", "mariadb-install-db", "munged")))
    folder = tempfile.mkdtemp(prefix="lab", dir="/tmp")  # a short path: sockets live in it
    settings = {
        "LAB_DIR": folder,
        "LAB_AUTH": "munge" if full else "none",
        "LAB_ACCT": "dbd" if full else "none",
    }
    environment = {k: v for k, v in os.environ.items() if not slurm_cli.LEAK.match(k)} | settings
    try:
        up = subprocess.run([LAB, "up"], env=environment, capture_output=True, text=True)
        if up.returncode:
            raise UserError(
                where="tests/slurmlab",
                what=slurm_cli.last_line(up.stderr),
                fix="LAB_PORT=N takes other ports",
            )
        os.environ["SLURM_CONF"] = f"{folder}/etc/slurm.conf"
        yield
    finally:
        subprocess.run([LAB, "down", "--wipe"], env=environment, capture_output=True)


def run(study: Path, folder: Path) -> tuple[float, list[JobRun]]:
    """Submit the study with its runs in `folder`, and wait for its end.

    Returns the time of the submission, and the jobs as they ran. Raises UserError where a cell did
    not finish.
    """
    profile = yaml.safe_load((ROOT / "tests/small/cluster.yaml").read_text())
    profile["setup"] = STAMP.replace("FILE", str(folder / "stamps")).splitlines()
    cluster_file = folder / "lab.yaml"
    cluster_file.write_text(yaml.safe_dump(profile, width=1000))
    runs = folder / "runs"
    command = [sys.executable, "-m", "study", "submit", str(study), "--json"]
    command += ["--cluster", str(cluster_file), "--runs", str(runs)]
    begin = time.time()
    submitted = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE)
    if submitted.returncode:
        raise UserError(where=str(study), what="the study was not submitted")
    while slurm_cli.queue():
        time.sleep(1)
    loaded = load_study(study)
    base = runs / loaded.study
    cells = {cell.identity: cell for cell in plan.in_order(plan.analysis(loaded))}
    for cell in cells.values():
        if not read_manifest(base / cell.relpath):
            fix = f"see log.txt in {base / cell.relpath}"
            raise UserError(where=cell.relpath, what="did not finish", fix=fix)
    stamps = dict(line.split(maxsplit=1) for line in (folder / "stamps").read_text().splitlines())
    jobs = []
    for group in submissions.read(base / "slurm"):
        for index, identities in enumerate(group.tasks):
            start, end = map(float, stamps[f"{group.job}_{index}"].split())
            task_cells = [cells[identity] for identity in identities]
            jobs.append(_job_run(group.kind, task_cells, start, end, base))
    return begin, jobs


def _job_run(kind: str, cells: list[Cell], start: float, end: float, base: Path) -> JobRun:
    job = JobRun(kind, cells, start, end, {}, {}, {})
    for cell in cells:
        folder = base / cell.relpath
        manifest = read_manifest(folder)
        assert manifest
        job.locked[cell.identity] = (folder / ".lock").stat().st_mtime
        job.ended[cell.identity] = (folder / "manifest.json").stat().st_mtime
        # The manifest has whole seconds, which may lie before the lock.
        started = datetime.fromisoformat(manifest["started"]).timestamp()
        job.started[cell.identity] = max(started, job.locked[cell.identity])
    return job


def needs(jobs: list[JobRun]) -> list[set[int]]:
    """For each job the numbers of those whose results it reads."""
    number = {cell.identity: i for i, job in enumerate(jobs) for cell in job.cells}
    return [
        {number[c.identity] for cell in job.cells for c in cell.inputs.values()} - {i}
        for i, job in enumerate(jobs)
    ]


def bounds(begin: float, jobs: list[JobRun]) -> str:
    """The makespan against the two lower bounds, by three definitions of a duration."""
    makespan = max(job.end for job in jobs) - begin
    cells = [cell for job in jobs for cell in job.cells]
    number = {cell.identity: i for i, cell in enumerate(cells)}
    inputs = [{number[c.identity] for c in cell.inputs.values()} for cell in cells]
    rows = []
    for name, start in (
        ("cell: started to ended in its manifest", "started"),
        ("cell: with the import of its stage", "locked"),
    ):
        durations = [
            [job.ended[c.identity] - getattr(job, start)[c.identity] for c in job.cells]
            for job in jobs
        ]
        path = longest(inputs, [seconds for of_job in durations for seconds in of_job])
        rows.append((name, path, _on_slots(jobs, [sum(of_job) for of_job in durations])))
    job_durations = [job.end - job.start for job in jobs]
    path = longest(needs(jobs), job_durations)
    rows.append(("job: start to end of its script", path, _on_slots(jobs, job_durations)))
    ratio = "makespan / it"
    return tabulate(
        [(name, path, makespan / path, slots, makespan / slots) for name, path, slots in rows],
        headers=["duration of a", "critical path", ratio, f"on {SLOTS} slots", ratio],
        floatfmt=("", ".1f", ".2f", ".1f", ".2f"),
    )


def _on_slots(jobs: list[JobRun], seconds: list[float]) -> float:
    slots_of = [1] * len(jobs)
    limits = [1.0] * len(jobs)
    spans = schedule(needs(jobs), seconds, slots_of, limits, SLOTS)
    return max(end for _, end in spans)


def chain(begin: float, jobs: list[JobRun]) -> str:
    """The jobs that determine the makespan: from the last one back, to the input that ended last.

    One row per job, with the seconds of each phase.
    """
    inputs = needs(jobs)
    index: int | None = max(range(len(jobs)), key=lambda i: jobs[i].end)
    rows = []
    while index is not None:
        job = jobs[index]
        before = max(inputs[index], key=lambda i: jobs[i].end, default=None)
        ready = begin if before is None else jobs[before].end
        no_slot = _full_seconds(jobs, ready, job.start)
        imports = sum(job.started[c.identity] - job.locked[c.identity] for c in job.cells)
        work = sum(job.ended[c.identity] - job.started[c.identity] for c in job.cells)
        first = min(job.locked.values())
        last = max(job.ended.values())
        between = last - first - work - imports
        row = (
            f"{job.kind} {job.cells[0].name}",
            no_slot,
            job.start - ready - no_slot,
            first - job.start,
            imports,
            work,
            between + job.end - last,
        )
        rows.append(row)
        index = before
    rows.reverse()
    columns = list(zip(*rows, strict=True))[1:]
    headers = ["job", "no slot", "release", "start-up", "imports", "work", "exit"]
    total = ("sum", *(sum(column) for column in columns))
    return tabulate([*rows, total], headers=headers, floatfmt=".1f")


def _full_seconds(jobs: list[JobRun], start: float, end: float) -> float:
    """Seconds between `start` and `end` in which every slot was taken."""
    changes = {t for job in jobs for t in (job.start, job.end) if start < t < end}
    moments = sorted({start, end, *changes})
    return sum(
        after - now
        for now, after in pairwise(moments)
        if sum(job.start <= now and job.end > now for job in jobs) >= SLOTS
    )


def accounted() -> str:
    """First start to last end by Slurm's accounting, in whole seconds."""
    command = ["sacct", "-X", "--noheader", "--parsable2", "--format=Start,End"]
    result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode or not result.stdout.strip():
        return "accounting is off"
    starts, ends = zip(*(line.split("|") for line in result.stdout.split()), strict=True)
    duration = datetime.fromisoformat(max(ends)) - datetime.fromisoformat(min(starts))
    return f"{duration.seconds} s by sacct"


def main() -> int:
    """Run and print the tables. Returns 2 after a UserError."""
    summary = __doc__.split("\n")[0]
    parser = argparse.ArgumentParser(prog="python -m benchmarks.makespan", description=summary)
    parser.add_argument("study", type=Path, nargs="?", default=ROOT / "studies/tiny.yaml")
    study = parser.parse_args().study
    load = os.getloadavg()[0]
    try:
        with tempfile.TemporaryDirectory() as folder, cluster():
            begin, jobs = run(study, Path(folder))
            sacct = accounted()
    except UserError as error:
        print(*(f"error: {line}" for line in error.lines), sep="\n", file=sys.stderr)
        return 2
    makespan = max(job.end for job in jobs) - begin
    cores = os.cpu_count()
    print(f"{study.name}: {len(jobs)} jobs; {cores} cores, load {load:.1f} before it began")
    print(
        f"makespan {makespan:.1f} s, from the call of submit to the end of the last job ({sacct})"
    )
    print(f"\n{bounds(begin, jobs)}\n")
    print(f"The chain of jobs that determines the makespan, in seconds:\n{chain(begin, jobs)}\n")
    print(PHASES)
    return 0


if __name__ == "__main__":
    sys.exit(main())
