"""Submission with commands that only take notes: scripts, record, limits, refusals."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from submitit.slurm.slurm import SlurmJobEnvironment

from core.cell.waiting import STATUS, Waiting
from slurm import job as job_module
from slurm.executor import executor
from slurm.executor import script as batch_script
from slurm.job import CellJob
from slurm.profile import Profile, Resources
from slurm.snapshot import snapshot
from tests.slurm.batch_script import BatchScript, split
from tests.slurm.conftest import ACCOUNTS
from tests.slurm.places import Fake, Kit

ROOT = Path(__file__).parents[2]
TINY = ROOT / "studies/tiny.yaml"
GOLDEN = Path(__file__).with_name("golden")


def reproducible(script: str, kit: Kit, fake: Fake) -> str:
    """A script without what differs from run to run."""
    script = script.replace(str(kit.folder), "/shared").replace(str(fake.folder), "/fake")
    script = re.sub(r"code-[0-9a-f]{12}", "code-HASH", script)
    script = re.sub(r"\btiny-[0-9a-f]{12}", "tiny-GROUP", script)
    return re.sub(r"('[^']+'|\S+) (-u -m submitit|-m slurm.retry)", r"PYTHON \2", script)


@pytest.mark.slurm
@pytest.mark.parametrize("cluster", ["lab", "university", "partitions"])
def test_golden_scripts(
    cluster: str, kit: Kit, fake: Fake, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One script of each stage, compared as parsed directives.

    After an intended change, run with GOLDEN=write in the environment and read the diff.
    """
    monkeypatch.setenv("USER", "jane")
    recipe = kit.folder / "midtrain.yaml"  # with rows enough for the ranks of every example
    tiny = (ROOT / "recipes/tiny_midtrain.yaml").read_text()
    recipe.write_text(tiny.replace("tokens_per_step: 1024", "tokens_per_step: 2048"))
    options = ("--cluster", cluster, "--set", f"midtrain.recipe={recipe}")
    facts = kit.done("submit", *options, study=TINY)
    texts = [path.read_text() for path in sorted(fake.folder.glob("[0-9]*.sh"))]
    by_stage: dict[str, str] = {}
    for job, text in zip(facts["jobs"], texts, strict=True):
        by_stage[job["stage"]] = reproducible(text, kit, fake)  # the last, which waits for most
    path = GOLDEN / f"{cluster}.sh"
    if os.environ.get("GOLDEN") == "write":
        path.write_text("\n".join(by_stage.values()))
    golden = [BatchScript.parse(text) for text in split(path.read_text())]
    by_name = {script.directives["job-name"]: script for script in golden}
    made = [BatchScript.parse(text) for text in by_stage.values()]
    assert {script.directives["job-name"]: script for script in made} == by_name
    for stage, script in zip(by_stage, made, strict=True):
        assert script.directives["job-name"].startswith(f"tiny-{stage}")


@pytest.mark.slurm
def test_every_script_has_what_each_version_of_slurm_needs(kit: Kit, fake: Fake) -> None:
    kit.done("submit", study=TINY)
    assert fake.scripts
    for script in fake.scripts:
        assert script.directives["kill-on-invalid-dep"] == "yes"
        assert script.directives["time"].isdigit(), "submitit's timeout needs minutes as a number"
        assert "gres" not in script.directives
        srun = script.srun_options()
        assert srun["kill-on-bad-exit"] == "1"
        assert srun["cpus-per-task"] == script.directives["cpus-per-task"]


