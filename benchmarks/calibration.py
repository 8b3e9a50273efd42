"""Error rates of each method of the analysis, on simulated studies.

    python -m benchmarks.calibration [--studies 2000]
        about 20 minutes on one core
    python -m benchmarks.calibration --studies 200 --mixed 20 --resamples 1000
        2 minutes

A study has two arms over the same questions. With every term normal and independent, an answer's
score is

    .5 + question + effect of the arm + arm x question + seed + seed x question + sampling

with the standard deviations of `analysis.planned_test.Variances`, those of the study's own power
simulation: question .25, arm x question .08, seed .03, seed x question .05, one answer with its
grade .22, and 30 answers to a question. None of them has been measured on the models of the study
yet. Intervals are of 95 %, tests two-sided at .05.
"""

import argparse

import numpy as np
from tabulate import tabulate

from analysis.estimates import ALPHA, Arm, response_level_p, two_way
from analysis.inference import hierarchical_bootstrap, permutation
from analysis.mixed import mixed_model
from analysis.planned_test import Variances

SEEDS = (3, 5, 8)
QUESTIONS = (26, 115)


def study(
    rng: np.random.Generator, seeds: int, questions: int, effect: float, variances: Variances
) -> tuple[np.ndarray, np.ndarray]:
    """Two arms' scores of shape (seeds, questions, epochs); the first is higher by `effect`."""
    shared = rng.normal(0.5, variances.question, questions)
    shape = (seeds, questions, variances.epochs)
    arms = []
    for shift in (effect, 0.0):
        mean = shared + shift + rng.normal(0, variances.arm_question, questions)
        mean = mean + rng.normal(0, variances.seed, (seeds, 1))
        mean = mean + rng.normal(0, variances.seed_question, (seeds, questions))
        arms.append(mean[..., None] + rng.normal(0, variances.sampling, shape))
    return arms[0], arms[1]


def calibrate(
    seeds: int,
    questions: int,
    studies: int,
    resamples: int,
    mixed: int,
    variances: Variances | None = None,
) -> dict[str, float]:
    """Shares over studies without any effect.

    `*_rejects` of tests, `*_covers` of intervals, `*_fails` of intervals that could not be
    computed. `*_width` is the median width of an interval over that of the two-way interval. The
    first `mixed` studies get a mixed model too.
    """
    variances = variances or Variances()
    values: dict[str, list[float]] = {}
    for number in range(studies):
        row = _errors_in_study(number, seeds, questions, resamples, number < mixed, variances)
        for name, value in row.items():
            values.setdefault(name, []).append(value)
    return {
        name: float(np.median(column) if "width" in name else np.mean(column))
        for name, column in values.items()
    }


def _errors_in_study(
    number: int,
    seeds: int,
    questions: int,
    resamples: int,
    with_mixed: bool,
    variances: Variances,
) -> dict[str, float]:
    """What each method does on one study without any effect: see `calibrate`."""
    rng = np.random.default_rng([seeds, questions, number])
    treatment, control = study(rng, seeds, questions, 0.0, variances)
    means = treatment.mean(axis=2), control.mean(axis=2)
    scenarios = np.arange(questions)
    deciding = two_way([Arm(mean) for mean in means], scenarios)
    assert deciding.p is not None
    assert deciding.low is not None
    assert deciding.high is not None
    p_responses = response_level_p(treatment.ravel(), control.ravel()) or 1
    row: dict[str, float] = {
        "two_way_rejects": deciding.p < ALPHA,
        "response_level_rejects": p_responses < ALPHA,
        "permutation_rejects": (permutation(*means).p or 1) <= ALPHA,
    }
    bootstrap = hierarchical_bootstrap(treatment, control, scenarios, resamples, seed=number)
    intervals = {
        "bootstrap": (bootstrap.low, bootstrap.high),
        "percentile": (bootstrap.percentile_low, bootstrap.percentile_high),
    }
    if with_mixed:
        model = mixed_model(*means, scenarios)
        intervals["mixed"] = model.low, model.high
    for name, (low, high) in intervals.items():
        row[f"{name}_fails"] = low is None or high is None
        if low is not None and high is not None:
            row[f"{name}_covers"] = low <= 0 <= high
            row[f"{name}_width"] = (high - low) / (deciding.high - deciding.low)
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--studies", type=int, default=2000)
    parser.add_argument("--resamples", type=int, default=2000, help="of each bootstrap")
    parser.add_argument("--mixed", type=int, default=200, help="studies that get a mixed model")
    args = parser.parse_args()
    designs = [(questions, seeds) for questions in QUESTIONS for seeds in SEEDS]
    print_error_rates(designs, args.studies, args.resamples, min(args.mixed, args.studies))


def print_error_rates(
    designs: list[tuple[int, int]], studies: int, resamples: int, mixed: int
) -> None:
    """A table of rejections and coverage; `designs` are (questions, seeds)."""
    error = 100 * (0.05 * 0.95 / studies) ** 0.5
    mixed_error = 100 * (0.05 * 0.95 / max(mixed, 1)) ** 0.5
    print(
        f"No effect, {studies} studies a design ({mixed} for the mixed model). A share of 5 % has\n"
        f"a standard error of {error:.1f} points ({mixed_error:.1f} for mixed).\n"
        "Rejections, %: should be at most 5; permutation's are about these questions, where the\n"
        "arms do differ.\n"
        "Coverage, %: should be at least 95. (Width against two-way's.)\n"
    )
    rows = []
    for questions, seeds in designs:
        shares = calibrate(seeds, questions, studies, resamples, mixed)
        tests = ("two_way", "permutation", "response_level")
        rejects = [100 * shares[f"{name}_rejects"] for name in tests]
        covers = []
        for name in ("bootstrap", "percentile", "mixed"):
            text = ""
            if f"{name}_covers" in shares:
                text = f"{100 * shares[f'{name}_covers']:.1f} ({shares[f'{name}_width']:.2f})"
            covers.append(text)
        fails = [100 * shares.get(f"{name}_fails", 0.0) for name in ("bootstrap", "mixed")]
        rows.append([questions, seeds, *rejects, *covers, *fails])
    headers = [
        "questions",
        "seeds",
        "two-way",
        "permutation",
        "paper's",
        "studentised",
        "percentile",
        "mixed",
        "studentised: none, %",
        "mixed: none, %",
    ]
    print(tabulate(rows, headers, floatfmt=".1f"))


if __name__ == "__main__":
    main()
