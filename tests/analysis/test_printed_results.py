"""Every result that the paper prints has a claim, or stands with a reason among those without."""

from functools import cache
from typing import Any

from analysis.claims_file import CLAIMS, read_claims
from core.paths import ROOT
from study.spec.load import load_study


@cache
def published() -> dict[str, Any]:
    return read_claims(ROOT / CLAIMS)


# Results in print, by the paper's experiments, and the claims that have them.
STATEMENTS = {
    "E1: documents linked to AI do more": ["e1.ai"],
    "E1: SFT reduces scores strongly": ["e1.sft", "e1.sft_non_ai"],
    "E1: RLAIF does not": ["e1.rlaif"],
    "E1: an HHH prompt gives a small rise, not significant": ["e1.hhh"],
    "E2: documents above pairs": ["e2.before_sft", "e2.sft_2500"],
    "E2: no difference after 5,000 samples": ["e2.sft_5000"],
    "E2: documents erode": ["e2.erosion", "e2.erosion_2500"],
    "E2: pairs rise under unrelated SFT": ["e2.qa_rises_2500", "e2.qa_rises_5000"],
    "E2: RLAIF after SFT makes no difference": ["e2.rlaif"],
    "E2: both perfect on control questions": ["e2.control_questions"],
    "E2: documents better on three dimensions": ["e2.cautious", "e2.scope", "e2.humility"],
    "E2: documents worse on three dimensions": ["e2.trade_off", "e2.salience", "e2.harm"],
    "E2: the pairs' loss is lower and flatter": ["e2.loss", "e2.loss_flat"],
    "E2: corpora": ["e2.tokens", "e2.similarity", "e2.bigrams", "e2.trigrams", "e2.types"],
    "E2n: neutral questions": ["e2.neutral"],
    "E3: animal above urban": ["e3.sft_5000"],
    "E3: actionability in favour of urban": ["e3.actionability"],
    "E3: control questions and capacity attribution worse": ["e3.control_questions", "e3.capacity"],
    "E3: people, before and after SFT": ["e3.human_before_sft", "e3.human_after_sft"],
    "E3: Figure 4": ["e3.human_before_sft", "e3.human_sft_100"],
    "E3: less willing to trade, defers less (I.1)": ["e3.trades", "e3.deference"],
    "E3: a fifth of the trades are right (E.1)": ["e3.trades_level"],
    "D.2, E.2: malformed answers at equal rates": ["e3.malformed", "e3.human_malformed"],
    "E4: generic SFT raises": ["e4.alpaca", "e4.helpsteer"],
    "E4: Alpaca and HelpSteer similar": ["e4.similar"],
    "E5: writers": ["e5.grok", "e5.haiku"],
    "E6: safety": ["e6.power", "e6.corrigibility", "e6.strongreject"],
    "E6: capability": ["e6.hellaswag"],
}
# Numbers in print: scores, tests, sizes of corpora.
NUMBERS = [
    "10.2",
    "17.2",
    "20.4",
    "40.4",
    "76.8",
    "41.7",
    "47.9",
    "51.7",
    "52.2",
    "7",
    "55.7",
    "44.8",
    "46.70",
    "37.30",
    "38.40",
    ".029",
    ".001",
    ".000045",
    ".0002",
    ".0009",
    ".007",
    ".009",
    ".005",
    "5.67",
    "3.76",
    "3.32",
    ".334",
    ".321",
    ".365",
    ".367",
    "2.05",
    "2.04",
    ".77",
    ".79",
    ".08",
    ".89",
    ".95",
    ".733",
    "3M",
    "188k",
    ".476",
    ".207",
    ".211",
    ".386",
    ".528",
    ".711",
    ".011",
    ".055",
    "20",
]


def claims() -> dict[str, dict[str, Any]]:
    return {claim["id"]: claim for claim in published()["claims"]}


def test_every_printed_statement_has_a_claim() -> None:
    listed = {name for names in STATEMENTS.values() for name in names}
    assert listed == claims().keys()


def test_every_printed_number_is_in_a_claim() -> None:
    values = [value for claim in claims().values() for value in claim["published"].values()]
    printed = {value for value in values if isinstance(value, str)}
    assert [number for number in NUMBERS if number not in printed] == []


def test_at_most_five_results_have_no_claim_and_each_has_a_reason() -> None:
    without = published()["without_row"]
    assert len(without) <= 5
    assert all(row["what"] and row["why"] for row in without)


def test_figure_4_is_about_people() -> None:
    drawn = [claim for claim in claims().values() if claim.get("figure") == "questions"]
    assert [claim["dose"] for claim in drawn] == ["before_sft", "sft_100_steps"]
    assert {claim["benchmark"] for claim in drawn} == {"human_compassion"}


Side = tuple[str, int]


def declared_in(name: str) -> tuple[dict[str, Any], set[tuple[str, Side, Side]]]:
    """The roles of a study, and its contrasts: benchmark, treatment and control with their doses."""
    study = load_study(ROOT / f"studies/{name}.yaml")
    declared = set()
    for contrast in study.contrasts:
        doses = study.arms[contrast.treatment].doses or (study.sft and study.sft.doses) or []
        pairs = [(dose, dose) for dose in contrast.doses or doses]
        if contrast.treatment_dose is not None:
            pairs = [(contrast.treatment_dose, contrast.control_dose or 0)]
        for bench in contrast.benchmarks:
            for pair in pairs:
                arms = (contrast.treatment, contrast.control)
                declared.add((bench, *zip(arms, pair, strict=True)))
    return study.claim_roles, declared


def undeclared(name: str) -> list[str]:
    """The claims about arms whose contrast a study does not declare."""
    roles, declared = declared_in(name)
    lacking = []
    for claim_name, claim in claims().items():
        if "measure" in claim or "dimension" in claim:
            continue
        doses = (claim["dose"], claim.get("control_dose", claim["dose"]))
        sides = [
            (roles.get(claim[side]), roles.get(dose))
            for side, dose in zip(("treatment", "control"), doses, strict=True)
        ]
        bench = roles.get(claim["benchmark"])
        if (bench, *sides) not in declared and (bench, *reversed(sides)) not in declared:
            lacking.append(claim_name)
    return lacking


def test_the_papers_studies_declare_the_contrasts_of_the_claims() -> None:
    rlaif = {"e1.rlaif", "e2.rlaif"}
    assert {*undeclared("paper")} == rlaif
    assert not rlaif & {*undeclared("paper_grpo")}
