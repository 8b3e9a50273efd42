"""`status` of jobs on a real Slurm: hand-made cells, each with a job that does one thing."""

import json
import os
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from core.cell.identity import Cell, create_cell_dir, read_config
from core.cell.manifest import write_manifest
from core.files import locked
from slurm import driver, profile, submissions
from study.commands import status as status_command
from study.commands.status import Memory, look, print_status, show
from tests.place import ROOT, SMALL
from tests.slurm.places import CLUSTER, Fake, Kit, Lab
from tests.waiting import until

pytestmark = pytest.mark.slurm

# `submit` was not called, so no cluster is on record.
AGAIN = "python -m study submit s.yaml --cluster NAME"
# As a cell's process does: hold the lock, say how far it is.
WORK = """exec 9>.lock; flock 9; echo "x starts (process $$)" >> log.txt
echo '{"done": 120, "total": 400, "unit": "steps"}' > progress.json"""
FULL = 'echo "OSError: [Errno 122] Disk quota exceeded"'
# As submitit begins a job's log; its first life waits to be queued again, its second dies.
TWO_LIVES = f"""echo "submitit INFO ($(date '+%F %T'),123) - Starting with JobEnvironment(job_id=1)"
[ -n "$SLURM_RESTART_COUNT" ] || sleep 300
{FULL} >&2; exit 1"""
HUNGRY = "python3 -c 'import time; x = bytearray(300 << 20); time.sleep(60)'"


def finish(folder: Path) -> None:
    now = "2026-01-01T00:00:00Z"
    write_manifest(folder, read_config(folder), now, now, counts={}, warnings=[])


FINISH = """
import sys
from pathlib import Path
from types import SimpleNamespace
sys.path.insert(0, sys.argv[1])
from tests.slurm.test_status import finish
finish(Path.cwd())
"""


class Submitted:
    """Cells of a hand-made study and their jobs."""

    def __init__(self, folder: Path):
        self.base = folder / "runs/s"
        self.cells: list[Cell] = []
        (self.base / "slurm/jobs").mkdir(parents=True)

    def cell(self, name: str, *inputs: Cell, stage: str = "documents") -> Cell:
        cell = Cell(stage, name, {"name": name}, {c.name: c for c in inputs})
        self.cells.append(cell)
        create_cell_dir(cell, self.base)
        return cell

    def finished(self, name: str) -> Cell:
        cell = self.cell(name)
        finish(self.base / cell.relpath)
        return cell

    def record(self, job: str, *tasks: list[Cell], kind: str = "x") -> None:
        """Record a job as `submit` does, without submitting it."""
        identities = [[cell.identity for cell in task] for task in tasks]
        submissions.write_submitting(self.base / "slurm", f"g{job}", kind, identities, None)
        submissions.write_submitted(self.base / "slurm", f"g{job}", job)

    def job(self, script: str, *cells: Cell, options: str = "") -> str:
        """Submit a job of these cells, which starts in the folder of the first. Returns its id."""
        folder = self.base / "slurm"
        group = f"s-{len(self.cells)}-{time.monotonic_ns()}"
        identities = [[cell.identity for cell in cells]]
        submissions.write_submitting(folder, group, "x", identities, None)
        log = f"{folder}/jobs/%j_0_log"
        command = (
            f"sbatch --parsable --job-name=s-x --comment={group} --time=5 --mem=100M "
            f"--output={log}.out --error={log}.err --open-mode=append {options}"
        )
        script = f"#!/bin/bash\ncd {self.base / cells[0].relpath}\n{script}\n"
        result = subprocess.run(
            command.split(), input=script, capture_output=True, text=True, check=True
        )
        job = result.stdout.strip()
        submissions.write_submitted(folder, group, job)
        return job

    def look(self, memory: Memory | None = None) -> dict[str, Any]:
        return look(self.cells, self.base, "s.yaml", memory)

    def until(self, expected: dict[str, str]) -> dict[str, dict[str, Any]]:
        """Rows by cell, once they are in these states."""

        def states() -> dict[str, str]:
            return {row["cell"]: row["state"] for row in self.look()["cells"]}

        until(lambda: states().items() <= expected.items(), lambda: show(self.look()))
        return {row["cell"]: row for row in self.look()["cells"]}


