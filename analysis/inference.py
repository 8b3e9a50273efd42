"""Methods beside the deciding test.

Bootstrap, permutation, equivalence and false discovery rate. Verdicts rest on
analysis.estimates.two_way alone.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from analysis.estimates import ALPHA, Arm, adjusted, two_way
from analysis.reference import Reference
from core.errors import UserError

BLOCK = 500  # resamples at a time: what a block needs fits a processor's cache
FEW = "too many resamples draw one seed and one scenario only: there is no studentised interval"
ONE_SEED = "one seed per arm: how far another training seed would differ is unknown"


@dataclass(frozen=True)
class Bootstrap:
    """Treatment minus control.

    `low`, `high`: studentised interval. `percentile_low`, `percentile_high`: plain one. `se`:
    standard deviation over resamples, of which `resamples` had a question that both arms were
    graded on. A number that the data can't give is None, and `reason` says why.
    """

    estimate: float | None = None
    se: float | None = None
    low: float | None = None
    high: float | None = None
    percentile_low: float | None = None
    percentile_high: float | None = None
    resamples: int = 0
    reason: str | None = None


def hierarchical_bootstrap(
    treatment: np.ndarray,
    control: np.ndarray,
    scenarios: np.ndarray,
    resamples: int = 10_000,
    seed: int = 0,
    fixed: tuple[bool, bool] = (False, False),
) -> Bootstrap:
    """The difference between two arms at one dose, with seeds, scenarios and answers resampled.

    Args:
        treatment, control: shape (seeds, questions, epochs), NaN where an answer has no grade;
            numbers of seeds and epochs may differ.
        scenarios: shape (questions,).
        resamples: their number.
        seed: of the random numbers; the same arguments give the same result.
        fixed: marks an arm without a training seed, which keeps its one checkpoint.

    Each resample draws whole seeds with replacement in each arm, scenarios with all their
    questions crossed with seeds (the same draw for both arms, so that questions stay paired), and
    answers within each drawn pair of seed and question: the pigeonhole bootstrap (Owen, Ann. Appl.
    Stat. 1, 2007) with a third level. Draws are counts, and a difference is a quotient of their
    products with question means; nothing is copied. The contribution of redrawn answers is a mean
    of hundreds of independent draws: it comes from the normal distribution with their exact mean
    and variance. The studentised interval divides each deviation by the resample's own standard
    error (root of seed part plus question part, as in analysis.estimates.two_way) and multiplies
    by that of the data.

    No bootstrap can do much with 3 seeds: an arm has 10 different draws then, and one in nine is
    the same seed three times. The variance over seeds comes out a third too small (of n seeds:
    1/n). The plain percentile interval therefore covers 88 to 93 % of simulated true values and is
    given for comparison. The studentised one covers 95 % (see benchmarks.calibration), yet its
    ends rest on few draws. Neither knows more about new seeds than 3 numbers say.
    """
    graded = np.logical_and(*(np.isfinite(arm).any(axis=(0, 2)) for arm in (treatment, control)))
    sides = [
        _Side(arm[:, graded], is_fixed)
        for arm, is_fixed in zip((treatment, control), fixed, strict=True)
    ]
    means = [Arm(np.where(side.graded, side.mean, np.nan), side.fixed) for side in sides]
    direct = two_way(means, scenarios[graded])
    if direct.reason or direct.estimate is None:
        return Bootstrap(direct.estimate, reason=direct.reason)
    cluster = np.unique(scenarios[graded], return_inverse=True)[1]
    once = [np.ones((1, side.seeds)) for side in sides]
    _, se, _ = _differences(sides, once, np.ones((1, direct.clusters)), cluster)

    rng = np.random.default_rng(seed)
    differences = []
    deviations = []  # studentised
    for start in range(0, resamples, BLOCK):
        n = min(BLOCK, resamples - start)
        seed_counts = [
            np.ones((n, side.seeds)) if side.fixed else _counts(rng, n, side.seeds)
            for side in sides
        ]
        scenario_counts = _counts(rng, n, direct.clusters)
        difference, error, noise = _differences(sides, seed_counts, scenario_counts, cluster)
        difference += np.sqrt(noise) * rng.standard_normal(n)
        differences.append(difference)
        with np.errstate(divide="ignore", invalid="ignore"):
            # where all drawn seeds are one, and all scenarios, the error is zero but for rounding
            deviations.append((difference - direct.estimate) / np.where(error > 1e-12, error, 0))
    t = np.concatenate(deviations)
    defined = ~np.isnan(t)
    drawn = np.concatenate(differences)[defined]
    tails = [ALPHA / 2, 1 - ALPHA / 2]
    percentile_low, percentile_high = np.quantile(drawn, tails).tolist()
    # "inverted_cdf" takes no mean of two neighbours, as one may be infinite
    quantiles = np.quantile(t[defined], tails, method="inverted_cdf") * se[0]
    upper, lower = quantiles.tolist()
    low, high = (
        direct.estimate - distance if math.isfinite(distance) else None
        for distance in (lower, upper)
    )
    return Bootstrap(
        estimate=direct.estimate,
        se=float(drawn.std(ddof=1)),
        low=low,
        high=high,
        percentile_low=percentile_low,
        percentile_high=percentile_high,
        resamples=len(drawn),
        reason=FEW if None in (low, high) else None,
    )


class _Side:
    """One arm's question means and the variances that redrawn answers give them.

    Both are 0 where nothing was graded; shape (seeds, questions).
    """

    def __init__(self, scores: np.ndarray, fixed: bool) -> None:
        scores = scores[np.isfinite(scores).any(axis=(1, 2))]
        given = np.isfinite(scores)
        n = np.maximum(given.sum(axis=2), 1)
        self.mean = np.where(given, scores, 0).sum(axis=2) / n
        squares = np.where(given, scores - self.mean[..., None], 0) ** 2
        self.noise = squares.sum(axis=2) / n**2
        self.graded = given.any(axis=2).astype(float)
        self.seeds = len(scores)
        self.fixed = fixed


def _differences(
    sides: Sequence[_Side],
    seed_counts: Sequence[np.ndarray],
    scenario_counts: np.ndarray,
    cluster: np.ndarray,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Each resample's difference, its standard error and the variance that redrawn answers add.

    `seed_counts` (of each side, (resamples, seeds)) and `scenario_counts` (resamples, scenarios)
    count how often each was drawn; `cluster` is the scenario of each question. Returns three
    arrays of shape (resamples,).
    """
    graded = [counts @ side.graded for side, counts in zip(sides, seed_counts, strict=True)]
    weight = scenario_counts[:, cluster] * np.logical_and(graded[0] > 0, graded[1] > 0)
    total = weight.sum(axis=1)
    total[total == 0] = np.nan
    paired = np.zeros_like(weight)
    noise = np.zeros(len(weight))
    seed_part = np.zeros(len(weight))
    for sign, side, counts, n_graded in zip((1, -1), sides, seed_counts, graded, strict=True):
        n = np.maximum(n_graded, 1)
        of_question = counts @ side.mean / n
        paired += sign * of_question
        noise += (weight * (counts @ side.noise) / n**2).sum(axis=1) / total**2
        if side.fixed:
            continue
        covered = np.maximum(weight @ side.graded.T, 1e-300)
        of_seed = (weight @ side.mean.T - (weight * of_question) @ side.graded.T) / covered
        of_seed -= (counts * of_seed).sum(axis=1, keepdims=True) / side.seeds
        seed_part += (counts * of_seed**2).sum(axis=1) / (side.seeds * (side.seeds - 1))
    difference = (weight * paired).sum(axis=1) / total
    clusters = scenario_counts.shape[1]
    member = (cluster[:, None] == np.arange(clusters)).astype(float)
    sizes = (weight > 0) @ member
    sums = (paired * (weight > 0)) @ member
    rest = np.maximum(total[:, None] - sizes, 1)  # of which the jackknife takes the mean
    without = ((weight * paired).sum(axis=1)[:, None] - sums) / rest
    squares = (scenario_counts * (without - difference[:, None]) ** 2).sum(axis=1)
    question_part = (clusters - 1) / clusters * squares
    return difference, np.sqrt(seed_part + question_part), noise


