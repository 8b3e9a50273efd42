"""One estimate from several labs' estimates of the same contrast."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from scipy import optimize, stats

from analysis.estimates import ALPHA
from analysis.reference import Reference
from analysis.rows import Results, Row, select
from analysis.rungs import rung_text

LEVEL = 0.95
POINTS = 200  # at which the sign of the likelihood's derivative is looked at
KEYS = ("name", "benchmark", "dose", "control_dose")
_OF_LAB = ("estimate", "se", "low", "high", "judge", "treatment_seeds", "control_seeds", "reason")


@dataclass(frozen=True)
class Pooled:
    """The estimates of k labs as one. All intervals are of 95 %.

    Attributes:
        estimate, se, low, high, p: The mean over labs like these (random effects), with Hartung and
            Knapp's standard error and Student's t with k - 1 degrees of freedom.
        common, common_se, common_low, common_high: The mean over these labs alone, if all of them
            estimate one and the same value (common effect).
        tau: Standard deviation of the labs' true values, by restricted maximum likelihood.
        q, q_p: Cochran's test that tau is 0.
        i2: Share of the variance between estimates that is not their standard errors', from 0 to 1.
        predicted: Where the true value of a further lab lies; None below three labs.
        agrees_too_well: Whether the labs differ so much less than their standard errors let one
            expect that the interval is narrower than the common effect's. Read that one then.
    """

    estimate: float
    se: float
    low: float
    high: float
    p: float
    common: float
    common_se: float
    common_low: float
    common_high: float
    tau: float
    q: float
    q_p: float
    i2: float
    predicted: tuple[float, float] | None
    agrees_too_well: bool


def pool(estimates: Sequence[float], errors: Sequence[float]) -> Pooled:
    """Pool the estimates of two or more labs, with their standard errors (above 0).

    The standard errors count as known. Equals `rma(yi, sei = errors, test = "knha")` of R's metafor
    (Viechtbauer, J. Stat. Softw. 36(3), 2010). The interval is that of Hartung and Knapp, Stat.
    Med. 20 (2001).
    """
    values, variances = np.asarray(estimates, float), np.asarray(errors, float) ** 2
    freedom = len(values) - 1
    tau2 = _tau2(values, variances)
    weights = 1 / (variances + tau2)
    estimate = float(np.average(values, weights=weights))
    spread = float(weights @ (values - estimate) ** 2) / freedom
    se = math.sqrt(spread / weights.sum())
    reach = float(stats.t.ppf((1 + LEVEL) / 2, freedom))
    fixed = 1 / variances
    common = float(np.average(values, weights=fixed))
    common_se = 1 / math.sqrt(fixed.sum())
    common_reach = float(stats.norm.ppf((1 + LEVEL) / 2)) * common_se
    q = float(fixed @ (values - common) ** 2)
    typical = freedom * fixed.sum() / (fixed.sum() ** 2 - fixed @ fixed)
    further = reach * math.sqrt(tau2 + se**2)
    return Pooled(
        estimate=estimate,
        se=se,
        low=estimate - reach * se,
        high=estimate + reach * se,
        # Estimates that are equal to the last digit have se 0.
        p=float(2 * stats.t.sf(abs(estimate) / se, freedom)) if se else float(estimate == 0),
        common=common,
        common_se=common_se,
        common_low=common - common_reach,
        common_high=common + common_reach,
        tau=math.sqrt(tau2),
        q=q,
        q_p=float(stats.chi2.sf(q, freedom)),
        i2=float(tau2 / (tau2 + typical)),
        predicted=(estimate - further, estimate + further) if freedom > 1 else None,
        agrees_too_well=reach * se < common_reach,
    )


def _tau2(values: np.ndarray, variances: np.ndarray) -> float:
    """The variance between labs by restricted maximum likelihood.

    Where standard errors differ much, the likelihood can have a maximum at 0 and a higher one
    above it, so that the roots of its derivative are compared.
    """

    def parts(tau2: np.ndarray | float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Weights (labs, ...), their sum, and the squares of the labs' distances from the mean."""
        weights = 1 / np.add.outer(variances, tau2)
        total = weights.sum(axis=0)
        mean = (weights.T @ values) / total
        return weights, total, np.square(np.subtract.outer(values, mean))

    def slope(tau2: np.ndarray | float) -> np.ndarray:
        weights, total, squares = parts(tau2)
        rise = (weights**2 * squares).sum(axis=0) - total + (weights**2).sum(axis=0) / total
        return np.asarray(rise)

    def likelihood(tau2: float) -> float:
        weights, total, squares = parts(tau2)
        return float(np.log(weights).sum() - np.log(total) - (weights * squares).sum())

    # All variance between the values and more, where it falls for certain.
    most = float(np.var(values, ddof=1)) + float(variances.max())
    while slope(most) > 0:
        most *= 2
    tried = np.append(0.0, np.geomspace(float(variances.min()) / 1000, 2 * most, POINTS))
    rises = slope(tried) > 0
    tops = [
        float(optimize.brentq(slope, tried[i], tried[i + 1], xtol=1e-15, rtol=1e-13))
        for i in np.flatnonzero(rises[:-1] & ~rises[1:])
    ]
    return max([0.0, *tops], key=likelihood)


def pooled_rows(labs: Mapping[str, Results]) -> list[Row]:
    """One row a contrast, benchmark and dose: the estimate of each lab, and all of them as one.

    Contrasts are the same where their names, benchmarks and doses are. A row that fewer than two
    labs estimate with a standard error has `pooled` None. `rung` of a lab says what of its
    estimate is not its own (analysis.rungs). Scores are shares: .1 is ten points.

    Args:
        labs: Name of the lab -> its results.json.
    """
    by_key: dict[tuple[Any, ...], dict[str, Row]] = {}
    for lab, results in labs.items():
        for row in results["contrasts"]:
            by_key.setdefault(tuple(row[name] for name in KEYS), {})[lab] = row
    rows = []
    for key, of_labs in by_key.items():
        used = {lab: row for lab, row in of_labs.items() if row["se"]}
        pooled = None
        if len(used) > 1:
            estimates, errors = zip(
                *((row["estimate"], row["se"]) for row in used.values()), strict=True
            )
            pooled = asdict(pool(estimates, errors))
        parts = [
            {
                "lab": lab,
                **select(row, _OF_LAB),
                **_interval(row),
                "rung": _rung(labs[lab], row),
            }
            for lab, row in of_labs.items()
        ]
        rows.append({**dict(zip(KEYS, key, strict=True)), "labs": parts, "pooled": pooled})
    return rows


def _rung(results: Results, contrast: Row) -> str | None:
    texts = [rung_text(results, contrast[side]) for side in ("treatment", "control")]
    return ", ".join(dict.fromkeys(text for text in texts if text)) or None


def _interval(row: Row) -> Row:
    """Ends of the 95 % interval of a lab that is judged at several looks: theirs are wider."""
    reference = Reference.of_row(row)
    if reference is None or row["level"] >= ALPHA:
        return {}
    half = reference.quantile(ALPHA) * row["se"]
    return {"low": row["estimate"] - half, "high": row["estimate"] + half}
