"""How often the intervals of `study pool` hold the true value, by simulation.

    python -m benchmarks.pooling [--studies 4000]
        under a minute on one core

A lab's estimate varies by its own training seeds and questions (standard deviation 5 points) and,
where labs differ, by `tau` between labs. Its standard error is estimated from few seeds: a
chi-squared variance with `df` degrees of freedom, as that of a contrast with three or five seeds a
side. `pool` takes it as known.
"""

import argparse
import math

import numpy as np
from tabulate import tabulate

from analysis.pooling import pool

ERROR = 0.05
TRUE = 0.1


def coverage(
    rng: np.random.Generator, labs: int, tau: float, df: float, studies: int
) -> tuple[float, float, float]:
    """Shares of studies whose intervals hold the true value: HK, common effect, a further lab."""
    hits = np.zeros(3)
    for _ in range(studies):
        estimates = rng.normal(TRUE, math.hypot(ERROR, tau), labs)
        errors = ERROR * (np.sqrt(rng.chisquare(df, labs) / df) if df < math.inf else np.ones(labs))
        pooled = pool(estimates.tolist(), errors.tolist())
        hits += (
            pooled.low <= TRUE <= pooled.high,
            pooled.common_low <= TRUE <= pooled.common_high,
            0,
        )
        if pooled.predicted:
            low, high = pooled.predicted
            hits[2] += low <= rng.normal(TRUE, tau) <= high
    hk, common, further = (float(share) for share in hits / studies)
    return hk, common, further


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--studies", type=int, default=4000)
    studies = parser.parse_args().studies
    rng = np.random.default_rng(0)
    rows = []
    for df in (4, 8, math.inf):
        for tau in (0.0, 0.05, 0.1):
            for labs in (2, 3, 5):
                shares = coverage(rng, labs, tau, df, studies)
                cells = [f"{share:.1%}" for share in shares]
                rows.append(
                    [df, f"{100 * tau:.0f}", labs, *cells[:2], cells[2] if labs > 2 else ""]
                )
    headers = [
        "df of a lab",
        "tau, points",
        "labs",
        "labs like these",
        "these alone",
        "a further lab",
    ]
    print(tabulate(rows, headers, disable_numparse=True))
    error = math.sqrt(0.95 * 0.05 / studies)
    print(f"\nShares of {studies} studies; 95 % intervals. Standard error at 95 %: {error:.1%}.")


if __name__ == "__main__":
    main()
