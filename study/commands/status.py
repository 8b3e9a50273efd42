"""Show how far the study is, what fails and why, and what to type next: one screen.

Done is what has a manifest. Slurm is asked what is queued and why a job ended, and believed about nothing else.
"""

import argparse
import json
import os
import re
import sys
import time
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

from tabulate import tabulate

from core.cell.failures import end, explain
from core.cell.identity import Cell
from core.cell.manifest import read_manifest
from core.files import locked
from study.commands.common import load, study_args
from study.spec import expand as planning

STATES = ("done", "running", "queued", "failed", "blocked", "unknown", "to do")
MOST = 4  # failing cells shown, each with a cause of its own; running cells twice that
LINES = 3  # of a log
WIDTH = 98
# What has to be done first about a job that stays in the queue, by its cause.
TO_MEND = {"held job": "scontrol release", "refused by Slurm": "scancel"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--watch", type=float, nargs="?", const=15, metavar="SECONDS", help="look again until it ends")


def status(args: argparse.Namespace) -> None:
    study, base = load(args)
    print_status(planning.in_order(planning.analysis(study)), base, study_args(args), args.watch, args.json)


def print_status(cells: list[Cell], base: Path, named: str, watch: float | None = None, as_json: bool = False) -> None:
    """Print how far the cells (inputs before their users) in the study's folder `base` are.

    `named`: how the user named the study. `watch`: seconds after which to look again, as long as anything goes on.
    """
    ends: dict[str, str] = {}
    terminal = sys.stdout.isatty()
    before = None
    try:
        while True:
            data = look(cells, base, named, ends)
            if as_json:
                return print(json.dumps(data, indent=1))
            told = [(row["state"], row.get("cause")) for row in data["cells"]]
            if terminal or told != before:
                print("\033[H\033[2J" * bool(watch and terminal) + show(data), flush=True)
            if not watch or not data["goes_on"]:
                return None
            before = told
            time.sleep(watch)
    except KeyboardInterrupt:
        if not watch:
            raise


def look(cells: list[Cell], base: Path, named: str, ends: dict[str, str] | None = None) -> dict[str, Any]:
    """The state of every cell as data: `cells`, counts by stage (`stages`) and over all (`total`), the `next` command.

    `ends`: how jobs ended, as far as earlier looks have learnt it.
    """
    answer, jobs, again = None, {}, f"python -m study run {named}"
    if (base / "slurm" / "jobs.jsonl").exists():
        from slurm import status as slurm

        answer = slurm.ask(base)
        again = f"python -m study submit {named} --cluster {answer.cluster or 'NAME'}"
    # The queue first, then the disk: a job that leaves the queue in between has left its manifest there.
    done = {cell.identity for cell in cells if read_manifest(base / cell.relpath)}
    if answer:
        jobs = slurm.jobs(answer, cells, done, {} if ends is None else ends)
    rows = _rows(cells, base, done, jobs, again)
    counts = Counter(row["state"] for row in rows)
    by_stage = Counter((row["stage"], row["state"]) for row in rows)
    submits = answer.submits if answer else None
    goes_on = bool(counts["running"] or counts["queued"] or counts["unknown"] or submits)
    # A second engine on this machine, or a second submission of what a job will submit, would help nobody.
    start = counts["failed"] or counts["blocked"] or (counts["to do"] and not submits)
    if counts["running"] and not answer:
        start = 0
    return {
        "study": base.name,
        "base": str(base),
        "trouble": answer.trouble if answer else None,
        "submits": submits,
        "stages": [
            {"stage": stage, **{state: by_stage[stage, state] for state in STATES}}
            for stage in dict.fromkeys(cell.stage for cell in cells)
        ],
        "total": {"cells": len(cells)} | {state: counts[state] for state in STATES},
        "cells": rows,
        "goes_on": goes_on,
        "next": _next(rows, named, again if start else None, goes_on),
    }


def _rows(cells: list[Cell], base: Path, done: set[str], jobs: dict[str, Any], again: str) -> list[dict[str, Any]]:
    """One row for each cell. `jobs`: identity -> slurm.status.Job; `again`: the command that runs a cell again."""
    locked = {c.identity for c in cells if c.identity not in done and _locked(base / c.relpath / ".lock")}
    # Cells of one job run in turn: where none is known to be locked, the first is taken to run.
    at_work = {jobs[identity].job for identity in locked if identity in jobs}
    states: dict[str, str] = {}
    behind: dict[str, str] = {}
    rows = []
    for cell in cells:
        folder, job = base / cell.relpath, jobs.get(cell.identity)
        before = next((c for c in cell.inputs.values() if states[c.identity] in ("failed", "blocked")), None)
        if cell.identity in done or cell.identity in locked:
            state = "done" if cell.identity in done else "running"
        else:
            state = _state(folder, job, at_work, blocked=before is not None)
        states[cell.identity] = state
        row: dict[str, Any] = {"stage": cell.stage, "cell": cell.name, "folder": cell.relpath, "state": state}
        if job and state != "done":
            row["job"] = job.job
        if job and state == "queued":
            row["reason"] = job.waits_for if job.state == "queued" else "another cell of their job"
        if state == "blocked" and before:
            row["behind"] = behind[cell.identity] = behind.get(before.identity, before.relpath)
        if state in ("running", "queued", "failed") and (progress := _progress(folder)):
            row["progress"] = progress
        if state == "running" and (folder / ".lock").exists():
            row["seconds"] = round(max(0.0, time.time() - (folder / ".lock").stat().st_mtime))
        if state in ("failed", "blocked") and "behind" not in row:
            row |= _why(folder, job, state, again)
        rows.append(row)
    return rows


def _state(folder: Path, job: Any, at_work: set[str], blocked: bool) -> str:
    """The state of a cell that is neither done nor locked. A job that is at work from now on is put into `at_work`."""
    begun = (folder / "log.txt").exists() or (folder / "progress.json").exists()
    if job and job.state == "running":
        if job.job not in at_work:
            at_work.add(job.job)
            return "running"
        return "failed" if begun else "queued"
    if job and job.state != "over":
        return job.state
    if blocked:
        return "blocked"
    return "failed" if begun or (job and job.began) else "to do"


def _why(folder: Path, job: Any, state: str, again: str) -> dict[str, Any]:
    """The last lines, cause and cure of a failing cell, and the command that is next for it."""
    own = folder / "log.txt"
    logs = {own: end(own), **(job.ends() if job else {})} if state == "failed" else {}
    said = job.reason if job and job.state != "running" else ""
    known, line = explain(list(logs.values()), said)
    log = next((path for path, lines in logs.items() if lines), None)
    shown = logs[log][-LINES:] if log else [f"Slurm: {said}"] if said else []
    if line and line not in shown:
        shown = [line, *shown][:LINES]
    found: dict[str, Any] = {"last_lines": shown, "next": again} | ({"log": str(log)} if log else {})
    if known:
        found |= {"cause": known.name, "cure": known.fix}
        if job and known.name in TO_MEND:
            found["next"] = f"{TO_MEND[known.name]} {job.job}"
    return found


def _next(rows: list[dict[str, Any]], named: str, again: str | None, goes_on: bool) -> str:
    """The one command to type next. `again`: the one that starts what is left, where there is anything to start."""
    for name, command in TO_MEND.items():
        if jobs := dict.fromkeys(row["job"] for row in rows if row.get("cause") == name):
            return f"{command} {' '.join(list(jobs)[:20])}"
    if any(row["state"] == "unknown" for row in rows):
        return f"python -m study status {named}"
    return again or f"python -m study {'status' if goes_on else 'report'} {named}{' --watch' * goes_on}"


def _locked(path: Path) -> bool:
    """Whether a process runs the cell of this lock file: asked by taking it, shared and for a moment, if it is free."""
    try:
        with locked(path, shared=True, wait=False) as free:
            return not free
    except OSError:
        return False  # no file, or a disk without locks


def _progress(folder: Path) -> str | None:
    try:
        found = json.loads((folder / "progress.json").read_text())
        return f"{found['done']:,} of {found['total']:,} {found['unit']}"
    except (OSError, ValueError):
        return None


def show(data: dict[str, Any]) -> str:
    """The screen: counts, what runs, what waits, what fails, and the next command in its last line."""
    total, rows = data["total"], data["cells"]
    counts = "".join(f", {state} {total[state]}" for state in STATES[1:] if total[state])
    columns = [state for state in STATES if total[state] or state in STATES[:5]]
    table = [[stage["stage"], *(stage[column] or "" for column in columns)] for stage in data["stages"]]
    lines = [f"{data['study']}: done {total['done']} of {total['cells']}{counts}", ""]
    lines += [tabulate(table, headers=["stage", *columns], colalign=("left",) + ("right",) * len(columns)), ""]
    if data["trouble"]:
        lines += [f"What is queued is unknown: {data['trouble']}", ""]
    lines += [*_going(rows, data["submits"]), *_failing(rows), f"next: {data['next']}"]
    return "\n".join(lines)


def _going(rows: list[dict[str, Any]], submits: str | None) -> list[str]:
    lines = []
    running = [row for row in rows if row["state"] == "running"]
    for row in running[: 2 * MOST]:
        facts = [row.get("progress", "no progress yet"), _took(row["seconds"]) if "seconds" in row else "starting"]
        facts += [f"job {row['job']}"] if "job" in row else []
        lines.append(f"running: {row['stage']} {row['cell']}: {', '.join(facts)}"[:WIDTH])
    if (more := len(running) - 2 * MOST) > 0:
        lines.append(f"running: and {more} more")
    reasons = Counter(row["reason"] for row in rows if row["state"] == "queued").most_common()
    if reasons:
        lines.append("queued:  " + "; ".join(f"{count} for {what}" for what, count in reasons))
    if submits:
        lines.append(f"to do:   job {submits} submits more when others have ended")
    return [*lines, ""] if lines else []


def _took(seconds: int) -> str:
    minutes = seconds // 60
    return f"{seconds} s" if minutes < 2 else f"{minutes} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60}"


def _failing(rows: list[dict[str, Any]]) -> list[str]:
    """The failing cells: one for each cause, or for each last line where the cause isn't known."""
    groups: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for row in rows:
        if "last_lines" in row:
            groups[row.get("cause") or re.sub(r"\d+", "#", "".join(row["last_lines"][-1:]))].append(row)
    behind = Counter(row.get("behind") for row in rows)
    lines: list[str] = []
    for row, *others in list(groups.values())[:MOST]:
        job = f", job {row['job']}" if "job" in row else ""
        lines.append(f"{row['state']}: {row['stage']} {row['cell']}{job}: {row.get('cause', 'cause not known')}")
        lines += [f"  | {line[:WIDTH]}" for line in row["last_lines"]]
        if "log" in row:
            log = Path(row["log"])
            lines.append(f"  log:  {os.path.relpath(log) if log.is_relative_to(Path.cwd()) else log}")
        if "cure" in row:
            lines.append(f"  cure: {row['cure']}")
        if others:
            names = ", ".join(f"{other['stage']} {other['cell']}" for other in others)
            lines.append(f"  and {len(others)} more with the same cause: {names}"[:WIDTH])
        if waiting := sum(behind[other["folder"]] for other in (row, *others)):
            lines.append(f"  {waiting} cells are blocked by it")
        lines.append("")
    if more := sum(map(len, list(groups.values())[MOST:])):
        lines += [f"and {more} more failing cells, of other causes; --json lists all", ""]
    return lines
