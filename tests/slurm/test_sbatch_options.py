"""Options of sbatch in a profile: in the scripts, refused with the setting to use, set at submit."""

import json
import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from core.errors import UserError
from slurm import slurm_cli, submissions
from slurm.executor import executor
from slurm.executor import script as batch_script
from slurm.profile import Profile, load_profile
from slurm.submit import submit
from study.commands.status import look, show
from tests.slurm.batch_script import BatchScript
from tests.slurm.places import CLUSTER, Fake, Kit, Lab
from tests.slurm.test_limit import PROFILE, corpora

# Those of the text, and others that sites ask for.
TEN: dict[str, Any] = {
    "reservation": "kit",
    "exclude": ["cpu2", "gpu1"],
    "mail-type": "FAIL",
    "mail-user": "me@example.org",
    "exclusive": True,
    "nice": 100,
    "begin": "now+1",
    "contiguous": True,
    "deadline": "now+1hour",
    "wckey": "a b",
}


def written(folder: Path, **keys: Any) -> Path:
    path = folder / "profile.yaml"
    default = {"minutes": 5, "mem_gb": 2, "partition": "cpu"}
    path.write_text(yaml.safe_dump({"stages": {"default": default}, **keys}))
    return path


def batch_of(profile: Profile, stage: str, folder: Path) -> str:
    return batch_script(executor("a", profile.resources(stage), profile, folder, folder))


@pytest.mark.usefixtures("fake")
def test_each_option_is_in_the_scripts_and_a_stage_may_differ(tmp_path: Path) -> None:
    stages = {
        "default": {"minutes": 5},
        "judge": {"minutes": 5, "sbatch": {"exclusive": False, "nice": 7, "gres": "lustre:1"}},
    }
    profile = load_profile(written(tmp_path, sbatch=TEN, stages=stages))
    plain = BatchScript.parse(batch_of(profile, "model", tmp_path)).directives
    assert {key: plain[key] for key in TEN} == {
        **{key: str(value) for key, value in TEN.items()},
        "exclude": "cpu2,gpu1",
        "exclusive": "",
        "contiguous": "",
        "mail-user": "me@example.org",
        "wckey": "'a b'",
    }
    judge = BatchScript.parse(batch_of(profile, "judge", tmp_path)).directives
    assert "exclusive" not in judge
    assert (judge["nice"], judge["gres"], judge["mail-type"]) == ("7", "lustre:1", "FAIL")


@pytest.mark.parametrize(
    ("option", "value", "setting"),
    [
        ("gpus", 4, "set gpus_per_node, such as gpus_per_node: h100:4"),
        ("gres", "lustre:1,gpu:h100:4", "gres of GPUs is written by the kit: set gpus_per_node"),
        ("array", "0-3", "set array_parallelism"),
        ("signal", "USR1@9", "set signal_seconds"),
        ("time", 5, "set minutes"),
        ("mem", "4G", "set mem_gb"),
        ("mem-per-gpu", "4G", "mem-per-gpu is written in place of mem_gb, which this stage has"),
        ("partition", "gpu", "set partition"),
        ("comment", "x", "the kit finds its jobs by their comments"),
        ("mail_type", "FAIL", "such as mail-type"),
        # Letters, dashes, and the beginnings that sbatch completes.
        ("G", 4, "set gpus_per_node"),
        ("--gpus", 4, "set gpus_per_node"),
        ("depend", "singleton", "jobs wait for their own inputs"),
        ("sig", "USR1", "set signal_seconds"),
        ("x", "n1", "such as exclude"),
        ("tres-per-task", "gres/gpu:1", "set gpus_per_node"),
        ("tres-per-job", "gres/gpu=4", "set gpus_per_node"),
        ("nice", {"a": 1}, "must be a text, a number"),
        ("begin", "a\nb", "must be one line"),
    ],
)
def test_what_the_kit_writes_is_refused_with_the_setting(
    tmp_path: Path, option: str, value: object, setting: str
) -> None:
    for keys in (
        {"sbatch": {option: value}},
        {"stages": {"default": {"minutes": 5, "mem_gb": 2, "sbatch": {option: value}}}},
    ):
        with pytest.raises(UserError) as error:
            load_profile(written(tmp_path, **keys))
        (line,) = error.value.lines
        assert setting in line and "sbatch" in line


