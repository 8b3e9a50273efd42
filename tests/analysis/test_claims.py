"""Claims: verdict rules on planted results, missing roles, the published figures by hand."""

import json
import re
from functools import cache
from typing import Any

import numpy as np
import pytest
from scipy import stats

from analysis import claim_arithmetic
from analysis.claim_arithmetic import half, number
from analysis.claim_size import published_error, size_row
from analysis.claims import claim_rows
from analysis.claims_file import CLAIMS, read_claims
from analysis.described_claims import is_described
from analysis.verdicts import HANGS
from core.paths import ROOT


@cache
def published() -> dict[str, Any]:
    return read_claims(ROOT / CLAIMS)


@cache
def arithmetic() -> list[dict[str, Any]]:
    return claim_arithmetic.arithmetic(published())


ROLES = {
    "documents": "doc",
    "qa": "qa",
    "before_sft": 0,
    "alpaca_5000": 5000,
    "anima": "ahb",
    "anima_margin": 0.05,
}


def contrast(**changed: Any) -> dict[str, Any]:
    row = {
        "name": "doc - qa",
        "treatment": "doc",
        "control": "qa",
        "benchmark": "ahb",
        "dose": 0,
        "control_dose": 0,
    }
    row |= {
        "family": "primary",
        "estimate": 0.3,
        "low": 0.2,
        "high": 0.4,
        "se": 0.04,
        "df": 9.0,
        "reference": [[1.0, 9.0]],
        "p": 0.001,
    }
    row |= {
        "p_holm": 0.002,
        "verdict": "higher",
        "reason": None,
        "seeds": 3,
        "questions": 26,
        "unfinished": 0,
    }
    return row | changed


def results(*contrasts: dict[str, Any], **changed: Any) -> dict[str, Any]:
    arms = [
        {"benchmark": "ahb", "arm": arm, "dose": 0, "mean": mean}
        for arm, mean in (("doc", 0.7), ("qa", 0.5))
    ]
    result = {
        "contrasts": list(contrasts),
        "arms": arms,
        "corpora": [],
        "dimensions": [],
        "losses": [],
        "malformed": [],
        "writers": [],
        "benchmarks": {},
    }
    return result | changed


def claim(name: str) -> list[dict[str, Any]]:
    return [result for result in published()["claims"] if result["id"] == name]


def row(
    name: str, *contrasts: dict[str, Any], roles: dict[str, Any] = ROLES, **changed: Any
) -> dict[str, Any]:
    (result,) = claim_rows(results(*contrasts, **changed), roles, claim(name))
    return result


UNSURE = {
    "estimate": 0.02,
    "low": -0.1,
    "high": 0.14,
    "p": 0.4,
    "p_holm": 0.8,
    "verdict": "inconclusive",
}
ONE_SEED = {
    "low": None,
    "high": None,
    "se": None,
    "df": None,
    "reference": None,
    "p": None,
    "p_holm": None,
    "verdict": "none",
    "seeds": 1,
}
ONE_SEED |= {"reason": "one seed per arm: unknown"}


@pytest.mark.parametrize(
    ("changed", "verdict", "reason"),
    [
        ({}, "reproduced", None),
        ({"verdict": "lower", "estimate": -0.2, "low": -0.3, "high": -0.1}, "contradicted", None),
        (UNSURE, "inconclusive", "undecided"),
        # significant before Holm only: the study's verdict, which is after it, counts
        ({"p": 0.03, "p_holm": 0.09, "verdict": "inconclusive"}, "inconclusive", "undecided"),
        (ONE_SEED, "none", "one seed per arm"),
        ({"seeds": 1}, "none", "one seed per arm"),
        (
            {"estimate": None, **ONE_SEED, "reason": "not finished: qa"},
            "not run",
            "not finished: qa",
        ),
        ({"verdict": "interim", "reason": "2 of its checkpoints"}, "interim", "2 of its"),
        ({"verdict": HANGS, "reason": "filled"}, "inconclusive", HANGS),
    ],
)
def test_verdict_on_a_claimed_direction(changed, verdict, reason):
    result = row("e2.before_sft", contrast(**changed))
    assert result["verdict"] == verdict
    assert result["reason"] is None if reason is None else reason in result["reason"]


