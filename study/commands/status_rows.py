"""The rows of `status`: the state of each cell by its files and its job, and why it fails."""

import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from core.cell.failures import end, explain
from core.cell.heartbeat import stalled
from core.cell.identity import Cell
from core.cell.manifest import read_manifest
from core.cell.restarts import read_progress, read_restarts
from core.cell.waiting import read_waiting
from core.errors import UserError
from core.files import locked
from study.commands.common import shown_names
from study.commands.status_screen import Row

if TYPE_CHECKING:
    from slurm.status import Job

LOG_LINES = 3
# Commands for a job that stays in the queue, by the name of its failure. They come first.
RELEASE_COMMANDS = {"held job": "scontrol release", "refused by Slurm": "scancel"}
# For what a person other than the user has to change: commands that show it.
SHOW_COMMANDS = {
    "held by an administrator": "scontrol show job {}",
    "hours used up": "sshare --long",
}


@dataclass
class Memory:
    """What the looks of one `--watch` have found out, so that later ones need not ask again."""

    ends: dict[str, str] = field(default_factory=dict)
    """Job -> how it ended."""
    done: set[str] = field(default_factory=set)
    """Identities of finished cells: they stay finished."""
    untouched: dict[str, int] = field(default_factory=dict)
    """Identity of a cell that nobody had begun -> the time of its folder, 0 where it had none.
    Whoever begins the cell makes files in the folder, which changes its time."""


def read_cells(cells: list[Cell], base: Path, memory: Memory) -> tuple[set[str], set[str]]:
    """The identities of the finished cells, and of those that nobody has begun."""
    untouched = set()
    for cell in cells:
        if cell.identity in memory.done:
            continue
        folder = base / cell.relpath
        changed = _changed(folder)
        if memory.untouched.get(cell.identity) == changed:
            untouched.add(cell.identity)
        elif read_manifest(folder):
            memory.done.add(cell.identity)
        elif not any((folder / name).exists() for name in (".lock", "log.txt", "progress.json")):
            memory.untouched[cell.identity] = changed
            untouched.add(cell.identity)
    return memory.done & {cell.identity for cell in cells}, untouched


def _changed(folder: Path) -> int:
    """When an entry of the folder was last made or removed (ns); 0 where there is no folder."""
    try:
        return folder.stat().st_mtime_ns
    except FileNotFoundError:
        return 0


def make_rows(
    cells: list[Cell],
    base: Path,
    done: set[str],
    untouched: set[str],
    jobs: dict[str, "Job"],
    again: str,
) -> list[Row]:
    """One row for each cell.

    `done`, `untouched`: of `read_cells`. `jobs`: by a cell's identity. `again`: the command that
    runs a cell again.
    """
    settled = done | untouched
    locked = {
        cell.identity
        for cell in cells
        if cell.identity not in settled and _locked(base / cell.relpath / ".lock")
    }
    # The cells of one job run one after another. Where none holds its lock, the first unfinished
    # one is taken as running.
    busy_jobs = {jobs[identity].job for identity in locked if identity in jobs}
    names = shown_names(cells)
    states: dict[str, str] = {}
    roots: dict[str, str] = {}  # identity of a blocked cell -> the cell that blocks it
    rows = []
    for cell in cells:
        row: Row = {
            "stage": cell.stage,
            "cell": names[cell.identity],
            "folder": cell.relpath,
            "state": "done",
        }
        rows.append(row)
        if cell.identity in done:
            states[cell.identity] = "done"
            continue
        folder = base / cell.relpath
        job = jobs.get(cell.identity)
        blocker = next(
            (c for c in cell.inputs.values() if states[c.identity] in ("failed", "blocked")), None
        )
        state = "running"
        if cell.identity not in locked:
            begun = cell.identity not in untouched and _begun(folder)
            state = _state(begun, job, busy_jobs, blocked=blocker is not None)
        elif job and job.reason == "Suspended":
            state = "queued"
        waiting = None if cell.identity in settled else read_waiting(folder)
        if waiting and state in ("failed", "to do", "queued"):
            row["waits_for"] = waiting.what
            state = "queued" if state == "queued" else "to do"
        states[cell.identity] = row["state"] = state
        if job:
            row["job"] = job.job
        if job and state == "queued":
            row["reason"] = "another cell of their job"
            if job.state == "queued":
                row["reason"] = job.waits_for
            if waiting:
                row["reason"] = "a batch"
        if state == "blocked" and blocker:
            roots[cell.identity] = roots.get(blocker.identity, blocker.relpath)
            row["behind"] = roots[cell.identity]
        if state in ("running", "queued", "failed") and cell.identity not in untouched:
            row |= _progress(folder)
        if state == "running" and (finding := stalled(folder)):
            row["stalled"] = finding
        lock = folder / ".lock"
        if state == "running" and lock.exists():
            row["seconds"] = round(max(0.0, time.time() - lock.stat().st_mtime))
        if state in ("failed", "blocked") and "behind" not in row:
            row |= _why(folder, job, state, again)
    return rows


def _begun(folder: Path) -> bool:
    return (folder / "log.txt").exists() or (folder / "progress.json").exists()


def _state(begun: bool, job: "Job | None", busy_jobs: set[str], blocked: bool) -> str:
    """The state of a cell that is neither done nor locked.

    A running job is added to `busy_jobs` once one of its cells is taken as running.
    """
    if job and job.state == "running":
        if job.job not in busy_jobs:
            busy_jobs.add(job.job)
            return "running"
        return "failed" if begun else "queued"
    if job and job.state != "over":
        return job.state
    if blocked:
        return "blocked"
    return "failed" if begun or (job and job.began) else "to do"


def _why(folder: Path, job: "Job | None", state: str, again: str) -> Row:
    """The last lines of a failing cell, its cause and remedy, and the next command for it."""
    cell_log = folder / "log.txt"
    logs: dict[Path, list[str]] = {}
    if state == "failed":
        logs = {cell_log: end(cell_log), **(job.ends() if job else {})}
    reason = job.reason if job and job.state != "running" else ""
    failure, line = explain(list(logs.values()), reason)
    log = next((path for path, lines in logs.items() if lines), None)
    shown: list[str] = []
    if log:
        shown = logs[log][-LOG_LINES:]
    elif reason:
        shown = [f"Slurm: {reason}"]
    if line and line not in shown:
        shown = [line, *shown][:LOG_LINES]
    row: Row = {"last_lines": shown, "next": again}
    if log:
        row["log"] = str(log)
    if failure:
        row |= {"cause": failure.name, "fix": failure.fix}
        if job and failure.name in RELEASE_COMMANDS:
            row["next"] = f"{RELEASE_COMMANDS[failure.name]} {job.job}"
        if job and failure.name in SHOW_COMMANDS:
            row["next"] = SHOW_COMMANDS[failure.name].format(job.job)
    return row


def _locked(path: Path) -> bool:
    """Whether a process runs the cell with this lock file.

    Tries a shared lock, which is released at once.
    """
    try:
        with locked(path, shared=True, wait=False) as free:
            return not free
    except (OSError, UserError):
        return False  # no file, or a disk without locks


def _progress(folder: Path) -> Row:
    """How far a cell is, and its restarts, where it has any."""
    row: Row = {}
    if progress := read_progress(folder):
        row["progress"] = f"{progress[0]:,} of {progress[1]:,} {progress[2]}"
    restarts = read_restarts(folder)
    if restarts.count:
        row |= {
            "restarts": restarts.count,
            "retries": restarts.retries,
            "without_progress": restarts.without_progress,
        }
    return row
