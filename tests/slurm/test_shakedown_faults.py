"""Faults planted for real on the test cluster: the page of `doctor --shakedown` names each one and a
cure, and the cure, typed into the profile, works."""

import json
import os
import re
import shlex
import signal
import sys
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import yaml

from core.cell.identity import Cell
from slurm import doctor as doctor_module
from slurm.checks import FAILED, OK, Check
from slurm.doctor import doctor
from study import cli
from study.commands import shakedown
from study.commands.doctor import SHAKEDOWN
from study.commands.shakedown_page import fault_rows, show
from study.spec import expand
from study.spec.load import load_study
from tests.slurm.places import ROOT, Lab

MINIATURE = ROOT / "tests/small/shakedown.yaml"
ROOTED = pytest.mark.skipif(os.geteuid() != 0, reason="mounts need root")
COMPILER = re.compile(r"(.*-)?(gcc|g\+\+|cc|c\+\+|clang|c[89]9)(-.*)?$")
SMALL = {"minutes": 5, "cpus": 2, "mem_gb": 4.0}
ON_A_GPU = SMALL | {"partition": "gpu", "gpus_per_node": "h100:1"}
STAGES = {"default": SMALL, "midtrain": SMALL | {"nodes": 2, "tasks_per_node": 2}}
# A stand-in for torch's CUDA build on a node without a driver, which can't be installed here. By
# device_count_impl in c10/cuda/CUDAFunctions.cpp it counts no GPU, and says why when CUDA is
# initialized.
NO_DRIVER = """
import sys
from importlib.abc import MetaPathFinder
from importlib.util import find_spec

class Finder(MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name != "torch":
            return None
        sys.meta_path.remove(self)
        spec = find_spec(name)
        plain = spec.loader.exec_module
        def exec_module(module):
            plain(module)
            def init():
                raise RuntimeError("Found no NVIDIA driver on your system. Please check that ...")
            module.version.cuda = "13.0"
            module.cuda.is_available = lambda: False
            module.cuda.init = init
        spec.loader.exec_module = exec_module
        return spec

sys.meta_path.insert(0, Finder())
"""


def write(path: Path, stages: dict[str, Any], **settings: Any) -> Path:
    path.write_text(yaml.safe_dump({"partition": "cpu", "stages": stages, **settings}))
    return path


def training_cells(folder: Path) -> list[Cell]:
    """A compiled midtraining and an SFT: their jobs import no vLLM."""
    recipe = folder / "compiled.yaml"
    recipe.write_text((ROOT / "tests/small/midtrain.yaml").read_text() + "compile: true\n")
    study = (ROOT / "tests/small/small.yaml").read_text()
    path = folder / "study.yaml"
    path.write_text(study.replace("tests/small/midtrain.yaml", str(recipe)))
    cells = expand.in_order(expand.analysis(load_study(path)))
    return [next(c for c in cells if c.stage == stage) for stage in ("midtrain", "sft")]


def page_of(cluster: Path, runs: Path, cells: list[Cell]) -> str:
    report = doctor(cluster, runs, cells, 120)
    page = show(fault_rows(report))
    print(page)
    return page


def assert_says(page: str, *words: str) -> None:
    """That a fault's line and the cure below it have these words."""
    lines = page.splitlines()
    faults = [" ".join(lines[i : i + 2]) for i, line in enumerate(lines) if line[:5] == "fails"]
    assert any(all(word in fault for word in words) for fault in faults), (words, page)


