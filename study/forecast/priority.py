"""The order in which a study's cells are most useful, if it is stopped at any time.

First come the cells behind the primary contrasts: with the first two seeds, or those of the first
look, then with one seed more at a time. Then come the contrasts of the other families in the order
of the study file, then what no contrast reads.
"""

from collections.abc import Iterable, Iterator
from typing import Any

from analysis.settings import AnalysisSettings, Contrast
from core.cell.identity import Cell

FIRST_SEEDS = 2  # a test needs two
PRIMARY = "primary"
Row = dict[str, Any]
Step = tuple[int, ...]  # smaller ones first


def steps(analysis: Cell) -> dict[str, Step]:
    """The step of each cell behind `analysis`, by identity; inputs never come after their users.

    A step is (position of the family, round of seeds, position of the contrast, dose, benchmark);
    what no contrast reads has the last family.
    """
    settings = AnalysisSettings.parse(analysis.settings)
    rounds = _rounds(settings.seeds, settings.looks)
    rows = [*analysis.settings["rows"]]
    by_row = _steps_of_rows(settings, rows)
    last = (1 + len({contrast.family for contrast in settings.contrasts}),)
    by_cell: dict[str, Step] = {analysis.identity: (last[0] + 1,)}

    def lower(cell: Cell, step: Step) -> None:
        if step < by_cell.get(cell.identity, (*last, 1)):
            by_cell[cell.identity] = step
            for used in cell.inputs.values():
                lower(used, step)

    for row in rows:
        family, *test = by_row.get(_key(row), last)
        # The judges beside the deciding one come when all is decided.
        is_decisive = "judge" not in row and bool(test)
        step = (family, rounds.get(row["seed"], 0), *test) if is_decisive else last
        lower(analysis.inputs[row["role"]], step)
    for used in analysis.inputs.values():
        lower(used, last)
    return by_cell


def ranks(analysis: Cell) -> dict[str, int]:
    """The steps of `steps`, counted from 0."""
    by_cell = steps(analysis)
    positions = {step: number for number, step in enumerate(sorted({*by_cell.values()}))}
    return {identity: positions[step] for identity, step in by_cell.items()}


def families(names: Iterable[str]) -> list[str]:
    """The families, each once, the primary one first, then in their order."""
    return sorted(dict.fromkeys(names), key=lambda name: name != PRIMARY)


def contrast_rows(contrast: Contrast, rows: list[Row]) -> Iterator[tuple[int, int, Row]]:
    """The rows of scores that a contrast reads: position of the doses, of the benchmark, row."""
    for position, bench in enumerate(contrast.benchmarks):
        treatment, control = (
            {row["dose"] for row in rows if (row["arm"], row["benchmark"]) == (arm, bench)}
            for arm in contrast.arms
        )
        for number, doses in enumerate(contrast.dose_pairs(treatment, control)):
            sides = {*zip(contrast.arms, doses, strict=True)}
            for row in rows:
                if row["benchmark"] == bench and (row["arm"], row["dose"]) in sides:
                    yield number, position, row


def _steps_of_rows(settings: AnalysisSettings, rows: list[Row]) -> dict[tuple[Any, ...], Step]:
    """The first test that reads each row: family, contrast, dose, benchmark."""
    names = (contrast.family for contrast in settings.contrasts)
    order = {name: number for number, name in enumerate(families(names))}
    by_row: dict[tuple[Any, ...], Step] = {}
    for number, contrast in enumerate(settings.contrasts):
        for dose, bench, row in contrast_rows(contrast, rows):
            step = (order[contrast.family], number, dose, bench)
            by_row[_key(row)] = min(step, by_row.get(_key(row), step))
    return by_row


def _key(row: Row) -> tuple[Any, ...]:
    return row["arm"], row["seed"], row["dose"], row["benchmark"]


def _rounds(seeds: list[int], looks: list[int]) -> dict[int | None, int]:
    """The round of each seed: those of a look together, else the first two, then one at a time."""
    ends = looks or [*range(min(FIRST_SEEDS, len(seeds)), len(seeds) + 1)]
    return {
        seed: next((number for number, end in enumerate(ends) if position < end), len(ends))
        for position, seed in enumerate(seeds)
    }
