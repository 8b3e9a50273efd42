"""Which failures of a job are retried, and how often: without Slurm."""

import subprocess
from pathlib import Path

import pytest
from submitit.core.utils import DelayedSubmission

from core.cell.identity import Cell, create_cell_dir
from core.cell.restarts import read_restarts
from slurm.executor import executor, script
from slurm.job import CellJob
from slurm.profile import Profile, Resources
from slurm.retry import retry
from tests.place import ROOT
from tests.slurm.places import Fake

JOB = "12_3"
KILLED = "srun: error: node1: task 1: Killed"
STARTS = "2026-11-29T21:00:00Z generate a starts (process 7)"


@pytest.fixture
def logs(tmp_path: Path) -> Path:
    folder = tmp_path / "s/slurm/jobs"
    folder.mkdir(parents=True)
    return folder


@pytest.fixture
def cells(logs: Path) -> list[Path]:
    """Two cells, submitted as one job."""
    base = logs.parents[1]
    folders = [create_cell_dir(Cell("generate", name, {"n": name}, {}), base) for name in "ab"]
    job = CellJob(str(base), tuple(map(str, folders)))
    DelayedSubmission(job).dump(logs / f"{JOB}_submitted.pkl")
    return folders


def failed(logs: Path, folder: Path, *lines: str, slurm: str = "") -> list[str]:
    """The cells to retry after a start of a cell that ended with these lines."""
    with open(folder / "log.txt", "a") as file:
        file.write("".join(f"{line}\n" for line in (STARTS, *lines)))
    (logs / f"{JOB}_0_log.err").write_text(f"{slurm}\n")
    return retry(logs, JOB, 2)


def test_a_killed_process_is_retried_twice(logs: Path, cells: list[Path]) -> None:
    one, _ = cells
    for number in (1, 2):
        assert failed(logs, one, slurm=KILLED) == [str(one)]
        last = (one / "log.txt").read_text().splitlines()[-1]
        assert last.endswith(f" retry {number} of 2 of job {JOB}: killed: {KILLED}")
    assert failed(logs, one, slurm=KILLED) == []
    restarts = read_restarts(one)
    assert (restarts.count, restarts.retries) == (2, 2)
    (logs / f"{JOB}_submitted.pkl").rename(logs / "13_submitted.pkl")
    (logs / f"{JOB}_0_log.err").rename(logs / "13_0_log.err")
    assert retry(logs, "13", 2) == [str(one)], "a job that was submitted again counts anew"


def test_a_killed_srun_is_a_killed_process(logs: Path, cells: list[Path]) -> None:
    bash = "/spool/job12/slurm_script: line 34:    42 Killed                  srun --unbuffered"
    assert failed(logs, cells[0], slurm=bash) == [str(cells[0])]


@pytest.mark.parametrize(
    "line",
    [
        "RuntimeError: CUDA error: unspecified launch failure",
        "RuntimeError: [gloo/transport/tcp/pair.cc:534] Connection closed by peer [10.0.0.1]:5",
        "torch.distributed.DistBackendError: NCCL error in: ProcessGroupNCCL.cpp:268",
    ],
)
def test_failures_of_a_gpu_and_of_the_network_are_retried(
    logs: Path, cells: list[Path], line: str
) -> None:
    assert failed(logs, cells[0], "Traceback (most recent call last):", line) == [str(cells[0])]


@pytest.mark.parametrize(
    ("line", "slurm"),
    [
        ("error: item a/7: its prompt has 900 tokens and up to 24 may follow", ""),
        ("error: corpora.a: no such file", ""),
        ("ValueError: a bug of ours", ""),
        ("torch.OutOfMemoryError: CUDA out of memory", ""),
        ("", "slurmstepd: error: Detected 1 oom_kill event in StepId=12.0."),
        ("", "Job not requeued because: timed-out too many times."),
        ("OSError: [Errno 28] No space left on device", KILLED),
    ],
)
def test_a_mistake_is_not_retried(logs: Path, cells: list[Path], line: str, slurm: str) -> None:
    before = [*logs.parents[1].rglob("log.txt")]
    assert failed(logs, cells[0], line, slurm=slurm) == [] and not before
    assert " retry " not in (cells[0] / "log.txt").read_text()


def test_finished_cells_and_those_not_begun_are_not_retried(logs: Path, cells: list[Path]) -> None:
    one, other = cells
    assert failed(logs, one, slurm=KILLED) == [str(one)]
    (one / "manifest.json").write_text('{"identity": "a"}')
    assert failed(logs, other, slurm=KILLED) == [str(other)]


def test_a_cell_that_was_killed_before_it_wrote_its_log_is_retried(
    logs: Path, cells: list[Path]
) -> None:
    (logs / f"{JOB}_0_log.err").write_text(f"{KILLED}\n")
    assert retry(logs, JOB, 2) == [str(cells[0])]
    assert read_restarts(cells[0]).retries == 1


def test_what_ended_an_earlier_run_of_the_job_is_no_cause(logs: Path, cells: list[Path]) -> None:
    one, _ = cells
    (logs / f"{JOB}_0_log.out").write_text(
        "submitit INFO (2026-11-29 21:05:00,123) - Starting with JobEnvironment(job_id=12_3)\n"
    )
    earlier = (
        f"{KILLED}\nslurmstepd: error: *** STEP 12.0 ON n CANCELLED AT 2026-11-29T21:02:00 ***"
    )
    assert failed(logs, one, "ValueError: a bug of ours", slurm=earlier) == []


def test_jobs_that_run_no_cells_are_not_retried(logs: Path) -> None:
    DelayedSubmission(print, "a job that submits others").dump(logs / "14_submitted.pkl")
    assert retry(logs, "14", 2) == []


@pytest.mark.multiprocess
@pytest.mark.parametrize("retries", [2, 0])
def test_the_batch_script_queues_a_job_again_whose_process_was_killed(
    logs: Path, cells: list[Path], fake: Fake, monkeypatch: pytest.MonkeyPatch, retries: int
) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    one, _ = cells
    (one / "log.txt").write_text(f"{STARTS}\n")
    (logs / f"{JOB}_submitted.pkl").rename(logs / "GROUP_0.pkl")
    for name, body in {
        "srun": f"echo '{KILLED}' >> {logs}/7_0_log.err; exit 137",
        "squeue": "echo RUNNING",
        "scontrol": f'echo "$@" >> {logs}/told',
    }.items():
        (fake.folder / "bin" / name).write_text(f"#!/bin/bash\n{body}\n")
    profile = Profile(stages={"default": Resources(10)}, retries=retries)
    file = logs / "slurm_script"  # it starts itself again, by its name
    file.write_text(script(executor("job", Resources(10), profile, ROOT, logs)))
    for _ in range(3):
        assert subprocess.run(["bash", str(file)]).returncode == 137
    told = (logs / "told").read_text() if retries else ""
    assert told == "requeue 7\n" * retries
    assert (one / "log.txt").read_text().count(" retry ") == retries
