"""The local executor: run every missing cell of a study on this machine, inputs first."""

import ctypes
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from core.cell.failures import last_lines
from core.cell.identity import Cell, create_cell_dir
from core.cell.lookup import RunsIndex
from core.cell.manifest import read_manifest
from core.paths import ROOT
from core.stages import STAGE_INFO

# The groups of stages in the order in which free slots take them: first those that begin the
# longest chain of cells.
GROUPS = tuple(dict.fromkeys(info.group for info in STAGE_INFO.values()))
# Cells of these groups that are ready together share a process: vLLM and Inspect take seconds to
# import.
SHARED_GROUPS = {info.group for info in STAGE_INFO.values() if info.shares_process}


# (event, cell, facts). Events: "started"; "progress" with the content of progress.json; "finished"
# with `seconds` and `counts`; "failed" with the exit `status`.
ProgressCallback = Callable[[str, Cell, dict[str, Any]], None]


@dataclass
class Running:
    """One process with the cells that it works through, in order."""

    process: subprocess.Popen[bytes]
    group: str
    cells: list[Cell]
    started: float = field(default_factory=time.monotonic)


@dataclass
class Failure:
    """A cell that failed: its folder, its process' exit status, the last lines of its log."""

    cell: Cell
    folder: Path
    status: int
    last_lines: list[str]


def run(cells: list[Cell], base: Path, slots: int, on_event: ProgressCallback) -> list[Failure]:
    """Run the cells that are not finished. A failed cell stops only the cells that need it.

    Args:
        cells: Inputs before their users.
        base: The study's folder.
        slots: Processes at a time.
        on_event: Called at each event.

    Returns:
        The failures.
    """
    todo = {cell.identity: cell for cell in cells if not read_manifest(base / cell.relpath)}
    for cell in todo.values():
        create_cell_dir(cell, base)
    running: list[Running] = []
    failures: list[Failure] = []
    try:
        while todo or running:
            while len(running) < slots and (batch := _next(todo, running, failures, slots)):
                for cell in batch:
                    del todo[cell.identity]
                running.append(Running(_spawn(batch, base), _group(batch[0]), batch))
                on_event("started", batch[0], {})
            if not running:
                break  # all remaining cells need a failed cell
            time.sleep(0.05)
            for job in list(running):
                _follow(job, base, on_event)
                status = job.process.poll()
                if status is None:
                    continue
                _follow(job, base, on_event, ended=True)
                running.remove(job)
                if job.cells:
                    # The first cell without a manifest failed; those after it never began.
                    failed, *rest = job.cells
                    todo.update({cell.identity: cell for cell in rest})
                    folder = base / failed.relpath
                    failures.append(Failure(failed, folder, status, last_lines(folder)))
                    on_event("failed", failed, {"status": status})
    finally:
        for job in running:
            job.process.terminate()
        for job in running:
            job.process.wait()
    return failures


def _group(cell: Cell) -> str:
    return STAGE_INFO[cell.stage].group


def _next(
    todo: dict[str, Cell], running: list[Running], failures: list[Failure], slots: int
) -> list[Cell]:
    """The cells for a free slot: one, or an equal share of those ready where they share one."""
    unfinished = (
        set(todo)
        | {c.identity for job in running for c in job.cells}
        | {f.cell.identity for f in failures}
    )
    ready = [
        c for c in todo.values() if not any(i.identity in unfinished for i in c.inputs.values())
    ]
    if not ready:
        return []
    group = min((_group(c) for c in ready), key=GROUPS.index)
    alike = [c for c in ready if _group(c) == group]
    if group not in SHARED_GROUPS:
        return alike[:1]
    # Benchmarks of one checkpoint stay together, so that one engine start serves them all.
    alike.sort(key=lambda c: next(iter(c.inputs.values())).identity)
    share = -(-len(alike) // (slots - sum(job.group == group for job in running)))
    while share < len(alike) and _same_checkpoint(alike[share - 1], alike[share]):
        share += 1
    return alike[:share]


def _same_checkpoint(first: Cell, second: Cell) -> bool:
    return next(iter(first.inputs.values())) == next(iter(second.inputs.values()))


def _spawn(batch: list[Cell], base: Path) -> subprocess.Popen[bytes]:
    # One thread per process: two busy ones on two cores slow torch down many times, and results
    # stay the same whatever else runs. `python -m` puts the checkout first on sys.path, before the
    # `recipes` that torchtune installs.
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1"),
        "PYTHONUNBUFFERED": "1",
    }
    folders = [str(base / cell.relpath) for cell in batch]
    command = [sys.executable, "-m", "study", "cell", "--log", *folders]
    return subprocess.Popen(
        command, cwd=ROOT, env=environment, stdin=subprocess.DEVNULL, preexec_fn=_die_with_parent
    )


def _die_with_parent() -> None:
    """Ask the kernel (Linux) to end this process when the executor dies, even by SIGKILL."""
    if sys.platform == "linux":
        pr_set_pdeathsig = 1
        ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL)


def _follow(job: Running, base: Path, on_event: ProgressCallback, ended: bool = False) -> None:
    """Report the cells that finished since the last call, and the progress of the current one.

    ended: the process is over. It left out cells that another study had finished by then.
    """
    while job.cells and (manifest := _manifest(job.cells[0], base, everywhere=ended)):
        finished = job.cells.pop(0)
        now = time.monotonic()
        on_event("finished", finished, {"seconds": now - job.started, "counts": manifest["counts"]})
        job.started = now
        if job.cells:
            on_event("started", job.cells[0], {})
    if job.cells and not ended:
        try:
            progress = json.loads((base / job.cells[0].relpath / "progress.json").read_text())
        except (FileNotFoundError, json.JSONDecodeError):
            return
        on_event("progress", job.cells[0], progress)


def _manifest(cell: Cell, base: Path, everywhere: bool) -> dict[str, Any] | None:
    """The manifest in the cell's folder or, of `everywhere`, in that of another study."""
    manifest = read_manifest(base / cell.relpath)
    if manifest or not everywhere:
        return manifest
    folder = RunsIndex(base, [cell.stage]).finished(cell.stage, cell.identity)
    return read_manifest(folder) if folder else None
