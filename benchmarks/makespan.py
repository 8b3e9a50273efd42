"""The makespan of a study on a real Slurm cluster of one machine, against the sum along its critical path.

    python -m benchmarks.makespan [STUDY]       studies/tiny.yaml, 5 to 8 minutes on 2 cores

Starts the test cluster (tests/slurmlab), submits the study, waits for its end and stops the cluster. Every duration is
of that run. Two lower bounds stand against the makespan:
  critical path: the longest path through the cells' dependencies, with a slot for every job that is ready
  on 8 slots: the same jobs, first come, first served, on as many slots as the cluster has, nothing lost in between.
    Where more jobs are ready than slots, this is the fair one: no scheduler can do away with a want of slots
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
from slurm import submissions, slurm_cli
from study.spec import expand as plan
from study.spec.load import load_study

LAB = ROOT / "tests/slurmlab"
SLOTS = 8  # two nodes of 16 cores, 4 for each job of tests/small/cluster.yaml; no array of the tiny study has over 4 tasks
# Slurm's own times have whole seconds; each job's script notes its start and end instead.
STAMP = """began=$(date +%s.%N); job=${SLURM_ARRAY_JOB_ID:-$SLURM_JOB_ID}_${SLURM_ARRAY_TASK_ID:-0}
trap 'echo "$job $began $(date +%s.%N)" >> FILE' EXIT"""


@dataclass(frozen=True)
class Ran:
    """One job as it ran; times in seconds since the epoch."""

    kind: str
    cells: list[Cell]
    start: float  # of its batch script
    end: float
    begun: dict[str, float]  # identity of a cell -> when it took the lock of its folder
    started: dict[str, float]  # what its manifest says, which is after the import of its stage
    ended: dict[str, float]  # when its manifest was there


@contextmanager
def cluster() -> Iterator[None]:
    """The test cluster, with accounting where that is installed. Raises UserError that names what is missing."""
    os.environ["PATH"] += ":/usr/sbin:/sbin"
    lacking = [name for name in ("slurmctld", "slurmd", "sbatch") if not shutil.which(name)]
    if lacking:
        raise UserError(
            f"{', '.join(lacking)}: not on PATH; apt-get install slurmctld slurmd slurm-client"
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
                f"tests/slurmlab: {slurm_cli.last_line(up.stderr)}; LAB_PORT=N takes other ports"
            )
        os.environ["SLURM_CONF"] = f"{folder}/etc/slurm.conf"
        yield
    finally:
        subprocess.run([LAB, "down", "--wipe"], env=environment, capture_output=True)


def run(study: Path, folder: Path) -> tuple[float, list[Ran]]:
    """Submit the study with runs and notes in `folder`, wait for it: when that began, and its jobs as they ran.

    Raises UserError where a cell did not finish.
    """
    profile = yaml.safe_load((ROOT / "tests/small/cluster.yaml").read_text())
    profile["setup"] = STAMP.replace("FILE", str(folder / "stamps")).splitlines()
    (folder / "lab.yaml").write_text(yaml.safe_dump(profile, width=1000))
    words = [
        str(study),
        "--cluster",
        str(folder / "lab.yaml"),
        "--runs",
        str(folder / "runs"),
        "--json",
    ]
    begin = time.time()
    submitted = subprocess.run(
        [sys.executable, "-m", "study", "submit", *words], cwd=ROOT, stdout=subprocess.PIPE
    )
    if submitted.returncode:
        raise UserError("the study was not submitted")
    while slurm_cli.queue():
        time.sleep(1)
    loaded = load_study(study)
    base = folder / "runs" / loaded.study
    cells = {cell.identity: cell for cell in plan.in_order(plan.analysis(loaded))}
    for cell in cells.values():
        if not read_manifest(base / cell.relpath):
            raise UserError(f"{cell.relpath} did not finish; see log.txt in {base / cell.relpath}")
    stamps = dict(line.split(maxsplit=1) for line in (folder / "stamps").read_text().splitlines())
    found = []
    for group in submissions.read(base / "slurm"):
        for index, identities in enumerate(group.tasks):
            start, end = map(float, stamps[f"{group.job}_{index}"].split())
            some = [cells[identity] for identity in identities]
            found.append(_ran(group.kind, some, start, end, base))
    return begin, found


def _ran(kind: str, cells: list[Cell], start: float, end: float, base: Path) -> Ran:
    begun, started, ended = {}, {}, {}
    for cell in cells:
        folder, manifest = base / cell.relpath, read_manifest(base / cell.relpath)
        assert manifest
        begun[cell.identity] = (folder / ".lock").stat().st_mtime
        ended[cell.identity] = (folder / "manifest.json").stat().st_mtime
        # The manifest's whole seconds may lie before the lock.
        noted = datetime.fromisoformat(manifest["started"]).timestamp()
        started[cell.identity] = max(noted, begun[cell.identity])
    return Ran(kind, cells, start, end, begun, started, ended)


def needs(jobs: list[Ran]) -> list[set[int]]:
    """For each job the numbers of those whose results it reads."""
    number = {cell.identity: i for i, job in enumerate(jobs) for cell in job.cells}
    return [
        {number[c.identity] for cell in job.cells for c in cell.inputs.values()} - {i}
        for i, job in enumerate(jobs)
    ]


def bounds(begin: float, jobs: list[Ran]) -> str:
    """The makespan against the two lower bounds, by three meanings of a duration."""
    makespan = max(job.end for job in jobs) - begin
    cells = [cell for job in jobs for cell in job.cells]
    number = {cell.identity: i for i, cell in enumerate(cells)}
    inputs = [{number[c.identity] for c in cell.inputs.values()} for cell in cells]
    rows = []
    for name, since in (
        ("cell: started to ended in its manifest", "started"),
        ("cell: with the import of its stage", "begun"),
    ):
        lasted = [
            [job.ended[c.identity] - getattr(job, since)[c.identity] for c in job.cells]
            for job in jobs
        ]
        path = longest(inputs, [seconds for some in lasted for seconds in some])
        rows.append((name, path, _on_slots(jobs, [sum(some) for some in lasted])))
    lasted_jobs = [job.end - job.start for job in jobs]
    rows.append(
        (
            "job: start to end of its script",
            longest(needs(jobs), lasted_jobs),
            _on_slots(jobs, lasted_jobs),
        )
    )
    return tabulate(
        [(name, path, makespan / path, slots, makespan / slots) for name, path, slots in rows],
        headers=[
            "duration of a",
            "critical path",
            "makespan / it",
            f"on {SLOTS} slots",
            "makespan / it",
        ],
        floatfmt=("", ".1f", ".2f", ".1f", ".2f"),
    )


def _on_slots(jobs: list[Ran], seconds: list[float]) -> float:
    one = [1] * len(jobs)
    return max(
        end for _, end in schedule(needs(jobs), seconds, one, [float(n) for n in one], SLOTS)
    )


def chain(begin: float, jobs: list[Ran]) -> str:
    """Where the makespan went: from the last job back, each time to the input that ended last."""
    inputs = needs(jobs)
    i: int | None = max(range(len(jobs)), key=lambda k: jobs[k].end)
    rows = []
    while i is not None:
        job, before = jobs[i], max(inputs[i], key=lambda k: jobs[k].end, default=None)
        ready = begin if before is None else jobs[before].end
        queued = _full(jobs, ready, job.start)
        imports = sum(job.started[c.identity] - job.begun[c.identity] for c in job.cells)
        work = sum(job.ended[c.identity] - job.started[c.identity] for c in job.cells)
        first, last = min(job.begun.values()), max(job.ended.values())
        between = last - first - work - imports
        row = (
            queued,
            job.start - ready - queued,
            first - job.start,
            imports,
            work,
            between + job.end - last,
        )
        rows.append((f"{job.kind} {job.cells[0].name}", *row))
        i = before
    rows.reverse()
    rows.append(("sum", *(sum(column) for column in list(zip(*rows, strict=True))[1:])))
    headers = ["job", "no slot", "release", "start-up", "imports", "work", "exit"]
    return tabulate(rows, headers=headers, floatfmt=".1f")


def _full(jobs: list[Ran], since: float, until: float) -> float:
    """Seconds of that time in which every slot was taken."""
    moments = sorted(
        {since, until, *(t for job in jobs for t in (job.start, job.end) if since < t < until)}
    )
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
    return f"{(datetime.fromisoformat(max(ends)) - datetime.fromisoformat(min(starts))).seconds} s by sacct"


def main() -> int:
    """Run, print the tables; 2 after a mistake of the user's."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.makespan", description=__doc__.split("\n")[0]
    )
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
    print(
        f"{study.name}: {len(jobs)} jobs; {os.cpu_count()} cores, load {load:.1f} before it began"
    )
    print(
        f"makespan {makespan:.1f} s, from the call of submit to the end of the last job ({sacct})"
    )
    print(
        f"\n{bounds(begin, jobs)}\n\nThe chain that the makespan is made of, in seconds:\n{chain(begin, jobs)}\n"
    )
    print(
        "no slot: every slot was taken; release: from the end of the last input to the start of the job's script;\n"
        "start-up: srun, Python, submitit; imports: the libraries of the stage (to a second); exit: after the last\n"
        "manifest, and between two cells of a job"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
