"""What users' shells and sites' wrappers do to Slurm's commands: nothing is submitted twice, and
what was submitted is found and cancelled."""

import json
from pathlib import Path
from typing import Any

import pytest

from core.errors import UserError
from slurm import cancel as cancel_module
from slurm import slurm_cli, submissions
from slurm.cancel import cancel
from slurm.profile import load_profile
from slurm.submit import submit
from tests.place import ROOT
from tests.slurm.places import Fake, Kit, Lab
from tests.slurm.test_limit import PROFILE, corpora

pytestmark = pytest.mark.slurm
TINY = ROOT / "studies/tiny.yaml"

# Each makes one of the commands answer or do something else.
SETTINGS = {
    "SQUEUE_STATES": "CANCELLED",
    "SQUEUE_PARTITION": "gpu",
    "SQUEUE_USERS": "nobody",
    "SQUEUE_FORMAT": "%u",
    "SQUEUE_FORMAT2": "UserName",
    "SQUEUE_ACCOUNT": "nothing",
    "SQUEUE_NAMES": "nothing",
    "SQUEUE_QOS": "nothing",
    "SCANCEL_STATE": "SUSPENDED",
    "SCANCEL_PARTITION": "gpu",
    "SCANCEL_NAME": "nothing",
    "SCANCEL_USER": "nobody",
    "SCANCEL_INTERACTIVE": "1",
    "SCANCEL_VERBOSE": "9",
    "SACCT_FORMAT": "User",
    "SCONTROL_ALL": "1",
    "SINFO_PARTITION": "gpu",
    "SINFO_FORMAT": "%u",
    "SBATCH_PARTITION": "nowhere",
    "SBATCH_TEST_ONLY": "1",
    "SBATCH_REQUEUE": "0",
    "SBATCH_SIGNAL": "KILL@1",
    "SLURM_TIME_FORMAT": "relative",
    "SUBMITIT_PREEMPT_SIGNAL": "USR1",
    "SLURM_JOB_ID": "1",
    "SLURM_ARRAY_TASK_ID": "7",
}

TIMED_OUT = "sbatch: error: Batch job submission failed: Socket timed out on send/recv operation"
# Lines of squeue for the job that the script $n.sh asks for.
LIST = """
comment=$(sed -n 's/^#SBATCH --comment=//p' "$n.sh")
size=$(sed -n 's/^#SBATCH --array=0-\\([0-9]*\\)%.*/\\1/p' "$n.sh")
{ if [ -n "$size" ]; then seq -f "${n}_%.0f" 0 "$size"; else echo "$n"; fi; } |
  sed "s#\\$#|PENDING|None|x|/b.sh|$comment#" >> queue
"""


def sbatch_ends(fake: Fake, lines: str) -> None:
    """Have sbatch end with these lines in place of its answer, the id."""
    path = fake.folder / "bin/sbatch"
    text = path.read_text()
    assert text.endswith('echo "$n"\n')
    path.write_text(text.removesuffix('echo "$n"\n') + lines + "\n")


def events(kit: Kit, kind: str) -> list[dict[str, Any]]:
    lines = (kit.base / "slurm/jobs.jsonl").read_text().splitlines()
    return [event for event in map(json.loads, lines) if event["event"] == kind]


