"""The roles of the paper's claims, checked against what the study file names."""

from typing import Any

from analysis.claims_file import CLAIMS
from core.paths import is_there, resolve
from core.strict_yaml import KeyPath, did_you_mean
from study.spec.checks import Mistake, Mistakes, as_list, check_reference
from study.spec.fingerprints import yaml_once


def role_mistakes(raw: dict[str, Any]) -> Mistakes:
    """Roles that no claim has, and roles of arms, benchmarks and corpora that don't exist."""
    file = raw.get("claims", CLAIMS)
    if not isinstance(file, str) or not is_there(file):
        return []  # told elsewhere
    sections = _sections(file)
    mistakes = _mapping_mistakes(("claim_roles",), raw.get("claim_roles"), sections, raw)
    for i, mapping in enumerate(as_list(raw.get("ladder"))):
        mistakes += _mapping_mistakes(("ladder", i), mapping, sections, raw)
    return mistakes


def _mapping_mistakes(
    at_mapping: KeyPath, given: Any, sections: dict[str, str | None], raw: dict[str, Any]
) -> Mistakes:
    mistakes: Mistakes = []
    for role, value in given.items() if isinstance(given, dict) else ():
        at = (*at_mapping, role)
        if role not in sections:
            what = f"no claim has this role{did_you_mean(str(role), [*sections])}"
            mistakes.append(Mistake(at, what, f"valid: {', '.join(sections)}"))
        elif (section := sections[role]) is None:
            if isinstance(value, str | dict):
                mistakes.append(Mistake(at, f"{value!r}: should be a number"))
        elif isinstance(value, str):
            mistakes += check_reference(raw, section, at, value)
        elif section == "arms" and isinstance(value, dict):
            mistakes += _pair_mistakes(at, value, sections, raw)
        else:
            mistakes.append(Mistake(at, f"{value!r}: should be a name of {section}"))
    return mistakes


def _pair_mistakes(
    at: KeyPath, pairs: dict[str, Any], sections: dict[str, str | None], raw: dict[str, Any]
) -> Mistakes:
    """Of a role of arms by the roles of doses: {before_sft: [ARM, DOSE]}."""
    mistakes: Mistakes = []
    for dose, pair in pairs.items():
        if sections.get(dose, "") is not None:
            mistakes.append(Mistake((*at, dose), "is no role of a dose"))
        match pair:
            case [str(arm), int()]:
                mistakes += check_reference(raw, "arms", (*at, dose, 0), arm)
            case _:
                mistakes.append(Mistake((*at, dose), f"{pair!r}: should be [ARM, DOSE]"))
    return mistakes


def _sections(file: str) -> dict[str, str | None]:
    """Each role of the claims, with the section that its value is named in; None: a number."""
    sections: dict[str, str | None] = {}
    for claim in yaml_once(str(resolve(file)))["claims"]:
        sides = "arms" if "dose" in claim else "corpora"
        kinds: dict[str, str | None] = {"treatment": sides, "control": sides}
        kinds |= {"benchmark": "benchmarks"} | dict.fromkeys(("dose", "control_dose", "margin"))
        sections |= {claim[key]: kind for key, kind in kinds.items() if claim.get(key)}
    return sections
