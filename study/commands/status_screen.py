"""The screen of `status`: what is going on, what fails and why, the next command."""

import os
import re
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

from tabulate import tabulate

STATES = ("done", "running", "queued", "failed", "blocked", "unknown", "to do")
ALWAYS_SHOWN = STATES[:5]
MAX_CAUSES = 4  # failing cells shown, each with another cause
MAX_RUNNING = 8  # running cells shown
WIDTH = 98

Row = dict[str, Any]


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
    if data["user"]:
        lines += [f"These are the files and jobs of user {data['user']}: you can read them.", ""]
    lines += [
        *_going(rows, data),
        *_restarts(rows),
        *_nodes(data),
        *_failing(rows),
        f"next: {data['next']}",
    ]
    return "\n".join(lines)


def _going(rows: list[Row], data: dict[str, Any]) -> list[str]:
    lines = []
    running = [row for row in rows if row["state"] == "running"]
    for row in running[:MAX_RUNNING]:
        facts = [row.get("progress", "no progress yet")]
        facts.append(_duration(row["seconds"]) if "seconds" in row else "starting")
        if "job" in row:
            facts.append(f"job {row['job']}")
        lines.append(f"running: {row['stage']} {row['cell']}: {', '.join(facts)}"[:WIDTH])
    for row in running:
        if "stalled" in row:
            lines.append(f"stalled: {row['stage']} {row['cell']}: {row['stalled']}")
    if len(running) > MAX_RUNNING:
        lines.append(f"running: and {len(running) - MAX_RUNNING} more")
    reasons = Counter(row["reason"] for row in rows if row["state"] == "queued").most_common()
    if reasons:
        lines.append("queued:  " + "; ".join(f"{count} for {what}" for what, count in reasons))
    waiting = [row for row in rows if "waits_for" in row]
    for row in waiting[:MAX_RUNNING]:
        lines.append(f"waiting: {row['stage']} {row['cell']}: {row['waits_for']}")
    if len(waiting) > MAX_RUNNING:
        lines.append(f"waiting: and {len(waiting) - MAX_RUNNING} more; --json lists all")
    if data["submits"]:
        lines.append(f"to do:   job {data['submits']} submits more when others have ended")
    if data["driver"]:
        lines.append(f"to do:   job {data['driver']}, of slurm/study.sbatch, submits the study")
    for row in data["login"]:
        lines.append(
            f"to do:   {row['stage']} on a login node: {row['cells']} cells, {row['ready']} ready; "
            f"{row['behind']} more wait for them (run --stages {row['stage']})"
        )
    if data["broken"]:
        lines.append(f"to do:   {data['broken']}")
    return [*lines, ""] if lines else []


def _restarts(rows: list[Row]) -> list[str]:
    """How often jobs were restarted, and what gets nowhere."""
    restarted = [row for row in rows if "restarts" in row]
    if not restarted:
        return []
    count = sum(row["restarts"] for row in restarted)
    retries = sum(row["retries"] for row in restarted)
    lines = [
        f"restarts: {count}, of {len(restarted)} cells; {retries} of them retries of a failure"
    ]
    stuck = [
        row
        for row in restarted
        if row["without_progress"] and row["state"] != "failed" and "waits_for" not in row
    ]
    for row in stuck[:MAX_CAUSES]:
        lines.append(
            f"warning: {row['stage']} {row['cell']}: no progress between its last two starts "
            f"({row.get('progress', 'none yet')})"[:WIDTH]
        )
    if stuck:
        lines.append("  fix: raise the stage's minutes in the cluster profile, or see its log.txt")
    return [*lines, ""]


def _nodes(data: dict[str, Any]) -> list[str]:
    """The nodes that failed, and how to leave them out."""
    if not data["failed_nodes"]:
        return []
    lines = [
        f"failed:  node {node}, under job {', '.join(jobs[:MAX_CAUSES])}"
        for node, jobs in data["failed_nodes"].items()
    ]
    if data["without_nodes"]:
        lines.append(f"  to submit without: {data['without_nodes']}")
        lines.append("  to leave them out for good: sbatch: {exclude: [...]} in the profile")
    return [*lines, ""]


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