@pytest.mark.usefixtures("fake")
def test_a_checkout_in_a_path_with_a_blank_is_one_word_of_the_script(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", "/srv/my kit/.venv/bin/python")
    resources = Resources(minutes=10, cpus=1, mem_gb=1)
    profile = Profile(stages={"default": resources})
    jobs = executor("name", resources, profile, tmp_path, tmp_path / "a b")
    python, *_, logs = shlex.split(jobs._submitit_command_str)
    assert python == sys.executable and logs == str(tmp_path / "a b")


@pytest.mark.slurm
def test_a_second_submission_finds_all_in_the_queue_or_finished(kit: Kit, fake: Fake) -> None:
    first = kit.done("submit", study=TINY)
    assert first["submitted"] == first["cells"] == 71
    queue = []
    for job in first["jobs"]:
        ids = (
            [job["job"]]
            if job["tasks"] == 1
            else [f"{job['job']}_{k}" for k in range(job["tasks"])]
        )
        reason, name = "Dependency" if job["after"] else "Priority", f"tiny-{job['stage']}"
        queue += [f"{i}|PENDING|{reason}|{name}|(null)" for i in ids]
    fake.in_queue(*queue)
    second = kit.done("submit", study=TINY)
    assert second["submitted"] == 0 and second["queued"] == 71 and second["jobs"] == []
    fake.in_queue(queue[0].replace("Priority", "launch failed requeued held"), *queue[1:])
    assert kit.done("submit", study=TINY)["held"] == [first["jobs"][0]["job"]]
    fake.in_queue(queue[0].replace("Priority", "JobHeldAdmin"), *queue[1:])
    assert kit.done("submit", study=TINY)["held"] == [], "only an administrator releases it"
    # Two more seeds: only theirs, waiting for the queued model and documents.
    more = kit.done("submit", "--seeds", "0", "1", "2", "3", "4", study=TINY)
    assert more["queued"] == 70 and more["submitted"] == 2 * 20 + 1, (
        "a new analysis with more inputs"
    )
    shared = {job["job"] for job in first["jobs"] if job["stage"] in ("model", "documents")}
    training = next(job for job in more["jobs"] if job["stage"] == "midtrain")
    assert set(training["after"].removeprefix("afterok:").split(":")) <= shared
    # One training left the queue without a result: it and its users are submitted again.
    array = next(job for job in first["jobs"] if job["stage"] == "midtrain")
    fake.in_queue(*[line for line in queue if not line.startswith(f"{array['job']}_1|")])
    again = kit.done("submit", study=TINY)
    assert again["submitted"] == 1 + 1 + 2 * 3 + 1
    cancelled = (fake.folder / "cancelled").read_text().split()
    assert len([word for word in cancelled if word != "--quiet"]) == 1 + 2 + 2 + 1, (
        "the old jobs that can't start"
    )


@pytest.mark.slurm
def test_what_sbatch_never_answered_is_found_by_its_comment(kit: Kit, fake: Fake) -> None:
    facts = kit.done("submit")
    record = kit.base / "slurm/jobs.jsonl"
    lines = [json.loads(line) for line in record.read_text().splitlines()]
    group = {line["job"]: line["group"] for line in lines if line["event"] == "submitted"}
    others = [line for line in lines if line["event"] != "submitted"]
    record.write_text("".join(json.dumps(line) + "\n" for line in others) + '{"event": "subm')
    queue = []
    for job in facts["jobs"]:
        ids = (
            [job["job"]]
            if job["tasks"] == 1
            else [f"{job['job']}_{k}" for k in range(job["tasks"])]
        )
        queue += [f"{i}|PENDING|None|renamed|{group[job['job']]}" for i in ids]
    fake.in_queue(*queue)
    assert kit.done("submit")["submitted"] == 0
    record.write_text("".join(json.dumps(line) + "\n" for line in lines))
    # A site that replaces comments, and adds to names.
    kinds = {line["group"]: line["kind"] for line in lines if line["event"] == "submitting"}
    words = [line.split("|") for line in queue]
    ours = [[*rest, f"dept-small-{kinds[comment]}", "site"] for *rest, _, comment in words]
    fake.in_queue(*map("|".join, ours))
    assert kit.done("submit")["submitted"] == 0
    # The same ids with another comment and name: jobs of a cluster that counts from 1 again.
    fake.in_queue(*["|".join([*rest, "mine", "mine"]) for *rest, _, _ in words])
    assert (
        kit.done("cancel")["cancelled"] == [] and kit.done("submit")["submitted"] == facts["cells"]
    )


@pytest.mark.slurm
def test_a_job_that_slurm_forgot_is_no_dependency(kit: Kit, fake: Fake) -> None:
    """Slurm 22.05 would start the next job at once."""
    fake.say("forgotten", "101\n")
    (line,) = kit.refused("submit")
    assert (
        "101 is gone from Slurm without a result" in line
        and "1 cells were submitted before it" in line
    )


@pytest.mark.slurm
def test_two_submissions_at_once_do_not_mix_their_records(kit: Kit, fake: Fake) -> None:
    calls = [
        subprocess.Popen(kit.words("submit"), stdout=subprocess.PIPE, text=True) for _ in range(2)
    ]
    results = [json.loads(call.communicate()[0]) for call in calls]
    # This queue stays empty, so the second submits again, but after the lines of the first.
    events = [
        json.loads(line)["event"]
        for line in (kit.base / "slurm/jobs.jsonl").read_text().splitlines()
    ]
    assert events.count("submission") == 2
    half = len(events) // 2
    assert events[:half] == events[half:] and results[0]["submitted"] == results[1]["submitted"]


@pytest.mark.slurm
def test_a_thousand_cells_go_in(kit: Kit, fake: Fake) -> None:
    started = time.monotonic()
    facts = kit.done("submit", "--seeds", *map(str, range(50)), study=TINY)
    print(
        f"{facts['cells']} cells submitted in {time.monotonic() - started:.1f} s "
        f"by {len(fake.scripts)} calls"
    )
    assert facts["submitted"] == facts["cells"] > 1000
    assert len(fake.scripts) <= -(-facts["cells"] // 100)


@pytest.mark.slurm
def test_limits_on_jobs_and_arrays_are_kept(kit: Kit, fake: Fake, tmp_path: Path) -> None:
    profile = {"stages": {"default": {"minutes": 5}}, "max_array": 4, "max_submit": 30}
    (tmp_path / "capped.yaml").write_text(yaml.safe_dump(profile))
    fake.in_queue("9|RUNNING|None|x|other", "10|RUNNING|None|x|other")
    facts = kit.done("submit", "--cluster", str(tmp_path / "capped.yaml"), study=TINY)
    assert max(job["tasks"] for job in facts["jobs"]) <= 4
    assert sum(job["tasks"] for job in facts["jobs"]) == 27, (
        "one place is for the job that submits the rest"
    )
    assert facts["left"] == facts["cells"] - facts["submitted"] > 0
    assert facts["continues"] == str(100 + len(fake.scripts))
    first = [job["job"] for job in facts["jobs"]][: (len(facts["jobs"]) + 1) // 2]
    assert fake.scripts[-1].directives["dependency"] == f"afterany:{':'.join(first)}"
    # Another submission meanwhile may queue one job less, and adds no second continuation.
    others = [f"{n}|RUNNING|None|x|other" for n in range(5)]
    fake.in_queue(f"{facts['continues']}|PENDING|Dependency|tiny-continue|", *others)
    assert kit.done("status", study=TINY)["submits"] == facts["continues"]
    again = kit.done("submit", "--cluster", str(tmp_path / "capped.yaml"), study=TINY)
    assert (
        again["continues"] == facts["continues"]
        and sum(job["tasks"] for job in again["jobs"]) == 24
    )
    # Without a limit in the profile, that of the user's accounts; and Slurm's own size of arrays.
    fake.say("config", f"MaxArraySize = 3\n{ACCOUNTS}")
    fake.say("limits", "|research|research|||12|40|||\nother|research|research|||1||||\n")
    fake.in_queue()
    assert sum(job["tasks"] for job in kit.done("submit", study=TINY)["jobs"]) == 11
    assert max(script.array_size for script in fake.scripts[-6:]) <= 2


@pytest.mark.slurm
def test_an_enclosing_job_leaks_nothing(
    kit: Kit, fake: Fake, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in (
        "SLURM_JOB_ID",
        "SLURM_TRES_PER_TASK",
        "SBATCH_PARTITION",
        "SRUN_CPUS_PER_TASK",
        "PMI_RANK",
    ):
        monkeypatch.setenv(name, "1")
    monkeypatch.setenv("SLURM_CONF", "/somewhere/slurm.conf")
    kit.done("submit")
    names = {
        line.split("=")[0] for line in (fake.folder / "last-environment").read_text().splitlines()
    }
    assert {n for n in names if n.startswith(("SLURM", "SBATCH", "SRUN", "PMI"))} == {"SLURM_CONF"}


@pytest.mark.slurm
def test_each_mistake_is_reported_and_nothing_is_submitted(
    kit: Kit, fake: Fake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bad = tmp_path / "bad.yaml"
    bad.write_text(
        "partitoin: gpu\nstages:\n  default: {minutes: 1h, gpus: 1}\n  train: {minutes: 3}\n"
    )
    lines = kit.refused("submit", "--cluster", str(bad))
    assert len(lines) == 4
    assert (
        "bad.yaml:1: partitoin: unknown key (did you mean partition?); valid keys: account,"
        in lines[0]
    )
    assert any(
        "gpus: unknown key (did you mean cpus?)" in line and "gpus_per_node" in line
        for line in lines
    )
    assert any("'1h'" in line for line in lines) and any("'midtrain'" in line for line in lines)
    (line,) = kit.refused("submit", "--cluster", "partitions")
    assert (
        "and 1 more: an update has 4 rows, too few for 8 ranks; 4 ranks or fewer would do" in line
    )
    (line,) = kit.refused("submit", "--cluster", "nowhere")
    assert "one of: lab, partitions, university" in line
    fake.say(
        "reject",
        "allocation failure: Requested time limit is invalid (missing or exceeds some limit)\n",
    )
    lines = kit.refused("submit")
    assert "Requested time limit is invalid" in lines[0] and "minutes 10" in lines[0]
    assert lines[0].endswith("change the cluster profile") and not fake.scripts
    fake.say("reject", "")
    fake.say("config", "MaxArraySize = 1001\nAccountingStorageType = (null)\n")
    (line,) = kit.refused("submit", "--cluster", "university")
    assert line.startswith("error: mygroup: this cluster keeps no accounts") and not fake.scripts
    fake.say("refuse-103", "AssocMaxSubmitJobLimit")
    (line,) = kit.refused("submit")
    assert (
        "AssocMaxSubmitJobLimit; 4 cells were submitted before it; the same command continues"
        in line
    )
    (tmp_path / "file").write_text("")
    (line,) = kit.refused("submit", "--runs", str(tmp_path / "file"))
    assert "choose another folder with --runs" in line
    monkeypatch.setenv("PATH", "/nowhere")
    (line,) = kit.refused("submit")
    assert "sbatch" in line and "not on PATH" in line


@pytest.mark.slurm
def test_a_warning_does_not_prevent_the_submission(kit: Kit, fake: Fake) -> None:
    done = kit.call("submit")
    assert done.returncode == 0 and json.loads(done.stdout)["submitted"] and fake.scripts
    assert re.search(
        r"^warning: sft base-animal-d80 and 1 more: \d\d updates; under 100",
        done.stderr,
        re.MULTILINE,
    )


@pytest.mark.slurm
def test_the_snapshot_is_the_code_of_that_moment(tmp_path: Path) -> None:
    checkout, runs = tmp_path / "kit", tmp_path / "kit/runs"
    (checkout / "study").mkdir(parents=True)
    (runs / "s/slurm").mkdir(parents=True)
    (runs / "s/big").write_text("not code")
    for name, text in {
        "study/a.py": "1",
        ".gitignore": "secret\n",
        "secret": "x",
        ".env": "KEY=x",
    }.items():
        (checkout / name).write_text(text)
    plain_copy = snapshot(checkout, runs / "s/slurm")
    assert (plain_copy / "study/a.py").read_text() == "1" and not (plain_copy / "runs").exists()
    if not shutil.which("git"):
        pytest.skip("no git on this machine: the rest is about a repository")
    subprocess.run(["git", "init", "-q", str(checkout)], check=True)
    first = snapshot(checkout, runs / "s/slurm")
    (checkout / "study/a.py").write_text("2")
    second = snapshot(checkout, runs / "s/slurm")
    assert (first / "study/a.py").read_text() == "1" and (second / "study/a.py").read_text() == "2"
    assert not (first / "secret").exists() and not (first / "runs").exists()
    assert not (plain_copy / ".env").exists() and not (first / ".env").exists(), "it may hold keys"
    (checkout / "study/a.py").write_text("1")
    assert snapshot(checkout, runs / "s/slurm") == first
    assert not list((runs / "s/slurm").glob(".code*"))


@pytest.mark.multiprocess
@pytest.mark.parametrize("refusals", [0, 2])
def test_a_job_whose_cell_waits_is_queued_again_with_a_delay(
    tmp_path: Path, fake: Fake, monkeypatch: pytest.MonkeyPatch, refusals: int
) -> None:
    """Slurm may refuse a new time at first, while it ends the job."""
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.setenv("SUBMITIT_FOLDER", str(tmp_path))
    seconds = iter((900.0, 90.4))

    def waits(folder: Path) -> None:
        raise Waiting("a batch", next(seconds))

    cells = [tmp_path / name for name in "ab"]
    for folder in cells:
        folder.mkdir()
    with monkeypatch.context() as patch:
        patch.setattr(job_module, "run_cell", waits)
        patch.setattr(sys, "path", list(sys.path))
        with pytest.raises(SystemExit) as ended:
            CellJob(str(ROOT), tuple(map(str, cells)))()
    assert ended.value.code == STATUS
    flag = tmp_path / "requeue-7"
    assert flag.read_text() == "90", "the cell that looks again first decides"
    for name, body in {
        "srun": f"printf 90 > {flag}; exit {STATUS}",
        "squeue": "echo RUNNING",
        "sleep": "",
        "scontrol": f'echo "$@" >> {tmp_path}/told; '
        f'[ "$1" != update ] || [ $(wc -l < {tmp_path}/told) -gt {refusals + 1} ]',
    }.items():
        (fake.folder / "bin" / name).write_text(f"#!/bin/bash\n{body}\n")
        (fake.folder / "bin" / name).chmod(0o755)
    script = tmp_path / "script"
    profile = Profile(stages={"default": Resources(10)})
    script.write_text(batch_script(executor("job", Resources(10), profile, tmp_path, tmp_path)))
    assert subprocess.run(["bash", str(script)]).returncode == STATUS
    told = (tmp_path / "told").read_text().splitlines()
    assert told == ["requeue 7", *["update JobId=7 StartTime=now+90"] * (refusals + 1)]


@pytest.mark.multiprocess
@pytest.mark.parametrize("state, requeued", [("RUNNING", True), ("CANCELLED", False)])
def test_the_batch_script_requeues_a_job_that_can_not_do_it_itself(
    state: str, requeued: bool, tmp_path: Path, fake: Fake, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A container lacks Slurm's commands. The job leaves a file, and the shell outside acts."""
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.setenv("SUBMITIT_FOLDER", str(tmp_path))
    with monkeypatch.context() as patch:
        patch.setattr(SlurmJobEnvironment, "_requeue", SlurmJobEnvironment._requeue)
        patch.setenv("PATH", "/nowhere")
        patch.setattr(sys, "path", list(sys.path))
        CellJob(str(ROOT), ())()
        SlurmJobEnvironment()._requeue(3)
    flag = tmp_path / "requeue-7"
    assert flag.exists(), "left over by a node that failed, which must not requeue the next run"
    profile = Profile(
        stages={"default": Resources(10)}, scratch=f"{tmp_path}/scratch-$SLURM_JOB_ID"
    )
    for name, body in {
        "srun": f'mkdir "$TMPDIR"; [ ! -e {flag} ] && [ -e {tmp_path}/asks ] && touch {flag}; exit 9',
        "squeue": f"echo {state}",
        "scontrol": f'echo "$@" >> {tmp_path}/said',
    }.items():
        (fake.folder / "bin" / name).write_text(f"#!/bin/bash\n{body}\n")
    script = tmp_path / "script"
    script.write_text(batch_script(executor("job", Resources(10), profile, tmp_path, tmp_path)))
    for asks in (False, True):
        (tmp_path / "asks").touch() if asks else None
        assert subprocess.run(["bash", str(script)]).returncode == 9, "srun's exit status"
        assert not flag.exists() and not (tmp_path / "scratch-7").exists()
        assert (tmp_path / "said").exists() == (asks and requeued)
    if requeued:
        assert (tmp_path / "said").read_text() == "requeue 7\n"


@pytest.mark.usefixtures("fake")
def test_caches_outlast_a_job_and_its_scratch_does_not(tmp_path: Path) -> None:
    def of(**keys: Any) -> BatchScript:
        profile = Profile(stages={"default": Resources(10)}, **keys)
        return BatchScript.parse(
            batch_script(executor("a", Resources(10), profile, tmp_path, tmp_path))
        )

    job = of(cache="/shared/cache", scratch="/tmp/$SLURM_JOB_ID", signal_seconds=150)
    assert job.directives["signal"] == "USR2@150"
    for name in (
        "TORCHINDUCTOR_CACHE_DIR",
        "TRITON_CACHE_DIR",
        "VLLM_CACHE_ROOT",
        "FLASHINFER_WORKSPACE_BASE",
        "CUDA_CACHE_PATH",
        "TILELANG_CACHE_DIR",
        "HF_HOME",
    ):
        assert job.exports[name].startswith("/shared/cache/"), name
    remove = 'rm -rf -- "/tmp/$SLURM_JOB_ID"'
    assert remove in job.setup
    home = of(scratch="/tmp/$SLURM_JOB_ID").exports["TORCHINDUCTOR_CACHE_DIR"]
    assert "$HOME" in home, "torch's own is in TMPDIR"
    shared = of(scratch="/scratch/shared")
    assert not any("rm -rf" in line for line in shared.setup), "it is not of this job alone"