def _counts(rng: np.random.Generator, n: int, size: int) -> np.ndarray:
    """How often each of `size` things comes in `size` draws with replacement; shape (n, size)."""
    drawn = rng.integers(size, size=(n, size)) + size * np.arange(n)[:, None]
    return np.bincount(drawn.ravel(), minlength=n * size).reshape(n, size).astype(float)


@dataclass(frozen=True)
class Permutation:
    """Result of a permutation test.

    `smallest_p` is the least p that so many seeds allow: above .05, the test can't reject,
    whatever the scores.
    """

    p: float | None = None
    smallest_p: float | None = None
    reason: str | None = None


def permutation(
    treatment: np.ndarray, control: np.ndarray, limit: int = 20_000, seed: int = 0
) -> Permutation:
    """Two-sided permutation test, by scipy, of the difference between means over training seeds.

    Args:
        treatment, control: one mean per seed, shape (seeds,), or question means, shape (seeds,
            questions). The latter become means over the questions graded in both arms, with the
            question's mean over both arms plus the seed's own deviation in place of a missing one.
        limit: the most assignments to try; random ones are drawn where there are more.
        seed: of the random assignments.

    All assignments of seeds to arms are tried; p is twice the smaller tail. The test is about new
    seeds on these questions, not about new questions.
    """
    arms = [arm.reshape(len(arm), -1) for arm in (treatment, control)]
    graded = np.logical_and(*(np.isfinite(arm).any(axis=0) for arm in arms))
    if not graded.any():
        return Permutation(reason="no question was graded in both arms")
    arms = [arm[:, graded][np.isfinite(arm[:, graded]).any(axis=1)] for arm in arms]
    # pooled over the arms, so that under no effect the filled values are exchangeable too
    of_question = np.nanmean(np.concatenate(arms), axis=0)
    first, second = (np.nanmean(arm - of_question, axis=1) for arm in arms)
    if min(len(first), len(second)) < 2:
        return Permutation(reason=ONE_SEED)
    if np.ptp(np.concatenate([first, second])) < 1e-12:
        return Permutation(reason="all seeds have the same score: there is nothing to test")
    # the sum of one arm orders assignments as the difference does, as the total is the same
    result = stats.permutation_test(
        (first, second), lambda x, _, axis: x.sum(axis), n_resamples=limit, rng=seed
    )
    assignments = math.comb(len(first) + len(second), len(first))
    tried = assignments if assignments <= limit else limit + 1
    return Permutation(float(result.pvalue), min(1.0, 2 / tried))


