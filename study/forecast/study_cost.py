"""What a whole study takes, and beside it what it took.

GPU-hours, CPU-hours, calls, money, wall time, disk and files.
"""

import json
import textwrap
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import Any

from tabulate import tabulate

from core.cell.identity import Cell
from core.cell.manifest import read_manifest
from study.forecast import assumptions, disk
from study.forecast.cell_cost import (
    CALLS,
    SUMS,
    Amounts,
    ByIdentity,
    Layouts,
    add_up,
    estimates,
    job_size,
    rate_limited_hours,
)

NOT_COUNTED = (
    "Calls already paid by unfinished cells are counted as remaining. Not counted: time in the "
    "queue, documents and grades that are asked for again, interrupted runs."
)


def totals(
    cells: list[Cell],
    base: Path,
    layouts: Layouts,
    profile: Any = None,
    limit_gb: float | None = None,
) -> dict[str, Any]:
    """What is `left` of the study in the folder `base`, what is `spent` by its manifests, and both.

    Returns `left`, `spent` and `study` (both), each with SUMS: hours of GPUs and cores that jobs
    hold, calls, their tokens and cost (in the prices' currency), GB (1e9 bytes), files, folders.
    `stages`: what remains by stage. Wall time in hours: `critical_path` if everything that can run
    does, within the endpoints' rates (a profile doesn't say how many nodes there are), and
    `serial_hours` one job at a time. `peak_gb`: with the step checkpoints of trainings that run at
    once, all of a stage or as many as the profile's array_parallelism. `disk`: what stays at the
    end where the study does not keep all weights (study.forecast.disk.Forecast), within `limit_gb`
    or the profile's disk_gb.
    """
    actual_amounts = actual(cells, base, profile)
    todo = [cell for cell in cells if cell.identity not in actual_amounts]
    planned = estimates(cells, base, layouts, profile, actual_amounts)
    remaining = add_up([*planned.values()])
    spent = add_up([*actual_amounts.values()])
    study = {key: remaining[key] + spent[key] for key in SUMS}
    at_once = profile.array_parallelism if profile else None
    stages: list[dict[str, Any]] = []
    working_gb = 0.0
    for stage in dict.fromkeys(cell.stage for cell in cells):
        amounts = [planned[cell.identity] for cell in todo if cell.stage == stage]
        counts = {
            "stage": stage,
            "cells": sum(cell.stage == stage for cell in cells),
            "left": len(amounts),
        }
        stages.append(counts | add_up(amounts))
        held = sorted((row["working_gb"] for row in amounts), reverse=True)[:at_once]
        working_gb = max(working_gb, sum(held))
    limits = [limit for limit in (limit_gb, profile and profile.disk_gb) if limit]
    by_root = disk.trees(cells, planned, actual_amounts)
    room = disk.forecast(by_root, study["disk_gb"], working_gb, min(limits, default=None))
    return {
        "left": remaining,
        "spent": spent,
        "study": study,
        "stages": stages,
        "peak_gb": room.peak_gb,
        "disk": asdict(room),
        "keep": room.show(),
        "critical_path": _critical_path(todo, planned),
        "serial_hours": sum(row["hours"] for row in planned.values()),
    }


def disk_limit(
    cells: list[Cell], base: Path, layouts: Layouts, profile: Any, limit_gb: float | None
) -> Any:
    """What bounds the trainings on their way (slurm.disk_limit.DiskLimit); None where nothing does.

    `limit_gb`: beside the profile's disk_gb. Raises UserError where not even one fits.
    """
    if not (limit_gb or profile.disk_gb) or not any(c.resources.get("release") for c in cells):
        return None
    amounts = actual(cells, base, profile)
    by_root = disk.trees(cells, estimates(cells, base, layouts, profile, amounts), amounts)
    facts = totals(cells, base, layouts, profile, limit_gb)["disk"]
    return disk.disk_limit(by_root, disk.Forecast(**facts))


def actual(cells: list[Cell], base: Path, profile: Any = None) -> ByIdentity:
    """What each finished cell took by its manifest: `hours` and SUMS.

    Calls that several cells use count for the one that paid them.
    """
    by_identity: ByIdentity = {}
    for cell in cells:
        manifest = read_manifest(base / cell.relpath)
        if not manifest:
            continue
        calls = {key: manifest["counts"].get(f"paid_{key}", 0) for key in CALLS}
        hours = _hours(manifest)
        outputs = manifest["outputs"]
        gpus, cores = job_size(cell, profile)
        amounts: Amounts = {
            "hours": hours,
            "gpu_hours": gpus * hours,
            "cpu_hours": cores * hours,
            "files": len(outputs) + 3,  # its manifest, log and lock
            "folders": len({Path(), *(Path(name).parent for name in outputs)}),
        }
        disk_gb = sum(output["bytes"] for output in outputs.values()) / 1e9
        by_identity[cell.identity] = amounts | calls | {"disk_gb": disk_gb}
    return by_identity