@pytest.fixture
def study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Submitted:
    monkeypatch.setattr(profile, "FOLDER", tmp_path)  # without a profile of the user's
    return Submitted(tmp_path)


def test_every_state_of_a_job(lab: Lab, study: Submitted) -> None:
    cell, job = study.cell, study.job
    study.finished("made")
    running = job(f"{WORK}; sleep 300", a := cell("running"))
    job("true", cell("waits", a), options=f"--dependency=afterok:{running}")
    job(f"{WORK}; sleep 300", cell("first"), cell("second"))
    again = job(TWO_LIVES, cell("again"))
    full = job(f"{FULL} >> log.txt; exit 1", f := cell("full"))
    job(
        "true",
        g := cell("killed-with-it", f),
        options=f"--dependency=afterok:{full} --kill-on-invalid-dep=yes",
    )
    job(
        "true",
        cell("behind-both", g),
        options=f"--dependency=afterok:{full} --kill-on-invalid-dep=no",
    )
    held = job("true", h := cell("held"), options="--hold")
    job("true", cell("waits-for-held", h), options=f"--dependency=afterok:{held}")
    stopped = job("echo begun > log.txt; sleep 300", cell("stopped"))
    never = job("true", n := cell("never-began"), options="--hold")
    job("true", cell("orphan", n), options=f"--dependency=afterok:{never} --kill-on-invalid-dep=no")
    job("exit 3", cell("wordless"))
    cell("not-submitted", n)
    job(HUNGRY, cell("hungry")) if lab.accounting else None

    until(lambda: {lab.jobs().get(j) for j in (running, stopped, again)} == {"RUNNING"})
    log = study.base / "slurm/jobs" / f"{again}_0_log.out"
    until(lambda: log.exists() and log.read_text())
    lab.ask("scancel", stopped, never)
    lab.ask("scontrol", "requeue", again)
    expected = {
        "made": "done",
        "running": "running",
        "waits": "queued",
        "first": "running",
        "second": "queued",
    }
    expected |= {
        "again": "failed",
        "full": "failed",
        "killed-with-it": "blocked",
        "behind-both": "blocked",
    }
    expected |= {
        "held": "blocked",
        "waits-for-held": "queued",
        "stopped": "failed",
        "never-began": "to do",
    }
    expected |= {"orphan": "blocked", "wordless": "failed", "not-submitted": "to do"}
    expected |= {"hungry": "failed"} if lab.accounting else {}
    rows = study.until(expected)
    screen = show(study.look())
    print(screen)

    causes = {name: row.get("cause") for name, row in rows.items() if "last_lines" in row}
    assert causes == {
        "again": "no disk space",  # and not that it was queued again before
        "full": "no disk space",
        "held": "held job",
        "stopped": "cancelled",
        "orphan": "dead dependency",
        "wordless": None,
    } | ({"hungry": "out of memory"} if lab.accounting else {})
    assert rows["running"]["progress"] == "120 of 400 steps" and rows["running"]["seconds"] < 300
    assert (
        rows["waits"]["reason"] == "the cells before them"
        and rows["second"]["reason"] == "another cell of their job"
    )
    assert (
        rows["behind-both"]["behind"] == rows["killed-with-it"]["behind"] == rows["full"]["folder"]
    )
    assert rows["full"]["next"] == rows["orphan"]["next"] == AGAIN
    assert rows["held"]["next"] == f"scontrol release {held}"
    if lab.accounting:
        assert rows["never-began"]["job"] == never
        until(lambda: study.until(expected)["wordless"]["last_lines"] == ["Slurm: FAILED"])

    # The commands that it gives are followed one after another, until none releases a job.
    assert (
        screen.endswith(f"\nnext: scontrol release {held}")
        and "2 cells are blocked by it" in screen
    )
    lab.ask(*study.look()["next"].split())
    until(lambda: held not in lab.jobs())
    assert study.look()["next"] == AGAIN


