"""Show on one screen how far the study is, what fails and why, and the next command to type.

A cell is done when it has a manifest. Slurm is asked only what is queued and why a job ended.
"""

import argparse
import json
import os
import re
import shlex
import sys
import time
from collections import Counter, defaultdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tabulate import tabulate

from core.cell.failures import end, explain
from core.cell.identity import Cell
from core.cell.manifest import read_manifest
from core.files import locked
from study.commands.common import load, seconds, shown_names, study_args
from study.spec import expand

if TYPE_CHECKING:
    from slurm.status import Job

STATES = ("done", "running", "queued", "failed", "blocked", "unknown", "to do")
ALWAYS_SHOWN = STATES[:5]
MAX_CAUSES = 4  # failing cells shown, each with another cause
MAX_RUNNING = 8  # running cells shown
LOG_LINES = 3
WIDTH = 98
# Commands for a job that stays in the queue, by the name of its failure. They come first.
RELEASE_COMMANDS = {"held job": "scontrol release", "refused by Slurm": "scancel"}
MAX_IDS = 20  # in one such command

Row = dict[str, Any]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--watch",
        type=seconds,
        nargs="?",
        const=15,
        metavar="SECONDS",
        help="refresh until the study ends",
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

    Returns `cells` (one row each), their counts by stage (`stages`) and over all (`total`), and
    the `next` command.
    """
    queue = None
    jobs: dict[str, Job] = {}
    again = f"python -m study run {named}"
    if (base / "slurm" / "jobs.jsonl").exists():
        from slurm import status as slurm

        queue = slurm.ask(base)
        cluster = shlex.quote(queue.cluster) if queue.cluster else "NAME"
        again = f"python -m study submit {named} --cluster {cluster}"
    # The queue first, then the disk: a job that leaves the queue in between has left its manifest
    # there.
    done = {cell.identity for cell in cells if read_manifest(base / cell.relpath)}
    if queue:
        jobs = slurm.jobs(queue, cells, done, {} if ends is None else ends)
    rows = _rows(cells, base, done, jobs, again)
    counts = Counter(row["state"] for row in rows)
    by_stage = Counter((row["stage"], row["state"]) for row in rows)
    submits = queue.submits if queue else None
    goes_on = bool(counts["running"] or counts["queued"] or counts["unknown"] or submits)
    # A continuation submits the cells that are `to do`. Without Slurm, a second `run` would only
    # wait for the running one.
    startable = counts["failed"] or counts["blocked"] or (counts["to do"] and not submits)
    if counts["running"] and not queue:
        startable = 0
    return {
        "study": base.name,
        "base": str(base),
        "trouble": queue.trouble if queue else None,
        "submits": submits,
        "stages": [
            {"stage": stage, **{state: by_stage[stage, state] for state in STATES}}
            for stage in dict.fromkeys(cell.stage for cell in cells)
        ],
        "total": {"cells": len(cells)} | {state: counts[state] for state in STATES},
        "cells": rows,
        "goes_on": goes_on,
        "next": _next(rows, named, again if startable else None, goes_on),
    }


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
        if state in ("running", "queued", "failed") and (progress := _progress(folder)):
            row["progress"] = progress
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
    return row


def _next(rows: list[Row], named: str, again: str | None, goes_on: bool) -> str:
    """The one command to type next.

    `again`: the command that starts the remaining cells; None where there are none to start.
    """
    for name, command in RELEASE_COMMANDS.items():
        if jobs := dict.fromkeys(row["job"] for row in rows if row.get("cause") == name):
            return f"{command} {' '.join(list(jobs)[:MAX_IDS])}"
    if any(row["state"] == "unknown" for row in rows):
        return f"python -m study status {named}"
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
    except OSError:
        return False  # no file, or a disk without locks


def _progress(folder: Path) -> str | None:
    try:
        progress = json.loads((folder / "progress.json").read_text())
        return f"{progress['done']:,} of {progress['total']:,} {progress['unit']}"
    except (OSError, ValueError, KeyError, TypeError):
        return None


def show(data: dict[str, Any]) -> str:
    """The screen: counts, running, waiting and failing cells; the last line is the next command."""
    total = data["total"]
    rows = data["cells"]
    counts = "".join(f", {state} {total[state]}" for state in STATES[1:] if total[state])
    columns = [state for state in STATES if total[state] or state in ALWAYS_SHOWN]
    table = [
        [stage["stage"], *(stage[column] or "" for column in columns)] for stage in data["stages"]
    ]
    alignment = ("left",) + ("right",) * len(columns)
    lines = [
        f"{data['study']}: done {total['done']} of {total['cells']}{counts}",
        "",
        tabulate(table, headers=["stage", *columns], colalign=alignment),
        "",
    ]
    if data["trouble"]:
        lines += [f"What is queued is unknown: {data['trouble']}", ""]
    lines += [*_going(rows, data["submits"]), *_failing(rows), f"next: {data['next']}"]
    return "\n".join(lines)


def _going(rows: list[Row], submits: str | None) -> list[str]:
    lines = []
    running = [row for row in rows if row["state"] == "running"]
    for row in running[:MAX_RUNNING]:
        facts = [row.get("progress", "no progress yet")]
        facts.append(_duration(row["seconds"]) if "seconds" in row else "starting")
        if "job" in row:
            facts.append(f"job {row['job']}")
        lines.append(f"running: {row['stage']} {row['cell']}: {', '.join(facts)}"[:WIDTH])
    if len(running) > MAX_RUNNING:
        lines.append(f"running: and {len(running) - MAX_RUNNING} more")
    reasons = Counter(row["reason"] for row in rows if row["state"] == "queued").most_common()
    if reasons:
        lines.append("queued:  " + "; ".join(f"{count} for {what}" for what, count in reasons))
    if submits:
        lines.append(f"to do:   job {submits} submits more when others have ended")
    return [*lines, ""] if lines else []


def _duration(seconds: int) -> str:
    minutes = seconds // 60
    if minutes < 2:
        return f"{seconds} s"
    if minutes < 120:
        return f"{minutes} min"
    return f"{minutes // 60} h {minutes % 60}"


def _failing(rows: list[Row]) -> list[str]:
    """One failing cell for each cause, or for each last line where the cause is not known."""
    groups: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        if "last_lines" in row:
            # Lines that differ only in numbers are one cause.
            last_line = re.sub(r"\d+", "#", "".join(row["last_lines"][-1:]))
            groups[row.get("cause") or last_line].append(row)
    blocked = Counter(row.get("behind") for row in rows)
    lines: list[str] = []
    for group in list(groups.values())[:MAX_CAUSES]:
        lines += _failure(group, sum(blocked[row["folder"]] for row in group))
    if others := sum(map(len, list(groups.values())[MAX_CAUSES:])):
        lines += [f"and {others} more failing cells, of other causes; --json lists all", ""]
    return lines


def _failure(group: list[Row], blocked: int) -> list[str]:
    """The lines about failing cells with the same cause. `blocked`: the cells that they block."""
    row, *others = group
    job = f", job {row['job']}" if "job" in row else ""
    # An error of the kit's own says what to do, at its end.
    errors = [line for line in row["last_lines"] if line.startswith("error: ")]
    cause = row.get("cause", "see the error" if errors else "cause not known")
    lines = [f"{row['state']}: {row['stage']} {row['cell']}{job}: {cause}"]
    for line in dict.fromkeys(row["last_lines"]):
        lines.append(f"  | {line if line in errors else line[:WIDTH]}")
    if "log" in row:
        log = Path(row["log"])
        path = os.path.relpath(log) if log.is_relative_to(Path.cwd()) else log
        lines.append(f"  log:  {path}")
    if "fix" in row:
        lines.append(f"  fix: {row['fix']}")
    if others:
        names = ", ".join(f"{other['stage']} {other['cell']}" for other in others)
        lines.append(f"  and {len(others)} more with the same cause: {names}"[:WIDTH])
    if blocked:
        lines.append(f"  {blocked} cells are blocked by it")
    return [*lines, ""]
