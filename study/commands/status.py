"""Show the study's progress, its failures with their causes, and the next command.

A cell is done when it has a manifest. Slurm is asked only what is queued and why a job ended.
"""

import argparse
import json
import os
import shlex
import shutil
import sys
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from core.cell.failures import end, explain
from core.cell.heartbeat import stalled
from core.cell.identity import Cell
from core.cell.manifest import LINKED, read_manifest
from core.cell.restarts import read_progress, read_restarts
from core.errors import UserError
from core.files import locked, owner
from study.commands.common import load, seconds, shown_names, start_command, study_args
from study.commands.status_screen import STATES, Row, show
from study.spec import expand

if TYPE_CHECKING:
    from slurm.status import Job

LOG_LINES = 3
# Commands for a job that stays in the queue, by the name of its failure. They come first.
RELEASE_COMMANDS = {"held job": "scontrol release", "refused by Slurm": "scancel"}
MAX_IDS = 20  # in one such command
# For what a person other than the user has to change: commands that show it.
SHOW_COMMANDS = {
    "held by an administrator": "scontrol show job {}",
    "hours used up": "sshare --long",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--watch",
        type=seconds,
        nargs="?",
        const=15,
        metavar="SECONDS",
        help="refresh until the study ends (default: every 15 seconds)",
    )


def status(args: argparse.Namespace) -> None:
    study, base = load(args)
    cells = expand.in_order(expand.analysis(study, base))
    print_status(cells, base, study_args(args), args.watch, args.json)


def print_status(
    cells: list[Cell],
    base: Path,
    named: str,
    watch: float | None = None,
    as_json: bool = False,
) -> None:
    """Print the status of the cells in the study's folder `base`.

    Args:
        cells: Inputs before their users.
        base: The study's folder.
        named: How the user named the study, for the next command.
        watch: Seconds between two prints, until nothing goes on. None: print once.
        as_json: Print data once.
    """
    ends: dict[str, str] = {}
    terminal = sys.stdout is not None and sys.stdout.isatty()  # None: started with it closed
    previous = None
    try:
        while True:
            data = look(cells, base, named, ends)
            if as_json:
                print(json.dumps(data, indent=1))
                return
            states = [(row["state"], row.get("cause")) for row in data["cells"]]
            if terminal or states != previous:
                clear = "\033[H\033[2J" if watch and terminal else ""
                print(clear + show(data), flush=True)
            if not watch or not data["goes_on"]:
                return
            previous = states
            time.sleep(watch)
    except KeyboardInterrupt:
        if not watch:
            raise


def look(
    cells: list[Cell], base: Path, named: str, ends: dict[str, str] | None = None
) -> dict[str, Any]:
    """The state of every cell as data.

    `ends`: how jobs ended, as far as earlier calls have found out; it is updated.

    Returns `cells` (one row each), their counts by stage (`stages`) and over all (`total`), the
    jobs that will submit more (`submits`, `driver`), the `user` whose study it is where it can only
    be read, and the `next` command.
    """
    queue = None
    jobs: dict[str, Job] = {}
    study_file = Path(shlex.split(named)[0])
    record = base / "slurm" / "jobs.jsonl"
    driver = None
    if not record.exists() and shutil.which("squeue"):
        from slurm import driver as drivers

        driver = drivers.ask(study_file, base.parent)
    if record.exists():  # looked at again: a driver that has just ended has made it
        from slurm import status as slurm

        queue = slurm.ask(base, study_file)
        driver = queue.driver
    user = _other_user(base) or (queue.user if queue else None)
    again = start_command(
        base, named, is_toy=not any(LINKED in c.settings.get("files", {}) for c in cells)
    )
    # The queue first, then the disk: a job that leaves the queue in between has left its manifest
    # there.
    done = {cell.identity for cell in cells if read_manifest(base / cell.relpath)}
    if queue:
        jobs = slurm.jobs(queue, cells, done, {} if ends is None else ends)
    rows = _rows(cells, base, done, jobs, again)
    counts = Counter(row["state"] for row in rows)
    by_stage = Counter((row["stage"], row["state"]) for row in rows)
    submits = queue.submits if queue else None
    broken = queue.broken if queue and counts["to do"] else None
    again += " --until-done" if broken else ""
    going = counts["running"] or counts["queued"] or counts["unknown"]
    goes_on = bool(going or submits or driver)
    # A continuation submits the cells that are `to do`, the driver all. Without Slurm, a second
    # `run` would only wait for the running one.
    startable = counts["failed"] or counts["blocked"] or (counts["to do"] and not submits)
    if driver or user or (counts["running"] and not queue):
        startable = 0
    return {
        "study": base.name,
        "base": str(base),
        "trouble": queue.trouble if queue else None,
        "submits": submits,
        "driver": driver,
        "user": user,
        "broken": broken,
        "stages": [
            {"stage": stage, **{state: by_stage[stage, state] for state in STATES}}
            for stage in dict.fromkeys(cell.stage for cell in cells)
        ],
        "total": {"cells": len(cells)} | {state: counts[state] for state in STATES},
        "cells": rows,
        "goes_on": goes_on,
        "next": _next(rows, named, again if startable else None, goes_on, user),
    }