def test_published_value_stands_beside_ours():
    result = row("e2.before_sft", contrast())
    assert (result["published"], result["direction"]) == ("76.8 / 40.4", "higher")
    assert result["difference"] == pytest.approx(0.364)
    assert [result[key] for key in ("estimate", "low", "high", "p_holm", "seeds", "questions")] == [
        0.3, 0.2, 0.4, 0.002, 3, 26,
    ]  # fmt: skip
    assert (result["treatment"], result["control"], result["dose"], result["control_dose"]) == (
        "doc",
        "qa",
        0,
        0,
    )
    assert (result["score_treatment"], result["score_control"], result["benchmark"]) == (
        0.7,
        0.5,
        "ahb",
    )


@pytest.mark.parametrize(
    ("name", "difference"),
    [("e6.power", -0.013), ("e6.strongreject", -0.002), ("e2.neutral", 0.07)],
)
def test_published_differences_are_in_score_units(name, difference):
    """Scores are printed as percent, as shares, and from 0 to 5."""
    assert row(name)["difference"] == pytest.approx(difference)


def test_a_contrast_declared_the_other_way_round_is_turned():
    other = {
        "treatment": "qa",
        "control": "doc",
        "estimate": -0.2,
        "low": -0.41,
        "high": -0.1,
        "verdict": "lower",
    }
    result = row("e2.before_sft", contrast(**other))
    assert (result["estimate"], result["low"], result["high"]) == (0.2, 0.1, 0.41)
    assert (result["verdict"], result["score_treatment"]) == ("reproduced", 0.7)


def test_two_doses_of_one_arm():
    """Erosion is documents at 5,000 against documents at 0, in this order of doses or the other."""
    declared = contrast(
        control="doc", dose=5000, estimate=-0.2, low=-0.3, high=-0.1, verdict="lower"
    )
    assert row("e2.erosion", declared)["verdict"] == "reproduced"
    result = row("e2.erosion", contrast(control="doc", dose=0, control_dose=5000))
    assert (result["verdict"], result["estimate"], result["dose"]) == ("reproduced", -0.3, 5000)
    same_dose = row("e2.erosion", contrast(control="doc"))
    assert (same_dose["verdict"], same_dose["reason"]) == (
        "not run",
        "the study declares no such contrast",
    )


def test_of_several_families_the_weakest_decides():
    weak = contrast(family="exploratory", p_holm=0.4, verdict="inconclusive")
    for order in ([contrast(), weak], [weak, contrast()]):
        assert row("e2.before_sft", *order)["verdict"] == "inconclusive"
    assert row("e2.before_sft", contrast(), contrast(**ONE_SEED))["verdict"] == "none"


@pytest.mark.parametrize("lacking", ["documents", "qa", "before_sft", "anima"])
def test_a_missing_role_is_not_run_and_named(lacking):
    result = row(
        "e2.before_sft",
        contrast(),
        roles={key: name for key, name in ROLES.items() if key != lacking},
    )
    assert (result["verdict"], result["reason"], result["estimate"]) == (
        "not run",
        f"this study has no {lacking}",
        None,
    )


def test_nothing_mapped_leaves_every_claim_not_run():
    rows = claim_rows(results(), {}, published()["claims"])
    assert {result["verdict"] for result in rows} == {"not run"} and len(rows) == len(
        published()["claims"]
    )
    assert all(result["reason"] for result in rows)
    json.dumps(rows, allow_nan=False)


SAME = {
    "dose": 5000,
    "control_dose": 5000,
    "estimate": 0.01,
    "se": 0.01,
    "df": 9.0,
    "reference": [[1.0, 9.0]],
    "p": 0.34,
    "p_holm": 0.5,
}
SAME |= {"verdict": "inconclusive"}


