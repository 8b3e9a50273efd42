"""Power within a budget: `plan --gpus --hours --budget` against even cuts of the paper's study.

    python -m benchmarks.deadline [STUDY] [--cluster FILE]       about 3 minutes on one core

The cuts leave all else as it is: the study's first seeds; the same share of the questions of every
judged benchmark; arms in a random order until what remains fits, the mean of ORDERS orders, and the
same with the arms of the primary contrasts dropped last. Each is the largest one that fits the
budget. Power: the share of the declared primary tests that is found,
at the family's level over the tests that remain, the mean over the published differences.
"""

import argparse
import math
import random
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean

import numpy as np
from tabulate import tabulate

from core.paths import ROOT
from slurm.profile import load_profile
from study.commands.common import parallel_plans
from study.forecast.deadline import Planner, Primary, mean_power
from study.forecast.limits import Limits, exceeded
from study.forecast.milestones import milestones
from study.spec.load import load_study
from study.spec.reduction import Selection

ORDERS = 40
GPUS = 8
HOURS = 10_000.0  # the budgets bind, not the hours
BUDGETS: tuple[dict[str, float], ...] = ({"gpu_hours": 60}, {"gpu_hours": 500}, {"cost": 100})
NOWHERE = ROOT / "runs_of_no_study"  # nothing has run


@dataclass(frozen=True)
class Cut:
    """What a way of cutting keeps, its power, and the GPU-hours until that is reached."""

    keeps: str
    power: float
    gpu_hours: float
    cost: float

    @property
    def per_100(self) -> float:
        """Power for 100 GPU-hours."""
        return 100 * self.power / self.gpu_hours


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("study", nargs="?", type=Path, default=ROOT / "studies/paper.yaml")
    parser.add_argument("--cluster", type=Path, default=ROOT / "slurm/clusters/university.yaml")
    args = parser.parse_args()
    profile = load_profile(args.cluster)
    layouts = parallel_plans(profile)
    planner = Planner(load_study(args.study), NOWHERE / "study", layouts, profile)
    lines = []
    for budget in BUDGETS:
        limits = Limits(GPUS, HOURS, budget)
        plan = planner.plan(limits)
        order = milestones(plan.study, NOWHERE / "study", layouts, profile, GPUS)
        decided = next(row for row in order if "decided" in row["result"])
        names = f"{plan.selection.seeds} seeds, {len(plan.tests)} tests"
        amounts = plan.amounts
        cuts = {
            "plan": Cut(names, plan.power, amounts["gpu_hours"], amounts["cost"]),
            "seeds": cut_seeds(planner, limits),
            "questions": cut_questions(planner, limits),
            "arms": cut_arms(planner, limits),
            "arms, primary last": cut_arms(planner, limits, primary_last=True),
        }
        for name, cut in cuts.items():
            # An even cut has no order: its primary contrasts are decided at its end.
            until = decided["gpu_hours"] if name == "plan" else cut.gpu_hours
            lines.append(
                [
                    " ".join(f"{key}={limit:g}" for key, limit in budget.items()),
                    name,
                    cut.keeps,
                    100 * cut.power,
                    cut.gpu_hours,
                    cut.cost,
                    cuts["plan"].per_100 / cut.per_100 if cut.power else math.inf,
                    until,
                    (cuts["plan"].power / decided["gpu_hours"]) / (cut.power / until)
                    if cut.power
                    else math.inf,
                ]
            )
    headers = ["budget", "cut", "keeps", "power, %", "GPU-hours", "cost, $"]
    headers += ["power a GPU-hour: plan / this", "decided after GPU-hours", "by then: plan / this"]
    formats = ("", "", "", ".0f", ".1f", ".0f", ".2f", ".1f", ".2f")
    print(tabulate(lines, headers=headers, floatfmt=formats))


def whole(planner: Planner, seeds: int) -> Primary:
    """All primary tests as declared."""
    names = tuple(dict.fromkeys(test.contrast for test in planner.tests))
    doses = tuple(sorted({test.doses for test in planner.tests}))
    return Primary(names, doses, seeds, None, None)


def cut_seeds(planner: Planner, limits: Limits) -> Cut:
    """The study with its first seeds."""
    for seeds in range(len(planner.study.seeds), 0, -1):
        amounts = planner.forecaster.amounts(Selection(seeds, planner.forecaster.all_rows()))
        if not exceeded(amounts, limits):
            power = planner.power(planner.tests_of(whole(planner, seeds)))
            return Cut(f"{seeds} seeds", power, amounts["gpu_hours"], amounts["cost"])
    return Cut("nothing fits", 0.0, math.nan, math.nan)


def cut_questions(planner: Planner, limits: Limits) -> Cut:
    """The study with a share of the questions of each judged benchmark.

    What a share of the questions takes is what the same share of the answers takes.
    """
    study = planner.study
    judged = {name: bench.epochs for name, bench in study.benchmarks.items() if bench.judge}

    def amounts(share: float) -> dict[str, float]:
        selection = Selection(len(study.seeds), planner.forecaster.all_rows())
        full = planner.forecaster.amounts(selection)
        half = planner.forecaster.amounts(replace(selection, epochs={name: 0 for name in judged}))
        return {key: half[key] + share * (full[key] - half[key]) for key in full}

    share = largest(lambda share: not exceeded(amounts(share), limits))
    if share is None:
        return Cut("nothing fits", 0.0, math.nan, math.nan)
    tests = [
        replace(test, sizes=test.sizes[: max(1, round(share * len(test.sizes)))])
        for test in planner.tests_of(whole(planner, len(study.seeds)))
    ]
    total = sum(mean_power(test, None) for test in tests)
    used = amounts(share)
    keeps = f"{100 * share:.0f} % of the questions"
    return Cut(keeps, total / len(planner.tests), used["gpu_hours"], used["cost"])


def largest(fits: Callable[[float], bool]) -> float | None:
    """The largest share in hundredths that fits; None: none does."""
    shares = [share for share in np.arange(1, 0, -0.01).tolist() if fits(share)]
    return shares[0] if shares else None


def cut_arms(planner: Planner, limits: Limits, primary_last: bool = False) -> Cut:
    """The study with some of its arms, the mean over random orders in which they are dropped."""
    study = planner.study
    draws = random.Random(0)
    everything = planner.forecaster.all_rows()
    cuts = []
    for _ in range(ORDERS):
        arms = [*study.arms]
        draws.shuffle(arms)
        if primary_last:
            primary = {arm for row in planner.contrasts for arm in (row.treatment, row.control)}
            arms.sort(key=lambda arm: arm not in primary)
        while arms:
            rows = {
                name: {row for row in of_bench if row[0] in arms}
                for name, of_bench in everything.items()
            }
            amounts = planner.forecaster.amounts(Selection(len(study.seeds), rows))
            if not exceeded(amounts, limits):
                break
            arms.pop()
        keeps = tuple(
            row.name for row in planner.contrasts if {row.treatment, row.control} <= {*arms}
        )
        tests = planner.tests_of(replace(whole(planner, len(study.seeds)), contrasts=keeps))
        power = planner.power(tests)
        cuts.append((len(arms), power, amounts["gpu_hours"], amounts["cost"]))
    count, power, gpu_hours, cost = (mean(column) for column in zip(*cuts, strict=True))
    return Cut(f"{count:.1f} of {len(study.arms)} arms", power, gpu_hours, cost)


if __name__ == "__main__":
    main()
