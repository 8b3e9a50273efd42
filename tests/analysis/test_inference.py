"""Other methods: by hand, against scipy and statsmodels, and by brute force."""

import tracemalloc
import warnings
from itertools import combinations, product

import numpy as np
import pytest
from scipy import stats
from statsmodels.stats.weightstats import ttost_ind

from analysis import inference
from analysis.estimates import Arm, two_way
from analysis.inference import equivalence, hierarchical_bootstrap, permutation
from analysis.planned_test import Variances
from analysis.reference import Reference
from benchmarks import bootstrap, calibration
from core.errors import UserError

SMALL = Variances(epochs=4)


def uneven() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """3 and 4 seeds, 8 questions in 5 scenarios, 4 noisy answers each, some of them ungraded."""
    rng = np.random.default_rng(3)
    treatment = (
        0.5
        + rng.normal(0, 0.05, (3, 1, 1))
        + rng.normal(0, 0.1, (8, 1))
        + rng.normal(0, 0.4, (3, 8, 4))
    )
    control = (
        rng.normal(0, 0.05, (4, 1, 1)) + rng.normal(0, 0.1, (8, 1)) + rng.normal(0, 0.4, (4, 8, 4))
    )
    treatment[0, 2] = np.nan
    treatment[1, 5, :3] = np.nan
    control[3, :4, 0] = np.nan
    control[:, 7] = np.nan
    return treatment, control, np.array([0, 0, 1, 1, 2, 3, 4, 4])


def test_bootstrap_equals_the_list_of_all_draws():
    treatment, control = np.array([[0.9, 0.5], [0.6, 0.4]]), np.array([[0.1, 0.3], [0.2, 0.0]])
    pairs = list(product(range(2), repeat=2))
    every = [
        treatment[np.ix_(a, q)].mean() - control[np.ix_(b, q)].mean()
        for a, b, q in product(pairs, pairs, pairs)
    ]
    result = hierarchical_bootstrap(treatment[..., None], control[..., None], np.arange(2), 40_000)
    assert result.estimate == pytest.approx(0.45)
    assert result.se == pytest.approx(np.std(every), rel=0.02)
    assert result.percentile_low == pytest.approx(np.quantile(every, 0.025))
    assert result.percentile_high == pytest.approx(np.quantile(every, 0.975))


def test_bootstrap_equals_one_that_copies_every_answer():
    treatment, control, scenarios = uneven()
    rng, drawn = np.random.default_rng(0), []

    def mean(arm: np.ndarray, questions: np.ndarray) -> np.ndarray:
        copied = np.sort(
            arm[rng.integers(len(arm), size=len(arm))][:, questions]
        )  # missing answers last
        graded = np.isfinite(copied).sum(axis=2, keepdims=True)
        places = (rng.random(copied.shape) * graded).astype(int)
        answers = np.where(
            np.arange(4) < graded, np.take_along_axis(copied, places, axis=2), np.nan
        )
        return np.nanmean(np.nanmean(answers, axis=2), axis=0)

    with warnings.catch_warnings():
        warnings.simplefilter(
            "ignore", RuntimeWarning
        )  # of questions that the drawn seeds don't have
        for _ in range(3000):
            questions = np.concatenate(
                [np.flatnonzero(scenarios[:7] == s) for s in rng.integers(5, size=5)]
            )
            drawn.append(np.nanmean(mean(treatment, questions) - mean(control, questions)))
    result = hierarchical_bootstrap(treatment, control, scenarios)
    assert result.se == pytest.approx(np.std(drawn), rel=0.04)
    assert [result.percentile_low, result.percentile_high] == pytest.approx(
        np.quantile(drawn, [0.025, 0.975]), abs=0.015
    )


@pytest.mark.parametrize("seeds", [([0, 0, 2], [0, 1, 3, 3]), ([0, 0, 0], [1, 1, 2, 0])])
def test_each_resample_has_the_difference_and_error_of_its_copies(seeds):
    # the second draw has no answer to question 2
    treatment, control, scenarios = uneven()
    treatment, control, scenarios = treatment[:, :7], control[:, :7], scenarios[:7]
    sides = [inference._Side(arm, False) for arm in (treatment, control)]
    taken = [
        np.bincount(s, minlength=len(a))[None].astype(float)
        for s, a in zip(seeds, (treatment, control), strict=True)
    ]
    drawn = np.array([[0.0, 2, 1, 1, 1]])
    difference, error, _ = inference._differences(sides, taken, drawn, scenarios)
    questions, copy_of = [2, 3, 2, 3, 4, 5, 6], np.array([0, 0, 1, 1, 2, 3, 4])
    means = [
        np.array([[np.nanmean(c) if np.isfinite(c).any() else np.nan for c in row] for row in a])
        for a in (treatment, control)
    ]
    copies = two_way(
        [Arm(mean[np.ix_(s, questions)]) for mean, s in zip(means, seeds, strict=True)], copy_of
    )
    assert difference[0] == pytest.approx(copies.estimate)
    assert error[0] == pytest.approx((copies.seed_se**2 + copies.question_se**2) ** 0.5)