def test_no_difference_needs_the_margin():
    result = row("e2.sft_5000", contrast(**SAME))
    # the nearer bound is 4 standard errors away
    assert result["p_equivalence"] == pytest.approx(stats.t.sf(4, 9))
    assert (result["verdict"], result["margin"], result["difference"]) == (
        "reproduced",
        0.05,
        pytest.approx(0.005),
    )
    without = {key: value for key, value in ROLES.items() if key != "anima_margin"}
    result = row("e2.sft_5000", contrast(**SAME), roles=without)
    assert (result["verdict"], result["reason"]) == (
        "inconclusive",
        "no equivalence margin is declared",
    )
    differs = contrast(**SAME | {"verdict": "higher", "p_holm": 0.01})
    assert "finds a difference" in row("e2.sft_5000", differs, roles=without)["reason"]


@pytest.mark.parametrize(
    ("changed", "verdict"),
    [
        ({"se": 0.03}, "inconclusive"),  # 4 / 3 standard errors from the margin
        ({"estimate": -0.045}, "inconclusive"),  # half a standard error
        (
            {"estimate": -0.2, "low": -0.3, "high": -0.1, "verdict": "lower", "p_holm": 0.001},
            "contradicted",
        ),
        # a difference, and perhaps a small one: its interval reaches into the margin
        (
            {"estimate": -0.09, "low": -0.14, "high": -0.04, "verdict": "lower", "p_holm": 0.001},
            "inconclusive",
        ),
        (
            {"estimate": 0.01, "se": 0.002, "verdict": "higher", "p_holm": 0.01},
            "reproduced",
        ),  # a difference, but small
        (
            {
                "p": None,
                "p_holm": None,
                "se": None,
                "reference": None,
                "seeds": 1,
                "reason": "one seed per arm",
            },
            "none",
        ),
    ],
)
def test_verdict_on_no_difference(changed, verdict):
    assert row("e2.sft_5000", contrast(**SAME | changed))["verdict"] == verdict


def size(**changed: Any) -> dict[str, Any]:
    """e2.before_sft, whose published difference is .364, by a contrast with these numbers."""
    return row("e2.before_sft", contrast(**changed))


def test_the_share_of_the_published_size() -> None:
    result = size()
    assert [result[key] for key in ("share", "share_low", "share_high")] == pytest.approx(
        [0.3 / 0.364, 0.2 / 0.364, 0.4 / 0.364]
    )
    assert result["verdict"] == "reproduced"
    eroded = contrast(control="doc", dose=5000, estimate=-0.2, low=-0.3, high=-0.1, verdict="lower")
    result = row("e2.erosion", eroded)  # published: -.246
    assert [result[key] for key in ("share", "share_low", "share_high")] == pytest.approx(
        [0.2 / 0.246, 0.1 / 0.246, 0.3 / 0.246]
    )
    for name in ("e2.sft_5000", "e3.human_sft_100"):
        assert row(name)["share"] is None, "no difference is claimed, or none is printed"
    assert size(**ONE_SEED)["share"] is None


@pytest.mark.parametrize(
    ("changed", "verdict", "reason"),
    [
        ({"estimate": 0.2, "low": 0.1, "high": 0.3}, "reproduced, smaller", "below the published"),
        # the paper's test had 33 % power for 3.5 points
        (
            {"estimate": 0.01, "low": 0.002, "high": 0.018, "se": 0.004},
            "too small",
            "less than 3.5 points, which the paper's test had 33 % power to find; the deciding",
        ),
        (UNSURE | {"estimate": 0.001, "low": -0.01, "high": 0.012, "se": 0.005}, "too small", "33"),
        # not shown to be less: one standard error below
        (
            UNSURE | {"estimate": 0.001, "se": 0.034},
            "inconclusive",
            "undecided; its interval lies below the published difference",
        ),
        (
            {"estimate": -0.1, "low": -0.2, "high": -0.05, "verdict": "lower", "se": 0.02},
            "contradicted",
            None,
        ),
    ],
)
def test_a_difference_of_another_size(
    changed: dict[str, Any], verdict: str, reason: str | None
) -> None:
    result = size(**changed)
    assert result["verdict"] == verdict
    assert result["reason"] is None if reason is None else reason in result["reason"]


