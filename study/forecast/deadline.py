"""Which part of a study to run where GPUs, hours and money are limited.

First the primary contrasts get the design with the most power that fits; then the contrasts of the
other families are added in the order of the study file, and what no contrast reads last.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import combinations
from pathlib import Path
from typing import Any

from analysis.planned_test import Design, Variances, planned_test
from analysis.power import EFFECTS, PlannedContrast, variances_for
from analysis.rows import Results
from core.declaration import read_declaration
from core.errors import Problem, UserError
from study.forecast import schedule, study_cost
from study.forecast.cell_cost import Layouts, estimates, job_size
from study.forecast.limits import Limits, exceeded, largest_share
from study.forecast.planned_contrasts import family_sizes, planned_contrasts
from study.forecast.priority import PRIMARY, families, ranks
from study.forecast.selection_cost import SUMS, Forecaster
from study.spec import expand
from study.spec.reduction import Rows, Selection, reduce_study
from study.spec.schema import Contrast, Study
from study.spec.study_declaration import EVALUATIONS

EPOCHS = (1, 2, 5, 10, 20)  # answers per question that are tried, below the declared
ENOUGH = 0.01  # of the power: a design that loses less of the best one's and takes less is taken
MOST_SUBSETS = 5  # of more contrasts or doses, only the first ones are kept, not every subset


@dataclass(frozen=True)
class Test:
    """A primary test on a judged benchmark, as declared."""

    contrast: str
    benchmark: str
    doses: tuple[int, int]
    planned: PlannedContrast


@dataclass(frozen=True)
class Primary:
    """A design of the primary contrasts.

    Attributes:
        contrasts: Their names.
        doses: Pairs of treatment's and control's doses.
        seeds: How many of the first seeds.
        benchmark: On which they are tested; None: each on its own.
        epochs: Answers per question; None: those declared.
    """

    contrasts: tuple[str, ...]
    doses: tuple[tuple[int, int], ...]
    seeds: int
    benchmark: str | None
    epochs: int | None


@dataclass(frozen=True)
class DeadlinePlan:
    """The part of a study that fits.

    Attributes:
        study: The smaller study; the study itself where all of it fits.
        selection: What it keeps.
        primary: The design of its primary contrasts.
        amounts: SUMS and `hours` of what remains, by its own forecast.
        tests: Its primary tests on judged benchmarks.
        power: The mean power of the declared primary tests over EFFECTS, 0 of a test that is left
            out: the share of them that is found.
        whole_power: That of the whole study.
        is_whole: Whether nothing is left out.
    """

    study: Study
    selection: Selection
    primary: Primary
    amounts: dict[str, float]
    tests: list[PlannedContrast]
    power: float
    whole_power: float
    is_whole: bool


class Planner:
    """The search for the part of a study that fits its limits."""

    def __init__(
        self,
        study: Study,
        base: Path,
        layouts: Layouts,
        profile: Any,
        pilot: Results | None = None,
    ) -> None:
        self.study = study
        self.base = base
        self.layouts = layouts
        self.profile = profile
        self.pilot = pilot
        self.forecaster = Forecaster(study, base, layouts, profile)
        last = self.forecaster.last
        entries = planned_contrasts(study, last)
        self.entries = {(row.contrast, row.benchmark): row for row in entries}
        self.tests = [
            Test(row.contrast, row.benchmark, doses, row)
            for row in entries
            if row.family == PRIMARY
            for doses in row.doses
        ]
        self.unjudged = family_sizes(study, last)[PRIMARY] - len(self.tests)
        if not self.tests:
            what = "has no primary contrast on a judged benchmark, and so no power to plan by"
            raise UserError(where=study.study, what=what, fix="declare one in `contrasts`")
        scored = any(
            cell.stage in EVALUATIONS and cell.identity in self.forecaster.spent
            for cell in self.forecaster.cells
        )
        self.is_open = read_declaration(base) is None and not scored

    @property
    def contrasts(self) -> list[Contrast]:
        """Those of the primary family."""
        return [row for row in self.study.contrasts if row.family == PRIMARY]

    def others(self) -> list[str]:
        """Benchmarks on which every primary contrast is declared in another family too.

        Before the first score the primary family may be tested there instead.
        """
        if not self.is_open:
            return []
        named = {test.contrast for test in self.tests}
        by_contrast = [
            {name for row in self._twins(contrast) for name in row.benchmarks}
            - {*contrast.benchmarks}
            for contrast in self.contrasts
            if contrast.name in named
        ]
        return [name for name in self.study.benchmarks if all(name in row for row in by_contrast)]

    def _twins(self, contrast: Contrast) -> list[Contrast]:
        """The contrasts of other families with the same sides."""
        keys = ("treatment", "control", "treatment_dose", "control_dose")
        return [
            row
            for row in self.study.contrasts
            if row.family != PRIMARY and all(getattr(row, k) == getattr(contrast, k) for k in keys)
        ]

    def _twin(self, contrast: Contrast, bench: str) -> Contrast:
        return next(row for row in self._twins(contrast) if bench in row.benchmarks)

    def tests_of(self, primary: Primary) -> list[PlannedContrast]:
        """The primary tests of a design, one for each dose, with its seeds and answers."""
        tests = []
        for test in self.tests:
            if test.contrast not in primary.contrasts or test.doses not in primary.doses:
                continue
            planned = test.planned
            if primary.benchmark:
                contrast = next(row for row in self.contrasts if row.name == test.contrast)
                twin = self._twin(contrast, primary.benchmark)
                planned = self.entries[twin.name, primary.benchmark]
                if test.doses not in planned.doses:
                    continue
            seeds = min(primary.seeds, planned.seeds)
            runs = primary.seeds / seeds if planned.runs != 1 else 1.0
            epochs = min(primary.epochs or planned.epochs, planned.epochs)
            tests.append(
                replace(planned, doses=(test.doses,), seeds=seeds, runs=runs, epochs=epochs)
            )
        size = len(tests) + self.unjudged
        return [replace(test, family=PRIMARY, family_size=size) for test in tests]

    def power(self, tests: list[PlannedContrast]) -> float:
        """The share of the declared primary tests that is found, the mean over EFFECTS."""
        total = sum(mean_power(test, self.pilot) for test in tests)
        return total / len(self.tests)

    def designs(self) -> Iterable[Primary]:
        """Every design of the primary contrasts that is tried."""
        names = dict.fromkeys(test.contrast for test in self.tests)
        doses = sorted({test.doses for test in self.tests})
        for bench in (None, *self.others()):
            used = {bench} if bench else {test.benchmark for test in self.tests}
            declared = max(self.study.benchmarks[name].epochs for name in used)
            answers = [n for n in EPOCHS if n < declared] if self.is_open else []
            for seeds in range(2, len(self.study.seeds) + 1):
                for contrasts in _subsets([*names]):
                    for pairs in _subsets(doses):
                        for epochs in (None, *answers):
                            yield Primary(contrasts, pairs, seeds, bench, epochs)

    def selection(self, primary: Primary) -> Selection:
        """What a design of the primary contrasts needs, and nothing else."""
        rows: Rows = {}
        for contrast in self.contrasts:
            if contrast.name not in primary.contrasts:
                continue
            judged = {test.benchmark for test in self.tests}
            names = [
                primary.benchmark if primary.benchmark and name in judged else name
                for name in contrast.benchmarks
            ]
            sides = {side for pair in primary.doses for side in _sides(contrast, pair)}
            for bench, of_bench in self.forecaster.rows_of(contrast, names).items():
                rows.setdefault(bench, set()).update(of_bench & sides)
        epochs = {
            test.benchmark: test.epochs
            for test in self.tests_of(primary)
            if test.epochs < self.study.benchmarks[test.benchmark].epochs
        }
        contrasts = tuple(self._kept_contrasts(primary))
        return Selection(primary.seeds, rows, epochs, contrasts).closed(self.study)

    def _kept_contrasts(self, primary: Primary) -> Iterable[Contrast]:
        """The contrasts of the primary family in the smaller study."""
        judged = {test.benchmark for test in self.tests}
        declared = {test.doses for test in self.tests}
        for contrast in self.contrasts:
            if contrast.name not in primary.contrasts:
                continue
            if primary.benchmark:
                twin = self._twin(contrast, primary.benchmark)
                rest = [name for name in contrast.benchmarks if name not in judged]
                name = twin.name
                if len(twin.benchmarks) > 1:  # which stays in its family on the others
                    name = f"{twin.name} ({primary.benchmark})"
                benchmarks = [primary.benchmark, *rest]
                contrast = replace(twin, name=name, family=PRIMARY, benchmarks=benchmarks)
            yield _with_doses(contrast, primary, declared)

    def plan(self, limits: Limits) -> DeadlinePlan:
        """The part of the study that fits.

        Raises UserError where not even two seeds do, or a job holds more GPUs than there are.
        """
        self._check_gpus(limits.gpus)
        declared = Primary(
            tuple(dict.fromkeys(test.contrast for test in self.tests)),
            tuple(sorted({test.doses for test in self.tests})),
            len(self.study.seeds),
            None,
            None,
        )
        whole_power = self.power(self.tests_of(declared))
        everything = Selection(
            len(self.study.seeds), self.forecaster.all_rows(), {}, tuple(self.study.contrasts)
        )
        tighter = limits
        for _ in range(10):
            if self._fits(everything, tighter):
                primary, selection, study = declared, everything, self.study
            else:
                primary = self._best(tighter)
                selection = self._filled(primary, tighter)
                study = reduce_study(self.study, self.study.study, selection)
            amounts = self.amounts(study, limits.gpus)
            if not exceeded(amounts, limits):
                return DeadlinePlan(
                    study,
                    selection,
                    primary,
                    amounts,
                    self.tests_of(primary),
                    self.power(self.tests_of(primary)),
                    whole_power,
                    study is self.study,
                )
            tighter = tighter.tightened(amounts, limits)
        limit = ", ".join(exceeded(amounts, limits))
        raise UserError(where=limit, what="no part of the study fits it by its own forecast")

    def _check_gpus(self, gpus: int) -> None:
        """Raises UserError for the stages whose jobs hold more."""
        needed = {
            cell.stage: self.forecaster.needed[cell.identity]
            for cell in self.forecaster.cells
            if cell.identity in self.forecaster.planned
        }
        problems = [
            Problem(
                f"--gpus {gpus}",
                f"is less than the {count} GPUs that a job of {stage} holds",
                "give more, or let its jobs hold fewer in the cluster profile",
            )
            for stage, count in needed.items()
            if count > gpus
        ]
        if problems:
            raise UserError.of(problems)

    def amounts(self, study: Study, gpus: int) -> dict[str, float]:
        """SUMS, peak disk and hours of what remains of a study, by its own forecast."""
        last = expand.analysis(study, self.base)
        cells = expand.in_order(last)
        totals = study_cost.totals(cells, self.base, self.layouts, self.profile)
        spent = study_cost.actual(cells, self.base, self.profile)
        planned = estimates(cells, self.base, self.layouts, self.profile, spent)
        needed = {cell.identity: job_size(cell, self.profile)[0] for cell in cells}
        todo = [cell for cell in cells if cell.identity in planned]
        ended = schedule.ends(todo, planned, gpus, needed, ranks(last))
        amounts = {key: totals["left"][key] for key in SUMS}
        return amounts | {
            "disk_gb": totals["peak_gb"],
            "hours": max(ended.values(), default=0.0),
        }

    def _fits(self, selection: Selection, limits: Limits) -> bool:
        """Whether a selection fits; the order of jobs is not looked at (`amounts` does)."""
        return largest_share(self.forecaster.amounts(selection), limits) <= 1

    def _best(self, limits: Limits) -> Primary:
        """The design of the primary contrasts with the most power for its share of the limits."""
        rows = []
        for primary in self.designs():
            tests = self.tests_of(primary)
            if not tests:
                continue
            selection = self.selection(primary)
            share = largest_share(self.forecaster.amounts(selection), limits)
            if share <= 1:
                rows.append((self.power(tests), share, primary, selection))
        rows.sort(key=lambda row: (-row[0], row[1]))
        best: tuple[float, float, Primary] | None = None
        for power, share, primary, selection in rows:
            if best and (power < best[0] - ENOUGH or share >= best[1]):
                continue
            if self.forecaster.hours(selection, limits.gpus) <= limits.hours:
                best = (max(power, best[0]) if best else power, share, primary)
        if best is None:
            what = "not even two seeds of one primary contrast at one dose fit"
            fix = "give more hours, GPUs or money"
            raise UserError(where="--hours, --gpus, --budget", what=what, fix=fix)
        return best[2]

    def _filled(self, primary: Primary, limits: Limits) -> Selection:
        """The design with what else fits, at the number of answers by which most contrasts do."""
        declared = [bench.epochs for bench in self.study.benchmarks.values()]
        caps = [n for n in EPOCHS if n < max(declared)] if self.is_open else []
        best: Selection | None = None
        for cap in (max(declared), *reversed(caps)):
            selection = self._with_cap(self._fill(primary, limits, cap), primary, cap)
            if best is None or len(selection.contrasts) > len(best.contrasts):
                best = selection
            if len(selection.contrasts) == len(self.study.contrasts):
                break
        assert best
        return best

    def _with_cap(self, selection: Selection, primary: Primary, cap: int) -> Selection:
        fixed = self.selection(primary)
        epochs = {
            name: min(cap, self.study.benchmarks[name].epochs)
            for name, rows in selection.rows.items()
            if rows and name not in fixed.rows and self.study.benchmarks[name].epochs > cap
        }
        return replace(selection, epochs={**epochs, **fixed.epochs})

    def _fill(self, primary: Primary, limits: Limits, cap: int) -> Selection:
        chosen = self.selection(primary)

        def add(rows: Rows, contrasts: list[Contrast]) -> None:
            nonlocal chosen
            merged = {
                name: {*chosen.rows.get(name, ()), *rows.get(name, ())}
                for name in self.study.benchmarks
                if name in chosen.rows or name in rows
            }
            larger = replace(chosen, rows=merged, contrasts=(*chosen.contrasts, *contrasts))
            larger = larger.closed(self.study)
            if self._fits(self._with_cap(larger, primary, cap), limits):
                chosen = larger

        for family in families(contrast.family for contrast in self.study.contrasts)[1:]:
            for contrast in self.study.contrasts:
                if contrast.family != family:
                    continue
                moved = self._moved(contrast, primary)
                rows: Rows = {}
                for row in moved:
                    for name, read in self.forecaster.rows_of(row, row.benchmarks).items():
                        rows[name] = rows.get(name, set()) | read
                add(rows, moved)
        everything = self.forecaster.all_rows()
        arms = {arm for rows in chosen.rows.values() for arm, _ in rows}
        for name, of_bench in everything.items():
            scored = {(arm, dose) for arm, dose in of_bench if arm in arms}
            add({name: scored}, [])
        for arm in self.study.arms:
            if arm not in arms:
                of_arm = {
                    n: {row for row in rows if row[0] == arm} for n, rows in everything.items()
                }
                add({name: rows for name, rows in of_arm.items() if rows}, [])
        return chosen

    def _moved(self, contrast: Contrast, primary: Primary) -> list[Contrast]:
        """A contrast of another family, where it has none of the primary tests.

        Where it has, the primary contrast takes its place on the benchmark that was primary.
        """
        bench = primary.benchmark
        twins = [
            row
            for row in self.contrasts
            if bench and row.name in primary.contrasts and self._twin(row, bench) == contrast
        ]
        if not twins:
            return [contrast]
        rest = [name for name in contrast.benchmarks if name != bench]
        judged = {test.benchmark for test in self.tests}
        benchmarks = [name for name in twins[0].benchmarks if name in judged]
        moved = replace(twins[0], family=contrast.family, benchmarks=benchmarks)
        return [replace(contrast, benchmarks=rest), moved] if rest else [moved]


def mean_power(test: PlannedContrast, pilot: Results | None) -> float:
    """The power of a test at its family's level, the mean over EFFECTS; 0 where there is none."""
    return _mean_power(variances_for(test, pilot), test.design, test.level / test.family_size)


@lru_cache(maxsize=10_000)
def _mean_power(variances: Variances, design: Design, level: float) -> float:
    planned = planned_test(variances, design, level)
    return sum(map(planned.power, EFFECTS)) / len(EFFECTS) if planned else 0.0


def _subsets(items: list[Any]) -> list[tuple[Any, ...]]:
    if len(items) > MOST_SUBSETS:
        return [tuple(items[:n]) for n in range(1, len(items) + 1)]
    return [rows for n in range(1, len(items) + 1) for rows in combinations(items, n)]


def _sides(contrast: Contrast, doses: tuple[int, int]) -> list[tuple[str, int]]:
    return [(contrast.treatment, doses[0]), (contrast.control, doses[1])]


def _with_doses(contrast: Contrast, primary: Primary, declared: set[tuple[int, int]]) -> Contrast:
    """The contrast at the design's doses alone."""
    if contrast.treatment_dose is not None or {*primary.doses} == declared:
        return contrast
    return replace(contrast, doses=[a for a, b in primary.doses if a == b])
