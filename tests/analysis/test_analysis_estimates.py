"""The two-way variance: by hand, on planted effects, under the null, and where it must refuse."""

import numpy as np
import pytest
from scipy import stats

from analysis.estimates import Arm, response_level_p, two_way
from benchmarks.error_rates import DESIGNS, lower_limit, rejections


def responses(
    rng: np.random.Generator, seeds: int, questions: int, epochs: int, effect: float
) -> list[np.ndarray]:
    """Two arms of shape (seeds, questions, epochs), with the variances of the power simulation."""
    shared = rng.normal(0.5, 0.25, questions)
    arms = []
    for shift in (effect, 0.0):
        mean = shared + shift + rng.normal(0, 0.08, questions) + rng.normal(0, 0.03, (seeds, 1))
        mean = mean + rng.normal(0, 0.05, (seeds, questions))
        arms.append(mean[..., None] + rng.normal(0, 0.22, (seeds, questions, epochs)))
    return arms


def contrast(treatment: np.ndarray, control: np.ndarray, fixed: bool = False):
    return two_way([Arm(treatment), Arm(control, fixed)], np.arange(treatment.shape[1]))


def test_small_case_by_hand():
    treatment = np.array([[0.5, 0.7, 0.9], [0.7, 0.9, 0.8]])
    control = np.array([[0.2, 0.4, 0.3], [0.2, 0.6, 0.7]])
    result = contrast(treatment, control)
    # question differences .4, .3, .35: mean .35, variance .0025
    assert result.estimate == pytest.approx(0.35)
    assert result.question_se**2 == pytest.approx(0.0025 / 3)
    # seed means .7, .8 (variance .005) and .3, .5 (variance .02), each over 2 seeds
    assert result.seed_se**2 == pytest.approx(0.005 / 2 + 0.02 / 2)
    # after seed and question means: +-(.05, .05, -.1), then +-(-.1, 0, .1);
    # squares sum to .03 and .04
    interaction = (0.03 + 0.04) / ((2 - 1) * (3 - 1)) / (2 * 3)
    assert result.interaction_se**2 == pytest.approx(interaction)
    variance = max(0.0125 + 0.0025 / 3 - interaction, 0.0125)
    assert result.se**2 == pytest.approx(variance)
    df = variance**2 / (0.0025**2 / 1 + 0.01**2 / 1 + (0.0025 / 3) ** 2 / 2)
    assert result.df == pytest.approx(df)
    half = stats.t.ppf(0.975, df) * variance**0.5
    assert (result.low, result.high) == pytest.approx((0.35 - half, 0.35 + half))
    assert result.p == pytest.approx(2 * stats.t.sf(0.35 / variance**0.5, df))


def test_balanced_variance_is_the_random_effects_analysis_of_variance():
    scores = (
        np.random.default_rng(0).normal(0.5, [0.1, 0.2, 0.3, 0.2], (5, 4))
        + np.arange(5)[:, None] / 10
    )
    result = two_way([Arm(scores)], np.arange(4))
    seed = scores.mean(1).var(ddof=1) / 5
    question = scores.mean(0).var(ddof=1) / 4
    residual = scores - scores.mean(1)[:, None] - scores.mean(0) + scores.mean()
    assert result.se**2 == pytest.approx(seed + question - (residual**2).sum() / (4 * 3) / 20)


def test_repeating_every_question_in_another_language_adds_no_certainty():
    treatment, control = (arm.mean(2) for arm in responses(np.random.default_rng(3), 3, 10, 4, 0.2))
    once = contrast(treatment, control)
    twice = two_way(
        [Arm(np.tile(treatment, 2)), Arm(np.tile(control, 2))], np.tile(np.arange(10), 2)
    )
    assert twice.clusters == 10 and twice.questions == 20
    assert (twice.se, twice.df, twice.p) == pytest.approx((once.se, once.df, once.p))


def test_swapped_arms_give_exactly_the_negated_estimate():
    treatment, control = (arm.mean(2) for arm in responses(np.random.default_rng(4), 3, 26, 4, 0.1))
    treatment[0, 3] = control[2, 7] = np.nan
    first, second = contrast(treatment, control), contrast(control, treatment)
    assert (first.estimate, first.low, first.high) == (-second.estimate, -second.high, -second.low)
    assert (first.se, first.df, first.p) == (second.se, second.df, second.p)


