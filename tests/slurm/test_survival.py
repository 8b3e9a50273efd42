"""On a real Slurm: a training that is disturbed ends with the same bytes as one that is not.

Each disturbance has a study of its own with the same training in it. All are disturbed at once,
because a cluster reacts slowly. A training pauses after each step until it has been disturbed.
"""

import os
import shutil
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from core.cell.identity import Cell, create_cell_dir
from core.cell.manifest import read_manifest
from core.cell.run import run_cell
from slurm.profile import Profile, Resources
from slurm.snapshot import snapshot
from slurm.submit import submit
from study.commands.status import look as status
from tests.slurm.places import Fake, Kit, Lab
from tests.waiting import until

pytestmark = pytest.mark.slurm

toy = pytest.importorskip("tests.recipes.toy")
ROOT = Path(__file__).parents[2]
SLOWLY = """
import time
from core.cell.context import StageContext
plain = StageContext.progress
def progress(self, done, total, unit):
    plain(self, done, total, unit)
    if (self.folder.parents[1] / "slowly").exists():
        time.sleep(1)
StageContext.progress = progress
"""
READY = {"idle", "mix"}
SAVES = toy.RUNTIME | {"checkpoint_minutes": 1 / 60}


def training(seed: int) -> Cell:
    settings = {"recipe": {**toy.SETTINGS, "epochs": 60}, "seed": seed}
    return Cell(
        "midtrain", f"s{seed}", settings, {"start": toy.MODEL, "documents": toy.DOCUMENTS}, SAVES
    )


FIRST, SECOND = training(0), training(1)
BEHIND = Cell(
    "midtrain",
    "behind",
    {"recipe": toy.SETTINGS},
    {"start": FIRST, "documents": toy.DOCUMENTS},
    SAVES,
)


