"""Variance components by hand, known ones, by other software; and which data to add next."""

import json
import warnings
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import statsmodels.formula.api as smf
from scipy import stats
from statsmodels.stats.anova import anova_lm

from analysis.estimates import Arm, pair_by_seed, two_way
from analysis.next_data import next_data, settled
from analysis.settings import Costs
from analysis.variance import _upper_limit, components

SD = {
    "seed": 0.05,
    "question": 0.25,
    "arm x question": 0.08,
    "seed x question": 0.06,
    "sample": 0.15,
}
DESIGN = {"arms": 2, "seeds": 3, "questions": 26, "per_scenario": 1.0, "epochs": 4}
COSTS = Costs(seed=10.0, question=0.1, epoch=2.0)


def long(scores: np.ndarray, scenarios: int | None = None) -> pd.DataFrame:
    """The long table of scores of shape (arms, seeds, questions, epochs), NaN for no grade."""
    arm, seed, question, epoch = np.indices(scores.shape).reshape(4, -1)
    table = pd.DataFrame({"seed": seed, "epoch": epoch, "score": scores.ravel()}).astype(
        {"seed": "Int64"}
    )
    table = table.assign(arm=[f"arm {i}" for i in arm], question=[f"q{i:03}" for i in question])
    table["scenario"] = [f"s{i % (scenarios or 999)}" for i in question]
    return table.assign(benchmark="ahb", dose=0, dimension="overall", judge="main")


def simulated(seed: int | np.random.Generator, *shape: int) -> np.ndarray:
    """Scores with the components `SD`, of shape (arms, seeds, questions, epochs)."""
    parts = {
        "seed": (*shape[:2], 1, 1),
        "question": (shape[2], 1),
        "arm x question": (shape[0], 1, shape[2], 1),
    }
    parts |= {"seed x question": (*shape[:3], 1), "sample": shape}
    return 0.5 + sum(
        np.random.default_rng(seed).normal(0, SD[name], size) for name, size in parts.items()
    )


