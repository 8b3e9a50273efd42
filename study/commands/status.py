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
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from core.cell.identity import Cell
from core.cell.manifest import LINKED
from core.cell.status_page import update
from core.files import owner
from study.commands.common import (
    load,
    seconds,
    start_command,
    study_args,
    submit_command,
)
from study.commands.status_rows import (
    RELEASE_COMMANDS,
    SHOW_COMMANDS,
    Memory,
    make_rows,
    read_cells,
)
from study.commands.status_screen import STATES, Row, show
from study.spec import expand
from study.upkeep import stale

if TYPE_CHECKING:
    from slurm.status import Job

WATCH_SECONDS = 15.0
SLOW_SECONDS = 60.0
MANY_CELLS = 500
AUTOMATIC = -1.0  # `--watch` without a number
MAX_IDS = 20  # of jobs in one command


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--watch",
        type=seconds,
        nargs="?",
        const=AUTOMATIC,
        metavar="SECONDS",
        help=f"refresh until the study ends (default: every {WATCH_SECONDS:g} seconds, or "
        f"{SLOW_SECONDS:g} beyond {MANY_CELLS} cells)",
    )
    parser.add_argument(
        "--stale",
        action="store_true",
        help="list only the cells of earlier versions of the study file",
    )


def status(args: argparse.Namespace) -> None:
    study, base = load(args)
    cells = expand.in_order(expand.analysis(study, base))
    if args.stale:
        return _print_stale(cells, base, args)
    print_status(cells, base, study_args(args), args.watch, args.json)


def _print_stale(cells: list[Cell], base: Path, args: argparse.Namespace) -> None:
    """Print the cells of earlier versions of the study file."""
    rows = stale.stale(cells, base)
    if args.json:
        return print(json.dumps({"stale": rows}, indent=1))
    if not rows:
        return print(f"every cell in {base} is one of the study file as it is now")
    print(stale.show(rows))
    print(f"\nto see which of them can go: python -m study prune {study_args(args)} --orphans")


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
        watch: Seconds between two prints, until nothing goes on. None: print once. AUTOMATIC: by
            the number of cells.
        as_json: Print data once.
    """
    memory = Memory()
    if watch == AUTOMATIC:
        watch = SLOW_SECONDS if len(cells) > MANY_CELLS else WATCH_SECONDS
    terminal = sys.stdout is not None and sys.stdout.isatty()  # None: started with it closed
    previous = None
    try:
        while True:
            data = look(cells, base, named, memory)
            if watch and not data["user"]:
                update(base, {row["folder"]: row["state"] for row in data["cells"]})
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


def look(cells: list[Cell], base: Path, named: str, memory: Memory | None = None) -> dict[str, Any]:
    """The state of every cell as data.

    `memory`: what earlier calls have found out; it is updated.

    Returns `cells` (one row each), their counts by stage (`stages`) and over all (`total`), the
    jobs that will submit more (`submits`, `driver`), what is left to the `login` node, the nodes
    that failed (`failed_nodes`, with the command that submits `without_nodes`), the `user` whose
    study it is where it can only be read, and the `next` command.
    """
    memory = memory or Memory()
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
    done, untouched = read_cells(cells, base, memory)
    if queue:
        jobs = slurm.jobs(queue, cells, done, memory.ends)
    rows = make_rows(cells, base, done, untouched, jobs, again)
    login = _login(cells, rows, base)
    failed_nodes = _failed_nodes(cells, rows, base, jobs) if queue else {}
    counts = Counter(row["state"] for row in rows)
    by_stage = Counter((row["stage"], row["state"]) for row in rows)
    submits = queue.submits if queue else None
    broken = queue.broken if queue and counts["to do"] else None
    again += " --until-done" if broken else ""
    going = counts["running"] or counts["queued"] or counts["unknown"]
    goes_on = bool(going or submits or driver)
    # A continuation submits the cells that are `to do`, the driver all. Without Slurm, a second
    # `run` would only wait for the running one.
    to_submit = counts["to do"] - sum(row["cells"] + row["behind"] for row in login)
    startable = counts["failed"] or counts["blocked"] or (to_submit and not submits)
    if driver or user or (counts["running"] and not queue):
        startable = 0
    on_login = None
    if not user and (stages := [row["stage"] for row in login if row["ready"]]):
        on_login = f"python -m study run {named} --stages {','.join(stages)}"
    return {
        "study": base.name,
        "base": str(base),
        "trouble": queue.trouble if queue else None,
        "submits": submits,
        "driver": driver,
        "user": user,
        "broken": broken,
        "login": login,
        "failed_nodes": failed_nodes,
        "without_nodes": _without(failed_nodes, base, named) if failed_nodes else None,
        "stages": [
            {"stage": stage, **{state: by_stage[stage, state] for state in STATES}}
            for stage in dict.fromkeys(cell.stage for cell in cells)
        ],
        "total": {"cells": len(cells)} | {state: counts[state] for state in STATES},
        "cells": rows,
        "goes_on": goes_on,
        "next": _next(rows, named, again if startable else on_login, goes_on, user),
    }


def _login(cells: list[Cell], rows: list[Row], base: Path) -> list[Row]:
    """What is left to the login node, by stage: how many `cells` are to do there, how many of them
    are `ready`, and how many of later stages wait for them (`behind`).
    """
    from slurm import submissions

    stages = submissions.login_stages(base / "slurm")
    table: dict[str, Row] = {
        stage: {"stage": stage, "cells": 0, "ready": 0, "behind": 0} for stage in stages
    }
    state = {cell.identity: row["state"] for cell, row in zip(cells, rows, strict=True)}
    waits: dict[str, str] = {}  # identity of a cell -> the stage on the login node
    for cell in cells if stages else ():
        if state[cell.identity] != "to do":
            continue
        inputs = [used.identity for used in cell.inputs.values()]
        if cell.stage in table:
            table[cell.stage]["cells"] += 1
            table[cell.stage]["ready"] += all(state.get(name) == "done" for name in inputs)
            waits[cell.identity] = cell.stage
        elif stage := next((waits[name] for name in inputs if name in waits), None):
            table[stage]["behind"] += 1
            waits[cell.identity] = stage
    return [row for row in table.values() if row["cells"]]


def _failed_nodes(
    cells: list[Cell], rows: list[Row], base: Path, jobs: dict[str, "Job"]
) -> dict[str, list[str]]:
    """Node -> the jobs under which it failed, of cells that failed or were restarted.

    A queued job that has logs has begun before, though perhaps none of its cells.
    """
    from slurm import node_failures

    suspects = {
        base / cell.relpath: jobs[cell.identity]
        for cell, row in zip(cells, rows, strict=True)
        if cell.identity in jobs
        and (
            "restarts" in row
            or row.get("cause") in node_failures.OF_NODE
            or (row["state"] == "queued" and jobs[cell.identity].logs)
        )
    }
    return node_failures.failed_nodes(suspects) if suspects else {}


def _without(nodes: Iterable[str], base: Path, named: str) -> str | None:
    """The command that submits without these nodes; None where all were left out already."""
    from slurm import submissions

    excluded = submissions.excluded_nodes(base / "slurm")
    if excluded.issuperset(nodes):
        return None
    names = ",".join(sorted(excluded.union(nodes)))
    return f"{submit_command(base, named)} --set cluster.sbatch.exclude={names}"


def _other_user(base: Path) -> str | None:
    """The owner of the study's folder, where this user cannot write into it."""
    return owner(base) if base.exists() and not os.access(base, os.W_OK) else None


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
