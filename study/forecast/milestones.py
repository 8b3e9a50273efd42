"""When which results of a study are there, if its cells run in the order of their ranks."""

from collections import defaultdict
from pathlib import Path
from typing import Any

from core.cell.identity import Cell
from study.forecast import schedule, study_cost
from study.forecast.cell_cost import Layouts, estimates, job_size
from study.forecast.priority import PRIMARY, families, ranks, steps
from study.spec import expand
from study.spec.schema import Study


def milestones(
    study: Study, base: Path, layouts: Layouts, profile: Any, gpus: int
) -> list[dict[str, Any]]:
    """Rows in their order: `result`, `cells` until then, and what these take from now on.

    `gpu_hours` and `cost` are of the cells up to the row, `hours` is when the last of them ends on
    so many GPUs. The primary contrasts have a row for each round of seeds.
    """
    last = expand.analysis(study, base)
    cells = expand.in_order(last)
    spent = study_cost.actual(cells, base, profile)
    planned = estimates(cells, base, layouts, profile, spent)
    needed = {cell.identity: job_size(cell, profile)[0] for cell in cells}
    todo = [cell for cell in cells if cell.identity in planned]
    ended = schedule.ends(todo, planned, gpus, needed, ranks(last))
    names = families(contrast.family for contrast in study.contrasts)
    by_result: dict[tuple[int, ...], list[Cell]] = defaultdict(list)
    by_cell = steps(last)
    for cell in cells:
        family, *rest = by_cell[cell.identity]
        is_primary = family < len(names) and names[family] == PRIMARY
        by_result[(family, rest[0]) if is_primary and rest else (family,)].append(cell)
    rounds = max((key[1] for key in by_result if len(key) > 1), default=0)
    rows = []
    count, gpu_hours, cost, hours = 0, 0.0, 0.0, 0.0
    for key in sorted(by_result):
        for cell in by_result[key]:
            amounts = planned.get(cell.identity, {})
            count += 1
            gpu_hours += amounts.get("gpu_hours", 0.0)
            cost += amounts.get("cost", 0.0)
            hours = max(hours, ended.get(cell.identity, 0.0))
        row = {"result": _result(key, rounds, names, study), "cells": count}
        rows.append(row | {"gpu_hours": gpu_hours, "cost": cost, "hours": hours})
    return rows


def _result(key: tuple[int, ...], rounds: int, names: list[str], study: Study) -> str:
    family, *round_of_seeds = key
    if family >= len(names):
        return "what no contrast reads" if family == len(names) + 1 else "analysis"
    if not round_of_seeds:
        return f"family {names[family]}"
    ends = study.looks or [*range(min(2, len(study.seeds)), len(study.seeds) + 1)]
    seeds = ends[round_of_seeds[0]]
    state = "decided" if round_of_seeds[0] == rounds else "interim"
    state = state if seeds > 1 else "without a test"
    return f"primary contrasts, {seeds} seed{'s' if seeds > 1 else ''} ({state})"
