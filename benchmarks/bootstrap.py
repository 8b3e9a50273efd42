"""The hierarchical bootstrap beside scipy's on the same statistic. `python -m benchmarks.bootstrap`

For one contrast: seeds resampled in each arm, scenarios crossed with them, answers within (analysis.inference). scipy
has no crossed or nested resampling, but `scipy.stats.bootstrap` resamples several samples independently: given the
numbers of the seeds of both arms and of the scenarios as its samples, it makes the same resamples, and the statistic
gathers the scores and draws the answers. Both ways to call it are timed, one resample at a time and vectorised in
batches, and the faster one counts. Without answers to redraw (one epoch) the gather is thirty times smaller, the best
case for scipy. The kit's time includes the studentised interval, which scipy has not; memory is the whole process's.
Then all contrasts of a study of 12 arms with the kit alone. Times are of one thread on the processor, in this run.
"""

import argparse
import os
import resource
import time
from collections.abc import Callable
from typing import TypeVar

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
from scipy import stats
from tabulate import tabulate

from analysis.inference import Variances, hierarchical_bootstrap
from benchmarks.calibration import study

ARMS, SEEDS, QUESTIONS, EPOCHS = 12, 10, 115, 30
CASES = [(3, 26, 30), (5, 26, 30), (10, 115, 30), (3, 26, 1), (10, 115, 1)]

T = TypeVar("T")


def scipys(of: np.ndarray, against: np.ndarray, resamples: int, vectorised: bool) -> tuple[float, float, float]:
    """Percentile interval and standard deviation of the resamples by scipy.stats.bootstrap."""
    rng = np.random.default_rng(0)
    epochs = of.shape[2]

    def mean(scores: np.ndarray, seeds: np.ndarray, scenarios: np.ndarray) -> np.ndarray:
        places = seeds[..., :, None], scenarios[..., None, :]
        if epochs == 1:
            return scores[..., 0][places].mean(axis=(-2, -1))
        shape = (*np.broadcast_shapes(places[0].shape, places[1].shape), epochs)
        return scores[places[0][..., None], places[1][..., None], rng.integers(epochs, size=shape)].mean(
            axis=(-3, -2, -1)
        )

    def statistic(a: np.ndarray, b: np.ndarray, q: np.ndarray, axis: int = -1) -> np.ndarray:
        return mean(of, a, q) - mean(against, b, q)

    numbers = (np.arange(len(of)), np.arange(len(against)), np.arange(of.shape[1]))
    options = {"vectorized": True, "batch": max(1, 2_000_000 // of.size)} if vectorised else {"vectorized": False}
    found = stats.bootstrap(numbers, statistic, n_resamples=resamples, method="percentile", rng=1, **options)
    return *found.confidence_interval, float(found.standard_error)


def timed(call: Callable[[], T], rounds: int = 1) -> tuple[float, T]:
    """The least time on the processor of some rounds, in seconds, and what the call gave."""
    times = []
    for _ in range(rounds):
        started = time.process_time()
        found = call()
        times.append(time.process_time() - started)
    return min(times), found


def compare(seeds: int, questions: int, epochs: int, resamples: int) -> dict[str, float]:
    of, against = study(np.random.default_rng(0), seeds, questions, 0.1, Variances(epochs=epochs))
    own, kit = timed(lambda: hierarchical_bootstrap(of, against, np.arange(questions), resamples), 3)
    one, scalar = timed(lambda: scipys(of, against, resamples, False))
    many, batched = timed(lambda: scipys(of, against, resamples, True))
    low, high, se = scalar if one < many else batched
    assert kit.se is not None and kit.percentile_low is not None and kit.percentile_high is not None
    return {
        "kit": own,
        "scipy": one,
        "scipy_vectorised": many,
        "ratio": min(one, many) / own,
        "se_ratio": kit.se / se,
        "low_difference": kit.percentile_low - low,
        "high_difference": kit.percentile_high - high,
    }


def peak_gib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--resamples", type=int, default=10_000)
    resamples = parser.parse_args().resamples

    # before scipy's, so that the peak is the kit's own
    rng = np.random.default_rng(1)
    arms = [arm for _ in range(ARMS // 2) for arm in study(rng, SEEDS, QUESTIONS, 0.1, Variances(epochs=EPOCHS))]
    pairs = [(one, other) for i, one in enumerate(arms) for other in arms[:i]]
    before, started = peak_gib(), time.process_time()
    for of, against in pairs:
        hierarchical_bootstrap(of, against, np.arange(QUESTIONS), resamples)
    print(f"{len(pairs)} contrasts of {ARMS} arms x {SEEDS} seeds x {QUESTIONS} questions x {EPOCHS} epochs, ", end="")
    print(f"{resamples} resamples: {time.process_time() - started:.1f} s, peak {peak_gib():.2f} GiB of memory ", end="")
    print(f"({before:.2f} GiB before the first).\n")

    rows = []
    for seeds, questions, epochs in CASES:
        found = compare(seeds, questions, epochs, resamples)
        rows.append([seeds, questions, epochs, *found.values()])
    heads = ["seeds", "questions", "epochs", "kit, s", "scipy, s", "vectorised, s", "ratio", "se / scipy's"]
    formats = (*("g",) * 3, ".3f", ".2f", ".2f", ".0f", ".3f", "+.4f", "+.4f")
    print(tabulate(rows, [*heads, "low - scipy's", "high - scipy's"], floatfmt=formats))


if __name__ == "__main__":
    main()
