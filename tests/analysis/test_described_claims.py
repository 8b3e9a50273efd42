"""Claims that are described and not tested: dimensions, losses and malformed answers."""

from typing import Any

import pytest

from analysis.claims import claim_rows
from analysis.losses import LossHistory, loss_rows
from tests.analysis.test_claims import claim, results

ROLES = {"documents": "doc", "qa": "qa", "animal": "a", "urban": "u", "before_sft": 0}
ROLES |= {"anima": "ahb", "human_compassion": "people", "sft_5000": 4000}


def row(name: str, roles: dict[str, Any] = ROLES, **tables: Any) -> dict[str, Any]:
    (result,) = claim_rows(results(**tables), roles, claim(name))
    return result


def grades(dimension: str, dose: int = 0, **scores: float | None) -> list[dict[str, Any]]:
    """Means of arms on a dimension, beside those of another dose and another benchmark."""
    rows = []
    for arm, score in scores.items():
        for other in ({"dose": 9}, {"benchmark": "other"}, {"dimension": "Other"}, {}):
            keys = {"benchmark": "ahb", "dose": dose, "arm": arm, "dimension": dimension}
            rows.append({**keys, "score": 0.123 if other else score, **other})
    return rows


def test_a_dimension_is_described() -> None:
    table = grades("Epistemic Humility", doc=0.6, qa=0.2)
    result = row("e2.humility", dimensions=table)
    assert (result["score_treatment"], result["score_control"]) == (0.6, 0.2)
    assert result["estimate"] == pytest.approx(0.4)
    assert (result["verdict"], result["reason"]) == ("none", "described, not tested; as published")
    assert result["p_holm"] is None and result["low"] is None
    table = grades("Harm Minimization", doc=0.6, qa=0.2)
    assert row("e2.harm", dimensions=table)["reason"].endswith("; not as published")
    table = grades("Control Questions", doc=1.0, qa=1.0)
    assert row("e2.control_questions", dimensions=table)["reason"] == "described, not tested"


def test_the_dose_of_a_dimension_is_that_of_the_claim() -> None:
    table = grades("Actionability", dose=4000, a=0.3, u=0.5)
    result = row("e3.actionability", dimensions=table)
    assert (result["published"], result["reason"]) == (
        "p = .005",
        "described, not tested; as published",
    )
    result = row("e3.actionability", dimensions=grades("Actionability", dose=0, a=0.3, u=0.5))
    assert result["reason"] == "this study has no Actionability of animal, urban"


def test_a_published_level_is_in_score_units() -> None:
    people = [
        {"benchmark": "people", "dose": 0, "arm": arm, "dimension": "trades", "score": score}
        for arm, score in (("a", 0.25), ("u", 0.2))
    ]
    result = row("e3.trades_level", dimensions=people)
    assert (result["published"], result["difference"]) == ("20 / 20", 0)
    assert result["estimate"] == pytest.approx(0.05)
    (printed,) = claim("e3.trades_level")
    printed = printed | {"published": {"treatment": "30", "control": "20"}}
    (other,) = claim_rows(results(dimensions=people), ROLES, [printed])
    assert other["difference"] == pytest.approx(0.1)
    result = row("e3.trades", dimensions=people)
    assert result["reason"] == "described, not tested; the claim's direction is not known"


def test_losses_of_midtraining_are_described() -> None:
    runs = [
        LossHistory("qa", 0, "midtrain", [], [(20, 1.5), (0, 2.0), (40, float("nan"))]),
        LossHistory("qa", 1, "midtrain", [], [(0, 2.2), (20, 1.9)]),
        LossHistory("qa", 0, "SFT on 4000 rows", [], [(0, 9.0)]),
        LossHistory("doc", 0, "midtrain", [(1, 7.0)], [(0, 3.0), (20, 2.0)]),
        LossHistory("other", 0, "midtrain", [(1, 7.0)], []),
    ]
    rows = loss_rows(runs)
    assert [(loss["arm"], loss["seeds"]) for loss in rows] == [("qa", 2), ("doc", 1)]
    lower = row("e2.loss", losses=rows)
    assert (lower["score_treatment"], lower["score_control"]) == (pytest.approx(1.7), 2.0)
    flat = row("e2.loss_flat", losses=rows)
    assert (flat["score_treatment"], flat["score_control"]) == (pytest.approx(0.4), 1.0)
    assert lower["reason"] == flat["reason"] == "described, not tested; as published"
    assert row("e2.loss", losses=rows[1:])["reason"] == "this study has no held-out loss of qa"


def test_malformed_answers_are_described() -> None:
    rows = [
        {"benchmark": benchmark, "dose": 0, "arm": arm, "malformed": share}
        for benchmark, arm, share in (
            ("other", "a", 0.9),
            ("ahb", "a", 0.5),
            ("ahb", "u", 0.4),
            ("people", "u", 0.1),
        )
    ]
    result = row("e3.malformed", malformed=rows)
    assert result["estimate"] == pytest.approx(0.1)
    result = row("e3.human_malformed", malformed=rows)
    assert result["reason"] == "this study has no share of malformed answers of animal"


def test_a_role_that_is_lacking_is_named() -> None:
    roles = {role: name for role, name in ROLES.items() if role != "qa"}
    result = row("e2.humility", roles, dimensions=grades("Epistemic Humility", doc=0.6))
    assert (result["verdict"], result["reason"]) == ("not run", "this study has no qa")