def quiet(of: Any, *given: Any, **keys: Any) -> Any:
    """What may warn of nothing and what JSON has to hold."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return json.loads(json.dumps(of(*given, **keys), allow_nan=False))


def of(table: pd.DataFrame, **keys: Any) -> Any:
    return quiet(components, table, "ahb", **keys)


def bought(result: dict[str, Any], costs: Costs = COSTS, **design: Any) -> Any:
    return quiet(next_data, result, result["design"] and result["design"] | design, costs)


def known_components(*sd: float) -> dict[str, Any]:
    rows = [
        {"component": c, "variance": x**2, "upper": 4 * x**2, "negative": False}
        for c, x in zip(SD, sd or SD.values(), strict=True)
    ]
    return {"reason": None, "design": DESIGN, "kind": "free", "components": rows}


def raw(result: dict[str, Any], *names: str) -> list[float]:
    rows = {row["component"]: row for row in result["components"]}
    return [rows[name]["raw"] for name in names or SD]


def test_two_seeds_and_two_questions_by_hand():
    rows = of(long(np.array([[[[0.15], [0.25]], [[0.25], [0.75]]]])))["components"]
    # row means .2, .5, so a mean square of 2 x .045 = .09; columns the same; left +-.1, so .04
    assert [row["raw"] for row in rows[:4]] == [
        pytest.approx(0.025),
        pytest.approx(0.025),
        None,
        pytest.approx(0.04),
    ]
    assert rows[0]["sd"] == pytest.approx(0.025**0.5) and [row["df"] for row in rows[:4]] == [
        1,
        1,
        None,
        1,
    ]
    assert (
        "two arms" in rows[2]["reason"]
        and rows[4]["variance"] is None
        and "one answer" in rows[4]["reason"]
    )
    assert raw(of(long(simulated(6, 2, 1, 4, 2))), "seed", "arm x question") == [None, None]


def test_balanced_estimates_are_those_of_the_analysis_of_variance():
    a, s, q, e = shape = (3, 4, 7, 2)
    table = long(simulated(0, *shape))
    formula = (
        "score ~ C(arm) + C(question) + C(arm):C(seed) + C(arm):C(question) "
        "+ C(arm):C(seed):C(question)"
    )
    squares = anova_lm(smf.ols(formula, table.astype({"seed": int})).fit())
    _, question, seed, in_arm, in_seed, sample = (squares["sum_sq"] / squares["df"]).to_numpy()
    expected = [(seed - in_seed) / q / e, (question - in_arm) / a / s / e]
    expected += [(in_arm - in_seed) / s / e, (in_seed - sample) / e, sample]
    result = of(table)
    assert raw(result) == pytest.approx(expected)
    assert [row["df"] for row in result["components"][:5]] == [
        a * (s - 1),
        q - 1,
        (a - 1) * (q - 1),
        54,
        a * s * q,
    ]
    twice = of(pd.concat([table, table.assign(dose=500)]))
    assert raw(twice) == pytest.approx(expected) and twice["components"][0]["df"] == 2 * a * (s - 1)
    assert raw(
        of(
            pd.concat([table, table.assign(dose=500, score=0.5)]),
            sides=[(arm, 0) for arm in table["arm"].unique()],
        )
    ) == pytest.approx(expected)


def test_balanced_estimates_are_those_of_restricted_maximum_likelihood():
    # tenfold: the optimizer stops early at small variances
    table = long(10 * simulated(3, 1, 5, 9, 4)).assign(group=1)
    parts = {
        "seed": "0 + C(seed)",
        "question": "0 + C(question)",
        "seed x question": "0 + C(seed):C(question)",
    }
    model = smf.mixedlm("score ~ 1", table.astype({"seed": int}), groups="group", vc_formula=parts)
    fit = model.fit(reml=True, method=["powell"])
    assert raw(of(table), *model.exog_vc.names, "sample") == pytest.approx(
        [*fit.vcomp, fit.scale], rel=1e-3
    )


@pytest.mark.slow
@pytest.mark.parametrize("missing", [False, True])
def test_known_components_are_found_on_average(missing):
    rng, result = np.random.default_rng(2), []
    for _ in range(12):
        scores = simulated(rng, 3, 6, 20, 2)
        if missing:
            scores[rng.random(scores.shape) < 0.25] = np.nan
            scores[0, 2, :4] = np.nan
        result.append(raw(of(long(scores))))
    assert np.mean(result, axis=0) == pytest.approx(np.square(list(SD.values())), rel=0.2)


def test_a_seed_that_lost_easy_questions_is_not_called_worse():
    noise = np.random.default_rng(3).normal(0, 1e-3, (2, 3, 9, 2))
    scores = noise + np.linspace(0, 0.8, 9)[:, None] + np.array([0, 0.05, 0.1])[:, None, None]
    scores[0, 0, 5:] = np.nan
    assert raw(of(long(scores)))[0] == pytest.approx(0.05**2, rel=0.1)
    seedless = long(scores).assign(arm="untrained", seed=pd.NA).astype({"seed": "Int64"})
    assert of(pd.concat([long(scores), seedless])) == of(long(scores))
    alone = of(long(scores)[lambda row: row["arm"] == "arm 1"])["components"]
    assert [row | {"arm": "arm 1"} for row in alone[:5]] == of(long(scores))["by_arm"][5:]
    assert of(long(scores), sides=[("arm 1", 0)])["components"] == alone


def test_translations_are_one_question():
    scores = simulated(4, 2, 3, 8, 2)
    once, twice = of(long(scores)), of(long(np.concatenate([scores, scores], axis=2), scenarios=8))
    names = ("seed", "question", "arm x question", "sample")
    assert raw(twice, *names) == pytest.approx(raw(once, *names))
    assert (twice["design"]["questions"], twice["design"]["per_scenario"]) == (8, 2)
    # an average of two answers each, which differ alike: half as much is put down to samples
    assert raw(twice, "seed x question")[0] == pytest.approx(
        raw(once, "seed x question")[0] + raw(once)[4] / 4
    )


def test_judges_by_hand():
    """Three answers, two judges that differ by .1, .1 and .4 (mean .2, squares about it .06)."""
    table = long(np.array([0.2, 0.5, 0.3]).reshape(1, 1, 3, 1))
    two_judges = pd.concat(
        [table, table.assign(judge="other", score=table["score"] + [0.1, 0.1, 0.4])]
    )
    # judge x answer: half of .06 over 2; judges: half of 3 x .2 squared, over 3, less a third of
    # the former
    assert raw(of(two_judges, judge="main"), "judge x answer", "judge") == pytest.approx(
        [0.015, (0.06 - 0.015) / 3]
    )
    assert of(two_judges, judge="main")["components"][:5] == of(table)["components"][:5]
    assert "name the one that decides" in of(two_judges)["reason"] and raw(of(table), "judge") == [
        None
    ]


def test_an_estimate_below_zero_is_set_to_zero_and_flagged():
    crossed = np.array([[[[0.1], [0.9]], [[0.9], [0.1]]]])
    seed = of(long(crossed))["components"][0]
    assert (seed["variance"], seed["sd"], seed["negative"]) == (0, 0, True) and seed[
        "raw"
    ] == pytest.approx(-0.32)
    now = bought(of(long(np.tile(crossed, (2, 1, 1, 1)))))[0]
    assert now["note"].startswith("estimated below 0, taken as 0: seed") and now["detectable"] > 0


def test_shuffled_rows_give_the_same():
    scores = simulated(5, 2, 3, 6, 2) * np.where(np.arange(72).reshape(2, 3, 6, 2) % 17, 1, np.nan)
    table = pd.concat([long(scores), long(scores + 0.1).assign(judge="other")])
    result, again = (
        of(rows, judge="main") for rows in (table, table.sample(frac=1, random_state=0))
    )
    assert result == again and bought(result) == bought(again)


@pytest.mark.parametrize(
    ("scores", "reason"),
    [
        (np.full((2, 3, 4, 2), np.nan), "no checkpoint with a training seed has grades"),
        (np.full((2, 3, 4, 2), 0.5), "vary neither over seeds nor over questions"),
        (simulated(6, 2, 1, 4, 2), "one training seed per arm"),
        (simulated(6, 2, 3, 1, 2), "one question scenario"),
        (simulated(6, 1, 3, 4, 2), "arm x question is unknown"),
    ],
)
def test_what_the_data_cannot_say_is_none_with_a_reason(scores, reason):
    result = of(long(scores))
    rows = bought(result)
    assert reason in rows[0]["reason"] and all(
        row["detectable"] is row["gain"] is None for row in rows
    )
    assert all(
        row["reason"] for row in [*rows, *result["components"]] if row.get("variance") is None
    )


def test_the_best_purchase_comes_first():
    now, *rest = bought(known_components())
    cell = 0.06**2 + 0.15**2 / 4
    seeds, questions = (0.05**2 + cell / 26) / 3, 2 * (0.08**2 + cell / 3) / 26
    variance = 2 * seeds + questions - 2 * cell / 78
    df = variance**2 / (2 * seeds**2 / 2 + questions**2 / 25)
    assert (now["se"] ** 2, now["df"], now["cost"]) == pytest.approx((variance, df, 0))
    assert sorted(row["cost"] for row in rest) == pytest.approx([26 * 0.1, 4 * 2, 2 * 10])
    worth = [(now["detectable"] - row["detectable"]) / row["cost"] for row in rest]
    assert [row["gain_per_cost"] for row in rest] == pytest.approx(worth) and worth == sorted(
        worth, reverse=True
    )
    dear = bought(known_components(), Costs(seed=1, question=10))[1:]
    assert [row["purchase"] for row in dear] == [
        "one more seed per arm",
        "26 more questions",
        "twice the epochs",
    ]
    assert dear[2]["reason"] == "the cost of one epoch is not given"
    first = bought(known_components(), seeds=1)
    assert (
        first[0]["detectable"] is None
        and first[1]["purchase"] == "one more seed per arm"
        and first[1]["detectable"]
    )
    assert bought(known_components(), replace(COSTS, epoch=0))[1]["purchase"] == "twice the epochs"


def test_detectable_differences_are_those_of_the_studys_plan_and_of_simulated_studies():
    """By simulation, the plan is:

    26 questions: .13 with 3 seeds, .10 with 5; 115 questions: .10 and .07.
    """
    planned = known_components(0.03, 0.25, 0.08, 0.05, 0.22)
    result = [
        bought(planned, seeds=s, questions=q)[0]["detectable"] for q in (26, 115) for s in (3, 5)
    ]
    assert result == pytest.approx([0.13, 0.10, 0.10, 0.07], abs=0.008)
    many = bought(planned, seeds=500, questions=500)[0]
    assert many["detectable"] == pytest.approx((1.95996 + 0.84162) * many["se"], rel=0.01)
    difference = bought(known_components())[0]["detectable"]
    studies = [simulated(seed, 2, 3, 26, 4).mean(3) for seed in range(600)]
    result = [
        two_way([Arm(treatment + difference), Arm(other)], np.arange(26)).p < 0.05
        for treatment, other in studies
    ]
    assert np.mean(result) == pytest.approx(0.8, abs=0.05)


@pytest.mark.slow
def test_upper_limits_hold_in_95_percent_of_studies():
    """Also of a seed variance of 0, and of one that few degrees of freedom show."""
    rng = np.random.default_rng(0)
    for seed_variance, df in ((0.0, 4), (0.02, 4), (0.2, 2), (1.0, 8)):
        first = (0.1 + seed_variance) * rng.chisquare(df, 1500) / df
        second = 0.1 * rng.chisquare(50, 1500) / 50
        limits = [
            _upper_limit(a - b, b, df, 50) for a, b in zip(first.tolist(), second, strict=True)
        ]
        share = np.mean(np.array(limits) >= seed_variance)
        assert share > 0.93 and (seed_variance == 0 or share < 0.97)
    # one mean square alone: its chi-squared limit
    assert _upper_limit(2.0, 0.0, 4, np.inf) == pytest.approx(2 * 4 / stats.chi2.ppf(0.05, 4))


def test_upper_limits_stand_beside_the_estimates():
    rows = of(long(simulated(1, 2, 3, 26, 4)))["components"]
    seed, question, in_arm, in_seed, sample = rows[:5]
    squares = {row["component"]: row["raw"] for row in rows}
    cell = squares["seed x question"] + squares["sample"] / 4
    # E of the seeds' mean square: cell + 26 seed, on 4 df, over the cells' on 2 x 2 x 25
    limit = _upper_limit(26 * squares["seed"], cell, 4, 100) / 26
    assert (seed["upper"], seed["df"]) == (pytest.approx(limit), 4)
    assert sample["upper"] == pytest.approx(
        sample["variance"] * 468 / stats.chi2.ppf(0.05, 468), rel=1e-6
    )
    for row in (question, in_arm, in_seed):
        assert row["variance"] < row["upper"] < 3 * row["variance"] + 0.01


def test_paired_components_are_those_of_the_difference():
    """What the runs of a seed share is in neither side's component."""
    scores = simulated(7, 2, 4, 12, 3)
    scores += np.random.default_rng(8).normal(0, 0.5, (1, 4, 1, 1))
    sides = [("arm 0", 0), ("arm 1", 0)]
    paired = of(long(scores), sides=sides, kind="paired")
    free = of(long(scores), sides=sides)
    assert paired["kind"] == "paired" and paired["design"] == free["design"]
    assert raw(paired, "seed")[0] < 0.02 < 0.1 < raw(free, "seed")[0]
    assert paired["components"][1]["reason"] == "cancels within seeds"
    # as the test has it: the parts of the variance of the difference within seeds
    arms, _ = pair_by_seed([Arm(arm.mean(2)) for arm in scores], [[*range(4)]] * 2)
    test = two_way(arms, np.arange(12))
    now = bought(paired)[0]
    assert now["se"] == pytest.approx(test.se) and now["df"] == pytest.approx(test.df)
    assert bought(free)[0]["detectable"] > 1.5 * now["detectable"]


