"""The local executor runs each batch of cells in a process of its own, forked from one that has
imported what they need."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import psutil
import pytest

from core.cell import local_executor
from core.cell.identity import Cell
from core.cell.local_executor import Failure, Gpus
from core.cell.manifest import read_manifest
from core.stages import STAGE_INFO
from tests.place import ROOT

pytestmark = pytest.mark.multiprocess

NO_GPUS = Gpus()
# Stands in for every stage. Its cell does what its settings say, and writes down what it met.
STAGE = """
import json, os, signal, sys, time
from pathlib import Path
from core.errors import UserError

print("imported", flush=True)
with open(os.environ["IMPORTS"], "a") as file:
    file.write(f"{os.getpid()}\\n")
if "IMPORT_ERROR" in os.environ:
    raise ImportError("libcudart.so.13: no such file")
state = []

def run(context):
    state.append(context.folder.name)
    seen = {
        "pid": os.getpid(), "parent": os.getppid(), "state": list(state), "began": time.time(),
        "environment": dict(os.environ),
        "interruptible": signal.getsignal(signal.SIGINT) is signal.default_int_handler,
        "terminable": signal.getsignal(signal.SIGTERM) is signal.SIG_DFL,
    }
    rank = os.environ.get("RANK", "0")
    print("it prints", flush=True)
    while "until" in context.settings and not Path(context.settings["until"]).exists():
        time.sleep(0.01)
    seen["ended"] = time.time()
    (context.folder / f"seen{rank}.json").write_text(json.dumps(seen))
    match context.settings.get("end"):
        case "mistake":
            raise UserError(where="there", what="is wrong", fix="correct it")
        case "waits" if not Path(context.settings["for"]).exists():
            from core.cell.waiting import Waiting
            raise Waiting("a batch", 0.0)
        case "error":
            raise ValueError("of its own")
        case "exit":
            sys.exit(143)
        case "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        case "rank 1 fails" if rank == "1":
            raise ValueError("of rank 1")
        case "rank 1 fails":
            time.sleep(600)
    return {}

def sync(message):
    flag = Path(os.environ["IMPORTS"] + os.environ["MASTER_PORT"])
    if message:  # rank 0, which has emptied the folder
        flag.touch()
    while not flag.exists():
        time.sleep(0.01)
    return "go"

class DISTRIBUTED:
    rendezvous = staticmethod(lambda: None)
    sync = staticmethod(sync)
"""
PATCH = """
import dataclasses
import core.stages
import core.cell.manifest
for name, info in core.stages.STAGE_INFO.items():
    core.stages.STAGE_INFO[name] = dataclasses.replace(info, module="stand_in")
core.cell.manifest.code_version = dict
"""


@pytest.fixture
def base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A study's folder, in which every stage is STAGE."""
    folder = tmp_path / "modules"
    folder.mkdir()
    (folder / "stand_in.py").write_text(STAGE)
    (folder / "sitecustomize.py").write_text(PATCH)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), str(folder)]))
    monkeypatch.setenv("IMPORTS", str(tmp_path / "imports"))
    return tmp_path / "runs/study"


def execute(
    cells: list[Cell], base: Path, slots: int = 2, gpus: Gpus = NO_GPUS
) -> tuple[list[Failure], list[tuple[str, str]]]:
    events = []
    failures = local_executor.run(
        cells,
        base,
        slots,
        lambda event, cell, facts: events.append((event, cell.name)),
        gpus,
    )
    return failures, [event for event in events if event[0] != "progress"]


def seen(cell: Cell, base: Path, rank: int = 0) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((base / cell.relpath / f"seen{rank}.json").read_text())
    return content


def cell(
    name: str, stage: str = "midtrain", inputs: tuple[Cell, ...] = (), **settings: Any
) -> Cell:
    sources = {f"input{number}": source for number, source in enumerate(inputs)}
    return Cell(stage, name, {"name": name, **settings}, sources)


def test_what_cells_import_is_imported_once_and_each_has_a_process_of_its_own(base: Path) -> None:
    first = cell("first")
    cells = [first, cell("second"), cell("third", "sft", (first,))]
    failures, events = execute(cells, base)
    assert not failures and ("finished", "third") in events
    facts = [seen(one, base) for one in cells]
    (importer,) = (base.parents[1] / "imports").read_text().split()
    assert {one["parent"] for one in facts} == {int(importer)}
    assert len({one["pid"] for one in facts}) == 3
    assert all(len(one["state"]) == 1 for one in facts), "one cell met what another had left"
    assert all(one["interruptible"] and one["terminable"] for one in facts)
    assert all(one["environment"]["OMP_NUM_THREADS"] == "1" for one in facts)
    log = (base / first.relpath / "log.txt").read_text()
    assert "it prints" in log and f"process {facts[0]['pid']}" in log
    logs = [(base / one.relpath / "log.txt").read_text() for one in cells]
    assert sum("imported" in log for log in logs) == 1