@pytest.mark.slurm
@ROOTED
def test_the_page_names_what_is_wrong_with_nodes(lab: Lab, tmp_path: Path) -> None:
    """Four faults in one profile: no compiler, a full cache, a wrong interface, and a CPU build of
    torch in a job that holds a GPU, which sees no driver."""
    tools, cache = tmp_path / "tools", tmp_path / "cache"
    tools.mkdir()
    cache.mkdir()
    (cache / "under").touch()  # or the other node removes the empty folder, and the mount with it
    for program in Path("/usr/bin").iterdir():
        if not COMPILER.match(program.name):
            (tools / program.name).symlink_to(program)
    full = f"mount -t tmpfs -o size=64k none {cache} && head -c 1M /dev/zero >{cache}/full || true"
    cluster = write(
        tmp_path / "broken.yaml",
        STAGES | {"sft": ON_A_GPU},
        interface="nope0",
        cache=str(cache),
        setup=[f"export PATH={tools}", "unset CC CXX", f"[ $SLURMD_NODENAME != cpu1 ] || {full}"],
    )
    try:
        page = page_of(cluster, tmp_path / "runs", training_cells(tmp_path))
    finally:
        lab.ask("srun", "--partition=cpu", "--nodelist=cpu1", "umount", str(cache))
    assert_says(page, "no C compiler on PATH", "setup: [module load gcc]")
    assert_says(page, f"{cache}: No space left on device", "make room there", "scratch, cache")
    assert_says(page, "no such network interface", "nope0", "has lo", "interface: one of them")
    assert_says(page, "built without CUDA", "make cluster-env")


@pytest.mark.slurm
@pytest.mark.nightly
def test_the_cures_of_the_page_work(lab: Lab, tmp_path: Path) -> None:
    """Of the faults above, typed: a compiler on PATH as `module load gcc` has it, one of the
    interfaces that the page lists, a cache with room. GPU packages can't be had here."""
    cache = str(tmp_path / "cache")
    cluster = write(tmp_path / "cured.yaml", STAGES, interface="lo", cache=cache)
    page = page_of(cluster, tmp_path / "runs", training_cells(tmp_path))
    assert "fails" not in page


@pytest.mark.slurm
@pytest.mark.nightly
def test_the_page_names_a_node_without_a_driver_and_too_little_memory(
    lab: Lab, tmp_path: Path
) -> None:
    """A job that holds a GPU, by torch's CUDA build; and one that Slurm ends for its memory."""
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch/sitecustomize.py").write_text(NO_DRIVER)
    stages = STAGES | {"midtrain": SMALL | {"mem_gb": 0.1}, "sft": ON_A_GPU}
    python = f"env PYTHONPATH={tmp_path}/torch:{ROOT} {shlex.quote(sys.executable)}"
    broken = write(tmp_path / "broken.yaml", stages, python=python)
    page = page_of(broken, tmp_path / "runs", training_cells(tmp_path))
    assert_says(page, "no usable driver", "Found no NVIDIA driver", "exclude", "nvidia-smi")
    if lab.accounting:  # it is what measures a job's memory
        assert_says(page, "Exceeded job memory limit", "give the stage more memory")


def check(name: str, state: str = FAILED) -> Check:
    return Check(name, state, "broken", "mend it")


def left_out(*names: str) -> set[tuple[str, int]]:
    cells = expand.in_order(expand.analysis(load_study(SHAKEDOWN)))
    reasons = shakedown._left_out(cells, [check("cpu: rename", OK), *map(check, names)])
    assert set(reasons.values()) <= set(names)
    return {(c.stage, shakedown.training_seed(c)) for c in cells if c.identity in reasons}


def test_cells_that_would_fail_as_a_check_did_are_not_submitted() -> None:
    assert left_out() == set()
    ranks = left_out("gpu: all-reduce")
    assert ("midtrain", 1) in ranks and ("sft", 2) in ranks and all(seed for _, seed in ranks)
    served = left_out("gpu: vLLM")
    assert {"generate", "likelihood", "judge"} <= {stage for stage, _ in served}
    assert not {"midtrain", "sft", "documents"} & {stage for stage, _ in served}
    assert {"model", "documents", "midtrain"} <= {stage for stage, _ in left_out("gpu: compiler")}


