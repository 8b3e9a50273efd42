"""What doctor makes of a node's facts, and of a file that is replaced while it reads."""

import dataclasses
import json
import shutil
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from slurm import probe
from slurm.checks import Check
from slurm.findings import Visit, report_visit
from slurm.profile import Profile, Resources
from slurm.setup_lines import watched


def by_name(report: list[Check]) -> dict[str, Check]:
    assert all(check.state == "ok" or check.fix for check in report), "each says what to do"
    return {check.name: check for check in report}


def test_readers_of_a_file_that_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "replaced"
    facts: dict[str, Any] = {}
    stop = threading.Event()
    probe.write_atomically(path, "a" * probe.REPLACED_BYTES)
    thread = threading.Thread(
        target=probe.replace_repeatedly, args=(path, stop, facts), daemon=True
    )
    thread.start()
    assert probe.torn_reads(path) == 0
    stop.set()
    thread.join()
    path.write_text("a" * 10 + "b" * (probe.REPLACED_BYTES - 10))
    assert probe.torn_reads(path, 3) == 3
    path.unlink()
    assert probe.torn_reads(path, 3) == 3
    facts.clear()
    stop.clear()
    probe.replace_repeatedly(tmp_path / "nowhere/replaced", stop, facts)
    assert facts["rename"] == "No such file or directory"


WELL: dict[str, Any] = {
    "host": "n1",
    "shared": {
        "same": True,
        "seconds": 0.2,
        "ahead": 0.1,
        "doctor lock": "held",
        "own lock": "taken",
    },
    "back": True,
    "torn": 0,
    "submit": "",
    "python": list(sys.version_info[:3]),
    "limits": [],
    "packages": {"versions": {"torch": "2"}, "failed": None, "why": "", "seconds": 3.0},
    "writable": {"/scratch": ""},
    "keys": [],
    "paths": [],
    "addresses": {"api.example.org:443": ""},
    "gpus": {"torch": "2", "built for": "12.8", "driver": "12.4", "cards": [["H100", 79]] * 4},
    "write rate": 1e9,
    "compiler": {"seconds": 3.0},
    "vLLM": {"seconds": 30.0},
    "all-reduce": {"backend": "nccl", "ranks": 4, "right": True, "seconds": 0.1},
}
CHANGES = [
    ("shared folder", {"shared": {"same": False}}, "failed", "does not show"),
    ("shared folder", {"shared": {"seconds": 30.0}}, "warning", "after 30 s"),
    ("shared folder", {"shared": {"seconds": None}}, "warning", "not within a minute"),
    ("shared folder", {"shared": {"error": "FileNotFoundError: token"}}, "failed", "token"),
    ("rename", {"torn": 3}, "failed", "3 times"),
    ("rename", {"shared": {"rename": "Operation not supported"}}, "failed", "not supported"),
    ("locks", {"shared": {"doctor lock": "taken"}}, "warning", "between machines"),
    ("locks", {"shared": {"own lock": "Function not implemented"}}, "failed", "not implemented"),
    ("python", {"python": [3, 8, 1]}, "warning", "Python 3.8.1"),
    ("clock", {"shared": {"ahead": 600.0}}, "warning", "600.0 s ahead of"),
    ("clock", {"shared": {"ahead": -600.0}}, "warning", "600.0 s behind"),
    (
        "limits",
        {"limits": ["600 seconds of CPU time (ulimit -t)"]},
        "warning",
        "600 seconds of CPU time",
    ),
    (
        "all-reduce",
        {
            "all-reduce": {
                "error": "GLOO_SOCKET_IFNAME=x: no such network interface",
                "fix": "unset",
            }
        },
        "failed",
        "no such network interface",
    ),
    ("submit", {"submit": "sbatch: not on PATH"}, "warning", "sbatch: not on PATH"),
    ("submit", {"submit": "Access/permission denied"}, "warning", "can't submit jobs: Access"),
    ("write rate", {"write rate": 1e8}, "warning", "96 GB takes 960 s"),
    ("compiler", {"compiler": {"error": "RuntimeError: no C compiler"}}, "failed", "no C compiler"),
    ("vLLM", {"vLLM": {"error": "no space left on device"}}, "failed", "no space left"),
    (
        "packages",
        {"packages": {"failed": "vllm", "why": "ImportError: libcudart.so.12"}},
        "failed",
        "libcudart",
    ),
    ("GPUs", {"gpus": {"cards": [["H100", 79]] * 3}}, "failed", "3 of 4"),
    ("GPUs", {"gpus": {"driver": "11.8", "cards": []}}, "failed", "too old"),
    (
        "GPUs",
        {"gpus": {"driver": None, "cards": [], "why": "Found no NVIDIA driver"}},
        "failed",
        "no usable driver for torch 2 for CUDA 12.8: Found no NVIDIA driver",
    ),
    (
        "scratch, cache",
        {"writable": {"/scratch": "No space left on device"}},
        "failed",
        "/scratch: No space left on device",
    ),
    ("endpoints", {"addresses": {"api.example.org:443": "timed out"}}, "failed", "judge call"),
    ("all-reduce", {"all-reduce": {"right": False}}, "failed", "wrong sum"),
]


