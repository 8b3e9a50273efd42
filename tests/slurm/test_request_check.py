"""Nodes that are down, partitions that are closed or misspelled, limits on what a job asks for."""

import dataclasses
import json
from pathlib import Path

import pytest

from core.errors import UserError
from slurm import slurm_cli
from slurm.cluster_limits import Cluster, ask_cluster
from slurm.profile import Profile, Resources
from slurm.request_check import waiting
from slurm.submit import submit
from tests.slurm.conftest import ACCOUNTS
from tests.slurm.places import Fake, Kit, Lab
from tests.slurm.test_doctor import drained
from tests.slurm.test_limit import PROFILE, corpora
from tests.waiting import until

pytestmark = pytest.mark.slurm

IMPOSSIBLE = "allocation failure: Requested node configuration is not available\n"
CPU = "PartitionName=cpu Default=YES State={}\n"


def test_jobs_for_drained_nodes_go_in_and_wait(lab: Lab, tmp_path: Path) -> None:
    with drained(lab):
        facts = submit(corpora(1), tmp_path / "runs/drained", PROFILE, "lab")
        assert facts["submitted"] == 1 and lab.jobs()
    (line,) = facts["waits"]
    assert line.startswith("documents jobs: 0 of 2 nodes in cpu that fit are up (drained: test")


def test_jobs_for_a_partition_that_is_down_go_in_and_wait(lab: Lab, tmp_path: Path) -> None:
    lab.ask("scontrol", "update", "partitionname=cpu", "state=down")
    try:
        facts = submit(corpora(1), tmp_path / "runs/down", PROFILE, "lab")
        assert facts["submitted"] == 1
        assert facts["waits"] == ["documents jobs: partition cpu is DOWN"]
        lab.ask("scontrol", "update", "partitionname=cpu", "state=drain")
        with pytest.raises(UserError, match="partition cpu is DRAIN: it takes no jobs now"):
            submit(corpora(2), tmp_path / "runs/down", PROFILE, "lab")
    finally:
        lab.ask("scontrol", "update", "partitionname=cpu", "state=up")


def test_a_misspelled_partition_is_named_with_those_that_exist(lab: Lab, tmp_path: Path) -> None:
    wrong = dataclasses.replace(PROFILE, partition="cpuu")
    with pytest.raises(UserError) as error:
        submit(corpora(1), tmp_path / "runs/typo", wrong, "lab")
    (line,) = error.value.lines
    assert "no partition cpuu on this cluster" in line
    assert line.endswith("partition in the cluster profile: one of cpu, gpu, scavenge, short")


def test_submit_says_what_its_jobs_wait_for(kit: Kit, fake: Fake) -> None:
    fake.say("partitions", CPU.format("UP"))
    fake.say("reject", IMPOSSIBLE)
    fake.say(
        "nodes", "cpu1|16|64000|(null)|cpu|drained|new disks\ncpu2|2|99|(null)|cpu|idle|none\n"
    )
    shown = kit.call("submit")
    assert shown.returncode == 0, shown.stderr
    (first, *_) = json.loads(shown.stdout)["waits"]
    assert first == "model jobs: 0 of 1 nodes in cpu that fit are up (drained: new disks)"
    # One of them is too small: the request was impossible before.
    fake.say("nodes", "cpu1|16|100|(null)|cpu|drained|new disks\n")
    assert kit.refused("submit")[0].endswith("change the cluster profile")


def test_a_request_over_a_limit_on_tres_would_wait_for_ever(kit: Kit, fake: Fake) -> None:
    fake.say("qos", "normal|||||cpu=64|mem=4G,gres/gpu=2||\n")
    (line, *_) = kit.refused("submit")
    assert "mem 8 in a job; qos normal allows 4 (MaxTRESPU)" in line
    fake.say("config", f"MaxArraySize = 1001\n{ACCOUNTS.replace('limits,', '')}")
    assert kit.done("submit")["submitted"], "limits that are not enforced"


