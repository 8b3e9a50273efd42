"""What sites put around Slurm's commands, and controllers that are busy, by public reports: lines
before the answer, an answer without an id, every third question without an answer."""

import os
import subprocess
from pathlib import Path

import pytest
from submitit.slurm.slurm import SlurmJobEnvironment

from core.cell.identity import create_cell_dir
from slurm import job, slurm_cli
from slurm.executor import executor, requeue_flag, script
from slurm.profile import Profile, Resources
from slurm.submit import submit
from study.commands.status import look
from tests.place import ROOT
from tests.slurm.places import Fake, Kit, Lab
from tests.slurm.test_limit import PROFILE, corpora
from tests.slurm.test_shells import LIST, events, sbatch_ends

pytestmark = pytest.mark.slurm
GREETING = """
echo "  --- Welcome to Cumulus3 | 1,024 nodes ---"
echo "Quota of $USER: 12 of 100 GB"
echo "sbatch: 7 jobs may be queued" >&2
"""
BUSY = "slurm_load_jobs error: Unable to contact slurm controller (connect failure)"
# Every third call fails.
EVERY_THIRD = f"""
n=$(($(cat {{counter}} 2>/dev/null) + 1)); echo $n > {{counter}}
[ $((n % 3)) != 0 ] || {{{{ echo "{BUSY}" >&2; exit 1; }}}}
"""


def precede(fake: Fake, command: str, lines: str) -> None:
    """Have a command run these lines of shell before its own."""
    path = fake.folder / "bin" / command
    text = path.read_text() if path.exists() else "#!/bin/bash\n"
    path.write_text(text.replace("#!/bin/bash\n", f"#!/bin/bash\n{lines}", 1))
    path.chmod(0o755)


def test_a_greeting_before_every_answer_changes_nothing(kit: Kit, fake: Fake) -> None:
    sbatch_ends(fake, LIST + 'echo "$n"')
    for command in ("sbatch", "squeue", "scontrol", "scancel", "sacctmgr", "sinfo", "sacct"):
        precede(fake, command, GREETING)
    facts = kit.done("submit")
    assert facts["submitted"] == facts["cells"]
    assert [j["job"] for j in facts["jobs"]] == [str(101 + n) for n in range(len(fake.scripts))]
    assert kit.done("submit")["submitted"] == 0
    assert kit.done("status")["total"]["queued"] == facts["cells"]
    assert kit.done("cancel")["cancelled"]
    for job_id in range(101, 101 + len(facts["jobs"])):
        precede(fake, "sacct", f'echo "{job_id}|small-x|CANCELLED by 7"\n')
    data = kit.done("status")
    assert data["total"]["unknown"] == data["total"]["queued"] == 0


def test_every_third_question_without_an_answer(kit: Kit, fake: Fake) -> None:
    sbatch_ends(fake, LIST + 'echo "$n"')
    for command in ("squeue", "scontrol", "sacctmgr", "sinfo"):
        precede(fake, command, EVERY_THIRD.format(counter=fake.folder / f"calls-{command}"))
    facts = kit.done("submit")
    assert facts["submitted"] == facts["cells"]
    for _ in range(3):
        again = kit.done("submit")
        assert (again["submitted"], again["queued"]) == (0, facts["cells"])
        assert kit.done("status")["trouble"] is None
    assert len(kit.done("cancel")["cancelled"]) == sum(j["tasks"] for j in facts["jobs"])


def test_an_id_counts_though_the_queue_does_not_answer_then(kit: Kit, fake: Fake) -> None:
    """The job is in; an error would say that nothing was done."""
    precede(fake, "squeue", f'[ ! -e 101.sh ] || {{ echo "{BUSY}" >&2; exit 1; }}\n')
    path = fake.folder / "bin/squeue"
    path.write_text(path.read_text().replace("[ ! -e 101.sh", f"[ ! -e {fake.folder}/101.sh"))
    facts = kit.done("submit", "--stages", "model")
    assert [j["job"] for j in facts["jobs"]] == ["101"]
    assert [event["job"] for event in events(kit, "submitted")] == ["101"]


def test_a_wrapper_that_ends_well_without_an_id_may_have_queued_the_job(
    kit: Kit, fake: Fake
) -> None:
    sbatch_ends(fake, LIST.replace(">> queue", ">> later") + 'echo "your job will go in soon"')
    (line,) = kit.refused("submit", "--stages", "model")
    assert "your job will go in soon" in line and "it may be queued all the same" in line
    assert not events(kit, "refused")
    (fake.folder / "later").rename(fake.folder / "queue")
    facts = kit.done("submit", "--stages", "model")
    assert (facts["submitted"], facts["queued"]) == (0, 1)


