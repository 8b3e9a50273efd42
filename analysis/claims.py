"""The paper's claims (analysis/claims/) beside this study's numbers.

The arithmetic of the paper's own figures is in analysis.claim_arithmetic.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from analysis.claim_arithmetic import published_difference
from analysis.claim_size import SIZE_KEYS, size_row
from analysis.described_claims import described_value, is_described, quantity
from analysis.estimates import ALPHA, adjusted
from analysis.headline import dummy_note
from analysis.reference import Reference
from analysis.rows import Results, Row
from analysis.verdicts import HANGS

ROLES = ("treatment", "control", "dose", "control_dose", "benchmark")
# copied from the row of the matching contrast
CONTRAST_KEYS = ("estimate", "low", "high", "p_holm", "seeds", "questions")
OTHER_KEYS = (
    "score_treatment",
    "score_control",
    "margin",
    "p_equivalence",
    "verdict",
    "reason",
    "contrast",
    "figure",
)
SMALLER = "its interval lies below the published difference"
OPPOSITE = {"higher": "lower", "lower": "higher"}


@dataclass(frozen=True)
class Match:
    """A claim's row, and the study's contrast that answers it, if there is one."""

    row: Row
    contrast: Row | None = None


def claim_rows(results: Results, roles: Mapping[str, Any], claims: Sequence[Row]) -> list[Row]:
    """One row per claim: the published numbers, this study's, the verdict on the claim, and why.

    Args:
        results: results.json.
        roles: the role names of `claims` -> the study's own: arms, benchmarks and corpora by name,
            doses in rows of SFT, equivalence margins in score units (0..1).
        claims: of a file of claims (analysis.claims_file).

    Returns:
        Rows with the claim's fields, `published` as text; the study's names of the `ROLES`;
        `score_treatment`, `score_control`, `estimate` (their difference), `low` and `high` (95 %;
        all in score units), `p_holm`, `seeds`, `questions`, `margin`, `p_equivalence`; the
        `SIZE_KEYS` of analysis.claim_size; `verdict` and `reason`; `contrast`, the name of the
        study's own; `figure`, in which way the paper draws it. A value that doesn't exist is None.

    `reproduced` and `contradicted` need the deciding test after Holm, in or against the claimed
    direction. A reproduced difference whose interval lies below the published one is
    `reproduced, smaller`. One that is shown to be less than the paper's own test had 33 % power to
    find (after Holm over all such claims) is `too small`, whether or not the deciding test finds
    it. A claim of no difference is reproduced where two one-sided tests (Schuirmann, J.
    Pharmacokinet. Biopharm. 15, 1987) within the margin agree after Holm over all such claims, and
    contradicted where the deciding test finds a difference whose interval lies outside the margin;
    without a margin it is `inconclusive`. `not run`: a role, the contrast or its scores are
    lacking. `none`: one seed per arm, a dummy, a claim of unknown direction, or one that is only
    described (analysis.described_claims) gives no verdict.
    """
    matches = [
        _described_match(claim, results, roles)
        if is_described(claim)
        else _score_match(claim, results, roles)
        for claim in claims
    ]
    rows = [match.row for match in matches]
    unchanged = [row for row in rows if row["direction"] == "none" and row["margin"] is not None]
    sized = [row for row in rows if row["small_effect"] is not None]
    # a test that could not be made still counts, as in the study's own families
    for family, key in ((unchanged, "p_equivalence"), (sized, "p_too_small")):
        corrected = adjusted([row[key] for row in family], "holm")
        for row, p in zip(family, corrected, strict=True):
            row[key] = p
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
    row |= dict.fromkeys([*ROLES, *CONTRAST_KEYS, *SIZE_KEYS, *OTHER_KEYS])
    return row | {"figure": claim.get("figure")}


def _named_row(claim: Row, roles: Mapping[str, Any]) -> tuple[Row, list[str]]:
    """A claim's row with the study's names of its roles, and the roles that the study lacks.

    An arm's role may be given by the role of the dose, as the arm and the dose there.
    """
    row = _empty_row(claim)
    names = {key: claim[key] for key in ROLES if key in claim}
    row |= {key: roles.get(name) for key, name in names.items()}
    if "control_dose" not in claim:
        row["control_dose"] = row["dose"]
    for side, dose in (("treatment", "dose"), ("control", "control_dose")):
        if isinstance(row[side], Mapping):
            pair = row[side].get(claim.get(dose, claim.get("dose")))
            row[side], row[dose] = pair or (None, row[dose])
    return row, [*dict.fromkeys(name for key, name in names.items() if row[key] is None)]


def _score_match(claim: Row, results: Results, roles: Mapping[str, Any]) -> Match:
    """A claim on scores, answered by a declared contrast."""
    row, lacking = _named_row(claim, roles)
    row |= size_row(claim["published"], claim["direction"], None)
    row["margin"] = roles.get(claim.get("margin", ""))
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
    row |= {key: contrast[key] for key in CONTRAST_KEYS} | {"contrast": contrast["name"]}
    if contrast["estimate"] is None:
        return Match(row | {"verdict": "not run", "reason": contrast["reason"]})
    row |= size_row(claim["published"], claim["direction"], contrast)
    reference = Reference.of_row(contrast)
    if row["margin"] is not None and reference is not None:
        distance = row["margin"] - abs(contrast["estimate"])
        row["p_equivalence"] = reference.sf(distance / contrast["se"])
    return Match(row, contrast)


def _holm_or_untested(contrast: Row) -> float:
    p: float = 2.0 if contrast["p_holm"] is None else contrast["p_holm"]
    return p


def _described_match(claim: Row, results: Results, roles: Mapping[str, Any]) -> Match:
    """A claim that is described and not tested."""
    row, lacking = _named_row(claim, roles)
    if lacking:
        reason = f"this study has no {', '.join(lacking)}"
        return Match(row | {"verdict": "not run", "reason": reason})
    if "treatment" in claim["published"]:
        scale = 100 if row["benchmark"] else 1  # scores are printed in percent
        row["difference"] = published_difference(claim["published"])[0] / scale
    for side in ("treatment", "control"):
        row[f"score_{side}"] = described_value(claim, results, row, side)
        if row[f"score_{side}"] is None:
            lacking.append(claim[side])
    if lacking:
        reason = f"this study has no {quantity(claim)} of {', '.join(dict.fromkeys(lacking))}"
        return Match(row | {"verdict": "not run", "reason": reason})
    row["estimate"] = row["score_treatment"] - row["score_control"]
    row["verdict"] = "none"
    row["reason"] = "described, not tested"
    if claim["direction"] in OPPOSITE:
        agrees = (row["estimate"] > 0) == (claim["direction"] == "higher") and row["estimate"] != 0
        row["reason"] += f"; {'as' if agrees else 'not as'} published"
    elif claim["direction"] is None:
        row["reason"] += "; the claim's direction is not known"
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
    if row["direction"] == "none":
        return _no_difference_verdict(row, contrast)
    if contrast["verdict"] == OPPOSITE[row["direction"]]:
        return "contradicted", None
    is_there = contrast["verdict"] == row["direction"]
    is_smaller = row["share_high"] is not None and row["share_high"] < 1
    if row["p_too_small"] is not None and row["p_too_small"] <= ALPHA:
        least = f"{100 * row['small_effect']:.1f} points"
        also = "; the deciding test finds it" if is_there else ""
        reason = f"less than {least}, which the paper's test had 33 % power to find{also}"
        return "too small", reason
    if not is_there:
        smaller = f"; {SMALLER}" if is_smaller else ""
        return "inconclusive", f"the deciding test is undecided{smaller}"
    if is_smaller:
        return "reproduced, smaller", SMALLER
    return "reproduced", None


def _no_difference_verdict(row: Row, contrast: Row) -> tuple[str, str | None]:
    """The verdict on a claim of no difference, and the reason."""
    margin = row["margin"]
    differs = contrast["verdict"] in OPPOSITE
    difference_found = "; the deciding test finds a difference" if differs else ""
    if margin is None:
        return "inconclusive", f"no equivalence margin is declared{difference_found}"
    if row["p_equivalence"] <= ALPHA:
        return "reproduced", None
    if differs and (contrast["low"] > margin or contrast["high"] < -margin):
        return "contradicted", None
    return "inconclusive", f"not shown to lie within the margin, nor outside{difference_found}"


def _published_text(printed: Row) -> str:
    """The published numbers of a claim as they are printed."""
    parts = []
    if "treatment" in printed:
        errors = [f" ± {error}" for error in printed.get("plus_minus", [])] or ["", ""]
        parts.append(f"{printed['treatment']}{errors[0]} / {printed['control']}{errors[1]}")
    parts += [f"{key} = {printed[key]}" for key in ("difference", "t", "p") if key in printed]
    return ", ".join(parts).replace("p = n.s.", "n.s.") or "in a figure only"