def test_a_shell_full_of_settings_changes_nothing(
    lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cells, base = corpora(3), tmp_path / "runs/shells"
    with monkeypatch.context() as shell:
        for name, value in SETTINGS.items():
            shell.setenv(name, value)
        facts = submit(cells, base, PROFILE, "lab")
        queued = [job.job for job in slurm_cli.queue()]
        again = submit(cells, base, PROFILE, "lab")
        cancelled = cancel(base)["cancelled"]
    assert (facts["submitted"], again["submitted"], len(queued)) == (3, 0, 3)
    assert {*cancelled} == {*queued}
    lab.wait()


def test_another_cluster_in_the_shell_is_refused_by_every_command(
    kit: Kit, fake: Fake, monkeypatch: pytest.MonkeyPatch
) -> None:
    kit.done("submit")
    monkeypatch.setenv("SLURM_CLUSTERS", "big")
    for command in ("submit", "cancel"):
        (line,) = kit.refused(command)
        assert "SLURM_CLUSTERS" in line and "unset SLURM_CLUSTERS" in line
    assert "SLURM_CLUSTERS" in kit.call("status").stdout


@pytest.mark.parametrize(
    "answer",
    ["$n", "Submitted batch job $n", "$n;lab", "You have 12 jobs left\\n7 nodes are free\\n$n"],
)
def test_the_id_is_read_whatever_a_wrapper_prints(kit: Kit, fake: Fake, answer: str) -> None:
    sbatch_ends(fake, f'printf "{answer}\\n"')
    facts = kit.done("submit")
    assert [job["job"] for job in facts["jobs"]] == [str(101 + n) for n in range(len(fake.scripts))]


def test_a_wrapper_that_asks_gets_no_answer_and_does_not_wait(kit: Kit, fake: Fake) -> None:
    sbatch_ends(fake, 'read -r answer; [ "$answer" != n ] && echo "$n"')
    assert kit.done("submit")["submitted"]


def test_a_submission_that_timed_out_but_is_queued_counts(kit: Kit, fake: Fake) -> None:
    sbatch_ends(fake, f'{LIST}\necho "{TIMED_OUT}" >&2; exit 1')
    facts = kit.done("submit")
    assert facts["submitted"] == facts["cells"] and not events(kit, "refused")
    assert kit.done("submit")["submitted"] == 0
    assert len(kit.done("cancel")["cancelled"]) == sum(job["tasks"] for job in facts["jobs"])


def test_a_submission_that_timed_out_and_comes_in_later_is_found(kit: Kit, fake: Fake) -> None:
    late = LIST.replace(">> queue", ">> later")
    sbatch_ends(fake, f'{late}\necho "{TIMED_OUT}" >&2; exit 1')
    (line,) = kit.refused("submit")
    assert "Socket timed out" in line and "it may be queued all the same" in line
    assert not events(kit, "refused")
    (fake.folder / "later").rename(fake.folder / "queue")
    sbatch_ends_well = (fake.folder / "bin/sbatch").read_text().partition("\ncomment=")[0]
    (fake.folder / "bin/sbatch").write_text(sbatch_ends_well + '\necho "$n"\n')
    facts = kit.done("submit")
    assert facts["queued"] and facts["submitted"] + facts["queued"] == facts["cells"]


def test_a_squeue_that_answers_from_an_old_copy_hides_nothing(kit: Kit, fake: Fake) -> None:
    """The controller's own answer, of scontrol, counts for what was submitted just now."""
    sbatch_ends(fake, LIST.replace(">> queue", ">> controller") + 'echo "$n"')
    scontrol = fake.folder / "bin/scontrol"
    show = """
[ "$2" = config ] && { cat config; exit; }
first=$(grep -m 1 "^${4}[_|]" controller) || { echo "Invalid job id specified" >&2; exit 1; }
last=$(($(grep -c "^$4_" controller) - 1))
array="ArrayJobId=$4 ArrayTaskId=0-$last%8 "
case $first in *_*) ;; *) array= ;; esac
echo "JobId=9$4 ${array}JobName=small-x JobState=PENDING Reason=Priority Comment=${first##*|} Command=x"
"""
    scontrol.write_text(scontrol.read_text().replace('[ "$1" != show ] || cat config\n', show))
    facts = kit.done("submit")
    assert facts["submitted"] == facts["cells"]
    assert kit.done("submit")["submitted"] == 0
    record = kit.base / "slurm/jobs.jsonl"
    record.write_text(record.read_text().replace('"time": "20', '"time": "19'))
    assert kit.done("submit")["submitted"], "what is long gone from squeue has ended"


def test_jobs_that_stay_after_scancel_are_named(
    kit: Kit, fake: Fake, monkeypatch: pytest.MonkeyPatch
) -> None:
    sbatch_ends(fake, LIST + 'echo "$n"')
    kit.done("submit")
    (fake.folder / "bin/scancel").write_text("#!/bin/sh\n")
    monkeypatch.setattr(cancel_module, "SECONDS", 1)
    with pytest.raises(UserError) as raised:
        cancel(kit.base)
    (problem,) = raised.value.problems
    jobs = [
        j.job
        for group in submissions.read(kit.base / "slurm")
        for j in group.in_queue(slurm_cli.queue()).values()
    ]
    assert problem.fix == f"scancel {' '.join(jobs)}"


def test_all_that_a_site_says_reaches_the_person(kit: Kit, fake: Fake) -> None:
    """A site's plugin gives its reason first, Slurm ends with one of its own."""
    said = "sbatch: error: --mem is not allowed here, it comes with the cores"
    fake.say("reject", f"{said}\nsbatch: error: Batch job submission failed: Unspecified error\n")
    (line, *_) = kit.refused("submit")
    assert "--mem is not allowed here, it comes with the cores; Unspecified error" in line
    fake.say("reject", "sbatch: error: Slurm temporarily unable to accept job, sleeping\n")
    assert kit.refused("submit")[0].endswith("the same command later")
    assert not fake.scripts


def test_the_check_asks_for_the_arrays_that_will_come(kit: Kit, fake: Fake) -> None:
    """Some sites have no arrays."""
    sbatch = fake.folder / "bin/sbatch"
    sbatch.write_text(
        sbatch.read_text().replace(
            "  cat >/dev/null\n",
            "  ! grep -q '^#SBATCH --array' || { echo 'no arrays on this system' >&2; exit 1; }\n",
        )
    )
    lines = kit.refused("submit", study=TINY)
    assert any("no arrays on this system" in line for line in lines)
    assert not fake.scripts


@pytest.mark.usefixtures("fake")
def test_a_runs_folder_that_slurm_takes_for_a_pattern_is_refused(kit: Kit) -> None:
    for name in ("100%job", "a\\b"):
        (line,) = kit.refused("submit", "--runs", str(kit.folder / name))
        assert name in line and "--runs" in line


def test_a_home_in_a_profile_is_filled_in(tmp_path: Path) -> None:
    profile = tmp_path / "mine.yaml"
    profile.write_text(
        "stages: {default: {minutes: 5}}\nscratch: ~/tmp/$SLURM_JOB_ID\ncache: ~/cache\n"
    )
    loaded = load_profile(profile)
    assert loaded.scratch == f"{Path.home()}/tmp/$SLURM_JOB_ID"
    assert loaded.cache == f"{Path.home()}/cache"


@pytest.mark.parametrize("gpus", ["-2", "h100:-2", "'h100:'", "h100", "'a b:2'"])
def test_a_number_of_gpus_that_is_none_is_a_mistake_of_the_profile(
    tmp_path: Path, gpus: str
) -> None:
    profile = tmp_path / "mine.yaml"
    profile.write_text(f"stages: {{default: {{minutes: 5, gpus_per_node: {gpus}}}}}\n")
    with pytest.raises(
        UserError, match=r"mine.yaml:1: stages.default.gpus_per_node: .*such as h100:8"
    ):
        load_profile(profile)
