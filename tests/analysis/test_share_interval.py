"""Intervals of a single arm's mean stay between 0 and 1 and cover the true mean near the ends."""

import numpy as np
import pytest
from scipy import special, stats

from analysis.estimates import Arm, two_way
from analysis.share_interval import share_interval


def test_by_hand() -> None:
    scores = np.array([[0.0, 0.0, 0.1, 0.0, 0.05, 0.0]])
    mean = two_way([Arm(scores, fixed=True)], np.arange(6))
    result = share_interval(mean)
    half = stats.t.ppf(0.975, 5) * mean.se / (0.025 * 0.975)
    assert (result.low, result.high) == pytest.approx(
        (special.expit(special.logit(0.025) - half), special.expit(special.logit(0.025) + half))
    )
    assert mean.low < 0 < result.low < 0.025 < result.high


@pytest.mark.parametrize(("score", "low", "high"), [(0.0, 0.0, 0.3085), (1.0, 0.6915, 1.0)])
def test_all_or_nothing_has_the_interval_of_clopper_and_pearson(
    score: float, low: float, high: float
) -> None:
    """10 scenarios of two questions: no success in 10 trials."""
    scenarios = np.repeat(np.arange(10), 2)
    result = share_interval(two_way([Arm(np.full((3, 20), score))], scenarios))
    assert (result.low, result.high) == pytest.approx((low, high), abs=1e-4)
    assert result.reason is None


def test_what_has_no_interval_keeps_its_reason() -> None:
    one_seed = share_interval(two_way([Arm(np.zeros((1, 5)))], np.arange(5)))
    assert one_seed.low is None and one_seed.reason.startswith("one seed")
    alike = share_interval(two_way([Arm(np.full((3, 5), 0.5))], np.arange(5)))
    assert alike.low is None and "vary neither" in alike.reason


def test_it_covers_a_checkpoint_at_the_floor() -> None:
    """Grades of 0 or 1 at a mean of .03, 115 questions of 5 answers; the symmetric one covers 90 %."""
    rng = np.random.default_rng(1)
    studies, covered, symmetric = 600, 0, 0
    for _ in range(studies):
        shares = stats.norm.cdf(rng.normal(-1.88 * 1.36**0.5, 0.6, 115))
        mean = two_way([Arm(rng.binomial(5, shares)[None] / 5, fixed=True)], np.arange(115))
        result = share_interval(mean)
        truth = stats.norm.cdf(-1.88)
        covered += result.low <= truth <= result.high
        symmetric += mean.low <= truth <= mean.high
    assert covered / studies > 0.93
    assert covered > symmetric
