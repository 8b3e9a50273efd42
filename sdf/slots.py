"""Deal the slots of templates/slots.yaml to documents by quota, and fill them into a template's prompt."""

import random
import string
from collections import Counter
from typing import Any

from study.errors import UserError

Row = dict[str, str]


def deal(slots: dict[str, Any], documents: int, seed: int) -> list[Row]:
    """Each document's slots, by name: authority, institution, marker, domain, document_type, reasoning, scope.

    Every value of a slot occurs equally often, give or take one document (a marker: within its authority group).
    The deal follows from the arguments alone, so that corpora of different templates match document by document.
    """
    group_of = {name: group for group in slots["authorities"] for name in group["institutions"]}
    institutions = _quota([*group_of], documents, seed, "institution")
    columns: dict[str, list[str]] = {
        "authority": [group_of[name]["name"] for name in institutions],
        "institution": institutions,
        "domain": _quota(slots["domains"], documents, seed, "domain"),
        "document_type": _quota(_names(slots["document_types"]), documents, seed, "document_type"),
        "reasoning": _quota(_names(slots["reasoning"]), documents, seed, "reasoning"),
        "scope": _quota(_names(slots["scope"]), documents, seed, "scope"),
    }
    in_group = Counter(columns["authority"])
    markers = {
        group["name"]: iter(_quota(group["markers"], in_group[group["name"]], seed, f"marker/{group['name']}"))
        for group in slots["authorities"]
    }
    columns["marker"] = [next(markers[authority]) for authority in columns["authority"]]
    return [{name: column[i] for name, column in columns.items()} for i in range(documents)]


def prompts(template: dict[str, Any], slots: dict[str, Any], rows: list[Row]) -> list[str]:
    """The writer's prompt for every row of slots. Raises UserError when the template names a slot there is not."""
    style = {kind["name"]: kind["style"] for kind in slots["document_types"]}
    reasoning = {kind["name"]: kind["phrase"] for kind in slots["reasoning"]}
    scope = {kind["name"]: kind["phrase"] for kind in slots["scope"]}
    values = [
        {
            **row,
            "style": style[row["document_type"]],
            "reasoning_phrase": reasoning[row["reasoning"]],
            "scope_phrase": scope[row["scope"]],
        }
        for row in rows
    ]
    where = f"template {template['name']!r}, prompt"
    try:
        used = {name for _, name, _, _ in string.Formatter().parse(template["prompt"]) if name is not None}
    except ValueError as error:
        raise UserError(f"a brace doesn't fit ({error}); {where}; write a literal brace twice") from None
    unknown = sorted(used - values[0].keys())
    if unknown:
        valid = ", ".join(sorted(values[0]))
        raise UserError(*(f"unknown placeholder {{{name}}}; {where}; use one of {valid}" for name in unknown))
    return [template["prompt"].format(**row).strip() for row in values]


def _names(kinds: list[Row]) -> list[str]:
    return [kind["name"] for kind in kinds]


def _quota(values: list[str], documents: int, seed: int, slot: str) -> list[str]:
    rng = random.Random(f"{seed}/{slot}")
    # Which values get one document more is drawn too, or the first of the list would be favored in every slot.
    dealt = values * (documents // len(values)) + rng.sample(values, documents % len(values))
    rng.shuffle(dealt)
    return dealt