@dataclass
class Study:
    """One study on the cluster."""

    base: Path
    code: Path
    cells: list[Cell]
    resources: Resources
    python: str | None = None

    def submit(self) -> dict[str, Any]:
        profile = Profile(
            stages={"default": self.resources},
            setup=[f"export PYTHONPATH={self.base.parents[1]}"],
            python=self.python,
        )
        return submit([toy.MODEL, toy.DOCUMENTS, *self.cells], self.base, profile, "lab", self.code)

    def start(self) -> str:
        """Submit it, to go slowly. Returns the job of its trainings."""
        for made in (toy.MODEL, toy.DOCUMENTS):
            shutil.copytree(
                self.base.parents[1] / "undisturbed/study" / made.relpath, self.base / made.relpath
            )
        (self.base / "slowly").touch()
        return self.submit()["jobs"][0]["job"]

    def hurry(self) -> None:
        (self.base / "slowly").unlink()

    def log(self, cell: Cell = FIRST) -> str:
        path = self.base / cell.relpath / "log.txt"
        return path.read_text() if path.exists() else ""

    def trains(self, cell: Cell = FIRST) -> bool:
        return len(toy.lines(self.base / cell.relpath)) > 2

    def done(self, cell: Cell = FIRST) -> bool:
        return bool(read_manifest(self.base / cell.relpath))


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study's folder with the start of all trainings; `survivors` trains them here as well.

    Each study has a runs folder of its own: in one, a finished training is not run again.
    """
    folder = tmp_path_factory.mktemp("disturbed") / "undisturbed/study"
    toy.make_inputs(folder)
    (folder.parents[1] / "sitecustomize.py").write_text(SLOWLY)
    return folder


@pytest.fixture(scope="module")
def survivors(session_lab: Lab, undisturbed: Path) -> dict[str, Study]:
    """Studies by what happened to them, all of it over."""
    runs, ask = undisturbed.parents[1], session_lab.ask
    code = snapshot(ROOT, runs / "code/slurm")
    # Slurm counts the memory of a process twice while it starts another one.
    small = Resources(minutes=10, partition="cpu", mem_gb=3.0)
    studies = {
        "controller": Study(runs / "controller/study", code, [FIRST, BEHIND], small),
        "requeued": Study(runs / "requeued/study", code, [FIRST], small),
        "told": Study(runs / "told/study", code, [FIRST, SECOND], small),
        # As in a container, where there are none of Slurm's commands.
        "container": Study(
            runs / "container/study",
            code,
            [FIRST, SECOND],
            small,
            f"env PATH=/nowhere {sys.executable}",
        ),
        "cancelled": Study(runs / "cancelled/study", code, [FIRST, SECOND], small),
        "preempted": Study(
            runs / "preempted/study",
            code,
            [FIRST],
            Resources(10, cpus=10, partition="scavenge", constraint="cpu"),
        ),
        "node": Study(
            runs / "node/study", code, [FIRST], Resources(10, partition="gpu", mem_gb=3.0)
        ),
        "killed": Study(runs / "killed/study", code, [FIRST], small),
        "limit": Study(runs / "limit/study", code, [FIRST, BEHIND], small),
    }
    began = time.monotonic()

    def note(text: str) -> None:
        print(f"{time.monotonic() - began:5.1f} s  {text}")

    job = {name: studies[name].start() for name in studies if name != "limit"}
    until(
        lambda: all(
            studies[name].trains(cell)
            for name in job
            for cell in studies[name].cells
            if cell is not BEHIND
        )
    )
    note("all train")

    # The controller is away when a training ends for which a job waits.
    pid = int((session_lab.folder / "run/slurmctld.pid").read_text())
    os.kill(pid, 15)
    until(lambda: subprocess.run(["scontrol", "ping"], capture_output=True).returncode)
    studies["controller"].hurry()
    until(studies["controller"].done)
    path = f"{os.environ['PATH']}:/usr/sbin"
    subprocess.run(["slurmctld"], env={**os.environ, "PATH": path}, check=True, capture_output=True)
    # Until its nodes have answered it would refuse what asks for them.
    nodes = ["sinfo", "--noheader", "--format=%t"]
    until(
        lambda: (
            {"idle"}
            <= set(subprocess.run(nodes, capture_output=True, text=True).stdout.split())
            <= READY
        )
    )
    note("the controller is back")

    def of(name: str, field: str) -> str:
        words = ask("scontrol", "show", "job", job[name]).split()
        return dict(word.split("=", 1) for word in words if "=" in word)[field]

    lab = ROOT / "tests/slurmlab"
    broken = of("node", "BatchHost")
    subprocess.run([lab, "fail", broken], check=True)
    job["limit"] = studies["limit"].start()
    ask("scontrol", "requeue", job["requeued"])
    for name in ("told", "container"):  # all that a preemption is on many clusters, for a while
        ask("scancel", "--signal=TERM", job[name])
    os.kill(rank_of(job["killed"]), 9)  # as the kernel, or a person, does
    ask("scancel", f"{job['cancelled']}_1")
    urgent = ask(
        "sbatch",
        "--parsable",
        "-p",
        "cpu",
        "-w",
        of("preempted", "BatchHost"),
        "-c",
        "10",
        "-o",
        "/dev/null",
        "--wrap=sleep 3",
    )
    until(lambda: f"{job['cancelled']}_1" not in session_lab.jobs())
    note(f"cancelled; preempting by {urgent.strip()}")
    facts = studies["cancelled"].submit()
    assert (facts["submitted"], facts["queued"]) == (1, 1)
    until(lambda: " retry 1 of 2 of job " in studies["killed"].log())
    pending = {
        "killed": 1,
        "requeued": 1,
        "told": 1,
        "container": 1,
        "preempted": 1,
        "node": 1,
        "limit": 2,
    }
    # What Slurm will start again is not submitted again.
    assert not any(studies[name].submit()["submitted"] for name in pending)
    studies["cancelled"].hurry()

    failed_nodes: dict[str, list[str]] = {}

    def look() -> bool:
        for name, times in list(pending.items()):
            trainings = [cell for cell in studies[name].cells if cell is not BEHIND]
            if all(studies[name].log(c).count("resumes after step") >= times for c in trainings):
                note(f"{name} goes on")
                if name == "node":
                    cells = [toy.MODEL, toy.DOCUMENTS, FIRST]
                    failed_nodes.update(status(cells, studies[name].base, "s.yaml")["failed_nodes"])
                studies[name].hurry()
                del pending[name]
        return not pending

    def limit(minutes: int) -> None:
        ask("scontrol", "update", f"JobId={job['limit']}", f"TimeLimit={minutes}")

    # Its limit comes twice, each time while it trains. The warning is 90 s before the limit, so
    # that two minutes from now are soon.
    for life in (1, 2):
        until(lambda life=life: studies["limit"].log().count("resumes after step") == life - 1)
        until(studies["limit"].trains)
        limit(int(of("limit", "RunTime").split(":")[1]) + 2)
        until(lambda life=life: of("limit", "Restarts") == str(life))
        limit(10)
    note("the limit came twice")
    for cell in (FIRST, SECOND, BEHIND):
        run_cell(create_cell_dir(replace(cell, resources=toy.RUNTIME), undisturbed))
    note("undisturbed")
    until(lambda: of("node", "Restarts") == "1")
    note("the node is down")
    subprocess.run([lab, "heal", broken], check=True)
    until(look)
    session_lab.wait()
    note("all is over")
    if session_lab.accounting:  # a power failure leaves no message
        assert failed_nodes == {broken: [job["node"]]}, "`status` offers to leave it out"
    return studies


def rank_of(job: str) -> int:
    """The process that trains in a job, by its number here: nodes number theirs by themselves."""
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            command = (process / "cmdline").read_bytes().split(b"\0")
            is_rank = b"python" in command[0] and b"submitit.core._submit" in command  # not srun
            variables = (process / "environ").read_bytes().split(b"\0")
            if is_rank and {f"SLURM_JOB_ID={job}".encode(), b"SLURM_PROCID=0"} <= {*variables}:
                return int(process.name)
    raise AssertionError(f"no process of job {job}")


# How often each of a study's trainings begins.
LIVES = {
    "node": [2],
    "preempted": [2],
    "limit": [3, 1],
    "requeued": [2],
    "told": [2, 2],
    "container": [2, 2],
    "cancelled": [1, 2],
    "killed": [2],
    "controller": [1, 1],
}


@pytest.mark.parametrize("what", LIVES)
def test_a_study_survives(what: str, survivors: dict[str, Study], undisturbed: Path) -> None:
    study = survivors[what]
    for cell in study.cells:
        toy.assert_same(study.base / cell.relpath, undisturbed / cell.relpath)
        assert study.log(cell).count(" finished: ") == 1, study.log(cell)
    lives = [study.log(cell).count(" starts (") for cell in study.cells]
    assert lives == LIVES[what]
    facts = study.submit()
    assert (facts["submitted"], facts["finished"]) == (0, 2 + len(study.cells))


def test_a_read_only_runs_folder_is_reported_and_nothing_is_submitted(kit: Kit, fake: Fake) -> None:
    """Root writes whatever the permissions say, but not to what is mounted read-only."""
    runs = kit.folder / "runs"
    mount = f"mount --bind {runs} {runs} && mount -o remount,ro,bind {runs}"
    runs.mkdir()
    if subprocess.run(["unshare", "--mount", "sh", "-c", mount], capture_output=True).returncode:
        pytest.skip("no mounts: needs root")
    submit_there = [
        "unshare",
        "--mount",
        "sh",
        "-c",
        f'{mount} && exec "$@"',
        "sh",
        *kit.words("submit"),
    ]
    for begun in (False, True):
        if begun:
            kit.done("submit")
        sent = len(fake.scripts)
        result = subprocess.run(submit_there, capture_output=True, text=True)
        (line,) = result.stderr.splitlines()
        assert result.returncode == 2 and not result.stdout
        assert line.startswith("error: ") and "Read-only file system" in line and "--runs" in line
        assert len(fake.scripts) == sent
