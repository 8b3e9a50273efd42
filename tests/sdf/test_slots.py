"""Slots: assigned by quota from the seed, and filled into prompts."""

import math
from collections import Counter
from pathlib import Path

import pytest
import yaml

from core.errors import Problem, UserError
from sdf.slots import assign_slots, render_prompts

TEMPLATES = Path(__file__).parents[2] / "sdf" / "templates"
SLOTS = yaml.safe_load((TEMPLATES / "slots.yaml").read_text())
COUNTS = {
    "institution": 50,
    "domain": 40,
    "document_type": 8,
    "reasoning": 7,
    "scope": 6,
    "marker": 24,
    "authority": 6,
}
FIRST = {
    "authority": "mid-level",
    "institution": "the Silver Coast Trade Chamber",
    "domain": "road transport",
    "document_type": "case study analysis",
    "reasoning": "legal precedent",
    "scope": "institutional policy",
    "marker": "a twelve-month operations log",
    "person": "Kirill Barzani",
    "place": "Sirvadu",
}


def spread(values: list[str], count: int) -> int:
    """Uses of the most used value minus uses of the least used one, of `count` values."""
    uses = Counter(values)
    return max(uses.values()) - (min(uses.values()) if len(uses) == count else 0)


@pytest.mark.parametrize("documents", [1, 37, 300, 2700, 5400])
def test_slots_are_balanced_within_one(documents):
    template_slots = {"subject": ["sundials", "tides", "knots"]}
    rows = assign_slots(SLOTS, documents, seed=0, template_slots=template_slots)
    assert len(rows) == documents
    for slot, count in (COUNTS | {"subject": 3}).items():
        if slot not in ("marker", "authority"):  # these follow from the institution
            assert spread([row[slot] for row in rows], count) <= 1, slot


def test_markers_stay_in_their_authority_group_and_are_balanced_there():
    rows = assign_slots(SLOTS, 300, seed=0)
    for group in SLOTS["authorities"]:
        members = [row for row in rows if row["authority"] == group["name"]]
        assert {row["institution"] for row in members} == set(group["institutions"])
        uses = Counter(row["marker"] for row in members)
        assert set(uses) == set(group["markers"]) and max(uses.values()) - min(uses.values()) <= 1


def test_the_shipped_slots_have_the_counts_of_the_paper():
    rows = assign_slots(SLOTS, 2700, seed=0)
    assert {slot: len({row[slot] for row in rows}) for slot in COUNTS} == COUNTS
    assert [len(group["markers"]) for group in SLOTS["authorities"]] == [4] * 6


def test_no_name_recurs_and_their_parts_are_balanced():
    rows = assign_slots(SLOTS, 5400, seed=0)
    for slot, names, joint in (("person", SLOTS["people"], " "), ("place", SLOTS["places"], "")):
        first, last = names["first"], names["last"]
        assert (
            math.gcd(len(first), len(last)) == 1
            and len(set(first)) == len(first)
            and len(set(last)) == len(last)
        )
        parts = {a + joint + b: (a, b) for a in first for b in last}
        assert len(parts) == len(first) * len(last) >= 1300
        names_used = [row[slot] for row in rows]
        assert spread(names_used, len(parts)) <= 1
        for part, values in enumerate((first, last)):
            assert spread([parts[name][part] for name in names_used], len(values)) <= 1
    assert len({row["person"] for row in rows}) == 5400
    assert {row["person"] for row in rows} != {
        row["person"] for row in assign_slots(SLOTS, 5400, seed=1)
    }


def test_slots_depend_on_the_seed_only():
    rows = assign_slots(SLOTS, 100, seed=1)
    assert rows == assign_slots(SLOTS, 100, seed=1) != assign_slots(SLOTS, 100, seed=2)
    # Known values: the same on every machine and Python version.
    assert [*assign_slots(SLOTS, 2700, seed=0)[0].items()] == [*FIRST.items()]


def test_slots_are_assigned_independently_of_each_other():
    # A shared shuffle would tie, say, each document type to a few domains.
    rows = assign_slots(
        SLOTS, 2400, seed=0, template_slots={"subject": [f"subject {n}" for n in range(8)]}
    )
    for slot in ("scope", "subject"):
        pairs = Counter((row["document_type"], row[slot]) for row in rows)
        kinds = 8 * len({row[slot] for row in rows})
        assert len(pairs) == kinds and max(pairs.values()) < 2 * 2400 / kinds


def test_slots_of_a_template_leave_the_shared_ones_as_they_are():
    plain, own = (
        assign_slots(SLOTS, 300, seed=0),
        assign_slots(SLOTS, 300, seed=0, template_slots={"subject": ["sundials", "tides"]}),
    )
    assert [
        {slot: value for slot, value in row.items() if slot != "subject"} for row in own
    ] == plain
    with pytest.raises(UserError) as error:
        assign_slots(SLOTS, 10, seed=0, template_slots={"domain": ["sundials"]})
    assert "'domain'" in error.value.problems[0].what


def test_wording_changes_the_prompt_and_not_the_row():
    mine = {
        "name": "mine",
        "prompt": "On {domain}, by {person}.",
        "wording": {"robotics": "machine tools"},
    }
    rows = [
        row for row in assign_slots(SLOTS, 80, seed=0) if row["domain"] in ("robotics", "mining")
    ]
    for row, prompt in zip(rows, render_prompts(mine, SLOTS, rows), strict=True):
        domain = "machine tools" if row["domain"] == "robotics" else "mining"
        assert prompt == f"On {domain}, by {row['person']}."
    assert {row["domain"] for row in rows} == {"robotics", "mining"}


def test_a_prompt_that_cannot_be_filled_is_a_user_error():
    def problems(prompts: dict[str, str]) -> tuple[Problem, ...]:
        with pytest.raises(UserError) as error:
            render_prompts({"name": "mine"} | prompts, SLOTS, rows)
        return error.value.problems

    rows = assign_slots(SLOTS, 2, seed=0)
    first, second = problems({"prompt": "Write on {zebra} and {animal}."})
    assert first.where == second.where == "template 'mine', prompt"
    assert "{animal}" in first.what and "{zebra}" in second.what
    assert "authority" in first.fix and "style" in first.fix, "the valid names"
    assert "brace" in problems({"prompt": "Write on {domain."})[0].what
    assert problems({"asker": "Ask on {domain}."})[0].where == "template 'mine', prompt"