def test_missing_is_not_zero():
    treatment, control = np.full((3, 6), 0.8), np.full((3, 6), 0.2)
    treatment += np.arange(6) / 100
    treatment[1, 2] = np.nan
    assert contrast(treatment, control).estimate == pytest.approx(0.625)
    treatment[:, 4] = np.nan
    result = contrast(treatment, control)
    assert result.estimate == pytest.approx(0.6 + np.mean([0, 0.01, 0.02, 0.03, 0.05]))
    assert (result.questions, result.left_out) == (5, 1)


def test_a_seed_that_lost_an_easy_question_is_not_called_a_worse_seed():
    scores = np.tile(np.array([0.1, 0.2, 0.3, 0.9]), (3, 1)) + np.array([[0.0], [0.01], [0.02]])
    complete = two_way([Arm(scores)], np.arange(4)).seed_se
    scores[1, 3] = np.nan
    assert two_way([Arm(scores)], np.arange(4)).seed_se == pytest.approx(complete, rel=0.01)


@pytest.mark.slow
@pytest.mark.parametrize("seeds", [3, 5])
def test_calibrated_under_no_effect_where_the_response_level_test_is_not(seeds):
    rng = np.random.default_rng(seeds)
    studies, deciding, paper = 800, 0, 0
    for _ in range(studies):
        treatment, control = responses(rng, seeds, 26, 30, 0.0)
        deciding += contrast(treatment.mean(2), control.mean(2)).p < 0.05
        paper += response_level_p(treatment.ravel(), control.ravel()) < 0.05
    print(
        f"{seeds} seeds: two-way rejects {deciding / studies:.3f}, "
        f"response-level {paper / studies:.3f}"
    )
    assert 0.02 < deciding / studies <= 0.065
    assert paper / studies > 0.25


def test_intervals_of_an_arm_cover_its_true_mean():
    rng = np.random.default_rng(9)
    covered = 0
    for _ in range(800):
        scores = (
            rng.normal(0.5, 0.25, 26) + rng.normal(0, 0.03, (3, 1)) + rng.normal(0, 0.1, (3, 26))
        )
        result = two_way([Arm(scores)], np.arange(26))
        covered += result.low < 0.5 < result.high
    assert 0.93 <= covered / 800 <= 0.97


def test_planted_effect_is_found():
    rng = np.random.default_rng(1)
    result = [
        contrast(*(arm.mean(2) for arm in responses(rng, 5, 26, 4, 0.15))) for _ in range(200)
    ]
    assert np.mean([f.p < 0.05 and f.estimate > 0 for f in result]) > 0.9
    assert np.mean([f.estimate for f in result]) == pytest.approx(0.15, abs=0.01)


def test_one_seed_is_refused_but_described():
    treatment, control = (arm.mean(2) for arm in responses(np.random.default_rng(2), 3, 26, 4, 0.3))
    result = contrast(treatment[:1], control)
    assert result.estimate == pytest.approx(0.3, abs=0.1)
    assert result.question_se is not None
    assert (result.low, result.high, result.p, result.se) == (None, None, None, None)
    assert result.reason.startswith("one seed per arm")


def test_fixed_checkpoint_has_no_seed_part():
    treatment, control = (arm.mean(2) for arm in responses(np.random.default_rng(2), 4, 26, 4, 0.3))
    result = contrast(treatment, control[:1], fixed=True)
    assert result.seed_se**2 == pytest.approx(treatment.mean(1).var(ddof=1) / 4)
    assert result.seeds == (4, 0) and result.p < 0.05
    assert result.seed_sds == (pytest.approx(treatment.mean(1).std(ddof=1)), None)
    fixed = two_way([Arm(treatment[:1], True), Arm(control[:1], True)], np.arange(26))
    assert fixed.p is None and fixed.reason.startswith("one checkpoint per arm")
    alone = two_way([Arm(control[:1], True)], np.arange(26))
    assert alone.se == pytest.approx(
        control[0].std(ddof=1) / 26**0.5
    ) and alone.df == pytest.approx(25)


@pytest.mark.parametrize(
    ("scores", "scenarios", "reason"),
    [
        (np.full((3, 5), 0.5), np.arange(5), "vary neither"),
        (np.random.default_rng(0).random((3, 5)), np.zeros(5), "one scenario"),
        (np.full((3, 5), np.nan), np.arange(5), "no question was graded"),
    ],
)
def test_what_cannot_be_tested_says_why(scores, scenarios, reason):
    result = two_way([Arm(scores), Arm(scores)], scenarios)
    assert result.p is None and reason in result.reason


