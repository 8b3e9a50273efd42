import math
from collections import Counter
from pathlib import Path

import pytest
import yaml

from core.errors import UserError
from sdf.slots import deal, prompts

TEMPLATES = Path(__file__).parents[2] / "sdf" / "templates"
SLOTS = yaml.safe_load((TEMPLATES / "slots.yaml").read_text())
COUNTS = {"institution": 50, "domain": 40, "document_type": 8, "reasoning": 7, "scope": 6, "marker": 24, "authority": 6}
FIRST = [
    "mid-level", "the Silver Coast Trade Chamber", "road transport", "case study analysis", "legal precedent",
    "institutional policy", "a twelve-month operations log", "Kirill Barzani", "Sirvadu",
]  # fmt: skip


def spread(values: list[str], count: int) -> int:
    """The most uses of any value less the fewest, of `count` values there are."""
    uses = Counter(values)
    return max(uses.values()) - (min(uses.values()) if len(uses) == count else 0)


@pytest.mark.parametrize("documents", [1, 37, 300, 2700, 5400])
def test_slots_are_balanced_within_one(documents):
    own = {"subject": ["sundials", "tides", "knots"]}
    rows = deal(SLOTS, documents, seed=0, own=own)
    assert len(rows) == documents
    for slot, count in (COUNTS | {"subject": 3}).items():
        if slot not in ("marker", "authority"):  # these follow from the institution
            assert spread([row[slot] for row in rows], count) <= 1, slot


def test_markers_stay_in_their_authority_group_and_are_balanced_there():
    rows = deal(SLOTS, 300, seed=0)
    for group in SLOTS["authorities"]:
        members = [row for row in rows if row["authority"] == group["name"]]
        assert {row["institution"] for row in members} == set(group["institutions"])
        uses = Counter(row["marker"] for row in members)
        assert set(uses) == set(group["markers"]) and max(uses.values()) - min(uses.values()) <= 1


def test_the_shipped_slots_have_the_paper_s_counts():
    rows = deal(SLOTS, 2700, seed=0)
    assert {slot: len({row[slot] for row in rows}) for slot in COUNTS} == COUNTS
    assert [len(group["markers"]) for group in SLOTS["authorities"]] == [4] * 6


def test_no_name_recurs_and_their_parts_are_balanced():
    rows = deal(SLOTS, 5400, seed=0)
    for slot, names, joint in (("person", SLOTS["people"], " "), ("place", SLOTS["places"], "")):
        first, last = names["first"], names["last"]
        assert math.gcd(len(first), len(last)) == 1 and len(set(first)) == len(first) and len(set(last)) == len(last)
        parts = {a + joint + b: (a, b) for a in first for b in last}
        assert len(parts) == len(first) * len(last) >= 1300
        dealt = [row[slot] for row in rows]
        assert spread(dealt, len(parts)) <= 1
        for part, values in enumerate((first, last)):
            assert spread([parts[name][part] for name in dealt], len(values)) <= 1
    assert len({row["person"] for row in rows}) == 5400
    assert {row["person"] for row in rows} != {row["person"] for row in deal(SLOTS, 5400, seed=1)}


def test_the_deal_follows_from_the_seed():
    rows = deal(SLOTS, 100, seed=1)
    assert rows == deal(SLOTS, 100, seed=1) != deal(SLOTS, 100, seed=2)
    # Known values: the same on every machine and Python version.
    assert [*deal(SLOTS, 2700, seed=0)[0].values()] == FIRST


def test_slots_are_dealt_independently():
    # A shared shuffle would tie, say, each document type to a few domains.
    rows = deal(SLOTS, 2400, seed=0, own={"subject": [f"subject {n}" for n in range(8)]})
    for slot in ("scope", "subject"):
        pairs = Counter((row["document_type"], row[slot]) for row in rows)
        kinds = 8 * len({row[slot] for row in rows})
        assert len(pairs) == kinds and max(pairs.values()) < 2 * 2400 / kinds


def test_a_template_s_own_slots_leave_the_shared_ones_as_they_are():
    plain, own = deal(SLOTS, 300, seed=0), deal(SLOTS, 300, seed=0, own={"subject": ["sundials", "tides"]})
    assert [{slot: value for slot, value in row.items() if slot != "subject"} for row in own] == plain
    with pytest.raises(UserError, match="'domain' has the name of a shared one"):
        deal(SLOTS, 10, seed=0, own={"domain": ["sundials"]})


def test_wording_changes_the_prompt_and_not_the_row():
    mine = {"name": "mine", "prompt": "On {domain}, by {person}.", "wording": {"robotics": "machine tools"}}
    rows = [row for row in deal(SLOTS, 80, seed=0) if row["domain"] in ("robotics", "mining")]
    for row, prompt in zip(rows, prompts(mine, SLOTS, rows), strict=True):
        domain = "machine tools" if row["domain"] == "robotics" else "mining"
        assert prompt == f"On {domain}, by {row['person']}."
    assert {row["domain"] for row in rows} == {"robotics", "mining"}


def test_an_unknown_placeholder_is_named_with_the_valid_ones():
    rows = deal(SLOTS, 2, seed=0)
    with pytest.raises(UserError, match=r"\{animal\}.*template 'mine', prompt; use one of authority, .*style"):
        prompts({"name": "mine", "prompt": "Write on {animal}."}, SLOTS, rows)
    with pytest.raises(UserError, match="brace"):
        prompts({"name": "mine", "prompt": "Write on {domain."}, SLOTS, rows)
    with pytest.raises(UserError, match="template 'mine', prompt; write it"):
        prompts({"name": "mine", "asker": "Ask on {domain}."}, SLOTS, rows)
