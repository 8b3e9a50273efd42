"""Assign values of slots to documents by quota, and fill them into a template's prompt.

A slot is a placeholder of a template, for example {domain}. templates/slots.yaml lists the values.
"""

import random
import string
from collections import Counter
from collections.abc import Mapping
from typing import Any

from core.errors import Problem, UserError

SlotRow = dict[str, str]  # slot -> value, of one document


def assign_slots(
    slots: Mapping[str, Any],
    documents: int,
    seed: int,
    template_slots: Mapping[str, list[str]] | None = None,
) -> list[SlotRow]:
    """Assign each document a value of every slot.

    Every value of a slot is used equally often, plus or minus one document. (A marker: within its
    authority group. A name of a person or place: each of its two parts.) Each slot is shuffled by
    its own generator, which is seeded by `seed` and the slot's name. Corpora of different templates
    therefore agree, document by document, in the slots they share.

    Args:
        slots: content of templates/slots.yaml.
        documents: number of documents.
        seed: of the corpus.
        template_slots: {slot: values} that the template adds.

    Returns:
        One row per document with authority, institution, marker, domain, document_type, reasoning,
        scope, person, place and the slots of `template_slots`.

    Raises:
        UserError: a slot of the template has the name of a shared slot.
    """
    authority_of = {
        institution: group["name"]
        for group in slots["authorities"]
        for institution in group["institutions"]
    }
    institutions = _assign_by_quota([*authority_of], documents, seed, "institution")
    columns: dict[str, list[str]] = {
        "authority": [authority_of[institution] for institution in institutions],
        "institution": institutions,
        "domain": _assign_by_quota(slots["domains"], documents, seed, "domain"),
    }
    for slot, key in (
        ("document_type", "document_types"),
        ("reasoning", "reasoning"),
        ("scope", "scope"),
    ):
        names = [kind["name"] for kind in slots[key]]
        columns[slot] = _assign_by_quota(names, documents, seed, slot)
    columns["marker"] = _assign_markers(slots["authorities"], columns["authority"], seed)
    columns["person"] = _combine_names(slots["people"], " ", documents, seed, "person")
    columns["place"] = _combine_names(slots["places"], "", documents, seed, "place")
    for slot, values in (template_slots or {}).items():
        if slot in columns:
            raise UserError(
                where="template, slots",
                what=f"the template's slot {slot!r} has the name of a shared slot",
                fix="rename it",
            )
        columns[slot] = _assign_by_quota(values, documents, seed, slot)
    return [{slot: column[i] for slot, column in columns.items()} for i in range(documents)]


def render_prompts(
    template: Mapping[str, Any],
    slots: Mapping[str, Any],
    rows: list[SlotRow],
    role: str = "prompt",
) -> list[str]:
    """Fill the slots of each row into the template's prompt for a role.

    Templates of question and answer have the roles "asker" and "answerer" instead of "prompt".
    `wording` of a template replaces values in its prompts; the rows keep the original values.

    Raises:
        UserError: the template lacks the role, or names a slot that does not exist.
    """
    where = f"template {template['name']!r}, {role}"
    if role not in template:
        raise UserError(
            where=where, what="the prompt is missing", fix="write it, or choose another template"
        )
    style = {kind["name"]: kind["style"] for kind in slots["document_types"]}
    reasoning = {kind["name"]: kind["phrase"] for kind in slots["reasoning"]}
    scope = {kind["name"]: kind["phrase"] for kind in slots["scope"]}
    wording = template.get("wording", {})
    values = [
        {
            **{slot: wording.get(value, value) for slot, value in row.items()},
            "style": style[row["document_type"]],
            "reasoning_phrase": reasoning[row["reasoning"]],
            "scope_phrase": scope[row["scope"]],
        }
        for row in rows
    ]
    try:
        fields = {name for _, name, _, _ in string.Formatter().parse(template[role])} - {None}
    except ValueError as error:
        raise UserError(
            where=where, what=f"unmatched brace ({error})", fix="write a literal brace twice"
        ) from None
    fix = f"use one of {', '.join(sorted(values[0]))}"
    unknown = sorted(f"{{{name}}}" for name in fields - values[0].keys())
    if unknown:
        raise UserError.of(Problem(where, f"unknown placeholder {name}", fix) for name in unknown)
    return [template[role].format(**row).strip() for row in values]


def _assign_by_quota(values: list[str], documents: int, seed: int, slot: str) -> list[str]:
    rng = random.Random(f"{seed}/{slot}")
    # The values that get one document more are sampled too. Otherwise the first values of every
    # list would be used more often.
    assigned = values * (documents // len(values)) + rng.sample(values, documents % len(values))
    rng.shuffle(assigned)
    return assigned


def _assign_markers(groups: list[dict[str, Any]], authorities: list[str], seed: int) -> list[str]:
    documents_of = Counter(authorities)
    markers = {}
    for group in groups:
        authority = group["name"]
        markers[authority] = iter(
            _assign_by_quota(group["markers"], documents_of[authority], seed, f"marker/{authority}")
        )
    return [next(markers[authority]) for authority in authorities]


def _combine_names(
    parts: Mapping[str, list[str]], separator: str, documents: int, seed: int, slot: str
) -> list[str]:
    # The two lists' lengths have no common factor: no name recurs before every pair was used.
    rng = random.Random(f"{seed}/{slot}")
    first = rng.sample(parts["first"], len(parts["first"]))
    last = rng.sample(parts["last"], len(parts["last"]))
    names = [first[i % len(first)] + separator + last[i % len(last)] for i in range(documents)]
    rng.shuffle(names)
    return names
