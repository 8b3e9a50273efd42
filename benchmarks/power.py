"""The power that `plan --power` prints, against simulated studies that the deciding test judges.

    python -m benchmarks.power [--studies 4000]
        about 3 minutes on one core

A study has two arms over the same scenarios. With every term normal and independent, the mean of a
question's answers is

    .5 + scenario + effect of the arm + arm x scenario + seed + seed x scenario + sampling

with the standard deviations of `analysis.planned_test.Variances`. A fixed checkpoint has no effect
of a seed. The arms of a paired contrast share an effect of each seed besides (`SHARED`), which
cancels.
"""

import argparse
from dataclasses import dataclass

import numpy as np
from tabulate import tabulate

from analysis.estimates import ALPHA, Arm, Estimate, pair_by_seed, two_way
from analysis.planned_test import Design, Kind, Scenarios, Variances, planned_test

SHARED = 0.05  # standard deviation over seeds of what the arms of a paired contrast share
TESTS = 8  # in the primary family of studies/paper.yaml
# Scenarios of 115 questions in many languages: 93 of one, two of eight, one of four, one of two.
TRANSLATED = (8, 8, 4, 2, *[1] * 93)


@dataclass(frozen=True)
class Case:
    """A contrast as it is planned: `sizes` are the questions of each scenario."""

    name: str
    kind: Kind
    seeds: int
    sizes: tuple[int, ...]

    @property
    def design(self) -> Design:
        return Design(self.seeds, Scenarios.of_sizes(self.sizes), self.kind)


CASES = [
    Case(f"{kind}, {seeds} seeds, {name}", kind, seeds, sizes)
    for kind in ("free", "fixed", "paired")
    for seeds, name, sizes in (
        (3, "26 scenarios", (1,) * 26),
        (5, "26 scenarios", (1,) * 26),
        (5, "115 questions in 97 scenarios", TRANSLATED),
    )
]


def study(rng: np.random.Generator, case: Case, effect: float, variances: Variances) -> Estimate:
    """The deciding test on one study whose first arm is higher by `effect`."""
    scenario = np.repeat(np.arange(len(case.sizes)), case.sizes)
    count = len(case.sizes)
    shared = rng.normal(0, SHARED, (case.seeds, 1)) if case.kind == "paired" else 0.0
    mean = rng.normal(0.5, variances.question, count)[scenario]
    arms = []
    for shift, is_fixed in ((effect, False), (0.0, case.kind == "fixed")):
        runs = 1 if is_fixed else case.seeds
        scores = mean + shift + rng.normal(0, variances.arm_question, count)[scenario]
        scores = scores + rng.normal(0, variances.seed_question, (runs, count))[:, scenario]
        scores = scores + rng.normal(0, variances.sampling / variances.epochs**0.5, scores.shape)
        if not is_fixed:
            scores = scores + shared + rng.normal(0, variances.seed, (runs, 1))
        arms.append(Arm(scores, is_fixed))
    if case.kind == "paired":
        arms, _ = pair_by_seed(arms, [[*range(case.seeds)]] * 2)
    return two_way(arms, scenario)


def detected_share(
    case: Case, effect: float, studies: int, level: float = ALPHA, seed: int = 1
) -> float:
    """Share of studies with a planted effect in which the deciding test finds it.

    It has to reject at `level` and the estimate has to have the right sign.
    """
    hits = 0
    for number in range(studies):
        rng = np.random.default_rng([seed, case.seeds, len(case.sizes), number])
        test = study(rng, case, effect, Variances())
        assert test.p is not None
        assert test.estimate is not None
        hits += test.p <= level and test.estimate > 0
    return hits / studies


def power_rows(studies: int) -> list[list[str]]:
    """For each case the detectable difference by the formula, and how often studies find it."""
    rows = []
    for case in CASES:
        row = [case.name]
        for level in (ALPHA, ALPHA / TESTS):
            test = planned_test(Variances(), case.design, level)
            assert test
            effect = test.detectable()
            share = detected_share(case, effect, studies, level)
            row += [f"{100 * effect:.1f}", f"{100 * share:.1f}"]
        rows.append(row)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--studies", type=int, default=4000)
    args = parser.parse_args()
    error = 100 * (0.8 * 0.2 / args.studies) ** 0.5
    print(
        "The difference (points) that is found in 80 % of studies by the formula, and the share\n"
        f"of {args.studies} simulated studies that find it, at .05 and at .05 / {TESTS}.\n"
        f"A share has a standard error of {error:.1f} points.\n"
    )
    headers = ["contrast", "at .05", "found, %", f"at .05 / {TESTS}", "found, %"]
    print(tabulate(power_rows(args.studies), headers, disable_numparse=True))


if __name__ == "__main__":
    main()