def test_ranks_that_a_shell_left_over_reach_no_cell(
    base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    left_over = {"RANK": "1", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "MASTER_ADDR": "gpu1"}
    for name, value in {**left_over, "GLOO_SOCKET_IFNAME": "ib0"}.items():
        monkeypatch.setenv(name, value)
    first = cell("first")
    assert not execute([first], base)[0]
    assert not {*left_over, "GLOO_SOCKET_IFNAME"} & seen(first, base)["environment"].keys()


def test_cells_of_a_group_that_shares_processes_are_dealt_to_them(base: Path) -> None:
    model = cell("model", "model")
    cells = [cell(name, "judge", (model,)) for name in "abcd"]
    failures, events = execute([model, *cells], base)
    assert not failures
    assert next(name for event, name in events if event == "finished") == "model"
    # The four read one checkpoint: they stay together.
    assert len({seen(one, base)["pid"] for one in cells}) == 1
    assert [len(seen(one, base)["state"]) for one in cells] == [1, 2, 3, 4]


@pytest.mark.parametrize(
    ("end", "status", "last"),
    [
        ("mistake", 2, "error: there: is wrong; correct it"),
        ("error", 1, "ValueError: of its own"),
        ("exit", 143, "it prints"),
        ("kill", -9, "it prints"),
    ],
)
def test_a_failure_stays_with_its_cell_and_those_that_need_it(
    end: str, status: int, last: str, base: Path
) -> None:
    bad = cell("bad", end=end)
    good, needs_it = cell("good", "sft"), cell("needs it", "sft", (bad,))
    failures, _ = execute([bad, good, needs_it], base, slots=1)
    (failure,) = failures
    assert (failure.cell, failure.status, failure.last_lines[-1]) == (bad, status, last)
    assert read_manifest(base / good.relpath) and not read_manifest(base / needs_it.relpath)


def test_a_cell_that_waits_is_put_aside_and_started_again(base: Path, tmp_path: Path) -> None:
    """The cells behind it in its process, and those that need it, are run."""
    model = cell("model", "model")
    there = tmp_path / "there"
    waits = cell("waits", "judge", (model,), end="waits", **{"for": str(there)})
    behind = cell("behind", "judge", (model,))
    needs_it = cell("needs it", "analysis", (waits, behind))
    events: list[tuple[str, str]] = []

    def on_event(event: str, cell: Cell, facts: dict[str, Any]) -> None:
        events.append((event, cell.name))
        if events.count(("waiting", "waits")) == 2:
            there.touch()
        if event == "waiting":
            assert facts["what"] == "a batch"

    failures = local_executor.run([model, waits, behind, needs_it], base, 1, on_event)
    assert not failures and read_manifest(base / needs_it.relpath)
    assert events.index(("finished", "behind")) < events.index(("finished", "waits"))
    assert events.count(("waiting", "waits")) >= 2
    log = (base / waits.relpath / "log.txt").read_text()
    assert "waits for a batch; run the cell again later" in log and "error" not in log
    assert not (base / waits.relpath / "waiting.json").exists()


def test_an_import_that_fails_is_in_the_log_of_each_cell(
    base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("IMPORT_ERROR", "yes")
    failures, _ = execute([cell("first"), cell("second")], base)
    assert [failure.status for failure in failures] == [1, 1]
    for failure in failures:
        assert failure.last_lines[-1] == "ImportError: libcudart.so.13: no such file"


def wait_for(condition: Callable[[], Any]) -> Any:
    while not (value := condition()):
        time.sleep(0.01)
    return value


def started(base: Path) -> list[int]:
    logs = [path.read_text() for path in base.glob("*/*/log.txt")]
    return [
        int(line.split("process ")[1].rstrip(")"))
        for log in logs
        for line in log.splitlines()
        if " starts (process " in line
    ]


def run_in_background(base: Path) -> "subprocess.Popen[str]":
    """An executor of two cells that never end."""
    code = f"""
from pathlib import Path
from core.cell import local_executor
from core.cell.identity import Cell
cells = [Cell("midtrain", name, {{"until": "/nowhere/" + name}}) for name in "ab"]
print([f.status for f in local_executor.run(cells, Path({str(base)!r}), 2, lambda *_: None)])
"""
    return subprocess.Popen(
        [sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
def test_no_process_survives_the_executor(number: int, base: Path) -> None:
    executor = run_in_background(base)
    pids = wait_for(lambda: len(pids := started(base)) == 2 and pids)
    processes = [psutil.Process(pid) for pid in pids]
    processes += [processes[0].parent()]  # type: ignore[list-item]
    executor.send_signal(number)
    executor.communicate()
    _, alive = psutil.wait_procs(processes, timeout=60)
    assert not alive


def test_a_server_that_is_killed_takes_its_cells_along_and_another_is_started(base: Path) -> None:
    go = base.parents[1] / "go"
    code = f"""
from pathlib import Path
from core.cell import local_executor
from core.cell.identity import Cell
cells = [Cell("midtrain", name, {{"name": name, "until": {str(go)!r}}}) for name in "abc"]
failures = local_executor.run(cells, Path({str(base)!r}), 2, lambda *_: None)
print([(f.cell.name, f.status) for f in failures])
"""
    executor = subprocess.Popen(
        [sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    pids = wait_for(lambda: len(pids := started(base)) == 2 and pids)
    server = psutil.Process(pids[0]).parent()
    assert server
    server.kill()
    go.touch()
    assert executor.communicate()[0].strip() == "[('a', -9), ('b', -9)]"
    assert len(started(base)) == 3, "c has another server"


def test_two_cells_never_hold_the_same_gpu_and_others_hold_none(base: Path) -> None:
    trainings = [cell(f"training {number}") for number in range(4)]
    judges = [cell(f"judge {number}", "judge", (trainings[0],)) for number in range(2)]
    needed = {one.identity: 1 for one in trainings}
    gpus = Gpus(("3", "GPU-5"), needed, frozenset(needed))
    failures, _ = execute([*trainings, *judges], base, slots=3, gpus=gpus)
    assert not failures
    facts = [seen(one, base) for one in trainings]
    held = [one["environment"]["CUDA_VISIBLE_DEVICES"] for one in facts]
    assert set(held) == {"3", "GPU-5"}
    for gpu in gpus.ids:
        times = sorted(
            (one["began"], one["ended"]) for one, its in zip(facts, held, strict=True) if its == gpu
        )
        assert all(ended <= began for (_, ended), (began, _) in pairwise(times))
    assert all(seen(one, base)["environment"]["CUDA_VISIBLE_DEVICES"] == "" for one in judges)
    assert not any("RANK" in one["environment"] for one in facts), "one GPU is no group of ranks"


def test_a_training_that_needs_all_gpus_is_a_rank_on_each(base: Path) -> None:
    large, small, later = (
        cell("large"),
        cell("small", "model"),
        cell("later", "generate", (cell("large"),)),
    )
    cells = [small, large, later]
    gpus = Gpus(
        ("0", "1"),
        {large.identity: 2, small.identity: 1, later.identity: 1},
        frozenset({large.identity, small.identity}),
    )
    failures, _ = execute(cells, base, slots=3, gpus=gpus)
    assert not failures
    ranks = [seen(large, base, rank)["environment"] for rank in (0, 1)]
    assert [one["CUDA_VISIBLE_DEVICES"] for one in ranks] == ["0,1", "0,1"]
    assert [one["LOCAL_RANK"] for one in ranks] == ["0", "1"]
    assert {(one["WORLD_SIZE"], one["LOCAL_WORLD_SIZE"]) for one in ranks} == {("2", "2")}
    assert len({one["MASTER_PORT"] for one in ranks}) == 1
    assert seen(small, base)["ended"] <= seen(large, base)["began"], "they shared a GPU"


def test_where_a_rank_fails_the_others_end_too(base: Path) -> None:
    bad = cell("bad", end="rank 1 fails")
    gpus = Gpus(("", ""), {bad.identity: 2}, frozenset({bad.identity}))
    failures, _ = execute([bad], base, gpus=gpus)
    assert [failure.status for failure in failures] == [1]
    with pytest.raises(psutil.NoSuchProcess):
        psutil.Process(seen(bad, base)["pid"])


@pytest.mark.nightly
@pytest.mark.vllm
@pytest.mark.parametrize("group", sorted({info.imports for info in STAGE_INFO.values()}))
def test_what_a_group_imports_survives_a_fork(group: str) -> None:
    """No thread but jemalloc's (of pyarrow), which handles forks itself, and no OpenMP pool."""
    stages = [name for name, info in STAGE_INFO.items() if info.imports == group]
    code = f"""
import os, sys, threading
from core.cell.stage import preload
for stage in {stages}:
    preload(stage)
assert threading.active_count() == 1
names = [open(f"/proc/self/task/{{task}}/comm").read().strip() for task in os.listdir("/proc/self/task")]
names.remove(open("/proc/self/comm").read().strip())
assert set(names) <= {{"jemalloc_bg_thd"}}, names
if "torch" in sys.modules:
    import torch
    assert not torch.cuda.is_initialized()
"""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, env=environment)
