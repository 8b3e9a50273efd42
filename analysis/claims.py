"""The paper's claims (analysis/claims.yaml) beside this study's numbers.

The arithmetic of the paper's own figures is in analysis.claim_arithmetic.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import mean
from typing import Any

from analysis.claim_arithmetic import published, published_difference
from analysis.estimates import ALPHA, adjusted
from analysis.headline import dummy_note
from analysis.reference import Reference
from analysis.rows import Results, Row
from analysis.verdicts import HANGS

ROLES = ("treatment", "control", "dose", "control_dose", "benchmark")
# copied from the row of the matching contrast
CONTRAST_KEYS = ("estimate", "low", "high", "p_holm", "seeds", "questions")
OTHER_KEYS = (
    "difference",
    "score_treatment",
    "score_control",
    "margin",
    "p_equivalence",
    "verdict",
    "reason",
)
OPPOSITE = {"higher": "lower", "lower": "higher"}


@dataclass(frozen=True)
class Match:
    """A claim's row, and the study's contrast that answers it, if there is one."""

    row: Row
    contrast: Row | None = None


def claim_rows(
    results: Results, roles: Mapping[str, Any], claims: Sequence[Row] | None = None
) -> list[Row]:
    """One row per claim: the published numbers, this study's, the verdict on the claim, and why.

    Args:
        results: results.json.
        roles: the role names of `claims` -> the study's own: arms, benchmarks and corpora by name,
            doses in rows of SFT, equivalence margins in score units (0..1).
        claims: None: those of claims.yaml.

    Returns:
        Rows with the claim's fields, `published` as text and its `difference`; the study's names
        of the `ROLES`; `score_treatment`, `score_control`, `estimate` (their difference), `low` and
        `high`
        (95 %; all in score units), `p_holm`, `seeds`, `questions`, `margin`, `p_equivalence`;
        `verdict` and `reason`. A value that doesn't exist is None.

    `reproduced` and `contradicted` need the deciding test after Holm, in or against the claimed
    direction. A claim of no difference is reproduced where two one-sided tests (Schuirmann, J.
    Pharmacokinet. Biopharm. 15, 1987) within the margin agree after Holm over all such claims,
    else contradicted where the deciding test finds a difference; without a margin it is
    `inconclusive`. `not run`: a role, the contrast or its scores are lacking. `none`: one seed per
    arm, a dummy, a claim of unknown direction, or a claim on corpora gives no verdict.
    """
    matches = [
        _corpus_match(claim, results, roles)
        if "measure" in claim
        else _score_match(claim, results, roles)
        for claim in claims or published()["claims"]
    ]
    rows = [match.row for match in matches]
    unchanged = [row for row in rows if row["direction"] == "none" and row["margin"] is not None]
    # a test that could not be made still counts, as in the study's own families
    corrected = adjusted([row["p_equivalence"] for row in unchanged], "holm")
    for row, p in zip(unchanged, corrected, strict=True):
        row["p_equivalence"] = p
    note = dummy_note(results)
    for match in matches:
        row = match.row
        if row["verdict"] is None and match.contrast is not None:
            verdict = ("none", note) if note else _verdict(row, match.contrast)
            row["verdict"], row["reason"] = verdict
    return rows


def _empty_row(claim: Row) -> Row:
    keys = ("id", "experiment", "statement", "direction", "notes")
    row = {key: claim[key] for key in keys}
    row["published"] = _published_text(claim["published"])
    return row | dict.fromkeys([*ROLES, *CONTRAST_KEYS, *OTHER_KEYS])


def _score_match(claim: Row, results: Results, roles: Mapping[str, Any]) -> Match:
    """A claim on scores, answered by a declared contrast."""
    row = _empty_row(claim)
    printed = claim["published"]
    if "treatment" in printed or "difference" in printed:
        row["difference"] = published_difference(printed)[0] / printed.get("scale", 100)
    names = {key: claim[key] for key in ROLES if key in claim}
    row |= {key: roles.get(name) for key, name in names.items()}
    row["margin"] = roles.get(claim.get("margin", ""))
    if "control_dose" not in claim:
        row["control_dose"] = row["dose"]
    lacking = dict.fromkeys(name for key, name in names.items() if row[key] is None)
    if lacking:
        reason = f"this study has no {', '.join(lacking)}"
        return Match(row | {"verdict": "not run", "reason": reason})
    means = {(arm["benchmark"], arm["arm"], arm["dose"]): arm["mean"] for arm in results["arms"]}
    row["score_treatment"] = means.get((row["benchmark"], row["treatment"], row["dose"]))
    row["score_control"] = means.get((row["benchmark"], row["control"], row["control_dose"]))

    declared = [*results["contrasts"], *map(_reversed_contrast, results["contrasts"])]
    matching = [
        contrast
        for contrast in declared
        if all(contrast.get(key, contrast["dose"]) == row[key] for key in ROLES)
    ]
    if not matching:
        reason = "the study declares no such contrast"
        return Match(row | {"verdict": "not run", "reason": reason})
    # declared in several families: the largest p, so that none can be chosen for its result
    contrast = max(matching, key=_holm_or_untested)
    row |= {key: contrast[key] for key in CONTRAST_KEYS}
    if contrast["estimate"] is None:
        return Match(row | {"verdict": "not run", "reason": contrast["reason"]})
    reference = Reference.of_row(contrast)
    if row["margin"] is not None and reference is not None:
        distance = row["margin"] - abs(contrast["estimate"])
        row["p_equivalence"] = reference.sf(distance / contrast["se"])
    return Match(row, contrast)


def _holm_or_untested(contrast: Row) -> float:
    p: float = 2.0 if contrast["p_holm"] is None else contrast["p_holm"]
    return p


def _corpus_match(claim: Row, results: Results, roles: Mapping[str, Any]) -> Match:
    """A claim on a measure of two corpora, which is described and not tested."""
    row = _empty_row(claim)
    measure = claim["measure"]
    row["difference"] = published_difference(claim["published"])[0]
    of_replicates: dict[str, list[float]] = {}  # `animal.replicate1` is one of `animal`
    for corpus in results["corpora"]:
        if corpus[measure] is not None:
            of_replicates.setdefault(corpus["name"].partition(".")[0], []).append(corpus[measure])
    values = {name: mean(measures) for name, measures in of_replicates.items()}
    lacking = []
    for side, score in (("treatment", "score_treatment"), ("control", "score_control")):
        row[side] = roles.get(claim[side])
        row[score] = values.get(row[side])
        if row[score] is None:
            lacking.append(claim[side])
    if lacking:
        reason = f"this study has no {measure} of {', '.join(lacking)}"
        return Match(row | {"verdict": "not run", "reason": reason})
    row["estimate"] = row["score_treatment"] - row["score_control"]
    row["verdict"] = "none"
    agreement = "as" if row["estimate"] * row["difference"] > 0 else "not as"
    row["reason"] = f"described, not tested; {agreement} published"
    return Match(row)


def _reversed_contrast(contrast: Row) -> Row:
    """The same contrast with its arms exchanged."""

    def negated(key: str) -> float | None:
        return None if contrast[key] is None else -contrast[key]

    return contrast | {
        "treatment": contrast["control"],
        "dose": contrast.get("control_dose", contrast["dose"]),
        "control": contrast["treatment"],
        "control_dose": contrast["dose"],
        "estimate": negated("estimate"),
        "low": negated("high"),
        "high": negated("low"),
        "verdict": OPPOSITE.get(contrast["verdict"], contrast["verdict"]),
    }


def _verdict(row: Row, contrast: Row) -> tuple[str, str | None]:
    """The verdict on a claim by its contrast, and the reason."""
    if contrast["p_holm"] is None or contrast["seeds"] < 2:
        return "none", contrast["reason"] or "one seed per arm"
    if row["direction"] is None:
        return "none", "the claim's direction is not known"
    if contrast["verdict"] == "interim":
        return "interim", contrast["reason"]
    if contrast["verdict"] == HANGS:
        return "inconclusive", HANGS
    differs = contrast["verdict"] in OPPOSITE
    claims_no_difference = row["direction"] == "none"
    if claims_no_difference and row["margin"] is None:
        reason = "no equivalence margin is declared"
        if differs:
            reason += "; the deciding test finds a difference"
        return "inconclusive", reason
    if claims_no_difference:
        reproduced = row["p_equivalence"] <= ALPHA
        undecided = "not shown to lie within the margin"
    else:
        reproduced = contrast["verdict"] == row["direction"]
        undecided = "the deciding test is undecided"
    if not reproduced and not differs:
        return "inconclusive", undecided
    return "reproduced" if reproduced else "contradicted", None


def _published_text(printed: Row) -> str:
    """The published numbers of a claim as they are printed."""
    parts = []
    if "treatment" in printed:
        errors = [f" ± {error}" for error in printed.get("plus_minus", [])] or ["", ""]
        parts.append(f"{printed['treatment']}{errors[0]} / {printed['control']}{errors[1]}")
    parts += [f"{key} = {printed[key]}" for key in ("difference", "t", "p") if key in printed]
    return ", ".join(parts).replace("p = n.s.", "n.s.") or "in a figure only"
