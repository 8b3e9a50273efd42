"""What any selection of a study's cells takes, without expanding it anew."""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from analysis.settings import AnalysisSettings
from core.cell.identity import Cell
from core.stages import VLLM_STAGES
from study.forecast import schedule, study_cost
from study.forecast.cell_cost import Layouts, estimates, job_size
from study.forecast.priority import contrast_rows, ranks
from study.spec import expand
from study.spec.reduction import Rows, Selection
from study.spec.schema import Contrast, Study

HOURS = ("gpu_hours", "cpu_hours")
SUMS = ("gpu_hours", "cpu_hours", "calls", "cost", "disk_gb", "files")


class Forecaster:
    """The cells of one study and what any selection of them takes."""

    def __init__(self, study: Study, base: Path, layouts: Layouts, profile: Any) -> None:
        self.study = study
        self.last = expand.analysis(study, base)
        self.cells = expand.in_order(self.last)
        self.spent = study_cost.actual(self.cells, base, profile)
        self.planned = estimates(self.cells, base, layouts, profile, self.spent)
        self.needed = {cell.identity: job_size(cell, profile)[0] for cell in self.cells}
        self.ranks = ranks(self.last)
        self._contrasts = AnalysisSettings.parse(self.last.settings).contrasts
        self.rows = [
            {**row, "cell": self.last.inputs[row["role"]]} for row in self.last.settings["rows"]
        ]
        self._index = {cell.identity: number for number, cell in enumerate(self.cells)}
        self._closures = np.array([self._closure(row["cell"]) for row in self.rows])
        self._by_score: dict[tuple[str, str, int], list[int]] = defaultdict(list)
        for number, row in enumerate(self.rows):
            self._by_score[row["benchmark"], row["arm"], row["dose"]].append(number)
        self._embeddings = {
            number: [self._index[used.identity] for used in cell.inputs.values()]
            for number, cell in enumerate(self.cells)
            if cell.stage == "embeddings"
        }
        self._read: dict[tuple[str, tuple[str, ...]], Rows] = {}
        amounts = [self._amounts(cell) for cell in self.cells]
        table = np.array([[row[key] for key in SUMS] for row in amounts])
        self._starts = np.array([self._start(cell) for cell in self.cells])
        self._loads = [*self._checkpoint_loads()]
        self._work = table - self._starts
        self._calls: dict[str, np.ndarray] = defaultdict(lambda: np.zeros(len(self.cells)))
        for number, cell in enumerate(self.cells):
            of_cell = self.planned.get(cell.identity)
            if of_cell and of_cell["calls"]:
                hours = schedule.hours_of_calls(cell, of_cell)
                self._calls[schedule.endpoint(cell)][number] = hours
        self._of_bench: dict[str, list[int]] = defaultdict(list)
        for row in self.rows:
            for cell in (row["cell"], row["cell"].inputs.get("samples")):
                if cell is not None and cell.stage in ("judge", "generate"):
                    self._of_bench[row["benchmark"]].append(self._index[cell.identity])

    def amounts(self, selection: Selection) -> dict[str, float]:
        """The SUMS of what remains of a selection, and `endpoint_hours`.

        These are the hours of the endpoint whose calls take longest at its rates.
        """
        selection = selection.with_texts(self.study)
        mask = self._mask(selection)
        total = self._scaled(selection.epochs)[mask].sum(axis=0)
        for first, others, load in self._loads:
            if not mask[first] and mask[others].any():
                total = total + load
        factors = self._factors(selection.epochs)[mask]
        hours = max((float(factors @ row[mask]) for row in self._calls.values()), default=0.0)
        return {**dict(zip(SUMS, total.tolist(), strict=True)), "endpoint_hours": hours}

    def hours(self, selection: Selection, gpus: int) -> float:
        """Wall time of what remains of a selection on so many GPUs."""
        selection = selection.with_texts(self.study)
        mask = self._mask(selection)
        cells = [
            cell
            for cell, is_in in zip(self.cells, mask, strict=True)
            if is_in and cell.identity in self.planned
        ]
        planned = dict(self.planned)
        for number, factor in enumerate(self._factors(selection.epochs)):
            amounts = planned.get(self.cells[number].identity)
            if factor != 1 and amounts:
                start = amounts["start_hours"]
                scaled = {key: float(factor) * n for key, n in amounts.items()}
                scaled["hours"] = start + float(factor) * (amounts["hours"] - start)
                planned[self.cells[number].identity] = scaled
        ended = schedule.ends(cells, planned, gpus, self.needed, self.ranks)
        return max(ended.values(), default=0.0)

    def all_rows(self) -> Rows:
        """What the study scores: by benchmark, arms and doses."""
        by_bench: Rows = {}
        for row in self.rows:
            by_bench.setdefault(row["benchmark"], set()).add((row["arm"], row["dose"]))
        return by_bench

    def rows_of(self, contrast: Contrast, benchmarks: Iterable[str] | None = None) -> Rows:
        """What a contrast reads, on its benchmarks or on others."""
        (settings,) = (row for row in self._contrasts if row.name == contrast.name)
        names = tuple(benchmarks or settings.benchmarks)
        if (contrast.name, names) not in self._read:
            by_bench: Rows = {}
            for _, _, row in contrast_rows(replace(settings, benchmarks=names), self.rows):
                by_bench.setdefault(row["benchmark"], set()).add((row["arm"], row["dose"]))
            self._read[contrast.name, names] = by_bench
        return self._read[contrast.name, names]

    def _closure(self, cell: Cell) -> np.ndarray:
        mask = np.zeros(len(self.cells), bool)

        def walk(cell: Cell) -> None:
            if not mask[self._index[cell.identity]]:
                mask[self._index[cell.identity]] = True
                for used in cell.inputs.values():
                    walk(used)

        walk(cell)
        return mask

    def _mask(self, selection: Selection) -> np.ndarray:
        seeds = {*self.study.seeds[: selection.seeds], None}
        chosen = [
            number
            for bench, rows in selection.rows.items()
            for arm, dose in rows
            for number in self._by_score.get((bench, arm, dose), ())
            if self.rows[number]["seed"] in seeds
        ]
        mask: np.ndarray = np.logical_or.reduce(self._closures[chosen], axis=0)
        for number, inputs in self._embeddings.items():
            mask[number] = mask[inputs].any()
        mask[-1] = True
        return mask

    def _checkpoint_loads(self) -> Iterator[tuple[int, list[int], np.ndarray]]:
        """Of each checkpoint: its first evaluation, the others, and SUMS of loading its weights.

        The forecast counts the load for the first. Where that is left out, another takes it.
        """
        readers: dict[str, list[int]] = defaultdict(list)
        for number, cell in enumerate(self.cells):
            is_evaluation = cell.stage in VLLM_STAGES and "checkpoint" in cell.inputs
            if is_evaluation and cell.identity in self.planned:
                readers[cell.inputs["checkpoint"].identity].append(number)
        for first, *others in readers.values():
            if others:
                load = self._starts[first] - self._starts[others[0]]
                yield first, others, load * [key in HOURS for key in SUMS]

    def _amounts(self, cell: Cell) -> dict[str, float]:
        return self.planned.get(cell.identity) or dict.fromkeys(SUMS, 0.0)

    def _start(self, cell: Cell) -> list[float]:
        """The part of a cell's SUMS that the start of its job takes."""
        amounts = self.planned.get(cell.identity)
        if not amounts or not amounts["hours"]:
            return [0.0] * len(SUMS)
        share = amounts["start_hours"] / amounts["hours"]
        fixed = {"gpu_hours": share, "cpu_hours": share, "files": 1.0}
        return [fixed.get(key, 0.0) * amounts[key] for key in SUMS]

    def _factors(self, epochs: Mapping[str, int]) -> np.ndarray:
        """By which the work of each cell is multiplied."""
        factors = np.ones(len(self.cells))
        for bench, count in epochs.items():
            factors[self._of_bench[bench]] = count / self.study.benchmarks[bench].epochs
        return factors

    def _scaled(self, epochs: Mapping[str, int]) -> np.ndarray:
        factors = self._factors(epochs)
        scaled: np.ndarray = np.add(self._starts, factors[:, None] * self._work)
        return scaled