@pytest.mark.multiprocess
@pytest.mark.parametrize("as_json", [True, False])
def test_a_failed_check_is_on_the_page_and_nothing_is_submitted(
    as_json: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    report = [check("profile", OK), check("gpu: packages"), check("gpu: compiler")]
    monkeypatch.setattr(doctor_module, "doctor", lambda *args, **more: report)
    monkeypatch.setattr(shakedown, "submit", lambda *args, **more: pytest.fail("submitted"))
    cluster = write(tmp_path / "mine.yaml", {"default": SMALL})
    words = ["doctor", str(MINIATURE), "--shakedown", "--cluster", str(cluster)]
    words += ["--runs", str(tmp_path / "runs"), *(["--json"] if as_json else [])]
    assert cli.main(words) == 1
    output = capsys.readouterr().out
    if as_json:
        data = json.loads(output)
        assert [c["state"] for c in data["checks"]] == ["ok", "failed", "failed"]
        fault, rest = data["shakedown"]
        assert fault["what"] == "packages, compiler" and fault["fix"] == "mend it"
        assert rest["state"] == "not run" and "gpu: packages failed" in rest["finding"]
    else:
        assert_says(output, "packages, compiler on gpu: broken", "mend it")
        assert "cells: not submitted: gpu: packages failed" in output


def kill_second_rank(folder: Path, is_over: threading.Event) -> None:
    """SIGKILL to the second process of the first training in `folder` that has a step checkpoint."""
    while not is_over.wait(0.05):
        if any(folder.glob("*/midtrain/*-s1-*/steps/[0-9]*")):
            for process in Path("/proc").glob("[0-9]*"):
                with suppress(OSError):
                    command = (process / "cmdline").read_bytes()
                    variables = (process / "environ").read_bytes().split(b"\0")
                    if bytes(folder) in command and b"SLURM_PROCID=1" in variables:
                        os.kill(int(process.name), signal.SIGKILL)
                        return


@pytest.mark.slurm
@pytest.mark.nightly
@ROOTED
def test_a_training_that_fails_in_its_job_is_on_the_page(lab: Lab, tmp_path: Path) -> None:
    """Three faults in turn on the same trainings: a CPU build of torch in a job that holds a GPU,
    too little memory, a killed rank. The cures, typed, go on where they were."""
    study, recipe, runs = tmp_path / "study.yaml", tmp_path / "recipe.yaml", tmp_path / "runs"
    text = (ROOT / "tests/small/midtrain.yaml").read_text()
    recipe.write_text(text + "checkpoint_minutes: 0\n")
    raw = yaml.safe_load(MINIATURE.read_text()) | {"midtrain": {"recipe": str(recipe)}}
    raw["arms"] = {"plain": {"start": "random", "midtrain": "animal", "doses": [0]}}
    raw["benchmarks"] = {"likelihood": raw["benchmarks"]["likelihood"] | {"arms": ["plain"]}}
    study.write_text(yaml.safe_dump(raw))

    def page_with(**training: Any) -> str:
        stages = {"default": SMALL, "midtrain": SMALL | {"tasks_per_node": 2} | training}
        cluster = write(tmp_path / "cluster.yaml", stages, requeue=0)
        page = show(shakedown.shakedown(study, cluster, runs, 600))
        print(page)
        return page

    page = page_with(partition="gpu", gpus_per_node="h100:2")
    assert_says(page, "CPU packages on a GPU", "CPU build of torch", "install the GPU packages")
    assert_says(page, "to run on the CPU request no GPU")  # as below: GPU packages can't be had
    if lab.accounting:
        page = page_with(mem_gb=0.3)
        assert_says(page, "out of memory", "give the stage more memory")
    is_over = threading.Event()
    killer = threading.Thread(target=kill_second_rank, args=(runs, is_over))
    killer.start()
    page = page_with()  # more memory, no GPU
    is_over.set()
    killer.join()
    assert_says(page, "killed: ", "task 1: Killed", "run or submit again: it continues")
    assert "2 not seen" in page and "requeue: 0 in the profile" in page
    page = page_with()
    assert "fails" not in page, page
    (log,) = runs.glob("*/midtrain/*-s1-*/log.txt")
    assert "resumes after step" in log.read_text()