def visit(facts: dict[str, Any]) -> Visit:
    profile = Profile({"default": Resources(5)}, max_submit=10, signal_seconds=100)
    made = Visit(
        "gpu",
        Resources(5, gpus_per_node=4),
        ["judge"],
        profile,
        job="1",
        checkpoint_bytes=96 * 10**9,
        limited=True,
        addresses={"api.example.org:443": ["judge"]},
    )
    made.facts = [
        facts | {"sections": [name for name in facts if name not in ("host", "back", "torn")]}
    ]
    return made


@pytest.mark.parametrize("line, change, state, word", CHANGES)
def test_each_problem_of_a_node_has_a_verdict(
    line: str, change: dict[str, Any], state: str, word: str, tmp_path: Path
) -> None:
    assert {c.state for c in report_visit(visit(WELL), tmp_path)} == {"ok"}
    facts = json.loads(json.dumps(WELL))
    for section, values in change.items():
        facts[section] = (
            facts[section] | values
            if isinstance(values, dict) and section != "addresses"
            else values
        )
    report = by_name(report_visit(visit(facts), tmp_path))
    assert report[f"gpu: {line}"].state == state and word in report[f"gpu: {line}"].finding
    others = {c.state for name, c in report.items() if name != f"gpu: {line}"}
    assert others <= {"ok"} or "error" in change.get("shared", {})


def test_the_rates_of_a_line_are_those_of_the_slowest(tmp_path: Path) -> None:
    made = visit(WELL)
    gathers = {"node_bytes_per_second": 4e11, "network_bytes_per_second": 3e10}
    made.facts[0]["all-reduce"] = WELL["all-reduce"] | gathers
    other = {"host": "n2", "sections": ["all-reduce", "write rate"], "write rate": 5e8}
    slower = {"all-reduce": WELL["all-reduce"] | gathers | {"node_bytes_per_second": 3e11}}
    made.facts += [other | slower, {"host": "n3", "sections": [], "all-reduce": {"error": "x"}}]
    report = by_name(report_visit(made, tmp_path))
    assert report["gpu: write rate"].measured == {"write_bytes_per_second": 5e8}
    rates = gathers | {"node_bytes_per_second": 3e11}
    assert report["gpu: all-reduce"].measured == rates
    for word in ("4e+02 GB a second within a node", "30 GB a second between nodes"):
        assert word in report["gpu: all-reduce"].finding, report["gpu: all-reduce"]


