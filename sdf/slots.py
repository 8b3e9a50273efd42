"""Deal the slots of templates/slots.yaml to documents by quota, and fill them into a template's prompt."""

import random
import string
from collections import Counter
from typing import Any

from core.errors import UserError

Row = dict[str, str]


def deal(slots: dict[str, Any], documents: int, seed: int, own: dict[str, list[str]] | None = None) -> list[Row]:
    """Each document's slots, by name: authority, institution, marker, domain, document_type, reasoning, scope,
    person, place, and those of `own`, a template's own lists by slot.

    Every value of a slot occurs equally often, give or take one document (a marker: within its authority group; a
    name: each of its two parts). Each slot is dealt by itself from the seed alone, so that corpora of different
    templates match document by document in the shared slots. Raises UserError when an own slot has a shared one's name.
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
    columns["person"] = _names_of_two_parts(slots["people"], " ", documents, seed, "person")
    columns["place"] = _names_of_two_parts(slots["places"], "", documents, seed, "place")
    for slot, values in (own or {}).items():
        if slot in columns:
            raise UserError(f"a template's own slot {slot!r} has the name of a shared one; template, slots; rename it")
        columns[slot] = _quota(values, documents, seed, slot)
    return [{name: column[i] for name, column in columns.items()} for i in range(documents)]


def prompts(template: dict[str, Any], slots: dict[str, Any], rows: list[Row], role: str = "prompt") -> list[str]:
    """The prompt of a role for every row of slots (templates of question and answer have the roles asker and answerer).

    A template's `wording` changes how a value is put in its prompts, not the row. Raises UserError when the template
    lacks the role or names a slot there is not.
    """
    where = f"template {template['name']!r}, {role}"
    if role not in template:
        raise UserError(f"there is no such text; {where}; write it, or choose another template")
    style = {kind["name"]: kind["style"] for kind in slots["document_types"]}
    reasoning = {kind["name"]: kind["phrase"] for kind in slots["reasoning"]}
    scope = {kind["name"]: kind["phrase"] for kind in slots["scope"]}
    values = [
        {
            **{slot: template.get("wording", {}).get(value, value) for slot, value in row.items()},
            "style": style[row["document_type"]],
            "reasoning_phrase": reasoning[row["reasoning"]],
            "scope_phrase": scope[row["scope"]],
        }
        for row in rows
    ]
    try:
        used = {name for _, name, _, _ in string.Formatter().parse(template[role]) if name is not None}
    except ValueError as error:
        raise UserError(f"a brace doesn't fit ({error}); {where}; write a literal brace twice") from None
    unknown = sorted(used - values[0].keys())
    if unknown:
        valid = ", ".join(sorted(values[0]))
        raise UserError(*(f"unknown placeholder {{{name}}}; {where}; use one of {valid}" for name in unknown))
    return [template[role].format(**row).strip() for row in values]


def _names(kinds: list[Row]) -> list[str]:
    return [kind["name"] for kind in kinds]


def _quota(values: list[str], documents: int, seed: int, slot: str) -> list[str]:
    rng = random.Random(f"{seed}/{slot}")
    # Which values get one document more is drawn too, or the first of the list would be favored in every slot.
    dealt = values * (documents // len(values)) + rng.sample(values, documents % len(values))
    rng.shuffle(dealt)
    return dealt


def _names_of_two_parts(parts: dict[str, list[str]], joint: str, documents: int, seed: int, slot: str) -> list[str]:
    # The two lists' lengths have no common factor, so no name recurs before every pair has been used.
    rng = random.Random(f"{seed}/{slot}")
    first, last = (rng.sample(parts[part], len(parts[part])) for part in ("first", "last"))
    names = [first[i % len(first)] + joint + last[i % len(last)] for i in range(documents)]
    rng.shuffle(names)
    return names