def _other_user(base: Path) -> str | None:
    """The owner of the study's folder, where this user cannot write into it."""
    return owner(base) if base.exists() and not os.access(base, os.W_OK) else None


def _rows(
    cells: list[Cell], base: Path, done: set[str], jobs: dict[str, "Job"], again: str
) -> list[Row]:
    """One row for each cell.

    `jobs`: by a cell's identity. `again`: the command that runs a cell again.
    """
    locked = {
        cell.identity
        for cell in cells
        if cell.identity not in done and _locked(base / cell.relpath / ".lock")
    }
    # The cells of one job run one after another. Where none holds its lock, the first unfinished
    # one is taken as running.
    busy_jobs = {jobs[identity].job for identity in locked if identity in jobs}
    names = shown_names(cells)
    states: dict[str, str] = {}
    roots: dict[str, str] = {}  # identity of a blocked cell -> the cell that blocks it
    rows = []
    for cell in cells:
        folder = base / cell.relpath
        job = jobs.get(cell.identity)
        blocker = next(
            (c for c in cell.inputs.values() if states[c.identity] in ("failed", "blocked")), None
        )
        if cell.identity in done:
            state = "done"
        elif cell.identity in locked:
            state = "running"
        else:
            state = _state(folder, job, busy_jobs, blocked=blocker is not None)
        states[cell.identity] = state
        row: Row = {
            "stage": cell.stage,
            "cell": names[cell.identity],
            "folder": cell.relpath,
            "state": state,
        }
        if job and state != "done":
            row["job"] = job.job
        if job and state == "queued":
            row["reason"] = "another cell of their job"
            if job.state == "queued":
                row["reason"] = job.waits_for
        if state == "blocked" and blocker:
            roots[cell.identity] = roots.get(blocker.identity, blocker.relpath)
            row["behind"] = roots[cell.identity]
        if state in ("running", "queued", "failed"):
            row |= _progress(folder)
        if state == "running" and (finding := stalled(folder)):
            row["stalled"] = finding
        lock = folder / ".lock"
        if state == "running" and lock.exists():
            row["seconds"] = round(max(0.0, time.time() - lock.stat().st_mtime))
        if state in ("failed", "blocked") and "behind" not in row:
            row |= _why(folder, job, state, again)
        rows.append(row)
    return rows


def _state(folder: Path, job: "Job | None", busy_jobs: set[str], blocked: bool) -> str:
    """The state of a cell that is neither done nor locked.

    A running job is added to `busy_jobs` once one of its cells is taken as running.
    """
    begun = (folder / "log.txt").exists() or (folder / "progress.json").exists()
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


def _next(rows: list[Row], named: str, again: str | None, goes_on: bool, user: str | None) -> str:
    """The one command to type next.

    `again`: the command that starts the remaining cells; None where there are none to start.
    `user`: whose study it is, where it can only be read.
    """
    if user:
        return f"python -m study status {named}"
    for name, command in RELEASE_COMMANDS.items():
        if jobs := dict.fromkeys(row["job"] for row in rows if row.get("cause") == name):
            return f"{command} {' '.join(list(jobs)[:MAX_IDS])}"
    if hung := [row["job"] for row in rows if "stalled" in row and "job" in row]:
        from slurm.slurm_cli import may_requeue

        # A cancelled job's cell is failed at the next look, which tells how to start it again.
        return f"{'scontrol requeue' if may_requeue(hung[0]) else 'scancel'} {hung[0]}"
    if any(row["state"] == "unknown" for row in rows):
        return f"python -m study status {named}"
    waits = [row["next"] for row in rows if row.get("cause") in SHOW_COMMANDS]
    if waits and not any(row["state"] in ("failed", "to do") for row in rows):
        return str(waits[0])
    if again:
        return again
    return (
        f"python -m study status {named} --watch" if goes_on else f"python -m study report {named}"
    )


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