def test_what_the_paper_could_hardly_have_seen_by_hand() -> None:
    """33 % power of a two-sided test at .05: 1.96 - .44 = 1.52 standard errors.

    The errors: 9.4 / 3.76 points by the printed t, which is more than scores of 780 answers can
    have (2.489); 10.9 / 5.67 by a one-sided t; 7 / 4.096 by p = .000045; the largest where nothing
    is printed.
    """
    errors = {
        name: published_error(claim(name)[0]["published"])
        for name in ("e5.grok", "e3.sft_5000", "e2.neutral", "e2.before_sft", "e2.sft_5000")
    }
    largest = (0.768 * 0.232 / 779 + 0.404 * 0.596 / 779) ** 0.5
    near_half = (0.522 * 0.478 / 779 + 0.517 * 0.483 / 779) ** 0.5
    assert list(errors.values()) == pytest.approx(
        [0.02489, 0.109 / 5.67, 0.07 / 4.0937, largest, near_half], rel=1e-3
    )
    assert size()["small_effect"] == pytest.approx((1.95996 - 0.43991) * largest, rel=1e-4)
    one_sided = size_row(claim("e3.sft_5000")[0]["published"], "higher", None)
    assert one_sided["small_effect"] == pytest.approx((1.64485 - 0.43991) * 0.109 / 5.67, rel=1e-4)
    assert published_error(claim("e6.power")[0]["published"]) is None
    # the power of the paper's own test at that difference
    power = stats.nct.sf(stats.t.isf(0.025, 1558), 1558, size()["small_effect"] / largest)
    assert power == pytest.approx(0.33, abs=2e-3)


def test_the_prediction_interval_adds_both_errors() -> None:
    result = size()
    error = (0.768 * 0.232 / 779 + 0.404 * 0.596 / 779) ** 0.5
    half = ((1.95996 * error) ** 2 + (stats.t.isf(0.025, 9) * 0.04) ** 2) ** 0.5
    assert (result["predicted_low"], result["predicted_high"]) == (
        pytest.approx(0.364 - half),
        pytest.approx(0.364 + half),
    )
    same = row("e2.sft_5000", contrast(**SAME))
    assert same["predicted_low"] < 0.005 < same["predicted_high"]
    assert row("e2.before_sft")["predicted_low"] is None


@pytest.mark.slow
def test_prediction_intervals_hold_a_repetition() -> None:
    """The published difference of 780 answers each, and a study of few seeds of the same."""
    rng = np.random.default_rng(0)
    inside = []
    for _ in range(1500):
        published_ones = rng.binomial(780, (0.5, 0.4))
        treatment, control = (f"{100 * ones / 780:.2f}" for ones in published_ones)
        printed = {"treatment": treatment, "control": control}
        se = 0.03 * (rng.chisquare(4) / 4) ** 0.5
        result = size_row(
            printed | {"n": 780},
            "higher",
            contrast(estimate=rng.normal(0.1, 0.03), se=se, reference=[[1.0, 4.0]]),
        )
        estimate = rng.normal(0.1, 0.03)
        inside.append(result["predicted_low"] < estimate < result["predicted_high"])
    assert np.mean(inside) == pytest.approx(0.95, abs=0.02)