@dataclass(frozen=True)
class Equivalence:
    """Result of an equivalence test.

    `low`, `high`: 90 % interval. `smallest_margin`: the least margin within which the arms would
    be equivalent.
    """

    p: float | None = None
    equivalent: bool | None = None
    low: float | None = None
    high: float | None = None
    smallest_margin: float | None = None
    reason: str | None = None


def equivalence(
    estimate: float | None, se: float | None, reference: Reference | None, margin: float
) -> Equivalence:
    """Two one-sided tests that |difference| < `margin`.

    `estimate`, `se` and `reference` are those of two_way; `margin` is in score units, declared
    before the scores were seen. The arms are equivalent at .05 where the 90 % interval lies within
    the margin. Schuirmann, J. Pharmacokinet. Biopharm. 15 (1987). Raises UserError for a margin
    <= 0.
    """
    if not margin > 0:
        raise UserError(
            what=f"the margin of equivalence is {margin}",
            fix="declare a difference in score above 0",
        )
    if estimate is None or se is None or reference is None or not se > 0:
        return Equivalence(
            reason="there is no standard error, so nothing can be said about equivalence"
        )
    p = reference.sf((margin - abs(estimate)) / se)
    half = reference.quantile(2 * ALPHA) * se
    return Equivalence(p, p <= ALPHA, estimate - half, estimate + half, abs(estimate) + half)


def benjamini_hochberg(ps: Sequence[float | None]) -> list[float | None]:
    """p-values adjusted for the false discovery rate, for dimensions.

    Benjamini and Hochberg, J. R. Stat. Soc. B 57 (1995). A test that could not be made (None)
    stays None and counts as p = 1, as it does in the families of contrasts.
    """
    return adjusted(ps, "fdr_bh")