def test_tres_of_a_job_against_each_limit() -> None:
    row = {"Name": "normal", "MaxTRES": "node=1,cpu=8", "GrpTRES": "gres/gpu=4"}
    cluster = Cluster({}, [], [row], enforced="limits")

    def over(**keys: object) -> str:
        return cluster.over_limit(Resources(5, **keys))  # type: ignore[arg-type]

    assert over() == "" and over(cpus=8) == ""
    assert over(cpus=3, tasks_per_node=3) == "cpu 9 in a job; qos normal allows 8 (MaxTRES)"
    assert over(nodes=2).startswith("node 2 in a job")
    assert over(gpus_per_node="h100:8").endswith("allows 4 (GrpTRES)")
    assert (
        dataclasses.replace(cluster, enforced="associations").over_limit(Resources(5, cpus=9)) == ""
    )


def test_a_time_limit_over_that_of_a_qos_would_wait_for_ever() -> None:
    row = {"Name": "normal", "MaxWall": "00:30:00"}
    cluster = Cluster({}, [], [row], enforced="limits")
    assert cluster.over_limit(Resources(30)) == ""
    over = cluster.over_limit(Resources(31))
    assert over == "31 minutes; qos normal allows 30 (MaxWall)"


def test_slurm_takes_a_qos_limit_in_place_of_the_accounts(lab: Lab, tmp_path: Path) -> None:
    """And says of a job over a limit only in the queue that it waits."""
    if not lab.accounting:
        pytest.skip("no limits without slurmdbd")
    manage = ("sacctmgr", "--quiet", "--immediate", "modify")
    user = ("user", slurm_cli.user_name(), "where", "account=research", "set")
    lab.ask(*manage, *user, "MaxTRES=cpu=1", "MaxWall=00:02:00")
    lab.ask(*manage, "qos", "high", "set", "MaxTRES=cpu=4", "MaxWall=00:20:00")

    def request(minutes: int, cpus: int, qos: str | None) -> Profile:
        stages = {"default": Resources(minutes, cpus=cpus, mem_gb=1, qos=qos)}
        return dataclasses.replace(PROFILE, stages=stages)

    try:
        facts = submit(corpora(1), tmp_path / "runs/high", request(20, 4, "high"), "lab")
        until(lambda: lab.jobs().get(facts["jobs"][0]["job"]) != "PENDING")
        for wrong, what in (
            (request(20, 1, None), "20 minutes; account research allows 2 (MaxWall)"),
            (request(21, 4, "high"), "21 minutes; qos high allows 20 (MaxWall)"),
            (request(2, 2, None), "cpu 2 in a job; account research allows 1 (MaxTRES)"),
            (request(2, 5, "high"), "cpu 5 in a job; qos high allows 4 (MaxTRES)"),
        ):
            with pytest.raises(UserError) as error:
                submit(corpora(2), tmp_path / "runs/wrong", wrong, "lab")
            assert what in error.value.lines[0]
    finally:
        lab.ask(*manage, *user, "MaxTRES=cpu=-1", "MaxWall=-1")
        lab.ask(*manage, "qos", "high", "set", "MaxTRES=cpu=-1", "MaxWall=-1")


def test_nodes_that_do_not_answer_are_down_for_now(
    fake: Fake, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in the first minute after a restart of the controller."""
    fake.say("nodes", "cpu1|16|64000|(null)|cpu|idle*|none\n")
    wait = waiting(Resources(5, partition="cpu"), Cluster({}, [], []))
    assert wait == "0 of 1 nodes in cpu that fit are up (does not answer)"


def test_limits_are_unknown_while_slurmdbd_is_down(fake: Fake, kit: Kit) -> None:
    (fake.folder / "bin/sacctmgr").write_text("#!/bin/sh\necho 'Unable to contact' >&2; exit 1\n")
    assert ask_cluster().trouble == "sacctmgr: Unable to contact"
    assert kit.done("submit")["submitted"]
