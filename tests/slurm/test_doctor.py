"""`doctor` on a real cluster: a working one, and one problem at a time."""

import contextlib
import dataclasses
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from core.cell.identity import Cell
from slurm import checks
from slurm import doctor as doctor_module
from slurm.checks import Check
from slurm.cluster_limits import ask_cluster, gpus
from slurm.doctor import doctor, show
from slurm.findings import Visit
from slurm.profile import Profile, Resources, load_profile
from study.spec import expand
from study.spec.load import load_study
from tests.slurm.places import ROOT, SMALL, Lab
from tests.waiting import until

ROOTED = pytest.mark.skipif(os.geteuid() != 0, reason="mounts need root")
# A job of this stage alone imports nothing heavy.
LIGHT = {"minutes": 5, "cpus": 2, "mem_gb": 4.0}


def cells_of(study: Path) -> list[Cell]:
    return expand.in_order(expand.analysis(load_study(study)))


def profile(folder: Path, stages: dict[str, Any], **more: Any) -> Path:
    path = folder / "profile.yaml"
    path.write_text(yaml.safe_dump({"partition": "cpu", "stages": stages, **more}))
    return path


def by_name(report: list[Check]) -> dict[str, Check]:
    print(show(report))
    assert len({c.name for c in report}) == len(report)
    for check in report:
        assert check.state == "ok" or check.fix, f"{check} lacks what to do"
    return {c.name: c for c in report}


def nothing_left(lab: Lab, runs: Path) -> None:
    lab.wait()
    assert not list(runs.glob(".doctor-*"))


@pytest.mark.slurm
def test_all_is_well_on_the_lab(lab: Lab, tmp_path: Path) -> None:
    """The lab's own profile, with a training over two nodes."""
    text = (ROOT / "tests/small/cluster.yaml").read_text()
    midtrain = "  midtrain: {minutes: 10, nodes: 2, tasks_per_node: 2, cpus: 2, mem_gb: 8}\n"
    (tmp_path / "lab.yaml").write_text(text.replace("stages:\n", f"stages:\n{midtrain}"))
    report = by_name(doctor(tmp_path / "lab.yaml", tmp_path / "runs", cells_of(SMALL), 120))
    assert {c.state for c in report.values() if c.name != "room"} == {"ok"}
    for line in ("shared folder", "rename", "locks", "python", "packages", "all-reduce"):
        assert f"cpu: {line}" in report
    for package in ("torch", "vllm", "transformers", "submitit"):
        assert package in report["cpu: packages"].finding
    assert "cpu1, cpu2: " in report["cpu: locks"].finding
    # A rank for each task: links within a node are tried too.
    assert "by gloo over 4 ranks" in report["cpu: all-reduce"].finding
    assert "GB a second within a node, gathers" in report["cpu: all-reduce"].finding
    gathered = report["cpu: all-reduce"].measured
    assert gathered.keys() == {"node_bytes_per_second", "network_bytes_per_second"}
    assert report["cpu: write rate"].measured.keys() == {"write_bytes_per_second"}
    assert min(gathered.values()) > 0
    nothing_left(lab, tmp_path / "runs")