def test_a_fixed_checkpoint_is_priced_as_the_test_has_it():
    scores = simulated(9, 2, 4, 40, 3)
    table = long(scores)
    fixed = table[(table["arm"] == "arm 0") | (table["seed"] == 0)].copy()
    fixed.loc[fixed["arm"] == "arm 1", "seed"] = pd.NA
    result = of(fixed, sides=[("arm 0", 0), ("arm 1", 0)], kind="fixed")
    arms = [Arm(scores[0].mean(2)), Arm(scores[1, :1].mean(2), fixed=True)]
    test = two_way(arms, np.arange(40))
    now = bought(result)[0]
    assert (now["se"], now["df"]) == (pytest.approx(test.se), pytest.approx(test.df))
    assert result["design"]["arms"] == 1, "one more seed is one more training"
    assert [row["arm"] for row in result["by_arm"]] == ["arm 0"] * 5


def test_an_order_that_the_seeds_upper_limit_turns_round_is_not_settled():
    small = known_components(0.001, 0.25, 0.08, 0.06, 0.15)
    costs = Costs(seed=1.0, question=0.05, epoch=2.0)
    now, *rest = bought(small, costs)
    assert now["detectable_at_upper"] == pytest.approx(now["detectable"], rel=0.01)
    assert settled([now, *rest]) is True
    small["components"][0]["upper"] = 0.2**2
    now, *rest = bought(small, costs)
    assert rest[0]["purchase"] == "26 more questions"
    best = max(rest, key=lambda row: row["gain_per_cost_at_upper"])
    assert best["purchase"] == "one more seed per arm"
    assert settled([now, *rest]) is False
    small["components"][0]["upper"] = None
    assert settled(bought(small, costs)) is None
    assert settled(bought(known_components(), Costs(seed=1.0))) is None, "one price is no order"