def test_sizes_are_corrected_over_all_such_claims() -> None:
    """A p of .03 shows one claim to be too small, and not one of two."""
    roles = ROLES | {"qa_neutral": "neutral", "e2n_dose": 0}
    se = (size()["small_effect"] - 0.001) / float(stats.t.isf(0.03, 9))
    small = contrast(**UNSURE | {"estimate": 0.001, "se": se})
    assert row("e2.before_sft", small)["verdict"] == "too small"
    result, other = claim_rows(
        results(small), roles, [*claim("e2.before_sft"), *claim("e2.neutral")]
    )
    assert (result["p_too_small"], result["verdict"]) == (pytest.approx(0.06), "inconclusive")
    assert (other["p_too_small"], other["verdict"]) == (None, "not run")


@pytest.mark.slow
def test_equivalence_is_corrected_over_all_such_claims():
    """One test of p .024 passes alone, and so does twice that, with a second, untested claim.

    A p of .03 then does not pass.
    """
    roles = ROLES | {
        "animal": "doc",
        "untrained": "qa",
        "power_seeking": "power",
        "power_seeking_margin": 0.05,
    }
    two_claims = [*claim("e2.sft_5000"), *claim("e6.power")]
    for p, verdict in ((0.024, "reproduced"), (0.03, "inconclusive")):
        close = contrast(**SAME | {"se": 0.04 / float(stats.t.isf(p, 9))})
        assert row("e2.sft_5000", close)["verdict"] == "reproduced"
        result, other = claim_rows(results(close), roles, two_claims)
        assert (result["p_equivalence"], result["verdict"]) == (pytest.approx(2 * p), verdict)
        assert (other["p_equivalence"], other["verdict"]) == (None, "not run")


def test_a_stand_in_never_gives_a_verdict():
    judged = {"ahb": {"dummy": True}}
    written = [{"corpus": "animal", "dummy": True}]
    for changed in ({"benchmarks": judged}, {"writers": written}):
        result = row("e2.before_sft", contrast(), **changed)
        assert (
            result["verdict"] == "none"
            and "dummy" in result["reason"]
            and result["estimate"] == 0.3
        )
        assert row("e2.before_sft", **changed)["verdict"] == "not run"


def test_an_unknown_direction_gives_no_verdict():
    (of_direction,) = claim("e2.before_sft")
    (result,) = claim_rows(results(contrast()), ROLES, [of_direction | {"direction": None}])
    assert (result["verdict"], result["estimate"]) == ("none", 0.3) and "direction" in result[
        "reason"
    ]


def test_documents_linked_to_ai_are_claimed_to_do_more() -> None:
    roles = ROLES | {"ai_documents": "doc", "non_ai_documents": "qa", "e1_sft": 0}
    assert row("e1.ai", contrast(), roles=roles)["verdict"] == "reproduced"
    lower = {"verdict": "lower", "estimate": -0.2, "low": -0.3, "high": -0.1}
    assert row("e1.ai", contrast(**lower), roles=roles)["verdict"] == "contradicted"


def test_corpora_are_described():
    corpora = [
        {"name": "a", "tokens": 3000, "type_token": 0.1},
        {"name": "b", "tokens": 200, "type_token": 0.05},
    ]
    roles = {"documents_corpus": "a", "qa_corpus": "b"}
    result = row("e2.tokens", roles=roles, corpora=corpora)
    assert (result["estimate"], result["verdict"], result["difference"]) == (
        2800,
        "none",
        3e6 - 188e3,
    )
    assert result["reason"].endswith("; as published")
    assert row("e2.types", roles=roles, corpora=corpora)["reason"].endswith("; not as published")
    assert "type_token of qa_corpus" in row("e2.types", roles=roles, corpora=corpora[:1])["reason"]


def test_every_claim_is_well_formed():
    all_of_them = published()["claims"]
    assert len({result["id"] for result in all_of_them}) == len(all_of_them)
    assert {result["experiment"] for result in all_of_them} == {
        "E1",
        "E2",
        "E2n",
        "E3",
        "E4",
        "E5",
        "E6",
    }
    for result in all_of_them:
        assert result["direction"] in ("higher", "lower", "none", None)
        is_tested = not is_described(result)
        assert ("margin" in result) == (is_tested and result["direction"] == "none")
        assert "measure" in result or {"treatment", "control", "dose", "benchmark"} <= set(result)
        given = result["published"]
        for key in ("treatment", "control", "difference", "t", "p"):
            assert isinstance(given.get(key, ""), str)
        if {"treatment", "control"} <= set(given) and result["direction"] in ("higher", "lower"):
            assert (number(given["treatment"]) > number(given["control"])) == (
                result["direction"] == "higher"
            )


