"""Second opinions on a contrast, false discovery rate, power; verdicts rest on analysis.estimates.two_way alone."""

import math
from dataclasses import dataclass

import numpy as np
from scipy import optimize, stats

from analysis.estimates import ALPHA, Arm, adjusted, two_way
from core.errors import UserError

BLOCK = 500  # resamples at a time: what a block needs fits a processor's cache
Pair = tuple[bool, bool]
NO = (False, False)
FEW = "too many resamples draw one seed and one scenario only: there is no studentised interval"


@dataclass(frozen=True)
class Bootstrap:
    """`of` minus `against`; None where the data can't say, and `reason` tells why.

    `low`, `high`: studentised interval. `percentile_low`, `percentile_high`: plain one. `se`: standard deviation over
    resamples, of which `resamples` had a question that both arms were graded on.
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
    of: np.ndarray, against: np.ndarray, scenarios: np.ndarray, resamples: int = 10_000, seed: int = 0, fixed: Pair = NO
) -> Bootstrap:
    """The difference between two arms at one dose, with seeds, scenarios and answers resampled.

    `of`, `against`: shape (seeds, questions, epochs), NaN where an answer has no grade; numbers of seeds and epochs
    may differ. `scenarios`: shape (questions,). `fixed` marks an arm without a training seed, which keeps its one
    checkpoint. The same arguments give the same numbers.

    Each resample draws whole seeds with replacement in each arm, scenarios with all their questions crossed with
    seeds (the same draw for both arms, so questions stay paired), and answers within each drawn pair of seed and
    question: the pigeonhole bootstrap (Owen, Ann. Appl. Stat. 1, 2007) with a third level. Draws are counts, and a
    difference is a quotient of their products with question means; nothing is copied. What redrawing answers adds is
    a mean of hundreds of independent draws: it comes from the normal distribution with their exact mean and variance.
    The studentised interval divides each deviation by the resample's own standard error (root of seed part plus
    question part, as in analysis.estimates.two_way) and multiplies by that of the data.

    What no bootstrap can do with 3 seeds: an arm has 10 different draws then, and one in nine is the same seed
    thrice. The variance over seeds comes out a third too small (of n seeds: 1/n), so the plain percentile interval
    covers 88 to 93 % of simulated true values and is there to be compared, the studentised one 95 (see
    benchmarks.calibration), yet its ends rest on few draws. Neither knows more about new seeds than 3 numbers say.
    """
    kept = np.logical_and(*(np.isfinite(arm).any(axis=(0, 2)) for arm in (of, against)))
    sides = [_Side(arm[:, kept], alone) for arm, alone in zip((of, against), fixed, strict=True)]
    whole = two_way([Arm(np.where(side.graded, side.mean, np.nan), side.fixed) for side in sides], scenarios[kept])
    if whole.reason or whole.estimate is None:
        return Bootstrap(whole.estimate, reason=whole.reason)
    cluster = np.unique(scenarios[kept], return_inverse=True)[1]
    once = [np.ones((1, side.seeds)) for side in sides]
    _, se, _ = _differences(sides, once, np.ones((1, whole.clusters)), cluster)
    rng, found, t = np.random.default_rng(seed), [], []
    for start in range(0, resamples, BLOCK):
        n = min(BLOCK, resamples - start)
        taken = [np.ones((n, side.seeds)) if side.fixed else _counts(rng, n, side.seeds) for side in sides]
        difference, own, noise = _differences(sides, taken, _counts(rng, n, whole.clusters), cluster)
        difference += np.sqrt(noise) * rng.standard_normal(n)
        found.append(difference)
        with np.errstate(divide="ignore", invalid="ignore"):
            # where all drawn seeds are one, and all scenarios, the error is zero but for rounding
            t.append((difference - whole.estimate) / np.where(own > 1e-12, own, 0))
    ts = np.concatenate(t)
    differences, ts, tails = np.concatenate(found)[~np.isnan(ts)], ts[~np.isnan(ts)], [ALPHA / 2, 1 - ALPHA / 2]
    plain_low, plain_high = np.quantile(differences, tails).tolist()
    # no mean of two neighbours here: one may be infinite
    upper, lower = (np.quantile(ts, tails, method="inverted_cdf") * se[0]).tolist()
    low, high = (whole.estimate - each if math.isfinite(each) else None for each in (lower, upper))
    spread, reason = float(differences.std(ddof=1)), FEW if None in (low, high) else None
    return Bootstrap(whole.estimate, spread, low, high, plain_low, plain_high, len(differences), reason)


class _Side:
    """One arm's question means and the variances that redrawn answers give them; 0 where nothing was graded."""

    def __init__(self, scores: np.ndarray, fixed: bool) -> None:
        scores = scores[np.isfinite(scores).any(axis=(1, 2))]
        given = np.isfinite(scores)
        n = np.maximum(given.sum(axis=2), 1)
        self.mean = np.where(given, scores, 0).sum(axis=2) / n
        self.noise = (np.where(given, scores - self.mean[..., None], 0) ** 2).sum(axis=2) / n**2
        self.graded = given.any(axis=2).astype(float)
        self.seeds, self.fixed = len(scores), fixed


