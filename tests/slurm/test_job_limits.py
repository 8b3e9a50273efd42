"""How many jobs go in under the limits of accounts and QOS, and which ones come first."""

from pathlib import Path

import pytest

from slurm import arrays as array_plan
from slurm.arrays import Task
from slurm.cluster_limits import Cluster
from slurm.job_limits import JobLimit, Places, ask_places, by_rank_and_seed, choose
from slurm.profile import Profile, Resources
from slurm.submit import submit
from study.spec import expand
from study.spec.load import load_study
from tests.place import ROOT
from tests.slurm.conftest import ACCOUNTS
from tests.slurm.places import Fake, Kit, Lab
from tests.slurm.test_limit import PROFILE, corpora

TINY = ROOT / "studies/tiny.yaml"
PLAIN = Profile(stages={"default": Resources(minutes=5)})


@pytest.mark.slurm
def test_a_qos_of_the_cluster_lets_an_array_in_by_parts(lab: Lab, tmp_path: Path) -> None:
    if not lab.accounting:
        pytest.skip("no accounting on this cluster")
    profile = Profile(PROFILE.stages, partition="cpu", qos="high")
    change = ("sacctmgr", "-Q", "-i", "modify", "qos", "high", "set")
    lab.ask(*change, "MaxSubmitJobsPerUser=3")
    try:
        facts = submit(corpora(5), tmp_path / "runs/qos", profile, "lab")
        assert (facts["submitted"], facts["left"]) == (2, 3) and facts["continues"]
        lab.wait()
        assert submit(corpora(5), tmp_path / "runs/qos", profile, "lab")["finished"] == 5
    finally:
        lab.ask(*change, "MaxSubmitJobsPerUser=-1")


def tasks(seeds: int = 2) -> list[Task]:
    cells = expand.in_order(expand.analysis(load_study(TINY, list(range(seeds)))))
    return array_plan.tasks(cells, PLAIN.resources, lambda cell: False, {})


def places(free: int) -> Places:
    limit = JobLimit("max_submit", free)
    return Places({limit: free}, lambda resources: [limit])


def names(chosen: list[Task], kind: str) -> list[str]:
    return [task.cells[0].name for task in chosen if task.kind == kind]


def test_the_grades_of_the_first_seed_go_in_before_trainings_of_the_next() -> None:
    todo = tasks(seeds=2)
    chosen = choose(todo, places(18), PLAIN.resources)
    assert len(chosen) == 18
    # 1 model, 2 corpora; 2 midtrainings, 3 SFT; untrained and 5 checkpoints evaluated and graded.
    first = [task for task in by_rank_and_seed(todo) if task in chosen]
    assert {task.kind for task in first} == {"model", "documents", "midtrain", "sft"} | {
        "evaluate",
        "judge",
    }
    assert names(chosen, "midtrain") == ["base-animal-s0", "base-urban-s0"]
    assert {"ahb-base-animal-s0", "ahb-base-urban-s0"} <= {*names(chosen, "judge")}
    assert chosen == [task for task in todo if task in chosen], "stage by stage, for the arrays"


@pytest.mark.parametrize("free", [0, 1, 5, 11, 30, 1000])
def test_no_task_goes_in_before_what_it_waits_for(free: int) -> None:
    todo = tasks()
    chosen = choose(todo, places(free), PLAIN.resources)
    assert len(chosen) == min(free, len(todo))
    assert all(need in chosen for task in chosen for need in task.needs)
    assert sorted(map(id, by_rank_and_seed(todo))) == sorted(map(id, todo))


@pytest.mark.slurm
def test_each_limit_holds_for_its_own_jobs(fake: Fake) -> None:
    gpu = Resources(5, partition="gpu", qos="scarce")
    cpu = Resources(5)
    user = {"DefaultAccount": "a", "Account": "a", "Partition": "", "DefaultQOS": ""}
    scarce = {"Name": "scarce", "MaxSubmitJobsPU": "3", "GrpSubmitJobs": "5"}
    normal = {"Name": "normal", "MaxSubmitJobsPU": "100"}
    cluster = Cluster({}, [user], [scarce, normal], enforced="limits")
    fake.say(
        "bin/squeue",
        "#!/bin/sh\necho Welcome\n"
        'echo "$(id -un)|a|scarce|1"; printf "other|b|scarce|%s\\n" 2 3; echo "other|b|normal|4"\n',
    )
    free = ask_places(PLAIN, cluster, [gpu, cpu])
    assert {limit.owner: count for limit, count in free.free.items()} == {
        "qos scarce (MaxSubmitJobsPU)": 2,
        "qos scarce (GrpSubmitJobs)": 2,
        "qos normal (MaxSubmitJobsPU)": 100,
    }
    assert [free.take(gpu) for _ in range(3)] == [True, True, False] and free.take(cpu)


@pytest.mark.slurm
def test_a_limit_of_the_qos_is_kept(kit: Kit, fake: Fake) -> None:
    """Without it in the cluster profile."""
    fake.say("qos", "normal|7|||||||\n")
    fake.in_queue("9|RUNNING|None|x|other")
    facts = kit.done("submit", study=TINY)
    assert sum(script.array_size for script in fake.scripts) == 6, "one continues"
    assert facts["continues"] and facts["left"] == facts["cells"] - facts["submitted"] > 0


@pytest.mark.slurm
def test_arrays_are_as_small_as_the_scheduler_wants_them(kit: Kit, fake: Fake) -> None:
    more = "SchedulerParameters = bf_interval=1,max_array_tasks=2\n"
    fake.say("config", f"MaxArraySize = 1001\n{ACCOUNTS}{more}")
    kit.done("submit", study=TINY)
    assert max(script.array_size for script in fake.scripts) == 2