def test_a_queue_that_does_not_answer_is_unknown_and_never_failed(
    lab: Lab, study: Submitted, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study.job(f"{WORK}; sleep 300", study.cell("locked"))
    study.job("echo begun > log.txt; sleep 300", study.cell("begun"))
    study.job("true", study.cell("queued"), options="--hold")
    study.finished("made")
    study.until({"locked": "running", "begun": "running", "queued": "blocked", "made": "done"})
    until(lambda: len(list(study.base.glob("documents/*/log.txt"))) == 2)
    conf = (
        (lab.folder / "etc/slurm.conf").read_text().replace("MessageTimeout=10", "MessageTimeout=2")
    )
    (tmp_path / "slurm.conf").write_text(conf.replace("SlurmctldPort=", "SlurmctldPort=1"))
    unknown = {"locked": "running", "begun": "unknown", "queued": "unknown", "made": "done"}
    with monkeypatch.context() as patch:
        patch.setenv("SLURM_CONF", str(tmp_path / "slurm.conf"))
        study.until(unknown)
        data = study.look()
        assert "What is queued is unknown: squeue: " in show(data) and data["goes_on"]
        assert data["next"] == "python -m study status s.yaml"
    with monkeypatch.context() as patch:
        patch.setenv("PATH", "/nowhere")
        study.until(unknown)
    with monkeypatch.context() as patch:
        patch.setattr(os, "getuid", lambda: 12345)
        study.until(unknown)
        assert "the jobs are those of user " in show(study.look())


def test_watching_ends_with_the_last_job(
    lab: Lab, study: Submitted, capsys: pytest.CaptureFixture[str]
) -> None:
    write = f"{sys.executable} -c {shlex.quote(FINISH)} {ROOT}"
    study.job(f"sleep 2; {write}", study.cell("short"))
    print_status(study.cells, study.base, "s.yaml", watch=0.3)
    screens = capsys.readouterr().out
    assert screens.count("next:") in (2, 3), "queued, running, done: each told once"
    assert screens.endswith("next: python -m study report s.yaml\n")


SACCT = """7|s-x|FAILED
7.batch|batch|FAILED
7.0|python|OUT_OF_MEMORY
8_0|s-x|TIMEOUT
8_0.0|python|CANCELLED
8_1|s-x|CANCELLED by 1000
8_[2-3]|s-x|PENDING
9|somebody-else|NODE_FAIL
9.0|python|OUT_OF_MEMORY
10|s-x|RUNNING
11|s-x|NODE_FAIL
12|s-x|CANCELLED
13|s-x|PREEMPTED"""


def test_what_sacct_answers_is_a_hint(fake: Fake, study: Submitted) -> None:
    """Output of sacct as recorded on clusters that enforce memory and time limits."""
    fake.say("bin/sacct", f"#!/bin/sh\ncat <<'E'\n{SACCT}\nE\n")
    (fake.folder / "bin/sacct").chmod(0o755)
    for job, tasks in {"7": 1, "8": 4, "9": 1, "10": 1, "11": 1, "12": 1, "13": 1}.items():
        study.record(job, *([study.cell(f"{job}-{task}")] for task in range(tasks)))
    memory = Memory()
    causes = {row["cell"]: row.get("cause", row["state"]) for row in study.look(memory)["cells"]}
    assert causes == {
        "7-0": "out of memory",
        "8-0": "time limit",
        "11-0": "node failure",
        "13-0": "preempted",
    } | (dict.fromkeys(("8-1", "8-2", "8-3", "9-0", "10-0", "12-0"), "to do"))
    assert set(memory.ends) == {"7", "8_0", "8_1", "11", "12", "13"}, (
        "what may still change is asked again"
    )
    fake.say("bin/sacct", "#!/bin/sh\necho 'Slurm accounting storage is disabled' >&2; exit 1\n")
    assert {row["state"] for row in study.look()["cells"]} == {"to do"}, (
        "nobody knows more, so nothing is claimed"
    )
    fake.in_queue(
        "7|RUNNING|None|s-x|g7", "9|PENDING|QOSMaxGRESPerJob|s-x|g9", "10|PENDING|Priority|s-x|g10"
    )
    data = study.look()
    assert [row["state"] for row in data["cells"] if row["state"] != "to do"] == [
        "running",
        "blocked",
        "queued",
    ]
    assert data["next"] == "scancel 9" and "queued:  1 for jobs ahead of them" in show(data)
    json.dumps(data)


def test_a_job_whose_input_left_the_queue_unfinished_never_starts(
    fake: Fake, study: Submitted
) -> None:
    """Slurm's reason remains "Dependency" for such a job."""
    gone = study.cell("gone")
    study.record("7", [gone])
    study.record("8", [study.cell("next", gone)])
    fake.in_queue("8|PENDING|Dependency|s-x|g8")
    rows = {row["cell"]: row for row in study.look()["cells"]}
    assert rows["gone"]["state"] == "to do" and rows["next"]["cause"] == "dead dependency"
    fake.in_queue("7|PENDING|Priority|s-x|g7", "8|PENDING|Dependency|s-x|g8")
    assert {row["state"] for row in study.look()["cells"]} == {"queued"}


def test_what_only_an_administrator_can_change_is_shown_and_not_released(
    fake: Fake, study: Submitted
) -> None:
    held, poor, waits = (study.cell(name) for name in ("held", "poor", "waits"))
    for job, cell in {"7": held, "8": poor, "9": waits}.items():
        study.record(job, [cell])
    reasons = {"7": "JobHeldAdmin", "8": "AssocGrpCPUMinutesLimit", "9": "AssocGrpCPURunMinutes"}
    fake.in_queue(*(f"{job}|PENDING|{reason}|s-x|g{job}" for job, reason in reasons.items()))
    data = study.look()
    rows = {row["cell"]: row for row in data["cells"]}
    assert [rows[name]["state"] for name in ("held", "poor", "waits")] == [
        "blocked",
        "blocked",
        "queued",
    ]
    assert rows["held"]["cause"] == "held by an administrator"
    assert "release" not in show(data).partition("\nnext:")[2]
    assert data["next"] == "scontrol show job 7" and rows["poor"]["next"] == "sshare --long"
    assert "1 for a limit of the account or QOS" in show(data)


def test_a_rank_that_hangs_is_shown_with_its_node(fake: Fake, study: Submitted) -> None:
    cell = study.cell("hangs")
    study.record("7", [cell])
    fake.in_queue("7|RUNNING|None|s-x|g7")
    folder = study.base / cell.relpath
    (folder / "log.txt").write_text("hangs starts (process 1)\n")
    (folder / "ranks").mkdir()
    beat = {"host": "n0", "world_size": 2, "step": 7, "seconds": 900, "median": 8, "limit": 300}
    (folder / "ranks/0.json").write_text(json.dumps(beat))
    (folder / "ranks/1.json").write_text(json.dumps(beat | {"host": "n1", "step": 6}))
    fake.say("config", "JobId=7 Requeue=1 Restarts=0")
    data = study.look()
    assert "stalled: documents hangs: no step for 15 min" in show(data)
    assert "rank 1 on n1 is still in step 6" in show(data)
    assert data["next"] == "scontrol requeue 7"
    fake.say("config", "JobId=7 Requeue=0 Restarts=0")
    assert study.look()["next"] == "scancel 7"
    # Slurm itself has stopped it, and will resume it: nothing to cure, whoever holds its lock.
    fake.in_queue("7|SUSPENDED|None|s-x|g7")
    with locked(folder / ".lock"):
        held = study.look()
    for data in (held, study.look()):
        (row,) = data["cells"]
        assert (row["state"], "stalled" in row) == ("queued", False) and data["goes_on"]
        assert "Slurm to resume them, which has suspended them" in show(data)


def test_a_job_that_the_site_forbids_to_requeue(lab: Lab, study: Submitted) -> None:
    study.job("scontrol requeue $SLURM_JOB_ID; exit 1", study.cell("last"), options="--no-requeue")
    assert study.until({"last": "failed"})["last"]["cause"] == "requeue forbidden"


def test_a_job_that_submits_more_is_waited_for(fake: Fake, study: Submitted) -> None:
    study.cell("left-over")
    study.record("9", [], kind=submissions.CONTINUE)
    fake.in_queue("9|PENDING|Dependency|s-x|g9")
    data = study.look()
    assert (
        data["goes_on"] and data["next"].endswith("--watch") and "job 9 submits more" in show(data)
    )
    fake.in_queue()  # it ended, and nothing was submitted
    assert study.look()["next"] == f"{AGAIN} --until-done"


def driver_line(study_file: str, *options: str) -> str:
    """What squeue lists of `sbatch slurm/study.sbatch`, called in the checkout."""
    words = [f"{ROOT}/slurm/study.sbatch", study_file, *options]
    return f"12|PENDING|Priority|study|{' '.join(words)}|(null)\n"


@pytest.mark.parametrize("submitted", [False, True])
def test_a_driver_in_the_queue_is_waited_for(
    fake: Fake, study: Submitted, submitted: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    """`sbatch slurm/study.sbatch` has just been typed: nothing is on record yet, or not all."""
    study.cell("to-do")
    if submitted:
        study.record("9", [study.cell("before")])
    runs = study.base.parent
    fake.say("queue", driver_line("studies/tiny.yaml", "--cluster", "lab", "--runs", str(runs)))

    def look_at(study_file: str) -> dict[str, Any]:
        return look(study.cells, study.base, study_file)

    tiny = shlex.quote(str(ROOT / "studies/tiny.yaml"))
    data = look_at(tiny)
    assert data["driver"] == "12" and data["goes_on"]
    assert data["next"] == f"python -m study status {tiny} --watch"
    assert "to do:   job 12, of slurm/study.sbatch, submits the study" in show(data)
    # That of another study, and of another runs folder, is not this one's.
    assert not look_at(shlex.quote(str(ROOT / "studies/paper.yaml")))["driver"]
    fake.say("queue", driver_line("studies/tiny.yaml", f"--runs={runs}"))
    assert look_at(tiny)["driver"] == "12"
    fake.say("queue", driver_line("studies/tiny.yaml", "--runs", "elsewhere"))
    assert not look_at(tiny)["driver"]
    fake.say("queue", driver_line("studies/tiny.yaml"))
    assert not look_at(tiny)["driver"], "its runs folder is that of the checkout"
    # Slurm quotes no blank.
    fake.say("queue", driver_line("my studies/a b.yaml", "--runs", f"{runs}/x y", "--json"))
    assert driver.ask(ROOT / "my studies/a b.yaml", runs / "x y") == "12"
    assert not driver.ask(ROOT / "my studies/a", runs / "x y")
    fake.say("queue", driver_line("--runs", f"{runs}/x y", "my studies/a b.yaml"))
    assert driver.ask(ROOT / "my studies/a b.yaml", runs / "x y") == "12"
    assert not driver.ask(ROOT / "my studies/a b.yaml", runs / "x")
    # Slurm 24.11 lists the script alone.
    fake.say("queue", f"12|PENDING|Priority|study|{ROOT}/slurm/study.sbatch|(null)\n")
    line = f"sbatch --parsable slurm/study.sbatch my studies/a b.yaml --runs {runs}/x y"
    fake.say("bin/sacct", f"#!/bin/sh\necho '{line}'\n")
    (fake.folder / "bin/sacct").chmod(0o755)
    assert driver.ask(ROOT / "my studies/a b.yaml", runs / "x y") == "12"
    assert not look_at(tiny)["driver"]
    fake.say("bin/sacct", "#!/bin/sh\nexit 1\n")
    assert look_at(tiny)["driver"] == "12", "whose it is can't be told"
    # A controller that does not answer.
    fake.say("bin/squeue", "#!/bin/sh\nexit 1\n")
    assert not look_at(tiny)["driver"]


def test_watching_goes_on_from_the_driver_to_the_end(
    fake: Fake, study: Submitted, monkeypatch: pytest.MonkeyPatch
) -> None:
    cell = study.cell("a")
    runs = str(study.base.parent)
    tiny = shlex.quote(str(ROOT / "studies/tiny.yaml"))

    def submits() -> None:
        study.record("9", [cell])
        fake.in_queue("9|PENDING|Priority|s-x|g9")

    def ends() -> None:
        finish(study.base / cell.relpath)
        fake.in_queue()

    steps = iter([submits, ends])
    fake.say("queue", driver_line("studies/tiny.yaml", "--runs", runs))
    clock = SimpleNamespace(sleep=lambda seconds: next(steps)(), time=time.time)
    monkeypatch.setattr(status_command, "time", clock)  # subprocess sleeps as well
    print_status(study.cells, study.base, tiny, watch=15)
    assert next(steps, None) is None


def test_a_driver_on_a_real_cluster_is_seen(lab: Lab, kit: Kit) -> None:
    arguments = [str(SMALL), "--cluster", str(CLUSTER), "--runs", str(kit.folder / "runs")]
    sbatch = ["sbatch", "--parsable", "--hold", "--output=/dev/null", "slurm/study.sbatch"]
    job = subprocess.run(
        [*sbatch, *arguments], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.strip()
    data = kit.done("status")
    assert data["driver"] == job and data["next"].endswith("--watch")


def test_the_next_command_names_the_cluster_of_the_last_submission(
    fake: Fake, kit: Kit, tmp_path: Path
) -> None:
    copy = shutil.copy(CLUSTER, tmp_path / "my cluster.yaml")
    for cluster in (str(CLUSTER), str(copy)):
        kit.done("submit", "--cluster", cluster)
        words = shlex.split(kit.done("status")["next"])
        assert words[words.index("--cluster") + 1] == cluster


def test_a_job_that_failed_without_a_log_could_not_open_its_folder(fake: Fake, kit: Kit) -> None:
    job = kit.done("submit")["jobs"][0]["job"]
    name = fake.scripts[0].directives["job-name"]
    fake.say("bin/sacct", f"#!/bin/sh\necho '{job}|{name}|FAILED'\n")
    (fake.folder / "bin/sacct").chmod(0o755)
    (row,) = [row for row in kit.done("status")["cells"] if "cause" in row]
    assert row["cause"] == "no such folder"
    assert row["last_lines"] == [f"Slurm: FAILED without a log in {kit.base}/slurm/jobs"]


def test_the_end_of_a_submitted_job_is_read_from_sacct(fake: Fake, kit: Kit) -> None:
    """sacct lists the job under the name that `submit` gave it."""
    job = kit.done("submit")["jobs"][0]["job"]
    name = fake.scripts[0].directives["job-name"]
    fake.say("bin/sacct", f"#!/bin/sh\necho '{job}|{name}|TIMEOUT'\n")
    (fake.folder / "bin/sacct").chmod(0o755)
    causes = [row["cause"] for row in kit.done("status")["cells"] if "cause" in row]
    assert causes == ["time limit"]