def test_only_a_limit_needs_jobs_that_submit_jobs(tmp_path: Path) -> None:
    made = visit(WELL | {"submit": "sbatch: not on PATH"})  # as in a container
    made.limited = False
    assert by_name(report_visit(made, tmp_path))["gpu: submit"].state == "ok"
    made.facts[0]["submit"] = made.refused_here = "Invalid account"
    assert by_name(report_visit(made, tmp_path))["gpu: submit"].state == "ok", "of another line"


SETUP = {
    "true": ("ok", "1 lines without an error"),
    "module_that_is_not_there load gcc": ("failed", "not found (exit status 127)"),
    "echo \"ERROR: Unable to locate a modulefile for 'gcc/99'\" >&2": ("failed", "status 0"),
    "echo hello >&2": ("ok", "without an error"),
    "[ -e /nowhere ]": ("warning", "exit status 1"),
    "exec true": ("failed", "ends the job's shell"),
    "exit 3": ("failed", "ends the job's shell"),
    "# a comment": ("ok", "without an error"),
}


@pytest.mark.multiprocess
@pytest.mark.parametrize("line", SETUP)
def test_how_a_setup_line_ends_is_read(
    line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "1")
    made = visit(WELL)
    made.profile = dataclasses.replace(made.profile, setup=[line])
    script = "\n".join([*watched([line], tmp_path), "echo the rest runs"])
    ended = subprocess.run(["bash", "-c", script], capture_output=True, text=True)
    check = by_name(report_visit(made, tmp_path))["gpu: setup"]
    state, word = SETUP[line]
    assert check.state == state and word in check.finding, check
    assert ("the rest runs" in ended.stdout) == ("ends the job's shell" not in word)
    assert "hello" not in line or ended.stderr == "hello\n", "as without the watch"


def test_a_section_that_was_not_written_fails(tmp_path: Path) -> None:
    made = visit(WELL)
    del made.facts[0]["all-reduce"]
    (tmp_path / "jobs").mkdir()
    (tmp_path / "jobs/1_0_log.err").write_text(
        "NCCL watchdog: abort\nsrun: error: n2: task 1: Exited with exit code 1\n"
    )
    report = by_name(report_visit(made, tmp_path))
    assert (
        report["gpu: all-reduce"].state == "failed"
        and "NCCL watchdog: abort" in report["gpu: all-reduce"].finding
    )


def test_a_node_that_wrote_nothing_fails(tmp_path: Path) -> None:
    made = visit(WELL)
    made.resources = dataclasses.replace(made.resources, nodes=2)
    report = by_name(report_visit(made, tmp_path))
    assert report["gpu: node"].state == "failed" and "1 of 2 tasks" in report["gpu: node"].finding


def test_what_a_node_without_a_compiler_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(RuntimeError, match="no C compiler on PATH"):
        probe.compile_extension(str(tmp_path))


@pytest.mark.multiprocess
def test_a_compiler_needs_the_headers_of_python(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not shutil.which("gcc"):
        pytest.skip("no gcc on this machine")
    monkeypatch.setenv("CC", "gcc")
    if (Path(probe.sysconfig.get_path("include")) / "Python.h").exists():
        probe.compile_extension(str(tmp_path))
    monkeypatch.setattr(probe.sysconfig, "get_path", lambda name: "/nowhere")
    with pytest.raises(RuntimeError, match=r"gcc: .*Python\.h"):
        probe.compile_extension(str(tmp_path))
    assert not list(tmp_path.iterdir())


def test_how_fast_a_folder_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe, "WRITE_BYTES", 2 * 8 * 2**20)
    assert probe.write_rate(tmp_path / "written") > 0 and not list(tmp_path.iterdir())


@pytest.mark.nightly
@pytest.mark.vllm
def test_vllm_starts_on_the_checkpoint_of_doctor(tmp_path: Path) -> None:
    assert probe.start_vllm(tmp_path / "model")["seconds"] > 0
    (tmp_path / "file").touch()
    refused = probe.start_vllm(tmp_path / "file")
    assert refused["error"]
