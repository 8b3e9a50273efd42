"""The roles of the paper's claims, checked against what the study file names."""

from typing import Any

from analysis.claims_file import CLAIMS_PATH
from core.strict_yaml import did_you_mean
from study.spec.checks import Mistake, Mistakes, check_reference
from study.spec.fingerprints import yaml_once


def role_mistakes(raw: dict[str, Any]) -> Mistakes:
    """Roles that no claim has, and roles of arms, benchmarks and corpora that don't exist."""
    given = raw.get("claim_roles")
    sections = _sections()
    mistakes: Mistakes = []
    for role, value in given.items() if isinstance(given, dict) else ():
        at = ("claim_roles", role)
        if role not in sections:
            what = f"no claim has this role{did_you_mean(str(role), [*sections])}"
            mistakes.append(Mistake(at, what, f"valid: {', '.join(sections)}"))
        elif (section := sections[role]) is None:
            if isinstance(value, str):
                mistakes.append(Mistake(at, f"{value!r}: should be a number"))
        elif isinstance(value, str):
            mistakes += check_reference(raw, section, at, value)
        else:
            mistakes.append(Mistake(at, f"{value!r}: should be a name of {section}"))
    return mistakes


def _sections() -> dict[str, str | None]:
    """Each role of the claims, with the section that its value is named in; None: a number."""
    sections: dict[str, str | None] = {}
    for claim in yaml_once(str(CLAIMS_PATH))["claims"]:
        sides = "arms" if "dose" in claim else "corpora"
        kinds: dict[str, str | None] = {"treatment": sides, "control": sides}
        kinds |= {"benchmark": "benchmarks"} | dict.fromkeys(("dose", "control_dose", "margin"))
        sections |= {claim[key]: kind for key, kind in kinds.items() if claim.get(key)}
    return sections