def compare(
    cells: list[Cell], base: Path, layouts: Layouts | None = None, profile: Any = None
) -> list[dict[str, Any]]:
    """For each stage with finished cells: stage, cells, and `forecast` and `actual` of these.

    Each of the two has hours (of the jobs, one after another), gpu_hours, CALLS and disk_gb. The
    forecast is that from before anything had run.
    """
    took = actual(cells, base, profile)
    planned = estimates(cells, base / "nothing", layouts or {}, profile)
    keys = ("hours", "gpu_hours", *CALLS, "disk_gb")
    rows: list[dict[str, Any]] = []
    for stage in dict.fromkeys(cell.stage for cell in cells if cell.identity in took):
        names = [c.identity for c in cells if c.stage == stage and c.identity in took]
        row: dict[str, Any] = {"stage": stage, "cells": len(names)}
        for label, amounts in (("forecast", planned), ("actual", took)):
            row[label] = {key: sum(amounts[name][key] for name in names) for key in keys}
        rows.append(row)
    return rows


def show(totals: dict[str, Any], compared: Iterable[dict[str, Any]] = ()) -> str:
    """The totals as a table by stage, then wall time, disk, assumptions, and `compare`'s rows."""
    keys = SUMS[:-1]
    lines = [
        [row["stage"], f"{row['left']} of {row['cells']}", *(row[key] for key in keys)]
        for row in totals["stages"]
    ]
    for label, key in (("remaining", "left"), ("spent", "spent"), ("total", "study")):
        lines.append([label, "", *(totals[key][name] for name in keys)])
    headers = ["stage", "remaining cells", "GPU-hours", "CPU-hours", "calls"]
    headers += ["tokens in", "tokens out", "cost", "GB", "files"]
    formats = ["", "", ",.2f", ",.2f", ",.0f", ",.0f", ",.0f", ",.2f", ",.3f", ",.0f"]
    study = totals["study"]
    parts = [
        tabulate(lines, headers=headers, floatfmt=formats, colalign=("left", "left")),
        f"remaining wall time: {totals['critical_path']:,.2f} h if everything that can run does, "
        f"{totals['serial_hours']:,.2f} h one job at a time",
        f"disk: {totals['disk']['end_gb']:,.2f} GB at the end, "
        f"{totals['peak_gb']:,.2f} GB at most while "
        f"trainings run at once; {study['folders']:,.0f} folders",
        *filter(None, [totals["keep"]]),
        textwrap.fill(assumptions.summary(), 120),
        textwrap.fill(NOT_COUNTED, 120),
    ]
    text = "\n".join(parts)
    finished = [
        [row["stage"], label, *row[label].values()]
        for row in compared
        for label in ("forecast", "actual")
    ]
    if finished:
        headers = ["finished", "", "hours", *headers[2:3], *headers[4:9]]
        formats = [*formats[:4], *formats[4:9]]
        table = tabulate(finished, headers=headers, floatfmt=formats, colalign=("left", "left"))
        text += "\n\n" + table
    return text


def _hours(manifest: dict[str, Any]) -> float:
    times = [datetime.fromisoformat(manifest[key]) for key in ("started", "ended") if manifest[key]]
    return (times[-1] - times[0]).total_seconds() / 3600 if times else 0.0


def _critical_path(todo: list[Cell], planned: ByIdentity) -> float:
    """Hours until the last of the cells `todo` (inputs before users) has ended."""
    ends: dict[str, float] = {}
    by_endpoint: dict[str, list[Cell]] = defaultdict(list)
    for cell in todo:
        inputs = [ends.get(needed.identity, 0.0) for needed in cell.inputs.values()]
        ready = max([0.0, *inputs])
        ends[cell.identity] = ready + planned[cell.identity]["hours"]
        if planned[cell.identity]["calls"]:
            by_endpoint[json.dumps(cell.resources["address"], sort_keys=True)].append(cell)
    # All jobs share an endpoint's rates.
    rate_limited = [
        rate_limited_hours(
            callers[0].resources["limits"], add_up([planned[c.identity] for c in callers])
        )
        for callers in by_endpoint.values()
    ]
    return max([0.0, *rate_limited, *ends.values()])