def test_studentised_interval_is_wider_than_the_percentile_one_with_few_seeds_only():
    ratios = []
    for seeds in (3, 10):
        treatment, control = calibration.study(np.random.default_rng(0), seeds, 115, 0.1, SMALL)
        result = hierarchical_bootstrap(treatment, control, np.arange(115), 4000)
        ratios.append((result.high - result.low) / (result.percentile_high - result.percentile_low))
        assert result.low < result.estimate < result.high
    assert ratios[0] > 1.25 > 1.1 > ratios[1] > 0.9


def test_bootstrap_repeats_itself_to_the_last_bit():
    treatment, control, scenarios = uneven()
    first, again, other = (
        hierarchical_bootstrap(treatment, control, scenarios, 1234, seed) for seed in (5, 5, 6)
    )
    assert first == again and first.se != other.se and first.resamples == 1234


def test_fixed_checkpoint_is_not_resampled():
    treatment, control = calibration.study(
        np.random.default_rng(0), 4, 26, 0.3, Variances(arm_question=0, epochs=4)
    )
    scenarios = np.arange(26)
    result = hierarchical_bootstrap(treatment, control[:1], scenarios, 2000, fixed=(False, True))
    swapped = hierarchical_bootstrap(control[:1], treatment, scenarios, 2000, fixed=(True, False))
    assert result.low is not None and result.estimate == pytest.approx(-swapped.estimate)
    assert result.se == pytest.approx(swapped.se, rel=0.1)


def test_two_seeds_and_two_scenarios_leave_no_studentised_interval():
    treatment, control = calibration.study(np.random.default_rng(0), 2, 2, 0.3, SMALL)
    result = hierarchical_bootstrap(treatment, control, np.arange(2), 2000)
    assert (
        result.low is None and result.percentile_low is not None and result.reason == inference.FEW
    )
    for number in range(20):
        treatment, control = calibration.study(np.random.default_rng(number), 2, 6, 0.3, SMALL)
        result = hierarchical_bootstrap(
            treatment, control[:1], np.repeat([0, 1], 3), 200, fixed=(False, True)
        )
        # an error that is zero but for rounding would put them beyond 1e10
        assert all(end is None or abs(end) < 1e6 for end in (result.low, result.high))


@pytest.mark.parametrize(
    ("scores", "reason"),
    [
        (np.random.default_rng(0).random((1, 5, 3)), "one seed per arm"),
        (np.random.default_rng(0).random((3, 1, 3)), "one scenario"),
        (np.full((3, 5, 2), 0.5), "vary neither"),
        (np.full((3, 5, 2), np.nan), "no question was graded"),
    ],
)
def test_what_cannot_be_resampled_says_why(scores, reason):
    result = hierarchical_bootstrap(scores, scores, np.arange(scores.shape[1]), 100)
    assert reason in result.reason and result.se is result.low is result.percentile_low is None


def test_bootstrap_of_a_large_study_is_small_and_agrees_with_scipys():
    treatment, control = calibration.study(np.random.default_rng(0), 10, 115, 0.1, Variances())
    tracemalloc.start()
    hierarchical_bootstrap(treatment, control, np.arange(115), 2000)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 8e6
    result = bootstrap.compare(3, 26, 30, 2000)
    assert result.se_ratio == pytest.approx(1, abs=0.06)
    assert abs(result.low_difference) + abs(result.high_difference) < 0.012


def test_permutation_by_hand():
    result = permutation(np.array([0.7, 0.8, 0.9]), np.array([0.1, 0.2, 0.3]))
    assert (result.p, result.smallest_p, result.reason) == (
        pytest.approx(0.1),
        pytest.approx(0.1),
        None,
    )
    values = [0.5, 0.2, 0.4, 0.1, 0.3]
    # of the ten pairs, four have the sum of .5 + .2 or more
    assert sum(sum(pair) >= 0.7 - 1e-9 for pair in combinations(values, 2)) == 4
    result = permutation(np.array(values[:2]), np.array(values[2:]))
    assert (result.p, result.smallest_p) == (pytest.approx(0.8), pytest.approx(0.2))


