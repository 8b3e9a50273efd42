"""The distribution that an estimate is compared with in units of its standard error."""

from dataclasses import dataclass

import numpy as np
from scipy import optimize, stats

from analysis.rows import Row

SMALLEST = 1e-300  # p below this is not told apart from it


@dataclass(frozen=True)
class Reference:
    """A weighted mean of quantiles of Student's t: `terms` of (weight, degrees of freedom).

    One term is Student's t. Two are the approximation of Cochran and Cox ("Experimental Designs",
    1957, 4.14) for a variance that is the sum of two independent parts: each part's quantile
    counts by its share of the variance.
    """

    terms: tuple[tuple[float, float], ...]

    @classmethod
    def of_row(cls, row: Row) -> "Reference | None":
        """That of a row of contrasts (analysis.contrasts); None where it has no test."""
        terms = row["reference"]
        return None if terms is None else cls(tuple((weight, df) for weight, df in terms))

    @classmethod
    def of_parts(cls, *parts: tuple[float, float]) -> "Reference":
        """From parts of a variance, (part, degrees of freedom); parts of 0 don't count."""
        total = sum(part for part, _ in parts)
        return cls(tuple((part / total, df) for part, df in parts if part > 0))

    def quantile(self, level: float) -> float:
        """The value that |t| exceeds with probability `level`."""
        return float(sum(w * stats.t.isf(level / 2, df) for w, df in self.terms))

    def p(self, t: float) -> float:
        """Two-sided p: the level whose quantile is |t|."""
        ps = [max(float(2 * stats.t.sf(abs(t), df)), SMALLEST) for _, df in self.terms]
        low, high = min(ps), max(ps)
        if high - low <= 1e-12 * high:
            return low

        def excess(log_p: float) -> float:
            return self.quantile(float(np.exp(log_p))) - abs(t)

        log_low, log_high = np.log([low, high])
        # Rounding may move an end over the root that it is.
        if excess(log_low) <= 0:
            return low
        if excess(log_high) >= 0:
            return high
        return float(np.exp(optimize.brentq(excess, log_low, log_high)))

    def sf(self, t: float) -> float:
        """One-sided p: the probability of a value above t."""
        half = self.p(t) / 2
        return half if t >= 0 else 1 - half
