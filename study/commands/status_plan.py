"""What a study plans, for the page of its progress (core.cell.status_page)."""

import json
from pathlib import Path
from typing import Any

from core.cell import status_page
from core.cell.identity import Cell
from core.files import write_atomically
from study.commands.common import parallel_plans
from study.forecast.cell_cost import estimates, job_size

KEYS = ("hours", "gpu_hours", "cost")


def start_page(cells: list[Cell], base: Path, profile: Any = None) -> None:
    """Write status_plan.json and the first page in the study's folder.

    Args:
        cells: All cells of the study, the analysis last.
        base: The study's folder.
        profile: The cluster profile (slurm.profile), where there is one.
    """
    layouts = parallel_plans(profile)
    amounts = estimates(cells, base / "nothing", layouts, profile)  # from before anything ran
    last = cells[-1]
    scored = {
        last.inputs[row["role"]].identity: {key: row[key] for key in ("arm", "benchmark", "dose")}
        for row in last.settings["rows"]
        if "judge" not in row  # of another judge than the deciding one
    }
    rows = [
        {
            "identity": cell.identity,
            "stage": cell.stage,
            "name": cell.name,
            "cell": cell.relpath,
            "gpus": job_size(cell, profile)[0],
            "forecast": {key: amounts[cell.identity][key] for key in KEYS},
            **scored.get(cell.identity, {}),
        }
        for cell in cells
    ]
    base.mkdir(parents=True, exist_ok=True)
    text = json.dumps({"study": base.name, "cells": rows})
    write_atomically(base / status_page.PLAN, text + "\n")
    status_page.update(base)