@pytest.mark.parametrize(("treatment", "control"), [(3, 3), (3, 5), (6, 4), (2, 7)])
def test_permutation_is_scipys_on_differences_of_means(treatment, control):
    rng = np.random.default_rng(treatment)
    # coarse values, so that assignments tie
    first, other = rng.integers(0, 8, treatment) / 8 + 0.2, rng.integers(0, 8, control) / 8
    expected = stats.permutation_test(
        (first, other), lambda x, y: np.mean(x) - np.mean(y), vectorized=False
    )
    assert permutation(first, other).p == pytest.approx(expected.pvalue)


def test_permutation_beyond_the_limit_is_random_and_repeats_itself():
    rng = np.random.default_rng(0)
    first, other = rng.normal(0.06, 0.1, 6), rng.normal(0, 0.1, 6)
    exact, drawn, again = (
        permutation(first, other),
        permutation(first, other, 500),
        permutation(first, other, 500),
    )
    assert drawn == again and drawn.p != exact.p and drawn.p == pytest.approx(exact.p, abs=0.08)
    assert (exact.smallest_p, drawn.smallest_p) == (pytest.approx(2 / 924), pytest.approx(2 / 501))


def test_permutation_of_question_means_does_not_blame_a_seed_for_a_lost_easy_question():
    treatment = np.tile([0.1, 0.2, 0.9], (3, 1)) + np.array([[0.05], [0.06], [0.07]])
    control = treatment - 0.05 + 1e-4
    complete = permutation(treatment, control).p
    assert complete == pytest.approx(0.1)
    treatment[0, 2] = np.nan
    assert permutation(treatment, control).p == pytest.approx(complete)
    assert permutation(np.nanmean(treatment, axis=1), np.nanmean(control, axis=1)).p > complete


@pytest.mark.parametrize(
    ("treatment", "control", "reason"),
    [
        (np.array([0.5]), np.array([0.1, 0.2, 0.3]), "one seed per arm"),
        (np.array([0.5, 0.5]), np.array([0.5, 0.5]), "the same score"),
        (np.full(3, np.nan), np.array([0.1, 0.2, 0.3]), "no question was graded"),
        (np.array([[0.1, np.nan]] * 2), np.array([[np.nan, 0.1]] * 2), "no question was graded"),
    ],
)
def test_what_cannot_be_permuted_says_why(treatment, control, reason):
    result = permutation(treatment, control)
    assert result.p is result.smallest_p is None and reason in result.reason


def t_of(df: float) -> Reference:
    return Reference(((1.0, df),))


def test_equivalence_by_hand_and_as_statsmodels():
    result = equivalence(0.01, 0.01, t_of(10), 0.04)
    # t = 5 above -margin, t = -3 below +margin
    assert result.p == pytest.approx(stats.t.cdf(-3, 10)) and result.equivalent
    assert (
        result.high
        == pytest.approx(0.01 + 1.812461 * 0.01)
        == pytest.approx(result.smallest_margin)
    )
    assert equivalence(0.01, 0.01, t_of(10), result.smallest_margin).p == pytest.approx(0.05)
    assert not equivalence(0.03, 0.01, t_of(10), 0.04).equivalent
    rng = np.random.default_rng(0)
    first, other = rng.normal(0.5, 0.1, 9), rng.normal(0.52, 0.1, 9)
    se = ((first.var(ddof=1) + other.var(ddof=1)) / 9) ** 0.5
    expected = ttost_ind(first, other, -0.1, 0.1, usevar="pooled")[0]
    assert equivalence(first.mean() - other.mean(), se, t_of(16), 0.1).p == pytest.approx(expected)
    assert equivalence(-0.03, 0.01, t_of(10), 0.04).p == pytest.approx(
        equivalence(0.03, 0.01, t_of(10), 0.04).p
    )


def test_equivalence_without_an_error_or_a_margin():
    for se, df in ((None, None), (0.0, 4.0), (float("nan"), 4.0)):
        result = equivalence(0.01, se, df and t_of(df), 0.05)
        assert result.p is result.equivalent is None and "no standard error" in result.reason
    for margin in (0, -0.1, float("nan")):
        with pytest.raises(UserError, match="declare"):
            equivalence(0.01, 0.01, t_of(4), margin)


def test_benjamini_hochberg_by_hand_counts_tests_that_could_not_be_made():
    # four tests: .01 x 4, then the lesser of .03 x 4 / 2 and .04 x 4 / 3
    *result, none = inference.benjamini_hochberg([0.01, 0.04, 0.03, None])
    assert result == pytest.approx([0.04, 0.16 / 3, 0.16 / 3]) and none is None
    assert inference.benjamini_hochberg([]) == []
