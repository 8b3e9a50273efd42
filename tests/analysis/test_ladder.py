"""The ladder: one published difference beside the same one on every rung."""

from pathlib import Path
from typing import Any

import pytest

from analysis.claims_file import CLAIMS, read_claims
from analysis.ladder import ladder_rows
from analysis.run import run
from analysis.rungs import rung_lines, rung_text
from core.errors import UserError
from study.spec.load import load_study
from tests.analysis.small_study import study
from tests.place import ROOT, SMALL

CLAIM = "e2.before_sft"
CLAIM_ROWS = read_claims(ROOT / CLAIMS)["claims"]
ROLES = {"documents": "ours", "qa": "our_qa", "before_sft": 0, "anima": "ahb"}


def results(**rungs: str) -> dict[str, Any]:
    """Of each pair of arms the difference .1, .2, .3 ..., in the order given."""
    arms = [*rungs]
    pairs = [*zip(arms[::2], arms[1::2], strict=True)]
    contrasts = [
        {
            "name": f"{a} - {b}",
            "family": "E2",
            "treatment": a,
            "control": b,
            "benchmark": "ahb",
            "dose": 0,
            "control_dose": 0,
            "estimate": 0.1 * n,
            "low": None,
            "high": None,
            "se": None,
            "df": None,
            "reference": None,
            "p": None,
            "p_holm": None,
            "seeds": 1,
            "questions": 26,
            "verdict": "none",
            "reason": "one training seed per arm",
        }
        for n, (a, b) in enumerate(pairs, 1)
    ]
    means = [{"benchmark": "ahb", "arm": arm, "dose": 0, "mean": 0.5} for arm in arms]
    return {
        "arms": means,
        "contrasts": contrasts,
        "rungs": rungs,
        "arm_order": arms,
        "corpora": [],
        "writers": [],
        "benchmarks": {},
        "losses": [],
        "malformed": [],
        "dimensions": [],
    }


MADE = results(
    theirs="logs",
    their_qa="logs",
    loaded="weights",
    loaded_qa="weights",
    retrained="documents",
    retrained_qa="documents",
    ours="anew",
    our_qa="anew",
)


def test_each_mapping_fills_the_rung_of_its_arms() -> None:
    further = [
        {"documents": {"before_sft": ["theirs", 0]}, "qa": {"before_sft": ["their_qa", 0]}},
        {"documents": "loaded", "qa": "loaded_qa"},
        {"documents": "retrained", "qa": "retrained_qa"},
    ]
    rows = {row["id"]: row for row in ladder_rows(MADE, ROLES, further, CLAIM_ROWS)}
    row = rows[CLAIM]
    assert row["published"].startswith("76.8 / 40.4")
    shown = {rung: row[rung]["estimate"] for rung in ("logs", "weights", "documents", "anew")}
    assert shown == pytest.approx({"logs": 0.1, "weights": 0.2, "documents": 0.3, "anew": 0.4})
    assert row["logs"]["verdict"] == "none", "single runs have no verdict"


def test_a_difference_is_on_the_first_rung_of_its_arms() -> None:
    mixed = results(ours="anew", our_qa="weights")
    (row,) = (row for row in ladder_rows(mixed, ROLES, [], CLAIM_ROWS) if row["id"] == CLAIM)
    assert row["weights"] and not row["anew"]


def test_results_say_which_arm_is_on_which_rung() -> None:
    assert rung_lines(MADE)[:2] == [
        "their logs, our test: theirs, their_qa (scores that were there before anything was "
        "declared here)",
        "their weights, evaluated again: loaded, loaded_qa",
    ]
    assert rung_text(MADE, "ours") is None
    assert rung_text(MADE, "retrained") == "their documents, trained again"
    assert rung_lines(results(ours="anew", our_qa="anew")) == []


@pytest.mark.usefixtures("undrawn")
def test_every_table_says_it_and_the_report_has_the_ladder(tmp_path: Path) -> None:
    context = study(tmp_path)
    context.settings["rungs"] = {"untrained": "anew", "animal": "weights", "urban": "weights"}
    roles = {"documents": "urban", "qa": "untrained", "before_sft": 0, "anima": "ahb"}
    context.settings |= {"claim_roles": roles, "ladder": [{"documents": "animal", "qa": "urban"}]}
    run(context)
    said = "their weights, evaluated again: animal, urban"
    texts = ("headline.txt", "report.html", "macros.tex")
    for path in (*texts, "tables/scores.tex", "tables/contrasts.tex"):
        assert said in (context.folder / path).read_text(), path
    report = (context.folder / "report.html").read_text()
    assert '<h2 id="ladder">The ladder</h2>' in report
    assert (
        '<th scope="col">Their weights, evaluated again</th>'
        '<th scope="col">Their documents, trained again</th>' in report
    )


@pytest.mark.parametrize(
    ("roles", "said"),
    [
        ("[{documents: {before_sft: [animal, 0]}}]", None),
        ("[{documents: {before_sft: [nobody, 0]}}]", "there is no arm 'nobody'"),
        ("[{documents: {qa: [animal, 0]}}]", "is no role of a dose"),
        ("[{documents: {before_sft: animal}}]", r"should be|valid list"),
        ("[{nothing: animal}]", "no claim has this role"),
    ],
)
def test_roles_of_further_rungs_are_checked(roles: str, said: str | None) -> None:
    if said is None:
        load_study(SMALL, None, [f"ladder={roles}"])
        return
    with pytest.raises(UserError, match=said):
        load_study(SMALL, None, [f"ladder={roles}"])