@pytest.mark.slurm
def test_problems_that_only_a_node_sees(
    lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    questions = shutil.copy(ROOT / "eval/data/anima_like/questions.jsonl", tmp_path)
    text = SMALL.read_text().replace("judge: dummy", "judge: judge")
    text = text.replace("eval/data/anima_like/questions.jsonl", str(questions))
    with socket.create_server(("127.0.0.1", 0)) as server:
        here = f"127.0.0.1:{server.getsockname()[1]}"
        dummy, judge = (
            f"{name}: {{base_url: http://{address}/v1, model: m, key_env: A_KEY}}"
            for name, address in (("dummy", "127.0.0.1:9"), ("judge", here))
        )
        (tmp_path / "study.yaml").write_text(
            text.replace("dummy: {served_by: dummy}", f"{dummy}\n  {judge}")
        )
        stages = {
            "default": {"minutes": 100},
            "documents": LIGHT | {"nodes": 2},
            "judge": LIGHT | {"partition": "gpu", "gpus_per_node": "h100:8"},
        }
        path = profile(
            tmp_path,
            stages,
            interface="nope0",
            scratch="/proc/none/$SLURM_JOB_ID",
            setup=["unset A_KEY", "module load gcc/99", f"rm -f {questions}"],
        )
        monkeypatch.setenv("A_KEY", "a-secret")
        study = cells_of(tmp_path / "study.yaml")
        report = by_name(doctor(path, tmp_path / "runs", study, 60))
    assert report["API keys"].state == "ok" and not any(
        "a-secret" in str(c) for c in report.values()
    )
    for line, word in {
        "cpu: all-reduce": "nope0",
        "cpu: scratch, cache": "/proc/none/",
        "cpu: keys": "A_KEY",
        "cpu: models, data": "questions.jsonl",
        "cpu: setup": "`module load gcc/99`: ",
        "cpu: endpoints": "documents call 127.0.0.1:9",
        "gpu GPUs h100:8: GPUs": "built without CUDA",
    }.items():
        assert report[line].state == "failed" and word in report[line].finding, report[line]
    assert report["gpu GPUs h100:8: endpoints"].state == "warning", (
        "judge reaches its own, not the writer"
    )
    assert report["gpu GPUs h100:8: endpoints"].fix == "offline: true"
    nothing_left(lab, tmp_path / "runs")


@pytest.mark.slurm
@ROOTED
def test_a_folder_that_nodes_do_not_see(lab: Lab, tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    runs.mkdir()
    code = "import sys; from pathlib import Path; from slurm.doctor import doctor, show;"
    # From 24.11 on the task starts without its files, and submitit waits a minute for them.
    code += "print(show(doctor(Path(sys.argv[1]), Path(sys.argv[2]), None, 120)))"
    path = profile(tmp_path, {"default": {"minutes": 100}, "documents": LIGHT})
    mounted = ["unshare", "--mount", "sh", "-c", 'mount -t tmpfs none "$5" && exec "$@"', "sh"]
    result = subprocess.run(
        [*mounted, sys.executable, "-c", code, str(path), str(runs)],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    print(result.stdout, result.stderr)
    (line,) = [line for line in result.stdout.splitlines() if " cpu: shared folder" in line]
    assert line.startswith("failed") and "the nodes see no such folder" in line
    lab.wait()


@pytest.mark.slurm
def test_a_python_that_is_not_there(lab: Lab, tmp_path: Path) -> None:
    path = profile(tmp_path, {"default": LIGHT}, python="/nowhere/python")
    report = by_name(doctor(path, tmp_path / "runs", None, 60))
    assert (
        report["cpu: node"].state == "failed" and "/nowhere/python" in report["cpu: node"].finding
    )
    assert report["study"].state == "not checked"
    nothing_left(lab, tmp_path / "runs")


def test_an_interrupt_that_a_destructor_swallows_ends_it_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once in some 5,000 interrupts Python met one in `Popen.__del__`, and dropped it."""

    class Destroyed:
        def __del__(self) -> None:
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(sys, "unraisablehook", lambda unraisable: None)
    monkeypatch.setattr(doctor_module, "_update_queued", lambda visits: Destroyed() and None)
    visits = [Visit("cpu", Resources(5), [], Profile({}))]
    with doctor_module._interrupts() as interrupts, pytest.raises(KeyboardInterrupt):
        doctor_module._await(visits, tmp_path, "token", 60, interrupts)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


@contextlib.contextmanager
def drained(lab: Lab) -> Iterator[None]:
    lab.ask("scontrol", "update", "nodename=cpu1,cpu2", "state=drain", "reason=test")
    try:
        yield
    finally:
        lab.ask("scontrol", "update", "nodename=cpu1,cpu2", "state=resume")
        states = ("sinfo", "-h", "-N", "-p", "cpu", "-o", "%T")
        until(lambda: set(lab.ask(*states).split()) == {"idle"}, lambda: lab.ask(*states))


@pytest.mark.slurm
def test_a_job_that_waits_is_not_checked_and_not_left_behind(lab: Lab, tmp_path: Path) -> None:
    path = profile(tmp_path, {"default": LIGHT})
    with drained(lab):
        report = by_name(doctor(path, tmp_path / "runs", None, 2))
        assert (
            report["request default"].state == "warning"
            and "0 of 2 nodes" in report["request default"].finding
        )
        assert (
            report["cpu: node"].state == "not checked"
            and "still waits" in report["cpu: node"].finding
        )
        nothing_left(lab, tmp_path / "runs")
        code = "import sys; from pathlib import Path; from slurm.doctor import doctor;"
        code += "doctor(Path(sys.argv[1]), Path(sys.argv[2]), None, 900)"
        for number in (signal.SIGINT, signal.SIGTERM):
            call = subprocess.Popen(
                [sys.executable, "-c", code, str(path), str(tmp_path / "runs")],
                cwd=ROOT,
                stderr=subprocess.PIPE,
            )
            until(lambda call=call: lab.jobs() or call.poll() is not None)
            (job,) = lab.jobs()
            assert "Deadline=N/A" not in lab.ask("scontrol", "show", "job", job), (
                "Slurm drops it, whatever happens"
            )
            call.send_signal(number)
            assert b"KeyboardInterrupt" in call.communicate()[1]
            nothing_left(lab, tmp_path / "runs")


REQUESTS = {
    "partition": (
        Resources(5, partition="nowhere"),
        "no partition nowhere",
        "cpu, gpu, scavenge, short",
    ),
    "time": (Resources(100), "partition cpu allows 60", "minutes: 60"),
    "nodes": (Resources(5, nodes=3), "cpu has 2 of 2", "stages.midtrain"),
    "nodes of the partition": (
        Resources(1, nodes=2, partition="short"),
        "short allows 1",
        "nodes: 1",
    ),
    "cores": (
        Resources(5, tasks_per_node=4, cpus=5),
        "nodes of 20 cores; cpu has 0 of 2 (at most 16 cores",
        "ask for less",
    ),
    "memory": (Resources(5, mem_gb=900.0), "900 GiB; cpu has 0 of 2", "ask for less"),
    "gpus": (
        Resources(5, gpus_per_node=9, partition="gpu"),
        "GPUs 9; gpu has 0 of 2",
        "ask for less",
    ),
    "type of gpus": (
        Resources(5, gpus_per_node="a100:1", partition="gpu"),
        "gpu has 0 of 2",
        "ask for less",
    ),
    "constraint": (
        Resources(5, constraint="h200|a100"),
        "h200|a100; cpu has 0 of 2",
        "ask for less",
    ),
    "account": (Resources(5, account="nobody"), "account", "account nobody"),
}


@pytest.mark.slurm
@pytest.mark.parametrize("problem", REQUESTS)
def test_a_request_that_could_never_start(problem: str, lab: Lab) -> None:
    resources, finding, fix = REQUESTS[problem]
    if problem == "account" and not lab.accounting:
        pytest.skip("no accounting on this cluster")
    asked = Profile({"default": Resources(5), "midtrain": resources}, partition="cpu")
    check = checks.request(["midtrain"], asked.resources("midtrain"), asked, ask_cluster())
    assert check.state == "failed" and finding in check.finding and fix in check.fix, check


@pytest.mark.slurm
def test_requests_that_fit(lab: Lab) -> None:
    for resources in (
        Resources(1, partition="short,cpu"),
        Resources(
            5, nodes=2, gpus_per_node="h100:8", partition="gpu", constraint="cpu|h100", mem_gb=200.0
        ),
        Resources(60, gpus_per_node=8, partition="scavenge", constraint="gpu&h100"),
    ):
        asked = Profile({"default": resources}, partition="cpu")
        check = checks.request(["sft"], asked.resources("sft"), asked, ask_cluster())
        assert check.state == "ok", check


@pytest.mark.slurm
def test_limits_of_accounts_and_qos(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("USER", "LOGNAME"):
        monkeypatch.setenv(name, "somebody")  # as a site's wrapper may
    if not lab.accounting:
        pytest.skip("no accounting on this cluster")
    plain = Profile({"default": Resources(30)}, partition="cpu")
    high = dataclasses.replace(plain, qos="high")

    def look(asked: Profile) -> tuple[Check, Check]:
        cluster, resources = ask_cluster(), asked.resources("default")
        return checks.submit_limits(asked, [resources], cluster), checks.request(
            ["sft"], resources, asked, cluster
        )

    def change(*words: str) -> None:
        lab.ask("sacctmgr", "-Q", "-i", "modify", *words)

    user = ("user", "where", f"name={lab.ask('id', '-un').strip()}", "account=research", "set")
    try:
        assert [c.state for c in look(plain)] == ["ok", "ok"]
        change(*user, "MaxSubmitJobs=3")
        for asked in (plain, dataclasses.replace(plain, max_submit=4)):
            jobs = look(asked)[0]
            assert jobs.state == "ok" and "3 at most: account research" in jobs.finding
        change(*user, "MaxSubmitJobs=2")
        assert "--until-done" in look(plain)[0].fix
        change(*user, "MaxSubmitJobs=-1")
        change("qos", "high", "set", "MaxSubmitJobsPerUser=3", "MaxWall=20")
        assert [c.state for c in look(plain)] == ["ok", "ok"], "of another qos"
        jobs, request = look(high)
        assert jobs.state == "ok" and "3 at most: qos high (MaxSubmitJobsPU)" in jobs.finding
        assert (
            request.state == "failed"
            and "qos high allows 20" in request.finding
            and "minutes: 20" in request.fix
        )
        change("qos", "high", "set", "MaxTRESPerUser=cpu=1", "MaxWall=-1")
        request = look(dataclasses.replace(high, stages={"default": Resources(5, cpus=2)}))[1]
        assert request.state == "failed" and "qos high allows 1 (MaxTRESPU)" in request.finding
    finally:
        change(*user, "MaxSubmitJobs=-1")
        change("qos", "high", "set", "MaxSubmitJobsPerUser=-1", "MaxWall=-1")
        change("qos", "high", "set", "MaxTRESPerUser=cpu=-1")


@pytest.mark.slurm
def test_arrays_and_requeues(lab: Lab) -> None:
    scavenging = Profile({"default": Resources(5)}, partition="scavenge", max_array=20_000)
    check = checks.arrays(scavenging)
    assert check.state == "warning" and check.fix == "max_array: 10000"
    requests = [scavenging.resources("default")]
    assert checks.requeue(scavenging, requests, ask_cluster()).state == "ok"
    assert (
        checks.requeue(dataclasses.replace(scavenging, requeue=0), requests, ask_cluster()).state
        == "warning"
    )
    lab.ask("scontrol", "update", "partitionname=scavenge", "preemptmode=cancel")
    try:
        lost = checks.requeue(scavenging, requests, ask_cluster())
        assert lost.state == "warning" and "scavenge are cancelled" in lost.finding
    finally:
        lab.ask("scontrol", "update", "partitionname=scavenge", "preemptmode=requeue")


@pytest.fixture(scope="module")
def bare_lab(session_lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A second cluster, without accounts and nodes' namespaces."""
    folder = Path(f"{session_lab.folder}-bare")
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port = sock.getsockname()[1]
    settings = {
        "LAB_DIR": str(folder),
        "LAB_PORT": str(port - 1),
        "LAB_AUTH": "none",
        "LAB_ACCT": "none",
    }
    names = {"LAB_ISO": "0", "LAB_CPU_NODES": "1", "LAB_GPU_NODES": "0"}
    lab = [ROOT / "tests/slurmlab"]
    try:
        subprocess.run(
            [*lab, "up"], env=os.environ | settings | names, check=True, capture_output=True
        )
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("SLURM_CONF", str(folder / "etc/slurm.conf"))
            yield
    finally:
        subprocess.run(
            [*lab, "down", "--wipe"], env=os.environ | settings | names, capture_output=True
        )


@pytest.mark.slurm
def test_without_accounts(bare_lab: None) -> None:
    profile = Profile({"default": Resources(5)}, partition="cpu")
    requests = [profile.resources("default")]
    assert checks.accounting(requests).state == "warning"
    assert checks.submit_limits(profile, requests, ask_cluster()).state == "not checked"
    named = checks.accounting([dataclasses.replace(requests[0], account="research")])
    assert named.state == "failed" and "research would be ignored" in named.finding


def test_no_slurm_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    report = by_name(doctor(Path("lab"), tmp_path / "runs", None, 1))
    assert report["commands"].state == "failed" and "not on PATH" in report["commands"].finding
    assert not (tmp_path / "runs").exists()


@pytest.mark.slurm
@pytest.mark.skipif(Path("/etc/slurm/slurm.conf").exists(), reason="this machine has a cluster")
def test_slurm_without_a_cluster(lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SLURM_CONF")
    report = by_name(doctor(Path("lab"), tmp_path / "runs", None, 1))
    assert report["commands"].state == "failed" and "go to a login node" in report["commands"].fix


@pytest.mark.slurm
def test_a_controller_that_does_not_answer(
    lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    conf = (
        (lab.folder / "etc/slurm.conf").read_text().replace("MessageTimeout=10", "MessageTimeout=2")
    )
    (tmp_path / "slurm.conf").write_text(conf.replace("SlurmctldPort=", "SlurmctldPort=1"))
    monkeypatch.setenv("SLURM_CONF", str(tmp_path / "slurm.conf"))
    assert by_name(doctor(Path("lab"), tmp_path / "runs", None, 1))["Slurm"].state == "failed"


def test_room_and_keys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks, "LITTLE_GIB", 0)
    assert checks.room(tmp_path).state == "ok"
    monkeypatch.setattr(checks, "LITTLE_GIB", 2**40)
    assert checks.room(tmp_path).state == "warning"
    monkeypatch.setattr(checks, "LEAST_GIB", 2**40)
    assert checks.room(tmp_path).state == "failed"


@pytest.mark.slurm
def test_the_profiles_that_come_with_the_kit_can_be_looked_at() -> None:
    for name in ("lab", "university", "partitions"):
        profile = load_profile(Path(name))
        assert (
            gpus(profile.resources("midtrain"))
            == {"lab": 0, "university": 4, "partitions": 4}[name]
        )
