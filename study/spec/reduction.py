"""A smaller study: some of the seeds, arms, doses, benchmarks, answers and contrasts of another.

Its cells are cells of the larger one, but for those with fewer answers per question.
"""

from collections.abc import Iterable, Mapping, Set
from dataclasses import dataclass, field, replace
from typing import Any

from pydantic import TypeAdapter

from study.spec.chains import corpora_of, dose_step, steps_of
from study.spec.checks import OWN_FILES
from study.spec.claim_roles import role_mistakes
from study.spec.doses import doses
from study.spec.schema import Arm, Benchmark, Contrast, Study

Rows = dict[str, set[tuple[str, int]]]  # by benchmark: (arm, dose)


@dataclass(frozen=True)
class Selection:
    """What a smaller study keeps.

    Attributes:
        seeds: How many of the first seeds.
        rows: By benchmark, the (arm, dose) that are scored on it.
        epochs: Answers per question, by benchmark; a benchmark that is not here keeps its own.
        contrasts: Those that are kept, with their doses and families.
    """

    seeds: int
    rows: Rows
    epochs: Mapping[str, int] = field(default_factory=dict)
    contrasts: tuple[Contrast, ...] = ()

    def closed(self, study: Study) -> "Selection":
        """With the rows that a study file adds: arms x doses of each benchmark, as it can say."""
        arm_doses: dict[str, set[int]] = {}
        for rows in self.rows.values():
            for arm, dose in rows:
                kept_doses = [dose] if _has_one_tuning(study.arms[arm]) else doses(study, arm)
                arm_doses.setdefault(arm, set()).update(kept_doses)
        closed = {}
        for name, rows in self.rows.items():
            of_bench = {dose for _, dose in rows}
            arms = {arm for arm, _ in rows}
            closed[name] = {
                (arm, dose)
                for arm in arms
                for dose in of_bench & arm_doses[arm] & set(doses(study, arm))
            }
        return replace(self, rows=closed)

    def with_texts(self, study: Study) -> "Selection":
        """With the benchmarks that a corpus is written without the texts of.

        Its documents depend on them. They are asked once, of one arm at one dose.
        """
        arms = [arm for arm in study.arms if any(arm in dict(rows) for rows in self.rows.values())]
        named = {
            text
            for name in _corpora(study, arms)
            for text in study.corpora[name].decontaminate_against
            if text in study.benchmarks and not _is_task(text, study.benchmarks[text])
        }
        missing = [name for name in study.benchmarks if name in named and not self.rows.get(name)]
        if not missing:
            return self
        dose = min(d for rows in self.rows.values() for arm, d in rows if arm == arms[0])
        return replace(
            self,
            rows=self.rows | {name: {(arms[0], dose)} for name in missing},
            epochs={**self.epochs, **dict.fromkeys(missing, 1)},
        )