def test_response_level_p_is_welchs():
    treatment, control = (
        arm.ravel() for arm in responses(np.random.default_rng(0), 2, 26, 4, 0.02)
    )
    assert (
        response_level_p(treatment, control)
        == stats.ttest_ind(treatment, control, equal_var=False).pvalue
    )
    assert response_level_p(np.append(treatment, np.nan), control) == response_level_p(
        treatment, control
    )
    assert response_level_p(np.ones(9), np.zeros(9)) is None


def inspects_stderr(scores: np.ndarray, scenarios: np.ndarray) -> float:
    """Inspect's `stderr(cluster=...)` of question means, with a scenario's questions a cluster."""
    from inspect_ai.scorer import SampleScore, Score, stderr

    rows = [
        SampleScore(score=Score(value=float(value)), sample_metadata={"scenario": str(scenario)})
        for value, scenario in zip(scores, scenarios, strict=True)
    ]
    return stderr(cluster="scenario")(rows)


@pytest.mark.slow
@pytest.mark.parametrize("sizes", [[1] * 12, [3] * 6])
def test_one_checkpoint_has_inspects_clustered_standard_error_with_scenarios_of_one_size(sizes):
    scenarios = np.repeat([f"s{n}" for n in range(len(sizes))], sizes)
    scores = np.random.default_rng(len(sizes)).uniform(size=len(scenarios))
    estimate = two_way([Arm(scores[None], fixed=True)], scenarios)
    inspects = pytest.approx(inspects_stderr(scores, scenarios), rel=1e-9)
    assert estimate.question_se == estimate.se == inspects
    assert estimate.df == len(sizes) - 1


@pytest.mark.slow
def test_a_dominant_scenario_has_a_larger_standard_error_than_inspects():
    scenarios = np.array(["big"] * 30 + [f"s{n}" for n in range(13)])
    scores = np.random.default_rng(0).uniform(size=len(scenarios)) + 0.5 * (scenarios == "big")
    estimate = two_way([Arm(scores[None], fixed=True)], scenarios)
    assert estimate.question_se > inspects_stderr(scores, scenarios)
    # leave one scenario out at a time, as it is defined
    without = [scores[scenarios != name].mean() for name in np.unique(scenarios)]
    jackknife = 13 / 14 * sum((mean - scores.mean()) ** 2 for mean in without)
    assert estimate.question_se**2 == pytest.approx(jackknife)
    assert 1 < estimate.df < 2  # 43 questions, 30 of them in one scenario


@pytest.mark.parametrize(
    "design",
    [
        # families have up to 16 tests a study
        pytest.param(
            design, marks=pytest.mark.nightly if design.contrasts > 1 else pytest.mark.slow
        )
        for design in DESIGNS
        if not design.is_known_to_fail
    ],
    ids=lambda design: design.name,
)
def test_the_deciding_test_holds_its_levels_in_each_design(design):
    """With 400 studies a design; `python -m benchmarks.error_rates` takes 4,000."""
    studies = 400
    for level, share in zip(design.levels, rejections(design, studies), strict=True):
        limit = 0.06 if level == 0.05 else 1.5 * level
        assert lower_limit(share, studies) < limit, (level, share)


def test_one_seed_part_has_the_quantile_of_cochran_and_cox():
    rng = np.random.default_rng(5)
    treatment = rng.uniform(size=(3, 26))
    result = contrast(treatment, rng.uniform(size=(1, 26)), fixed=True)
    seed, question = result.seed_se**2, result.question_se**2
    quantile = (seed * stats.t.ppf(0.975, 2) + question * stats.t.ppf(0.975, 25)) / (
        seed + question
    )
    assert result.high - result.estimate == pytest.approx(quantile * result.se)
    # p is the level at which the interval ends at 0
    at_p = two_way(
        [Arm(treatment), Arm(treatment[:1] * 0 + (treatment.mean(0) - 0.2), fixed=True)],
        np.arange(26),
    )
    half = at_p.reference.quantile(at_p.p) * at_p.se
    assert half == pytest.approx(abs(at_p.estimate))
