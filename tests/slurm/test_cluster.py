"""On a real Slurm: a study from submission to tables, failures, refusals, cancellation."""

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
import yaml
from safetensors.torch import load_file

from core.cell.manifest import read_manifest
from core.declaration import FILE
from study.spec import expand as plan
from study.spec.load import load_study
from tests.place import ROOT, SMALL, Place, comparable
from tests.slurm.places import Kit, Lab
from tests.slurm.test_survival import rank_of
from tests.waiting import until

pytestmark = pytest.mark.slurm

ONE_DOSE = ("--set", "sft.doses=[0]")
BEHIND_A_TRAINING = {"midtrain", "generate", "likelihood", "judge"}


@pytest.fixture(scope="module")
def finished(session_lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> Kit:
    """A small study that ran on the cluster."""
    kit = Kit(tmp_path_factory.mktemp("finished"))
    started = time.monotonic()
    facts = kit.done("submit", *ONE_DOSE)
    assert facts["submitted"] == facts["cells"] == 16
    session_lab.wait()
    print(f"the small study on the cluster: {time.monotonic() - started:.0f} s")
    return kit


def copy(finished: Kit, kit: Kit) -> None:
    shutil.copytree(finished.folder / "runs", kit.folder / "runs")
    shutil.rmtree(kit.base / "slurm")


def manifests(kit: Kit) -> list[Path]:
    return sorted(path.relative_to(kit.base) for path in kit.base.glob("*/*/manifest.json"))


def test_a_study_runs_to_its_tables_and_gives_the_same_bytes_as_on_one_machine(
    finished: Kit, one_machine: Place, lab: Lab, kit: Kit
) -> None:
    cells = plan.in_order(plan.analysis(load_study(SMALL, overrides=["sft.doses=[0]"])))
    for cell in cells:
        manifest = read_manifest(finished.base / cell.relpath)
        assert manifest and manifest["slurm_job"], f"{cell.relpath} did not run as a job"
        assert "finished: " in (finished.base / cell.relpath / "log.txt").read_text()
    assert finished.done("submit", *ONE_DOSE)["submitted"] == 0
    shutil.copytree(one_machine.folder / "runs", kit.folder / "runs")
    shutil.rmtree(kit.base / "analysis")  # of both doses
    shutil.copy(finished.base / FILE, kit.base)  # which declares one
    for cell in cells[:-1]:
        manifest = read_manifest(kit.base / cell.relpath)
        assert manifest and not manifest["slurm_job"], f"{cell.relpath} did not run without Slurm"
    result = Place(kit.folder).study("run", *ONE_DOSE)
    assert result.returncode == 0, result.stdout + result.stderr
    (ours,), (theirs,) = ([*k.base.glob("analysis/*")] for k in (finished, kit))
    for name in ("results.json", "tables/scores.tex", "report.html", "scores.parquet"):
        assert comparable(ours / name) == comparable(theirs / name), name


def test_a_failed_cell_cancels_those_behind_it_and_the_next_call_runs_them(
    finished: Kit, lab: Lab, kit: Kit
) -> None:
    copy(finished, kit)
    for stage in ("judge", "analysis"):
        shutil.rmtree(kit.base / stage)
    samples = sorted(kit.base.glob("generate/*/samples.eval"))[0]
    content = samples.read_bytes()
    samples.write_bytes(content[:-1])
    before = manifests(kit)
    facts = kit.done("submit", *ONE_DOSE)
    assert [(job["stage"], job["tasks"]) for job in facts["jobs"]] == [
        ("judge", 2),
        ("analysis", 1),
    ]
    lab.wait()
    assert len(manifests(kit)) == len(before) + 1, (
        "one judge is done, the other and the analysis are not"
    )
    logs = [path.read_text() for path in kit.base.glob("judge/*/log.txt")]
    assert sum("error: " in log and "cut short" in log for log in logs) == 1
    assert not list(kit.base.glob("analysis/*/log.txt")), "it never started"
    samples.write_bytes(content)
    facts = kit.done("submit", *ONE_DOSE)
    assert [(job["stage"], job["cells"]) for job in facts["jobs"]] == [
        ("judge", 1),
        ("analysis", 1),
    ]
    lab.wait()
    assert manifests(kit) == manifests(finished)
    (ours,), (theirs,) = ([*k.base.glob("analysis/*/results.json")] for k in (finished, kit))
    assert ours.read_bytes() == theirs.read_bytes()


def test_two_shells_submit_once_a_signal_requeues_and_cancel_ends_this_study_alone(
    lab: Lab, kit: Kit
) -> None:
    other = lab.ask("sbatch", "--parsable", "--output=/dev/null", "--wrap=sleep 300").strip()
    seeds = ("--seeds", "0", "1", "2")
    shells = [
        subprocess.Popen(kit.words("submit", *seeds), stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    facts = [json.loads(shell.communicate()[0]) for shell in shells]
    assert sorted(f["submitted"] for f in facts) == [0, facts[0]["cells"]]
    jobs = next(f["jobs"] for f in facts if f["jobs"])
    # Both corpora may be written by now; nothing else can be over.
    waiting = sum(job["tasks"] for job in jobs if job["stage"] != "documents")
    assert waiting <= len(lab.jobs()) - 1 <= sum(job["tasks"] for job in jobs)
    assert kit.done("submit", *seeds)["submitted"] == 0

    (model,) = kit.base.glob("model/*")
    log = model / "log.txt"
    until(lambda: log.exists() and "starts" in log.read_text())
    job = jobs[0]["job"]
    lab.ask("scancel", "--signal=USR2", job)
    until(lambda: "Restarts=1" in lab.ask("scontrol", "show", "job", job))
    assert kit.done("submit", *seeds)["submitted"] == 0, (
        "a job that waits to start again is in the queue"
    )

    cancelled = kit.done("cancel", *seeds)["cancelled"]
    assert job in cancelled and other not in cancelled
    until(lambda: set(lab.jobs()) == {other}, lab.jobs)
    again = kit.done("submit", *seeds)
    assert again["submitted"] + again["finished"] == again["cells"] and again["queued"] == 0
    kit.done("cancel", *seeds)


def test_the_job_of_an_older_study_file_ends_last_and_publishes_nothing(
    finished: Kit, lab: Lab, kit: Kit
) -> None:
    copy(finished, kit)
    shutil.rmtree(kit.base / "analysis")
    cpus = ["--partition=cpu", "--nodes=2", "--exclusive"]
    sleep = lab.ask("sbatch", "--parsable", "--output=/dev/null", *cpus, "--wrap=sleep 600")
    until(lambda: lab.jobs()[sleep.strip()] == "RUNNING", lab.jobs)
    (job,) = kit.done("submit", *ONE_DOSE, "--set", "contrasts.0.name=older")["jobs"]
    lab.ask("scontrol", "hold", job["job"])
    lab.ask("scancel", sleep.strip())
    facts = kit.done("submit", *ONE_DOSE)
    assert facts["orphans"] == [{"job": job["job"], "cells": ["analysis small"]}]
    until(lambda: set(lab.jobs()) == {job["job"]}, lab.jobs)
    results = kit.folder / "results/small"
    newer = (results / "results.json").read_bytes()
    lab.ask("scontrol", "release", job["job"])
    lab.wait()
    logs = [path.read_text() for path in kit.base.glob("analysis/*/log.txt")]
    assert len(logs) == 2 and all(" finished: " in log for log in logs)
    assert sum("is not published: what was started last" in log for log in logs) == 1
    assert (results / "results.json").read_bytes() == newer and b"older" not in newer
    assert kit.call("verify", *ONE_DOSE).returncode == 0
    # Whoever submits the older file again wants its results.
    assert kit.done("submit", *ONE_DOSE, "--set", "contrasts.0.name=older")["submitted"] == 0
    assert b"older" in (results / "results.json").read_bytes()


def mirror(source: Kit, name: str, target: Kit) -> None:
    """Carry a study's folder to another machine, beside the folder of the same study there."""
    folder = target.folder / "runs" / name
    folder.mkdir(parents=True, exist_ok=True)
    subprocess.run(["rsync", "-a", "--delete", f"{source.base}/", f"{folder}/"], check=True)


def killed_once(words: list[str], begun: Callable[[], object]) -> None:
    """Run a command, kill it once it has begun its work, and run it again to its end."""
    process = subprocess.Popen(words, cwd=ROOT, stdout=subprocess.DEVNULL)
    until(lambda: begun() or process.poll() is not None)
    process.kill()
    process.wait()
    subprocess.run(words, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)


def answered(kits: Iterable[Kit]) -> list[str]:
    """The requests that were paid in the studies' own folders, as often as they were."""
    ledgers = [path for kit in kits for path in kit.base.glob("*/*/calls.jsonl")]
    entries = [json.loads(line) for path in ledgers for line in path.read_text().splitlines()]
    return [e["request_sha256"] for e in entries if "text" in e and not e.get("copied_from")]


@pytest.mark.nightly  # three minutes
@pytest.mark.skipif(not shutil.which("rsync"), reason="no rsync on this machine")
def test_api_stages_by_hand_and_gpu_stages_by_slurm_in_two_runs_folders(
    finished: Kit, lab: Lab, tmp_path: Path
) -> None:
    """Carried over twice, killed once on each side. The trainings are those of `finished`."""
    there, here = Kit(tmp_path / "internet"), Kit(tmp_path / "gpus")
    copy(finished, here)
    for path in here.base.glob("*/*"):
        is_evaluation = path.parent.name in ("generate", "likelihood") and "animal" in path.name
        if path.parent.name in ("documents", "judge", "analysis") or is_evaluation:
            shutil.rmtree(path)
    login = {"where": "login"}
    stages = {"default": {"minutes": 10, "cpus": 4, "mem_gb": 8}, "judge": login}
    profile = {"partition": "cpu", "stages": stages | {"documents": login}}
    (tmp_path / "login.yaml").write_text(yaml.safe_dump(profile))
    cluster = ("--cluster", str(tmp_path / "login.yaml"), *ONE_DOSE)

    def api() -> int:
        ledgers = there.base.glob("*/*/calls.jsonl")
        return sum(path.read_text().count("\n") for path in ledgers)

    # The toy model is made there too: its tokenizer counts the documents' tokens.
    run = there.words("run", "--stages", "model,documents,judge", *ONE_DOSE)
    killed_once(run, lambda: api() > 20)
    mirror(there, "small-api", here)
    facts = here.done("submit", *cluster)
    evaluations = [job["cells"] for job in facts["jobs"] if job["stage"] == "evaluate"]
    assert evaluations == [2] and (facts["login"], facts["behind"]) == (["judge"], 1)
    job = next(job["job"] for job in facts["jobs"] if job["stage"] == "evaluate")
    until(lambda: [*here.base.glob("generate/*animal*/log.txt")])
    os.kill(rank_of(job), 9)  # it is queued again
    lab.wait()
    (row,) = here.done("status", *ONE_DOSE)["login"]
    assert row == {"stage": "judge", "cells": 2, "ready": 2, "behind": 1}
    mirror(here, "small-gpu", there)
    before = api()
    killed_once(run, lambda: api() > before + 20)
    mirror(there, "small-api", here)
    facts = here.done("submit", *cluster)
    assert [job["stage"] for job in facts["jobs"]] == ["analysis"] and not facts["login"]
    lab.wait()
    (ours,), (theirs,) = ([*k.base.glob("analysis/*")] for k in (here, finished))
    assert ours.name == theirs.name
    for name in ("results.json", "tables/scores.tex", "scores.parquet"):
        assert comparable(ours / name) == comparable(theirs / name), name
    paid = answered([there, here])
    assert len(paid) == len({*paid}) == len({*answered([finished])})
    # The runs folder moves, and its copy of the other one with it.
    moved = Kit(tmp_path / "elsewhere")
    (tmp_path / "gpus").rename(moved.folder)
    assert moved.call("verify", *ONE_DOSE).returncode == 0
    assert moved.done("submit", *cluster)["finished"] == facts["cells"]


REFUSED = {
    "partition": ({"partition": "nowhere"}, "no partition nowhere"),
    "account": ({"account": "nobody"}, "Invalid account"),
    "qos": ({"qos": "express"}, "qos"),
    "time": ({"minutes": 100}, "time limit is invalid"),
    "nodes": ({"nodes": 3}, "ode count specification invalid|node configuration is not available"),
    "gpus": ({"gpus_per_node": 1}, "node configuration is not available"),
    "memory": ({"mem_gb": 900.0}, "node configuration is not available|emory"),
    "constraint": ({"constraint": "h200"}, "eature"),
}


@pytest.mark.parametrize("field", REFUSED)
def test_requests_that_slurm_refuses_are_reported_before_any_submission(
    field: str, lab: Lab, kit: Kit, tmp_path: Path
) -> None:
    changes, reason = REFUSED[field]
    if field in ("account", "qos") and not lab.accounting:
        pytest.skip("no accounting on this cluster")
    profile = {"partition": "cpu", "stages": {"default": {"minutes": 5} | changes}}
    (tmp_path / "bad.yaml").write_text(yaml.safe_dump(profile))
    (line,) = kit.refused("submit", "--cluster", str(tmp_path / "bad.yaml"), *ONE_DOSE)
    assert any(word in line for word in reason.split("|")), line
    assert f"{next(iter(changes))} " in line, "the line names what was asked for"
    assert not lab.jobs() and not (kit.base / "slurm/jobs.jsonl").exists()


def test_a_cluster_that_does_not_answer_is_reported(
    lab: Lab, kit: Kit, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    conf = (
        (lab.folder / "etc/slurm.conf").read_text().replace("MessageTimeout=10", "MessageTimeout=2")
    )
    (tmp_path / "slurm.conf").write_text(conf.replace("SlurmctldPort=", "SlurmctldPort=1"))
    monkeypatch.setenv("SLURM_CONF", str(tmp_path / "slurm.conf"))
    (line,) = kit.refused("submit", *ONE_DOSE)
    assert "unknown, so nothing was done" in line


def largest_difference(one: Any, other: Any) -> float:
    """The largest difference between numbers of two results that are otherwise equal."""
    if isinstance(one, dict | list):
        pairs = (
            [(key, other[key]) for key in one] if isinstance(one, dict) else list(enumerate(other))
        )
        assert len(one) == len(other) == len(pairs)
        return max((largest_difference(one[key], value) for key, value in pairs), default=0.0)
    if isinstance(one, float) and isinstance(other, float):
        return abs(one - other)
    assert one == other
    return 0.0


def test_the_driver_submits_from_inside_a_job_and_two_nodes_train_what_one_does(
    finished: Kit, lab: Lab, kit: Kit, tmp_path: Path
) -> None:
    """Sums in another order: an arm's scores may differ by a sampled answer or two, no more."""
    copy(finished, kit)
    for path in kit.base.glob("*/*"):
        if (
            "animal" in path.name and path.parent.name in BEHIND_A_TRAINING
        ) or path.parent.name == "analysis":
            shutil.rmtree(path)
    remaining = len(manifests(finished)) - len(manifests(kit))
    stages = {"default": {"minutes": 10, "cpus": 2, "mem_gb": 8.0}}
    stages["midtrain"] = stages["default"] | {"nodes": 2}
    (tmp_path / "two.yaml").write_text(yaml.safe_dump({"partition": "cpu", "stages": stages}))
    log = kit.folder / "driver.log"
    words = [
        str(SMALL),
        "--cluster",
        str(tmp_path / "two.yaml"),
        "--runs",
        str(kit.folder / "runs"),
        *ONE_DOSE,
    ]
    # Slurm 26.05 passes the driver's own resources on to its jobs, whose srun then dies.
    driver = ["sbatch", "--wait", f"--output={log}", "slurm/study.sbatch", *words, "--json"]
    subprocess.run(
        driver,
        cwd=ROOT,
        check=True,
        capture_output=True,
        env=os.environ | {"PYTHON": sys.executable},
    )
    assert json.loads(log.read_text())["submitted"] == remaining > 0
    lab.wait()
    assert manifests(kit) == manifests(finished)
    (ours,), (theirs,) = ([*k.base.glob("midtrain/*animal*")] for k in (kit, finished))
    assert list(kit.base.glob("slurm/jobs/*_1_log.out")), "a second rank"
    weights = [load_file(folder / "model/model.safetensors") for folder in (ours, theirs)]
    off = max((one - weights[1][name]).abs().max().item() for name, one in weights[0].items())
    (ours,), (theirs,) = ([*k.base.glob("analysis/*/results.json")] for k in (kit, finished))
    scores = largest_difference(json.loads(ours.read_text()), json.loads(theirs.read_text()))
    print(f"two nodes and one: weights {off:.1e}, results {scores:.1e} apart")
    assert 0 < off < 1e-4 and scores < 0.05


def test_slurm_waits_as_the_plan_assumes(lab: Lab) -> None:
    """aftercorr waits for the same index of the other array, or else for all of that array."""
    sbatch = ("sbatch", "--parsable", "--output=/dev/null")
    first = lab.ask(*sbatch, "--array=0-1", "--wrap=sleep $((SLURM_ARRAY_TASK_ID * 4))").strip()
    second = lab.ask(
        *sbatch, "--array=0-3", f"--dependency=aftercorr:{first}", "--wrap=sleep 0.5"
    ).strip()
    order: list[set[str]] = []
    while jobs := lab.jobs():
        order.append({job for job in jobs if job.startswith(second)})
        assert (
            not {f"{second}_2", f"{second}_3", f"{second}_1"} - set(jobs)
            or f"{first}_1" not in jobs
        )
        time.sleep(0.1)
    assert {f"{second}_{k}" for k in (1, 2, 3)} in order, "task 0 ended before the others began"