def test_a_job_without_an_id_that_an_old_copy_of_the_queue_lacks_is_found(
    kit: Kit, fake: Fake
) -> None:
    """By its comment, among all jobs of the controller."""
    sbatch_ends(fake, LIST.replace(">> queue", ">> controller"))
    show = """
if [ "$3" = job ] && [ -z "$4" ]; then
  echo "JobId=7 JobName=other JobState=RUNNING Reason=None Comment=x Command=/y UserId=jo(7)"
  sed -E 's#^([0-9]+).*\\|(.*)#JobId=\\1 JobName=x JobState=PENDING Reason=None Comment=\\2 Command=/b#' controller
  exit
fi
"""
    precede(fake, "scontrol", f"cd {fake.folder}\n{show}")
    kit.refused("submit", "--stages", "model")
    for _ in range(2):
        facts = kit.done("submit", "--stages", "model")
        assert (facts["submitted"], facts["queued"]) == (0, 1)
    assert kit.done("status")["total"]["queued"] == 1
    assert len(fake.scripts) == 1


def run_script(tmp_path: Path, fake: Fake) -> str:
    """The output of a job's script whose process asks to be queued again."""
    logs = tmp_path / "jobs"
    logs.mkdir(exist_ok=True)
    (fake.folder / "bin/srun").write_text(f"#!/bin/bash\ntouch {requeue_flag(logs, '7')}\n")
    path = tmp_path / "slurm_script"
    profile = Profile(stages={"default": Resources(10)})
    path.write_text(script(executor("job", Resources(10), profile, ROOT, logs)))
    shell = os.environ | {"SLURM_JOB_ID": "7"}
    result = subprocess.run(["bash", str(path)], env=shell, capture_output=True, text=True)
    return result.stdout


def test_a_job_is_queued_again_though_squeue_greets_and_the_controller_is_busy(
    tmp_path: Path, fake: Fake
) -> None:
    fails_first = f'[ -e {tmp_path}/$0 ] || {{ mkdir -p "{tmp_path}/$0"; exit 1; }}\n'
    (fake.folder / "bin/squeue").write_text("#!/bin/bash\n")
    precede(fake, "squeue", fails_first + GREETING + "echo RUNNING\n")
    (fake.folder / "bin/scontrol").write_text("#!/bin/bash\n")
    precede(fake, "scontrol", fails_first + 'echo "told: $*"\n')
    assert run_script(tmp_path, fake).count("told: requeue 7\n") == 1
    precede(fake, "squeue", GREETING + "echo COMPLETING; exit\n")
    assert "told" not in run_script(tmp_path, fake), "a cancelled job"


def test_a_job_knows_its_state_though_squeue_greets(fake: Fake) -> None:
    (fake.folder / "bin/squeue").write_text(f"#!/bin/bash\n{GREETING}echo RUNNING\n")
    assert slurm_cli.state("7") == "RUNNING"
    (fake.folder / "bin/squeue").write_text("#!/bin/bash\nexit 1\n")
    assert slurm_cli.state("7") == ""


def test_the_batch_script_queues_a_job_again_that_could_not_itself(
    tmp_path: Path, fake: Fake, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SUBMITIT_FOLDER", str(tmp_path))
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    scontrol = fake.folder / "bin/scontrol"
    for status in (0, 1):
        scontrol.write_text(f"#!/bin/sh\necho $* >> {tmp_path}/told; exit {status}\n")
        job._requeue_or_request(SlurmJobEnvironment(), 3)
        assert Path(requeue_flag(tmp_path, "7")).exists() == bool(status)
    assert (tmp_path / "told").read_text() == "requeue 7\n" * 2


def test_on_a_cluster_where_all_commands_greet_and_fail_now_and_then(
    lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "bin"
    folder.mkdir()
    for command in ("sbatch", "squeue", "scontrol", "scancel", "sacctmgr", "sinfo", "sacct"):
        real = subprocess.run(["which", command], capture_output=True, text=True).stdout.strip()
        third = EVERY_THIRD.format(counter=tmp_path / f"calls-{command}")
        third = "" if command in ("sbatch", "scancel") else third
        (folder / command).write_text(f'#!/bin/bash\n{GREETING}{third}exec {real} "$@"\n')
        (folder / command).chmod(0o755)
    cells, base = corpora(4), tmp_path / "runs/greeted"
    create_cell_dir(cells[0], base)
    with monkeypatch.context() as shell:
        shell.setenv("PATH", f"{folder}:{os.environ['PATH']}")
        facts = submit(cells, base, PROFILE, "lab")
        again = submit(cells, base, PROFILE, "lab")
    lab.wait()
    data = look(cells, base, "s.yaml")
    assert again["submitted"] == 0 and data["total"]["done"] == 4, data["cells"]
    assert facts["continues"], "a job submitted the rest"
    for cell in cells:
        assert (base / cell.relpath / "log.txt").read_text().count(" finished: ") == 1