def _differences(
    sides: list[_Side], taken: list[np.ndarray], drawn: np.ndarray, cluster: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Per resample: the difference, its standard error and the variance that redrawn answers add; shape (resamples,).

    `taken` and `drawn` count how often each seed (resamples, seeds) and scenario (resamples, scenarios) was drawn.
    """
    graded = [counts @ side.graded for side, counts in zip(sides, taken, strict=True)]
    weight = drawn[:, cluster] * np.logical_and(graded[0] > 0, graded[1] > 0)
    total = weight.sum(axis=1)
    total[total == 0] = np.nan
    paired, noise, seed_part = np.zeros_like(weight), np.zeros(len(weight)), np.zeros(len(weight))
    for sign, side, counts, n in zip((1, -1), sides, taken, graded, strict=True):
        n = np.maximum(n, 1)
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
    clusters = drawn.shape[1]
    member = (cluster[:, None] == np.arange(clusters)).astype(float)
    summed = ((paired - difference[:, None]) * (weight > 0)) @ member
    question_part = clusters / (clusters - 1) * (drawn * summed**2).sum(axis=1) / total**2
    return difference, np.sqrt(seed_part + question_part), noise


def _counts(rng: np.random.Generator, n: int, size: int) -> np.ndarray:
    """How often each of `size` things comes in `size` draws with replacement; shape (n, size), n times over."""
    drawn = rng.integers(size, size=(n, size)) + size * np.arange(n)[:, None]
    return np.bincount(drawn.ravel(), minlength=n * size).reshape(n, size).astype(float)


@dataclass(frozen=True)
class Permutation:
    """`smallest_p` is the least p that so many seeds allow: above .05, the test can't reject, whatever the scores."""

    p: float | None = None
    smallest_p: float | None = None
    reason: str | None = None


def permutation(of: np.ndarray, against: np.ndarray, limit: int = 20_000, seed: int = 0) -> Permutation:
    """Two-sided permutation test, by scipy, of the difference between two arms' means over training seeds.

    `of`, `against`: one mean per seed, shape (seeds,), or question means, shape (seeds, questions), which become
    means over the questions graded in both arms, for a missing one the question's mean over both arms plus the seed's
    own deviation. All assignments of seeds to arms, or `limit` random ones where there are more; p is twice the
    smaller tail. It speaks about new seeds on these questions, not about new questions.
    """
    arms = [arm.reshape(len(arm), -1) for arm in (of, against)]
    both = np.logical_and(*(np.isfinite(arm).any(axis=0) for arm in arms))
    if not both.any():
        return Permutation(reason="no question was graded in both arms")
    arms = [arm[:, both][np.isfinite(arm[:, both]).any(axis=1)] for arm in arms]
    # pooled over the arms, so that under no effect the filled values are exchangeable too
    of_question = np.nanmean(np.concatenate(arms), axis=0)
    first, second = (np.nanmean(arm - of_question, axis=1) for arm in arms)
    if min(len(first), len(second)) < 2:
        return Permutation(reason="one seed per arm: how far another training seed would differ is unknown")
    if np.ptp(np.concatenate([first, second])) < 1e-12:
        return Permutation(reason="all seeds have the same score: there is nothing to test")
    # the sum of one arm orders assignments as the difference does, for what is not in one arm is in the other
    found = stats.permutation_test((first, second), lambda x, _, axis: x.sum(axis), n_resamples=limit, rng=seed)
    assignments = math.comb(len(first) + len(second), len(first))
    return Permutation(float(found.pvalue), min(1.0, 2 / (assignments if assignments <= limit else limit + 1)))


@dataclass(frozen=True)
class Equivalence:
    """`low`, `high`: 90 % interval. `smallest_margin`: the least margin within which the arms would be equivalent."""

    p: float | None = None
    equivalent: bool | None = None
    low: float | None = None
    high: float | None = None
    smallest_margin: float | None = None
    reason: str | None = None


def equivalence(estimate: float | None, se: float | None, df: float | None, margin: float) -> Equivalence:
    """Two one-sided t-tests (Schuirmann, J. Pharmacokinet. Biopharm. 15, 1987) that |difference| < `margin`.

    `estimate`, `se`, `df` as two_way gives them; `margin` in score units, declared before the scores were seen. The
    arms are equivalent at .05 where the 90 % interval lies within the margin. Raises UserError for a margin <= 0.
    """
    if not margin > 0:
        raise UserError(f"the margin of equivalence is {margin}; declare a difference in score above 0")
    if estimate is None or se is None or df is None or not (se > 0 and df > 0):
        return Equivalence(reason="there is no standard error, so nothing can be said about equivalence")
    p = float(max(stats.t.sf((estimate + margin) / se, df), stats.t.cdf((estimate - margin) / se, df)))
    half = float(stats.t.ppf(1 - ALPHA, df)) * se
    return Equivalence(p, p <= ALPHA, estimate - half, estimate + half, abs(estimate) + half)


def benjamini_hochberg(ps: list[float | None]) -> list[float | None]:
    """p adjusted for the false discovery rate (Benjamini and Hochberg, J. R. Stat. Soc. B 57, 1995), for dimensions.

    A test that could not be made (None) stays None and counts as p = 1, as it does in the families of contrasts.
    """
    return adjusted(ps, "fdr_bh")


@dataclass(frozen=True)
class Variances:
    """Standard deviations in score units; the values are those of the study's own power simulation (2026).

    `question` cancels in a contrast; `sampling` is of one graded answer, and `epochs` of them make a question mean.
    """

    question: float = 0.25
    arm_question: float = 0.08
    seed: float = 0.03
    seed_question: float = 0.05
    sampling: float = 0.22
    epochs: int = 30


def power(effect: float, variances: Variances, seeds: int, questions: int) -> float:
    """Probability that two_way rejects at .05 when the arms differ by `effect` (score units); `seeds` in each arm.

    Integrates the test's own rule over the chi-square distributions of its seed and question parts with normal terms
    (midpoints of equal shares), the interaction part at its expected value. `questions` counts scenarios. NaN with
    fewer than two seeds or questions, where two_way makes no test.
    """
    if min(seeds, questions) < 2:
        return math.nan
    left = (variances.seed_question**2 + variances.sampling**2 / variances.epochs) / (seeds * questions)  # in both
    seed_part, question_part = variances.seed**2 / seeds + left, 2 * (variances.arm_question**2 / questions + left)
    over_seeds = seed_part * stats.chi2.ppf((np.arange(40) + 0.5) / 40, seeds - 1) / (seeds - 1)
    over_questions = question_part * stats.chi2.ppf((np.arange(10) + 0.5) / 10, questions - 1) / (questions - 1)
    of, against, asked = np.meshgrid(over_seeds, over_seeds, over_questions)
    variance = np.maximum(np.maximum(of + against + asked - 2 * left, of + against), asked)
    df = variance**2 / ((of**2 + against**2) / (seeds - 1) + asked**2 / (questions - 1))
    half, spread = stats.t.ppf(1 - ALPHA / 2, df) * variance**0.5, (2 * seed_part + question_part - 2 * left) ** 0.5
    return float((stats.norm.sf((half - effect) / spread) + stats.norm.cdf((-half - effect) / spread)).mean())


def detectable(variances: Variances, seeds: int, questions: int, share: float = 0.8) -> float:
    """The difference (score units) that two_way finds with probability `share`; NaN where it makes no test."""
    if min(seeds, questions) < 2:
        return math.nan
    return float(optimize.brentq(lambda effect: power(effect, variances, seeds, questions) - share, 0, 9))