@pytest.mark.usefixtures("fake")
def test_numbers_and_times_reach_sbatch_as_they_are_written(tmp_path: Path) -> None:
    path = tmp_path / "profile.yaml"
    path.write_text(
        "account: 0042\npartition: 1080\nsbatch: {time-min: 1:30:00, begin: 16:00}\n"
        "stages: {default: {minutes: 90, gpus_per_node: 3090:4}}\n"
    )
    profile = load_profile(path, ["qos=123"])
    assert (profile.account, profile.partition, profile.qos) == ("0042", "1080", "123")
    directives = BatchScript.parse(batch_of(profile, "model", tmp_path)).directives
    assert (directives["time-min"], directives["begin"]) == ("1:30:00", "16:00")
    assert directives["gpus-per-node"] == "3090:4"
    blank = load_profile(path, ["account=my group"])
    assert BatchScript.parse(batch_of(blank, "sft", tmp_path)).directives["account"] == "'my group'"


def test_a_value_of_a_stage_that_the_profile_does_not_name_leaves_the_others(
    tmp_path: Path,
) -> None:
    stages = {"default": {"minutes": 5, "cpus": 3}, "generate": {"minutes": 9, "cpus": 7}}
    path = written(tmp_path, stages=stages)
    profile = load_profile(path, ["stages.sft.minutes=60", "stages.likelihood.mem_gb=4"])
    sft, likelihood = profile.resources("sft"), profile.resources("likelihood")
    assert (sft.minutes, sft.cpus) == (60, 3)
    assert likelihood == replace(load_profile(path).resources("likelihood"), mem_gb=4)
    assert profile.resources("default").minutes == 5


@pytest.mark.usefixtures("fake")
def test_a_node_left_out_for_all_is_left_out_where_a_stage_excludes_another(
    tmp_path: Path,
) -> None:
    """`status` offers --set cluster.sbatch.exclude=NODE."""
    own = {"minutes": 5, "sbatch": {"exclude": ["n1", "n[4-5]"]}}
    none = {"minutes": 5, "sbatch": {"exclude": False}}
    path = written(tmp_path, stages={"default": {"minutes": 5}, "sft": own, "judge": none})
    profile = load_profile(path, ["sbatch.exclude=n7"])
    for stage, nodes in (("model", "n7"), ("sft", "'n7,n1,n[4-5]'"), ("judge", None)):
        text = batch_of(profile, stage, tmp_path)
        assert BatchScript.parse(text).directives.get("exclude") == nodes
    assert load_profile(path).resources("sft").sbatch == own["sbatch"]


@pytest.mark.usefixtures("fake")
def test_memory_of_a_core_in_place_of_a_nodes(tmp_path: Path) -> None:
    stages = {
        "default": {"minutes": 5},
        "judge": {"minutes": 5, "mem_gb": 3, "sbatch": {"mem-per-cpu": False}},
    }
    profile = load_profile(written(tmp_path, stages=stages, sbatch={"mem-per-cpu": "4G"}))
    plain = BatchScript.parse(batch_of(profile, "model", tmp_path)).directives
    assert plain["mem-per-cpu"] == "4G" and "mem" not in plain
    judge = BatchScript.parse(batch_of(profile, "judge", tmp_path)).directives
    assert judge["mem"] == "3072M" and "mem-per-cpu" not in judge


@pytest.mark.slurm
def test_slurm_takes_ten_options_and_says_what_is_wrong_with_another(
    lab: Lab, tmp_path: Path
) -> None:
    lab.ask("scontrol", "create", "reservation=kit", "starttime=now", "duration=10",
            "nodes=cpu1", f"user={slurm_cli.user_name()}")  # fmt: skip
    try:
        profile = load_profile(written(tmp_path, sbatch=TEN))
        assert slurm_cli.test_submission(batch_of(profile, "model", tmp_path)) is None
        facts = submit(corpora(1), tmp_path / "runs/ten", profile, "lab")
        shown = lab.ask("scontrol", "show", "job", facts["jobs"][0]["job"])
        for words in (
            "Nice=100",
            "ExcNodeList=",
            "Reservation=kit",
            "MailType=FAIL",
            "Contiguous=1",
        ):
            assert words in shown, (words, shown)
    finally:
        lab.ask("scancel", f"--user={slurm_cli.user_name()}")
        lab.wait()
        lab.ask("scontrol", "delete", "reservationname=kit")
    for option, words in (
        ("no-such-option", "unrecognized option"),
        ("reservation", "reservation"),
    ):
        wrong = load_profile(written(tmp_path, sbatch={option: "x"}))
        with pytest.raises(UserError) as error:
            submit(corpora(1), tmp_path / "runs/wrong", wrong, "lab")
        assert words in error.value.lines[0].lower() and not lab.jobs()