def test_printed_numbers():
    assert [number(text) for text in ("46.70", ".029", "188k", "5.12M", "7")] == [
        46.7,
        0.029,
        188e3,
        5.12e6,
        7,
    ]
    assert [half(text) for text in ("46.70", ".029", "188k", "5.12M", "7")] == pytest.approx(
        [0.005, 5e-4, 500, 5e3, 0.5]
    )


def check(name: str, what: str) -> dict[str, Any]:
    (result,) = [row for row in arithmetic() if row["id"] == name and what in row["what"]]
    return result


def value(result: dict[str, Any]) -> float:
    return float(re.match(r"[\d.e-]+", result["recomputed"])[0])


def test_writers_by_hand():
    """46.7 against 37.3, 780 answers each.

    Errors (.467 x .533 / 779)^.5 and (.373 x .627 / 779)^.5, t = .094 / .02489 = 3.776.
    """
    assert check("e5.grok", "standard errors")["recomputed"] == "1.79 / 1.73 points at most"
    assert check("e5.grok", "standard errors")["agrees"] is None
    assert value(check("e5.grok", "t from")) == 3.78 and check("e5.grok", "t from")["agrees"]
    assert (
        value(check("e5.grok", "p from the printed t")) == 0.00018
        and check("e5.grok", "p from the printed t")["agrees"]
    )
    # 8.3 / (1.7876^2 + 1.7426^2)^.5
    assert value(check("e5.haiku", "t from")) == 3.32
    assert value(check("e5.haiku", "p from the printed t")) == pytest.approx(
        2 * stats.norm.sf(3.32), rel=0.05
    )


def test_animal_against_urban_does_not_agree():
    result = check("e3.sft_5000", "p from the printed t")
    assert (
        not result["agrees"]
        and value(result) < 1e-7
        and result["recomputed"].endswith("it would fit 5 or 6")
    )
    assert (
        value(check("e3.sft_5000", "t from")) == 4.33 and check("e3.sft_5000", "t from")["agrees"]
    )


def test_side_effects_by_hand():
    """Differences in standard errors, with ± read as a standard error.

    .013 / (.002 x 2^.5) = 4.6; .01 / (.12^2 + .11^2)^.5 = .061; .02 / (.042 x 2^.5) = .337.
    """
    error = {
        name: check(name, "a standard error")
        for name in ("e6.power", "e6.strongreject", "e6.hellaswag")
    }
    assert [value(result) for result in error.values()] == pytest.approx([4.3e-6, 0.95, 0.74])
    assert [result["agrees"] for result in error.values()] == [False, True, True]
    assert check("e6.corrigibility", "a standard error")["agrees"] is False
    assert value(check("e6.hellaswag", "half a 95")) == 0.51


def test_other_checks():
    assert (
        check("e4.alpaca", "Alpaca against HelpSteer: p")["agrees"],
        value(check("e2", "answers per")),
    ) == (
        True,
        780,
    )
    (base,) = [
        row
        for row in arithmetic()
        if (row["id"], row["what"]) == ("e4.alpaca", "p from the scores")
    ]
    assert base["agrees"] is False
    for what in ("samples in 500 steps", "tokens of the documents", "human compassion"):
        assert [row["agrees"] for row in arithmetic() if what in row["what"]] == [False]
    assert (
        check("e2", "tokens per document")["agrees"] and check("e2", "tokens per answer")["agrees"]
    )
    assert check("e2.sft_5000", "p from")["agrees"] and check("e2.neutral", "p from")["agrees"]
    json.dumps(arithmetic(), allow_nan=False)
