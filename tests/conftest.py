"""Which tests share a process when pytest-xdist spreads them over several (`make test`), and what
they may leave."""

import fcntl
import os
import platform
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from xdist.scheduler import LoadScopeScheduling

from core.cores import default_jobs
from tests.place import Place

# What stays together beyond a file's own tests, by the beginning of its path, and what comes first:
# the longest, so that no process ends long before the others. Those of the cluster mostly wait: two
# processes, each with a cluster of its own.
_FIRST = (
    "tests/slurm/test_s",
    "tests/slurm",
    "tests/test_rerun.py",
    "tests/test_study.py",
    "tests/test_beyond.py",
    "tests/study/test_edit_sequences.py",
    "tests/sdf/test_local_writer.py",
    "tests/eval",
    "tests/recipes",
)


# A shell starts a job in the background with SIGINT ignored, nohup one with SIGHUP ignored, and
# processes inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)
# As `make` does: threads of linear algebra on few cores take several times as long.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# `make test-fast` runs what has none of these markers (pyproject.toml).
_NOT_FAST = {"slurm", "vllm", "multiprocess", "e2e", "nightly"}
# The first test that asks for these fixtures pays for them.
_MARKER_OF_FIXTURE = {"one_machine": "e2e", "lab": "slurm"}
_STARTS = {"subprocess.Popen", "os.fork", "os.forkpty", "os.posix_spawn", "os.exec"}
_started: list[str] = []


def _note_process(event: str, args: tuple[Any, ...]) -> None:
    if event in _STARTS:
        _started.append(event)


# openai's first request asks for it, and Python starts a process to know it.
assert platform.processor() is not None
sys.addaudithook(_note_process)


def pytest_runtest_logstart() -> None:
    _started.clear()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Iterator[None]:
    """Fail a test without a marker that started a process: `make test-fast` would run it."""
    yield
    marked = any(mark.name in _NOT_FAST for mark in item.iter_markers())
    assert marked or not _started, f"starts a process ({_started[0]}): mark it multiprocess"


@pytest.fixture(scope="module", autouse=True)
def _environment() -> Iterator[None]:
    """A file's tests leave no trace there: vLLM and the cells, whose process is their own, set what
    they need."""
    with mock.patch.dict(os.environ):
        yield


@pytest.fixture
def tmp_path(tmp_path: Path) -> Path:
    """A folder whose parent holds nothing else.

    Where it is taken for a study's folder, its parent is the runs folder, and a cell that another
    test has finished there would be taken for this test's.
    """
    folder = tmp_path / "test"
    folder.mkdir()
    return folder


@pytest.fixture(scope="session")
def one_machine(tmp_path_factory: pytest.TempPathFactory) -> Place:
    """The runs and results of tests/small/small.yaml, which ran here without interruption, each
    training and evaluation on a GPU of its own (of two that a CPU stands in for).

    Made once for all processes of pytest-xdist, by the first that wants it; nobody changes it.
    """
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "one-machine"
    folder.mkdir(exist_ok=True)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / "ran").exists():
            with mock.patch.dict(os.environ, {"CUDA_VISIBLE_DEVICES": ""}):
                jobs = str(default_jobs())
                result = Place(folder).study("run", "--jobs", jobs, "--gpus", "2")
            assert result.returncode == 0, result.stdout + result.stderr
            (folder / "ran").touch()
    return Place(folder)


def _group(nodeid: str) -> str:
    """A file's tests stay together, and so do folders' that share something dear: a cluster,
    trainings, imports."""
    file = nodeid.split("::")[0]
    return next((first for first in _FIRST if file.startswith(first)), file)


class _Groups(LoadScopeScheduling):
    # Not by --dist loadgroup: this pytest does not see the names that pytest-xdist 3.8 gives to
    # tests for it.
    def _split_scope(self, nodeid: str) -> str:
        return _group(nodeid)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> _Groups:
    return _Groups(config, log)


@pytest.hookimpl(tryfirst=True)  # before pytest deselects by markers
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        for fixture, marker in _MARKER_OF_FIXTURE.items():
            if fixture in getattr(item, "fixturenames", ()):
                item.add_marker(marker)
    rank = {group: number for number, group in enumerate(_FIRST)}
    items.sort(key=lambda item: rank.get(_group(item.nodeid), len(rank)))