@pytest.mark.slurm
def test_a_profile_is_changed_for_one_submission_and_the_next_command_repeats_it(
    kit: Kit, fake: Fake
) -> None:
    change = ("--set", "cluster.sbatch.exclude=n1", "--set", "cluster.stages.default.minutes=7")
    assert kit.done("submit", *change)["submitted"]
    for script in fake.scripts:
        assert script.directives["exclude"] == "n1"
    assert {script.directives["time"] for script in fake.scripts} == {"7", "5"}
    command = kit.done("status")["next"]
    assert command.endswith(f"--cluster {shlex.quote(str(CLUSTER))} {' '.join(change)}")
    assert kit.done("plan", "--cluster", str(CLUSTER), *change)["cells"]
    (line,) = kit.refused("submit", "--set", "cluster.partitoin=x")
    assert "partitoin: unknown key (did you mean partition?)" in line
    (line,) = kit.refused("status", *change)
    assert "is a value of a cluster profile, and this command reads none" in line


@pytest.mark.slurm
def test_a_node_that_failed_is_named_with_the_command_that_leaves_it_out(
    kit: Kit, fake: Fake
) -> None:
    (cell,) = corpora(1)
    submit([cell], kit.base, PROFILE, "lab")
    logs = kit.base / "slurm/jobs"
    command = "python -m study submit s.yaml --cluster lab --set cluster.sbatch.exclude=gpu7"

    def failed(text: str, log: Path = logs / "101_0_log.err") -> dict[str, Any]:
        log.write_text(text)
        return look([cell], kit.base, "s.yaml")

    end = "slurmstepd: error: *** JOB 101 ON gpu7 CANCELLED AT 2026-11-30T08:00:00 DUE TO {}"
    data = failed(end.format("NODE FAILURE, SEE SLURMCTLD LOG FOR DETAILS ***"))
    assert data["failed_nodes"] == {"gpu7": ["101"]} and data["without_nodes"] == command
    assert "failed:  node gpu7, under job 101" in show(data) and command in show(data)
    assert failed(end.format("TIME LIMIT ***"))["failed_nodes"] == {}
    # A fault of a GPU, of which slurm.retry has written the node.
    log = kit.base / cell.relpath / "log.txt"
    retry = "t retry 1 of 2 of job 101 on gpu7: GPU fault: uncorrectable ECC error\n"
    starts = "t documents c0 starts (process 7)\n"
    data = failed(starts + retry + starts + "uncorrectable ECC error\n", log)
    assert data["failed_nodes"] == {"gpu7": ["101"]}
    # By sacct alone, as after a power failure.
    log.write_text(starts + starts)
    sacct = fake.folder / "bin/sacct"
    sacct.write_text("#!/bin/sh\ncase $* in *--duplicates*) echo '101|NODE_FAIL|gpu7';; esac\n")
    sacct.chmod(0o755)
    data = failed("")
    assert data["failed_nodes"] == {"gpu7": ["101"]}
    events = [json.loads(line) for line in (kit.base / "slurm/jobs.jsonl").open()]
    # It failed before the cell began, and Slurm has queued the job again.
    log.unlink()
    group = next(event["group"] for event in events if event["event"] == "submitting")
    fake.in_queue(f"101|PENDING|BeginTime|{kit.base.name}-documents-c0|{group}")
    data = failed("")
    assert data["failed_nodes"] == {"gpu7": ["101"]} and data["without_nodes"] == command
    assert [row["state"] for row in data["cells"]] == ["queued"]
    # Once it is left out there is nothing to offer.
    code = Path(events[0]["code"])
    excluded = load_profile(Path("lab"), ["sbatch.exclude=gpu7,gpu8"])
    submissions.write_submission(kit.base / "slurm", "lab", code, excluded, None)
    assert look([cell], kit.base, "s.yaml")["without_nodes"] is None
