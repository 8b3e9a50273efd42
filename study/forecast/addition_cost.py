"""What more arms and contrasts take and what they do to the families that they join.

The answer of `plan --add --contrast`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tabulate import tabulate

from analysis import power
from analysis.power import PlannedContrast
from analysis.rows import Results, Row
from core.cell.identity import Cell
from study.forecast import study_cost
from study.forecast.cell_cost import SUMS, Layouts

AMOUNTS = ("gpu_hours", "cpu_hours", "calls", "cost", "disk_gb")
HEADERS = ("GPU-hours", "CPU-hours", "calls", "cost", "GB")
LARGEST = str(power.EFFECTS[-1])


@dataclass(frozen=True)
class Price:
    """What an addition takes.

    Attributes:
        stages: Rows with `stage`, the numbers of `cells` that only the larger study has and of
            those that are `finished` already, and SUMS of what the others take.
        total: Their sums.
        hours: Wall time of the new cells when all others are finished.
        study_hours: Wall time of what remains, without and with the addition.
    """

    stages: list[dict[str, Any]]
    total: dict[str, float]
    hours: float
    study_hours: tuple[float, float]


def price(
    before: list[Cell], after: list[Cell], base: Path, layouts: Layouts, profile: Any
) -> Price:
    """The cells that `after` has and `before` lacks, and what they take.

    Both are all cells of a study, inputs before their users, the analysis last. Amounts are
    differences of the two forecasts: calls that an old and a new cell share are paid once.
    """
    without, with_it = (study_cost.totals(c, base, layouts, profile) for c in (before, after))
    old = {cell.identity for cell in before}
    new = [cell for cell in after[:-1] if cell.identity not in old]
    finished = study_cost.actual(new, base, profile)
    amounts = {row["stage"]: row for row in without["stages"]}
    stages = []
    for row in with_it["stages"]:
        of_stage = [cell for cell in new if cell.stage == row["stage"]]
        if of_stage:
            counts = {
                "stage": row["stage"],
                "cells": len(of_stage),
                "finished": sum(cell.identity in finished for cell in of_stage),
            }
            earlier = amounts.get(row["stage"], {})
            stages.append(counts | {key: row[key] - earlier.get(key, 0) for key in SUMS})
    total = {key: with_it["left"][key] - without["left"][key] for key in SUMS}
    alone = study_cost.totals(new, base, layouts, profile)["critical_path"] if new else 0.0
    return Price(stages, total, alone, (without["critical_path"], with_it["critical_path"]))


def family_rows(
    before: Sequence[PlannedContrast],
    after: Sequence[PlannedContrast],
    added: Sequence[str],
    pilot: Results | None = None,
) -> list[Row]:
    """The power of every contrast in the families that the `added` ones join (`power.rows`).

    With `is_new`, and `before`: the row without the addition, None for a new contrast.
    """
    families = {entry.family for entry in after if entry.contrast in added}
    earlier, now = (
        power.rows([entry for entry in entries if entry.family in families], pilot)
        for entries in (before, after)
    )
    by_key = {_key(row): row for row in earlier}
    return [
        row | {"is_new": row["contrast"] in added, "before": by_key.get(_key(row))} for row in now
    ]


def show_price(price: Price) -> str:
    """The price as a table and lines."""
    if not price.stages:
        return "no new cells: what it needs is part of the study already"
    lines = [
        [row["stage"], _cells(row), *(row[key] for key in AMOUNTS)]
        for row in [*price.stages, _sum(price)]
    ]
    table = tabulate(
        lines,
        headers=["stage", "new cells", *HEADERS],
        floatfmt=["", "", ",.2f", ",.2f", ",.0f", ",.2f", ",.3f"],
        colalign=("left", "left"),
    )
    before, after = price.study_hours
    return (
        f"{table}\n"
        f"wall time: {price.hours:,.2f} h where all other cells are finished; the whole study "
        f"{after:,.2f} h in place of {before:,.2f} h, if everything that can run does"
    )


def show_families(rows: Sequence[Row], sizes: dict[str, tuple[int, int]]) -> str:
    """What Holm's correction does to the families, and the power of their contrasts.

    `sizes`: the tests of each family without and with the addition.
    """
    parts = []
    for family, (before, after) in sizes.items():
        of_family = [row for row in rows if row["family"] == family]
        if not before:
            parts.append(f"family {family} is new: {_tests(after)}")
        else:
            parts.append(f"family {family}: {_tests(after)} in place of {before}{_step(of_family)}")
        if not of_family:
            parts.append("no judge grades its benchmarks: their power is not forecast")
            continue
        lines = [
            [
                "new" if row["is_new"] else "",
                row["contrast"],
                row["benchmark"],
                ", ".join(str(a) if a == b else f"{a} v {b}" for a, b in row["doses"]),
                row["kind"],
                row["seeds"],
                row["variances"],
                _change(row, "detectable"),
                *(_change(row, "power", str(effect)) for effect in power.EFFECTS),
            ]
            for row in of_family
        ]
        headers = ["", "contrast", "on", "dose", "kind", "seeds", "variances", "detectable"]
        headers += [f"power for {100 * effect:.1f}, %" for effect in power.EFFECTS]
        parts.append(tabulate(lines, headers=headers, disable_numparse=True))
    if rows:
        parts.append(
            "Without -> with the addition, at the family's level over its tests (Holm's first "
            "step). Detectable: found in 80 % of studies, in points."
        )
    return "\n".join(parts)


def _key(row: Row) -> tuple[Any, ...]:
    return row["contrast"], row["benchmark"], row["kind"], row["variances"]


def _cells(row: dict[str, Any]) -> str:
    finished = f", {row['finished']} finished" if row["finished"] else ""
    return f"{row['cells']}{finished}"


def _sum(price: Price) -> dict[str, Any]:
    counts = {key: sum(row[key] for row in price.stages) for key in ("cells", "finished")}
    return {"stage": "total", **counts, **price.total}


def _tests(count: int) -> str:
    return "1 test" if count == 1 else f"{count} tests"


def _step(rows: Sequence[Row]) -> str:
    """The level of Holm's first step, without and with the addition."""
    changed = [row for row in rows if row["before"]]
    if not changed:
        return ""
    now, before = (row["in_family"]["alpha"] for row in (changed[0], changed[0]["before"]))
    return f"; Holm's first step is at {now:.2g} in place of {before:.2g}"


def _change(row: Row, *keys: str) -> str:
    """A number of the family without and with the addition, in percent or points."""
    texts = []
    for version in (row["before"], row):
        value: Any = version and version["in_family"]
        for key in keys:
            value = value and value[key]
        digits = 0 if keys[0] == "power" else 1
        texts.append("-" if value is None else f"{100 * value:.{digits}f}")
    return texts[1] if row["before"] is None else " -> ".join(texts)
