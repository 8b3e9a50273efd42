"""How often each method of the analysis is wrong, and how often it finds what is there, on simulated studies.

    python -m benchmarks.calibration [--studies 2000]        about 20 minutes on one core
    python -m benchmarks.calibration --studies 200 --mixed 20 --resamples 1000        2 minutes

A study has two arms over the same questions. With every term normal and independent, an answer's score is

    .5 + question + effect of the arm + arm x question + seed + seed x question + sampling

with the standard deviations of `analysis.inference.Variances`, those of the study's own power simulation: question .25,
arm x question .08, seed .03, seed x question .05, one answer with its grade .22, and 30 answers to a question. None of
them has been measured on the models of the study yet. Intervals are of 95 %, tests two-sided at .05.
"""

import argparse
from dataclasses import replace

import numpy as np
from tabulate import tabulate

from analysis.estimates import ALPHA, Arm, response_level_p, two_way
from analysis.inference import Variances, detectable, hierarchical_bootstrap, permutation, power
from analysis.mixed import sensitivity
from analysis.power import EFFECTS

SEEDS, QUESTIONS = (3, 5, 8), (26, 115)


def study(
    rng: np.random.Generator, seeds: int, questions: int, effect: float, variances: Variances
) -> tuple[np.ndarray, np.ndarray]:
    """Two arms' scores, each of shape (seeds, questions, epochs); the first is higher by `effect`."""
    shared = rng.normal(0.5, variances.question, questions)
    arms = []
    for shift in (effect, 0.0):
        mean = shared + shift + rng.normal(0, variances.arm_question, questions)
        mean = mean + rng.normal(0, variances.seed, (seeds, 1))
        mean = mean + rng.normal(0, variances.seed_question, (seeds, questions))
        arms.append(mean[..., None] + rng.normal(0, variances.sampling, (seeds, questions, variances.epochs)))
    return arms[0], arms[1]


def calibrate(
    seeds: int, questions: int, studies: int, resamples: int, mixed: int, variances: Variances | None = None
) -> dict[str, float]:
    """Shares over studies without any effect: `*_rejects` of tests, `*_covers` of intervals; `mixed` studies get a
    mixed model too. `*_width` is the median width of an interval over that of the two-way interval."""
    variances, names = variances or Variances(), np.arange(questions)
    found: dict[str, list[float]] = {}
    for number in range(studies):
        of, against = study(np.random.default_rng([seeds, questions, number]), seeds, questions, 0.0, variances)
        means = of.mean(axis=2), against.mean(axis=2)
        deciding = two_way([Arm(each) for each in means], names)
        assert deciding.p is not None and deciding.low is not None and deciding.high is not None
        row: dict[str, float] = {"two_way_rejects": deciding.p < ALPHA}
        row["response_level_rejects"] = (response_level_p(of.ravel(), against.ravel()) or 1) < ALPHA
        row["permutation_rejects"] = (permutation(*means).p or 1) <= ALPHA
        boot = hierarchical_bootstrap(of, against, names, resamples, seed=number)
        intervals = {"bootstrap": (boot.low, boot.high), "percentile": (boot.percentile_low, boot.percentile_high)}
        if number < mixed:
            model = sensitivity(*means, names)
            intervals["mixed"] = model.low, model.high
        for name, (low, high) in intervals.items():
            row[f"{name}_fails"] = low is None or high is None
            if low is not None and high is not None:
                row[f"{name}_covers"] = low <= 0 <= high
                row[f"{name}_width"] = (high - low) / (deciding.high - deciding.low)
        for name, value in row.items():
            found.setdefault(name, []).append(value)
    return {name: float((np.median if "width" in name else np.mean)(values)) for name, values in found.items()}


def found_share(effect: float, seeds: int, questions: int, studies: int, variances: Variances | None = None) -> float:
    """Share of studies with a planted effect in which the deciding test rejects and has the right sign."""
    variances = variances or Variances()
    # the mean of normal answers is normal: drawing it spares drawing them
    means = replace(variances, sampling=variances.sampling / variances.epochs**0.5, epochs=1)
    hits = 0
    for number in range(studies):
        arms = study(np.random.default_rng([1, seeds, questions, number]), seeds, questions, effect, means)
        found = two_way([Arm(arm[..., 0]) for arm in arms], np.arange(questions))
        assert found.p is not None and found.estimate is not None
        hits += found.p < ALPHA and found.estimate > 0
    return hits / studies


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--studies", type=int, default=2000)
    parser.add_argument("--resamples", type=int, default=2000, help="of each bootstrap")
    parser.add_argument("--mixed", type=int, default=200, help="of the studies, how many get a mixed model")
    asked = parser.parse_args()
    designs = [(questions, seeds) for questions in QUESTIONS for seeds in SEEDS]

    error = 100 * (0.05 * 0.95 / asked.studies) ** 0.5
    print(f"No effect, {asked.studies} studies a design ({asked.mixed} for the mixed model). A share of 5 % has a")
    print(f"standard error of {error:.1f} points ({100 * (0.05 * 0.95 / max(asked.mixed, 1)) ** 0.5:.1f} for mixed).")
    print("Rejections, %: should be at most 5; permutation's are about these questions, where the arms do differ.")
    print("Coverage, %: should be at least 95. (Width against two-way's.)\n")
    rows = []
    for questions, seeds in designs:
        shares = calibrate(seeds, questions, asked.studies, asked.resamples, min(asked.mixed, asked.studies))
        rejects = [100 * shares[f"{name}_rejects"] for name in ("two_way", "permutation", "response_level")]
        covers = [
            f"{100 * shares[f'{name}_covers']:.1f} ({shares[f'{name}_width']:.2f})"
            if f"{name}_covers" in shares
            else ""
            for name in ("bootstrap", "percentile", "mixed")
        ]
        fails = [100 * shares.get(f"{name}_fails", 0.0) for name in ("bootstrap", "mixed")]
        rows.append([questions, seeds, *rejects, *covers, *fails])
    heads = ["questions", "seeds", "two-way", "permutation", "paper's", "studentised", "percentile", "mixed"]
    print(tabulate(rows, [*heads, "studentised: none, %", "mixed: none, %"], floatfmt=".1f"))

    print(f"\nPower, %: two-way over {asked.studies} studies / the formula's. Detectable: at 80 %, by the formula.\n")
    rows = []
    for questions, seeds in designs:
        row: list[object] = [questions, seeds]
        for effect in EFFECTS:
            share = found_share(effect, seeds, questions, asked.studies)
            row.append(f"{100 * share:.1f} / {100 * power(effect, Variances(), seeds, questions):.1f}")
        rows.append([*row, f"{detectable(Variances(), seeds, questions):.3f}"])
    print(tabulate(rows, ["questions", "seeds", *(f"+{effect}" for effect in EFFECTS), "detectable"]))


if __name__ == "__main__":
    main()
