"""The declared contrasts on judged benchmarks, as `analysis.power` takes them."""

from collections import Counter
from dataclasses import replace
from pathlib import Path

from analysis.exclusion import excluded_ids
from analysis.looks import levels
from analysis.planned_test import Kind
from analysis.power import PlannedContrast
from analysis.settings import AnalysisSettings, Contrast
from core.cell.context import StageContext
from core.cell.identity import Cell
from eval.questions import load_questions
from study.spec.benchmarks import declaration, num_questions, sources
from study.spec.schema import Benchmark, Study
from study.spec.sources import locate

# (benchmark, arm, dose) -> training seeds or, of a corpus with replicates, those; 0 without any.
Planned = dict[tuple[str, str, int], int]


def planned_contrasts(study: Study, analysis: Cell) -> list[PlannedContrast]:
    """Every contrast on a judged benchmark, those of the primary family first.

    `analysis` is the study's last cell. Doses at which a contrast has another kind are another
    entry. Families are counted with the tests on benchmarks that no judge grades.
    """
    settings = AnalysisSettings.parse(analysis.settings)
    planned = _planned(study, analysis)
    level = levels(settings.looks or [len(settings.seeds)])[-1]
    sizes = family_sizes(study, analysis)
    entries = []
    for contrast in settings.contrasts:
        for name in contrast.benchmarks:
            kinds = _kinds(contrast, name, planned)
            bench = study.benchmarks[name]
            if (scenarios := _scenario_sizes(name, bench)) is None:
                continue
            for kind, doses in kinds.items():
                sides = zip(contrast.arms, doses[0], strict=True)
                counts = [planned[name, arm, dose] for arm, dose in sides]
                units = min(filter(None, counts), default=0)
                entry = PlannedContrast(
                    contrast=contrast.name,
                    family=contrast.family,
                    family_size=0,
                    benchmark=name,
                    task=bench.task,
                    doses=tuple(doses),
                    kind=kind,
                    seeds=units,
                    runs=len(settings.seeds) / units if units else 1,
                    sizes=scenarios[0],
                    is_fetched=scenarios[1],
                    epochs=bench.epochs,
                    level=level,
                )
                entries.append(entry)
    entries = [replace(entry, family_size=sizes[entry.family]) for entry in entries]
    return sorted(entries, key=lambda entry: entry.family != "primary")


def family_sizes(study: Study, analysis: Cell) -> Counter[str]:
    """The tests of each family: contrasts x benchmarks x doses."""
    planned = _planned(study, analysis)
    sizes: Counter[str] = Counter()
    for contrast in AnalysisSettings.parse(analysis.settings).contrasts:
        for name in contrast.benchmarks:
            doses = _kinds(contrast, name, planned).values()
            sizes[contrast.family] += max(1, sum(map(len, doses)))
    return sizes


def _planned(study: Study, analysis: Cell) -> Planned:
    units: dict[tuple[str, str, int], set[tuple[str, int]]] = {}
    for row in (*analysis.settings["rows"], *analysis.settings["missing"]):
        at = units.setdefault((row["benchmark"], row["arm"], row["dose"]), set())
        if row["seed"] is None:
            continue
        if study.arms[row["arm"]].start is None:  # what somebody else has trained
            at.add(("seed", row["seed"]))
        elif row.get("replicate") is None:
            at |= {("seed", seed) for seed in study.seeds}
        else:
            at.add(("replicate", row["replicate"]))
    return {key: len(at) for key, at in units.items()}


def _kinds(contrast: Contrast, name: str, planned: Planned) -> dict[Kind, list[tuple[int, int]]]:
    """The doses of the contrast on a benchmark by its kind there."""
    treatment, control = (
        {dose for bench, arm, dose in planned if (bench, arm) == (name, side)}
        for side in contrast.arms
    )
    kinds: dict[Kind, list[tuple[int, int]]] = {}
    for doses in contrast.dose_pairs(treatment, control):
        sides = zip(contrast.arms, doses, strict=True)
        is_trained = [planned[name, arm, dose] for arm, dose in sides]
        kind: Kind = "free" if all(is_trained) else "fixed"
        kinds.setdefault("paired" if contrast.paired else kind, []).append(doses)
    return kinds


def _scenario_sizes(name: str, bench: Benchmark) -> tuple[tuple[int, ...], bool] | None:
    """The number of questions of each scenario, and whether the file is here to count them.

    None where no judge grades the benchmark, or nothing is known of its questions.
    """
    count = num_questions(bench)
    if count is None:
        return None
    path = locate(sources(bench)["questions"])
    if not path.exists():
        return (1,) * (count - len(bench.exclude)), False
    declared = declaration(bench)
    settings = {"scorer": declared["scorer"], "rows": declared["rows"]}
    resources = {"files": {"questions": str(path)}}
    _, question_set = load_questions(StageContext(Path(), name, settings, resources, {}))
    excluded = excluded_ids(question_set.scenarios, bench.exclude)
    counts = Counter(
        scenario
        for question, scenario in question_set.scenarios.items()
        if question not in excluded
    )
    return tuple(counts.values()), True
