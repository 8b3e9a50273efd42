"""benchmarks/gpu.sh and what it starts, as far as a CPU can run it."""

import argparse
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from importlib import import_module
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch

from benchmarks import contenders, gpu_equality, gpu_inference, training
from benchmarks.step_profile import union
from benchmarks.worker import CallFailed, Worker
from core.paths import ROOT
from study import cli
from study.spec import expand
from study.spec.load import load_study

SCRIPT = ROOT / "benchmarks/gpu.sh"
# In no lock of an environment for GPUs.
ABSENT = ("pytest", "_pytest", "xdist", "hypothesis")


@pytest.fixture(scope="module")
def without_pytest(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """An environment variable that lets imports of ABSENT fail in a process and its children."""
    folder = tmp_path_factory.mktemp("absent")
    for name in ABSENT:
        (folder / f"{name}.py").write_text(f"raise ImportError('{name} is not installed')")
    return {"PYTHONPATH": str(folder), "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}


def parts() -> dict[str, tuple[int, list[str]]]:
    """Minutes and command of each part of the script by its name."""
    text = SCRIPT.read_text().replace("\\\n", " ").replace("$folder", "FOLDER")
    found = {}
    for line in re.findall(r"^part .*", text, re.MULTILINE):
        _, name, minutes, python, m, *words = shlex.split(line)
        assert (python, m) == ("$python", "-m")
        found[name] = (int(minutes), words)
    return found


def parsed(module: str, *words: str) -> argparse.Namespace:
    """The command line as the module reads it today. argparse exits where it can't."""
    if module == "study":
        return cli._parser(cli.import_commands(list(words))).parse_args(words)
    parser: argparse.ArgumentParser = import_module(module).parser()
    return parser.parse_args(words)


def test_the_scripts_parts_take_25_minutes_and_its_commands_exist() -> None:
    minutes = {name: minutes for name, (minutes, _) in parts().items()}
    assert sum(minutes.values()) <= 25 and list(minutes)[:3] == ["vllm", "train-1b", "inference"]
    for name, (_, (module, *words)) in parts().items():
        if module == "core.inference.vllm_check":
            assert len(words) == 1
            continue
        given = parsed(module, *words)
        if module == "benchmarks.training":
            lines = given.only or [*training.LINES][:8]
            assert lines[:2] == ["kit", "torchtune's recipe"]
            assert training.estimated_seconds(given.gpu, lines[:2]) <= given.seconds
            if not given.only:
                assert training.estimated_seconds(given.gpu, lines) <= given.seconds
        if getattr(given, "seconds", None):
            assert given.seconds < 60 * minutes[name]
        if module == "study":
            cells = expand.in_order(
                expand.analysis(load_study(ROOT / given.study, given.seeds, given.overrides))
            )
            assert {"midtrain", "sft", "generate", "likelihood"} <= {cell.stage for cell in cells}


@pytest.mark.multiprocess
def test_the_script_runs_each_part_and_says_how_it_ended(tmp_path: Path) -> None:
    """With a stand-in for Python that fails in one part."""
    python = tmp_path / "python"
    python.write_text('#!/bin/bash\necho "$@"\n[[ $2 != benchmarks.training ]] || exit 3\n')
    python.chmod(0o755)
    environment = os.environ | {"PYTHON": str(python)}
    ran = subprocess.run([SCRIPT, tmp_path / "out"], env=environment, capture_output=True)
    assert ran.returncode == 1
    lines = (tmp_path / "out/summary.txt").read_text().splitlines()
    assert [line.split()[0] for line in lines] == [*parts()]
    for line, (_, (module, *_)) in zip(lines, parts().values(), strict=True):
        assert f"exit {3 if module == 'benchmarks.training' else 0} " in line
    assert "--profile" in (tmp_path / "out/train-1b.log").read_text()


@pytest.mark.multiprocess
def test_the_script_stops_where_it_is_interrupted(tmp_path: Path) -> None:
    python = tmp_path / "python"
    begun = tmp_path / "begun"
    ended = tmp_path / "ended"
    wait = f"trap 'touch {ended}; exit 1' INT; touch {begun}; while :; do sleep 0.1; done"
    python.write_text(f"#!/bin/bash\n[[ $2 != core.inference.vllm_check ]] || {{ {wait}; }}\n")
    python.chmod(0o755)
    environment = os.environ | {"PYTHON": str(python)}
    process = subprocess.Popen([SCRIPT, tmp_path / "out"], env=environment)
    while not begun.exists():
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    assert process.wait() == 130 and ended.exists()
    assert not (tmp_path / "out/summary.txt").read_text(), "no other part is begun"


@pytest.mark.multiprocess
def test_the_script_says_in_a_line_why_it_can_not_begin(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    works = tmp_path / "python"
    works.write_text("#!/bin/bash\n")
    works.chmod(0o755)
    for python, arguments, says in (
        ("/nonexistent", ["out"], "/nonexistent computes on no GPU: .*No such file"),
        (sys.executable, ["out"], "computes on no GPU: .*; see nvidia-smi, or give PYTHON="),
        (str(works), ["file/out"], "can't write to file/out"),
        (str(works), ["--help"], r"usage: PYTHON=\S+ benchmarks/gpu.sh \[FOLDER\]"),
    ):
        words = [str(tmp_path / word) if "--" not in word else word for word in arguments]
        environment = os.environ | {"PYTHON": python, "CUDA_VISIBLE_DEVICES": ""}
        ran = subprocess.run([SCRIPT, *words], env=environment, capture_output=True, text=True)
        said = ran.stderr.replace(f"{tmp_path}/", "").splitlines()
        assert ran.returncode == 2 and re.match(f"error: .*{says}", said[-1])
        assert len(said) == 1 + (python == str(works) and words[0][0] == "/"), "mkdir says why"


@pytest.mark.multiprocess
def test_what_the_script_starts_imports_without_pytest(without_pytest: dict[str, str]) -> None:
    """With what the trainings import later."""
    modules = {words[0] for _, words in parts().values()} - {"study"}
    names = ["benchmarks.torchtune_recipe", *sorted(modules)]
    code = f"""
from importlib import import_module
for name in {names}:
    module = import_module(name)
    print(name, module.parser().format_help() if hasattr(module, "parser") else "")
try:
    import pytest
except ImportError as error:
    print(error)
"""
    ran = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env=os.environ | without_pytest,
        capture_output=True,
        text=True,
        check=True,
    )
    assert "pytest is not installed" in ran.stdout and "--line-seconds" in ran.stdout


@pytest.mark.multiprocess
def test_trainings_are_compared_without_pytest_and_after_a_failed_case(
    without_pytest: dict[str, str], tmp_path: Path
) -> None:
    command = [sys.executable, "-m", "benchmarks.gpu_equality", "--device", "cpu"]
    command += ["--folder", str(tmp_path), "--only", "flex attention's gradients"]
    command += ["fp32, two at once"]
    ran = subprocess.run(
        command, cwd=ROOT, env=os.environ | without_pytest, capture_output=True, text=True
    )
    first, second = [json.loads(line) for line in ran.stdout.splitlines()]
    assert ran.returncode == 1 and not ran.stderr
    assert "CUDA" in first["failed"], "flex attention has no gradient on a CPU"
    log = (tmp_path / "cpu.log").read_text()
    assert second["case"] == "fp32, two at once" and second["passed"], log
    assert second["measured"] < 1e-5


class Played:
    """A worker that measures nothing. `held`: GB that lines leave, by the contender."""

    held: ClassVar[dict[str, float]] = {}
    events: ClassVar[list[str]] = []

    def __init__(self, log: Path, environment: dict[str, str]) -> None:
        self.log = log

    def call(
        self, function: Any, folder: Path, case: Any, name: str = "", limit: Any = None
    ) -> Any:
        if function is training.make_inputs:
            return None
        self.events.append(f"{name} {limit}")
        if "fails" in case:
            raise CallFailed("the reason")
        return {"tokens_per_second": 1.0, "gb": 2.0, "remaining_gb": self.held.get(name, 0.0)}

    def last_lines(self) -> list[str]:
        return ["last words"]

    def close(self) -> None:
        self.events.append("closed")

    def __enter__(self) -> "Played":
        return self

    def __exit__(self, *_: object) -> None:
        pass


def test_lines_on_a_gpu_share_a_process_until_it_leaves_memory_behind(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(training, "Worker", Played)
    monkeypatch.setattr(Played, "held", {"leaks": 3.0})
    monkeypatch.setattr(Played, "events", [])
    size = training.SIZES["1b"]
    cases = {"a": ("kit", size), "b": ("kit", size | {"fails": True}), "c": ("leaks", size)}
    training.compare(cases, rounds=1, line_seconds=60)
    assert Played.events == ["kit 60", "kit 60", "leaks 60", "closed"]
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()[:3]]
    assert [row["line"] for row in rows] == ["a", "b", "c"]
    assert rows[1]["failed"] == "the reason" and rows[1]["log"] == ["last words"]
    Played.events.clear()
    training.compare(cases, rounds=1, seconds=5)
    assert Played.events == [] and capsys.readouterr().out.count("no time was left") == 3


def test_without_a_gpu_the_cpu_is_not_compared_with_itself(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["gpu_equality", "--only", "fp32"])
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(gpu_equality, "compare", None)
    assert gpu_equality.main() == 2 and "no GPU" in capsys.readouterr().out
    monkeypatch.setattr(sys, "argv", ["gpu_inference"])
    monkeypatch.setattr(gpu_inference, "measure", None)
    assert gpu_inference.main() == 2 and "--toy needs none" in capsys.readouterr().out


def test_a_call_that_fails_or_takes_too_long_ends_alone(tmp_path: Path) -> None:
    with Worker(tmp_path / "log.txt", {"ONLY_THERE": "1"}) as worker:
        assert (
            worker.call(os.getenv, "ONLY_THERE", limit=60) == "1" and "ONLY_THERE" not in os.environ
        )
        first = worker.call(os.getpid, limit=60)
        assert worker.call(os.getpid, limit=60) == first
        with pytest.raises(CallFailed, match=r"FileNotFoundError.*/nowhere"):
            worker.call(os.listdir, "/nowhere", limit=60)
        second = worker.call(os.getpid, limit=60)
        with pytest.raises(CallFailed, match=r"ended \(exit 7\)"):
            worker.call(os._exit, 7, limit=60)
        with pytest.raises(CallFailed, match="not done in 0 s"):
            worker.call(time.sleep, 600, limit=0.1)
        assert len({first, second, worker.call(os.getpid, limit=60)}) == 3
        assert "FileNotFoundError" in "".join(worker.last_lines())


def test_time_in_which_several_kernels_run_counts_once() -> None:
    assert union([(5, 6), (0, 2), (1, 3), (1.5, 2)]) == 4


@pytest.mark.slow
def test_a_step_is_profiled_and_conversations_are_trained(tmp_path: Path) -> None:
    case = {"shape": "toy", "seq_len": 256, "rows": 1, "steps": 2, "dtype": "fp32"}
    contenders.make_inputs(tmp_path, case)
    path = tmp_path / "profile.json"
    steps = contenders.kit(tmp_path, case | {"profile": str(path), "chunk": 64})
    profile = json.loads(path.read_text())
    assert len(steps) == 2 and profile["device"] == "cpu"
    assert 0 < profile["busy_seconds"] <= profile["step_seconds"]
    assert profile["idle_share"] == pytest.approx(
        1 - profile["busy_seconds"] / profile["step_seconds"]
    )
    assert "aten::mm" in [row["kernel"] for row in profile["kernels"]]
    assert sum(row["share_of_step"] for row in profile["kernels"]) <= 1.01
    conversations = case | {"conversations": True, "rows": 8, "micro_batch_size": 8}
    rates = {}
    for packed in (True, False):
        changes = {"packed": packed, "torch_loss": packed, "no_gc": packed}
        lines = contenders.kit(tmp_path, conversations | changes)
        rates[packed] = [tokens for tokens, _ in lines]
    assert rates[True] == rates[False] and min(rates[True]) > 8 * 8, "the same tokens a step"


def test_a_measurement_that_fails_is_a_line_and_the_next_one_is_taken(
    capsys: pytest.CaptureFixture[str],
) -> None:
    measured = gpu_inference.Measurements(seconds=None)
    with measured.line("first") as row:
        row["passed"] = True
    assert not measured.failed
    with measured.line("second"):
        raise CallFailed("the reason")
    with measured.line("third") as row:
        row["gb"] = 1
    first, second, third = map(json.loads, capsys.readouterr().out.splitlines())
    assert first["passed"] and third["gb"] == 1 and measured.failed
    assert second["failed"] == "the reason"
    with pytest.raises(CallFailed, match="no time was left"):
        gpu_inference.Measurements(seconds=5).limit()


@pytest.mark.vllm
@pytest.mark.nightly
def test_vllm_is_measured_in_miniature_without_pytest(
    without_pytest: dict[str, str], tmp_path: Path
) -> None:
    command = [sys.executable, "-m", "benchmarks.gpu_inference", "--toy", "--folder", str(tmp_path)]
    ran = subprocess.run(
        command, cwd=ROOT, env=os.environ | without_pytest, capture_output=True, text=True
    )
    lines = [json.loads(line) for line in ran.stdout.splitlines()]
    rows = {line.pop("measurement"): line for line in lines}
    assert ran.returncode == 0, ran.stdout + ran.stderr
    cold, warm = rows["start, cold"], rows["second process, warm"]
    assert cold["start_seconds"] > 0 and warm["start_seconds"] > 0
    assert any("KV cache size" in line for line in cold["logged"])
    assert rows["likelihoods, float32"]["largest_difference"] < 1e-4
    assert rows["answers"]["tokens"] == 6 * 16 and rows["answers"]["preemptions"] == 0
    second = rows["second checkpoint, same process"]
    assert second["import_seconds"] < 1 < cold["import_seconds"] and second["freed_gb"] > 0
    assert rows["answers in two batches"]["equal"] == 2
    assert "CPU build" in rows["answers in two batches, batch_invariant"]["not_run"]