def reduce_study(study: Study, name: str, selection: Selection) -> Study:
    """The study file of a selection.

    Benchmarks that a corpus names stay (`Selection.with_texts`). Roles of claims that speak of what
    is left out go.
    """
    selection = selection.with_texts(study)
    seeds = study.seeds[: selection.seeds]
    scored = {name: rows for name, rows in selection.rows.items() if rows}
    arm_doses: dict[str, set[int]] = {}
    for rows in scored.values():
        for arm_name, dose in rows:
            arm_doses.setdefault(arm_name, set()).add(dose)
    arms = {}
    merged = _merged(study, arm_doses)
    for arm_name, arm in study.arms.items():
        if arm_name not in arm_doses and arm_name not in merged:
            continue
        train = arm.train
        number = dose_step(arm)
        is_smaller = set(doses(study, arm_name)) > arm_doses.get(arm_name, set())
        is_free = arm_name not in merged and _has_one_tuning(arm)
        if train and number is not None and is_smaller and is_free:
            step = replace(train[number], doses=sorted(arm_doses[arm_name]))
            train = [*train[:number], step, *train[number + 1 :]]
        checkpoints = arm.checkpoints and {
            dose: models[: len(seeds)] for dose, models in arm.checkpoints.items()
        }
        scores = arm.scores and {
            bench: {dose: files[: len(seeds)] for dose, files in by_dose.items()}
            for bench, by_dose in arm.scores.items()
            if bench in scored
        }
        arms[arm_name] = replace(arm, train=train, checkpoints=checkpoints, scores=scores)
    corpora = _corpora(study, arms)
    benchmarks = {}
    for bench_name, bench in study.benchmarks.items():
        if bench_name in scored:
            benchmarks[bench_name] = _benchmark(
                bench, scored[bench_name], arm_doses, len(arms), selection.epochs.get(bench_name)
            )
    models = {arm.start for arm in arms.values()} | {
        model
        for arm in arms.values()
        for names in (arm.checkpoints or {}).values()
        for model in names
    }
    smaller = replace(
        study,
        study=name,
        seeds=seeds,
        only_seeds=[],
        looks=[look for look in study.looks if look < len(seeds)] + [len(seeds)]
        if study.looks
        else [],
        arms=arms,
        corpora=corpora,
        models={name: model for name, model in study.models.items() if name in models},
        benchmarks=benchmarks,
        contrasts=[*selection.contrasts],
    )
    return _with_roles(smaller)


def _is_task(name: str, bench: Benchmark) -> bool:
    """Whether a name means the same texts where the study has no benchmark of that name."""
    return name == bench.task and not any(getattr(bench, file) for file in OWN_FILES)


def _benchmark(
    bench: Benchmark,
    rows: Set[tuple[str, int]],
    arm_doses: Mapping[str, Set[int]],
    num_arms: int,
    epochs: int | None,
) -> Benchmark:
    arms = [arm for arm in arm_doses if arm in {arm for arm, _ in rows}]
    used = sorted({dose for _, dose in rows})
    is_every_arm = bench.arms is None and len(arms) == num_arms
    every_dose = {dose for arm in arms for dose in arm_doses[arm]}
    return replace(
        bench,
        arms=None if is_every_arm else arms,
        doses=None if bench.doses is None and set(used) == every_dose else used,
        epochs=epochs or bench.epochs,
    )


def _has_one_tuning(arm: Arm) -> bool:
    """Whether doses of an arm can be left out: of several tunings, they say which one has them."""
    return sum(step.sft is not None for step in steps_of(arm)) < 2


def _merged(study: Study, names: Iterable[str]) -> set[str]:
    """The arms whose weights are mixed into others, which need them at all their doses."""
    merged: set[str] = set()
    todo = [*names]
    while todo:
        sources = {step.merge for step in steps_of(study.arms[todo.pop()]) if step.merge}
        todo += sources - merged
        merged |= sources
    return merged


def _corpora(study: Study, arms: Iterable[str]) -> dict[str, Any]:
    """The corpora that arms train on, with those that they are matched to."""
    needed = {name for arm in arms for name in corpora_of(study, study.arms[arm])}
    while more := {match for name in needed if (match := study.corpora[name].matched_to)} - needed:
        needed |= more
    return {name: corpus for name, corpus in study.corpora.items() if name in needed}


def _with_roles(study: Study) -> Study:
    """The study without the roles of claims that name what it does not have."""
    raw = TypeAdapter(Study).dump_python(study, mode="json")
    wrong = {mistake.at[:2] for mistake in role_mistakes(raw | {"ladder": []})}
    roles = {
        role: value
        for role, value in study.claim_roles.items()
        if ("claim_roles", role) not in wrong
    }
    ladder = [
        rung
        for number, rung in enumerate(study.ladder)
        if not any(m.at[:2] == ("ladder", number) for m in role_mistakes(raw))
    ]
    return replace(study, claim_roles=roles, ladder=ladder)
