"""What a smaller study keeps and gives up, in words."""

from collections.abc import Iterable
from typing import Any

from analysis.power import detectable
from analysis.rows import Results
from study.forecast.deadline import DeadlinePlan, Planner
from study.forecast.priority import PRIMARY, families
from study.spec.doses import doses
from study.spec.schema import Study

MOST_NAMES = 6


def keeps(plan: DeadlinePlan, study: Study) -> str:
    """Seeds and primary tests, such as "3 of 5 seeds; primary contrasts on anima: ..."."""
    count = plan.selection.seeds
    total = len(study.seeds)
    seeds = f"{count} of {total} seeds"
    questions = {
        test.benchmark: f"{test.benchmark}: {sum(test.sizes)} questions x {test.epochs} epochs"
        for test in plan.tests
    }
    pairs = sorted({pair for test in plan.tests for pair in test.doses})
    at = ", ".join(str(a) if a == b else f"{a} v {b}" for a, b in pairs)
    count = len({test.contrast for test in plan.tests})
    names = "1 primary contrast" if count == 1 else f"{count} primary contrasts"
    return f"{seeds}; {names} on {'; '.join(questions.values())}; doses {at}"


def detects(plan: DeadlinePlan, pilot: Results | None = None) -> str:
    """The difference that the primary tests detect in 80 % of studies."""
    values = [value for test in plan.tests if (value := detectable(test, pilot)) is not None]
    if not values:
        return "detects nothing: a test needs two training seeds"
    shown = " to ".join(dict.fromkeys(f"{100 * n:.1f}" for n in (min(values), max(values))))
    return (
        f"detects {shown} points in each of {len(plan.tests)} primary tests; finds "
        f"{100 * plan.power:.0f} % of the declared ones, the whole study "
        f"{100 * plan.whole_power:.0f} %"
    )


def given_up(planner: Planner, plan: DeadlinePlan) -> list[str]:
    """What is left out, a line each; nothing where the whole study fits."""
    study, smaller = planner.study, plan.study
    if plan.is_whole:
        return []
    lines = []
    if left_out := study.seeds[plan.selection.seeds :]:
        lines.append(f"seeds: {_names(left_out)}")
    if plan.primary.benchmark:
        before = _names(dict.fromkeys(test.benchmark for test in planner.tests))
        lines.append(
            f"primary contrasts on {before}: they are tested on {plan.primary.benchmark}, which is "
            "declared in its place"
        )
    lines += _left_out_doses(planner, plan)
    lines += _left_out_contrasts(study, smaller)
    lines += _left_out_rows(study, smaller)
    for name, bench in smaller.benchmarks.items():
        if bench.epochs < study.benchmarks[name].epochs:
            before_epochs = study.benchmarks[name].epochs
            lines.append(f"answers on {name}: {bench.epochs} in place of {before_epochs} epochs")
    return lines


def _left_out_doses(planner: Planner, plan: DeadlinePlan) -> list[str]:
    declared = {test.doses for test in planner.tests}
    doses_out = sorted(declared - {*plan.primary.doses})
    return [f"doses of the primary contrasts: {_names(a for a, _ in doses_out)}"] * bool(doses_out)


def _left_out_contrasts(study: Study, smaller: Study) -> list[str]:
    lines = []
    there = {contrast.name for contrast in smaller.contrasts}
    for family in families(contrast.family for contrast in study.contrasts):
        of_family = [contrast.name for contrast in study.contrasts if contrast.family == family]
        missing = [name for name in of_family if name not in there]
        if missing and len(missing) == len(of_family) and family != PRIMARY:
            count = f"{len(missing)} contrast{'s' if missing[1:] else ''}"
            lines.append(f"family {family} ({count})")
        elif missing:
            lines.append(f"contrasts of {family}: {_names(missing)}")
    return lines


def _left_out_rows(study: Study, smaller: Study) -> list[str]:
    lines = []
    if arms := [name for name in study.arms if name not in smaller.arms]:
        lines.append(f"arms: {_names(arms)}")
    if benches := [name for name in study.benchmarks if name not in smaller.benchmarks]:
        lines.append(f"benchmarks: {_names(benches)}")
    for name in smaller.arms:
        if missing := [d for d in doses(study, name) if d not in doses(smaller, name)]:
            lines.append(f"doses of arm {name}: {_names(missing)}")
    return lines


def _names(names: Iterable[Any]) -> str:
    texts = [str(name) for name in names]
    more = f" and {len(texts) - MOST_NAMES} more" if texts[MOST_NAMES:] else ""
    return ", ".join(texts[:MOST_NAMES]) + more
