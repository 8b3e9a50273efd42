"""The hierarchical bootstrap beside scipy's on the same statistic.

    python -m benchmarks.bootstrap

For one contrast: seeds resampled in each arm, scenarios crossed with them, answers within
(analysis.inference). scipy has no crossed or nested resampling, but `scipy.stats.bootstrap`
resamples several samples independently: given the numbers of the seeds of both arms and of the
scenarios as its samples, it makes the same resamples, and the statistic gathers the scores and
draws the answers. Both ways to call it are timed, one resample at a time and vectorised in batches,
and the faster one counts. Without answers to redraw (one epoch) the gather is thirty times smaller,
the best case for scipy. The kit's time includes the studentised interval, which scipy does not
compute; memory is the whole process's. The kit alone then computes all contrasts of a study of 12
arms. Times are of one thread on the processor, in this run.
"""

import argparse
import os
import resource
import time
from collections.abc import Callable
from dataclasses import astuple, dataclass
from typing import Any, TypeVar

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
from scipy import stats
from tabulate import tabulate

from analysis.inference import hierarchical_bootstrap
from analysis.planned_test import Variances
from benchmarks.calibration import study

ARMS = 12
SEEDS = 10
QUESTIONS = 115
EPOCHS = 30
CASES = [  # seeds, questions, epochs
    (3, 26, 30),
    (5, 26, 30),
    (10, 115, 30),
    (3, 26, 1),
    (10, 115, 1),
]

T = TypeVar("T")


@dataclass(frozen=True)
class Comparison:
    """Seconds of each method, and how the kit's numbers relate to scipy's."""

    kit: float
    scipy: float
    scipy_vectorised: float
    ratio: float  # scipy's time over the kit's
    se_ratio: float  # the kit's standard error over scipy's
    low_difference: float  # of the percentile intervals, kit minus scipy
    high_difference: float


def scipy_bootstrap(
    treatment: np.ndarray, control: np.ndarray, resamples: int, vectorised: bool
) -> tuple[float, float, float]:
    """Percentile interval and standard deviation of the resamples by scipy.stats.bootstrap.

    `treatment` and `control` have shape (seeds, questions, epochs).
    """
    rng = np.random.default_rng(0)
    epochs = treatment.shape[2]

    def mean(scores: np.ndarray, seeds: np.ndarray, scenarios: np.ndarray) -> np.ndarray:
        seed = seeds[..., :, None]
        scenario = scenarios[..., None, :]
        if epochs == 1:
            return scores[..., 0][seed, scenario].mean(axis=(-2, -1))
        shape = (*np.broadcast_shapes(seed.shape, scenario.shape), epochs)
        epoch = rng.integers(epochs, size=shape)
        return scores[seed[..., None], scenario[..., None], epoch].mean(axis=(-3, -2, -1))

    def statistic(
        treatment_seeds: np.ndarray,
        control_seeds: np.ndarray,
        scenarios: np.ndarray,
        axis: int = -1,
    ) -> np.ndarray:
        return mean(treatment, treatment_seeds, scenarios) - mean(control, control_seeds, scenarios)

    samples = (
        np.arange(len(treatment)),
        np.arange(len(control)),
        np.arange(treatment.shape[1]),
    )
    options: dict[str, Any] = {"vectorized": vectorised}
    if vectorised:
        options["batch"] = max(1, 2_000_000 // treatment.size)
    result = stats.bootstrap(
        samples, statistic, n_resamples=resamples, method="percentile", rng=1, **options
    )
    return *result.confidence_interval, float(result.standard_error)


def timed(call: Callable[[], T], rounds: int = 1) -> tuple[float, T]:
    """The least processor time of some rounds, in seconds, and the last result."""
    times = []
    for _ in range(rounds):
        start = time.process_time()
        result = call()
        times.append(time.process_time() - start)
    return min(times), result


def compare(seeds: int, questions: int, epochs: int, resamples: int) -> Comparison:
    """Time both bootstraps on one simulated contrast."""
    rng = np.random.default_rng(0)
    treatment, control = study(rng, seeds, questions, 0.1, Variances(epochs=epochs))
    scenarios = np.arange(questions)
    kit_time, kit = timed(
        lambda: hierarchical_bootstrap(treatment, control, scenarios, resamples), 3
    )
    scalar_time, scalar = timed(lambda: scipy_bootstrap(treatment, control, resamples, False))
    batched_time, batched = timed(lambda: scipy_bootstrap(treatment, control, resamples, True))
    low, high, se = scalar if scalar_time < batched_time else batched
    assert kit.se is not None
    assert kit.percentile_low is not None
    assert kit.percentile_high is not None
    return Comparison(
        kit=kit_time,
        scipy=scalar_time,
        scipy_vectorised=batched_time,
        ratio=min(scalar_time, batched_time) / kit_time,
        se_ratio=kit.se / se,
        low_difference=kit.percentile_low - low,
        high_difference=kit.percentile_high - high,
    )


def peak_gib() -> float:
    """The largest memory of the process so far, in GiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def time_large_study(resamples: int) -> None:
    """All contrasts of a study of ARMS arms with the kit; prints a line."""
    rng = np.random.default_rng(1)
    variances = Variances(epochs=EPOCHS)
    arms = [arm for _ in range(ARMS // 2) for arm in study(rng, SEEDS, QUESTIONS, 0.1, variances)]
    pairs = [(arm, earlier) for i, arm in enumerate(arms) for earlier in arms[:i]]
    memory_before = peak_gib()
    start = time.process_time()
    for treatment, control in pairs:
        hierarchical_bootstrap(treatment, control, np.arange(QUESTIONS), resamples)
    seconds = time.process_time() - start
    size = f"{ARMS} arms x {SEEDS} seeds x {QUESTIONS} questions x {EPOCHS} epochs"
    print(
        f"{len(pairs)} contrasts of {size}, {resamples} resamples: {seconds:.1f} s, "
        f"peak {peak_gib():.2f} GiB of memory ({memory_before:.2f} GiB before the first).\n"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--resamples", type=int, default=10_000)
    resamples = parser.parse_args().resamples

    # before scipy's, so that the peak is the kit's own
    time_large_study(resamples)

    rows = [[*case, *astuple(compare(*case, resamples))] for case in CASES]
    headers = [
        "seeds",
        "questions",
        "epochs",
        "kit, s",
        "scipy, s",
        "vectorised, s",
        "ratio",
        "se / scipy's",
        "low - scipy's",
        "high - scipy's",
    ]
    formats = (*("g",) * 3, ".3f", ".2f", ".2f", ".0f", ".3f", "+.4f", "+.4f")
    print(tabulate(rows, headers, floatfmt=formats))


if __name__ == "__main__":
    main()
