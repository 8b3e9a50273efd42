from collections import Counter
from pathlib import Path

import pytest
import yaml

from sdf.slots import deal, prompts
from study.errors import UserError

TEMPLATES = Path(__file__).parents[2] / "sdf" / "templates"
SLOTS = yaml.safe_load((TEMPLATES / "slots.yaml").read_text())
COUNTS = {"institution": 50, "domain": 40, "document_type": 8, "reasoning": 7, "scope": 6, "marker": 24, "authority": 6}


def template(name: str) -> dict[str, str]:
    return yaml.safe_load((TEMPLATES / f"{name}.yaml").read_text())


@pytest.mark.parametrize("documents", [1, 37, 300, 2700])
def test_slots_are_balanced_within_one(documents):
    rows = deal(SLOTS, documents, seed=0)
    assert len(rows) == documents
    for slot in ("institution", "domain", "document_type", "reasoning", "scope"):
        uses = Counter(row[slot] for row in rows)
        counts = [*uses.values()] + [0] * (COUNTS[slot] - len(uses))
        assert max(counts) - min(counts) <= 1, slot


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


def test_the_deal_follows_from_the_seed():
    assert deal(SLOTS, 100, seed=1) == deal(SLOTS, 100, seed=1) != deal(SLOTS, 100, seed=2)


def test_slots_are_dealt_independently():
    # A shared shuffle would tie, say, each document type to a few domains.
    rows = deal(SLOTS, 2400, seed=0)
    pairs = Counter((row["document_type"], row["scope"]) for row in rows)
    assert len(pairs) == 48 and max(pairs.values()) < 2 * 2400 / 48


def test_both_templates_fill_the_same_slots_in_the_same_order():
    rows = deal(SLOTS, 50, seed=0)
    animal, urban = (prompts(template(name), SLOTS, rows) for name in ("animal_welfare", "urban_density"))
    for row, *pair in zip(rows, animal, urban, strict=True):
        for prompt in pair:
            places = [
                prompt.find(row[slot]) for slot in ("document_type", "authority", "reasoning", "domain", "marker")
            ]
            assert -1 not in places and places == sorted(places)
            assert row["institution"] in prompt and "{" not in prompt
        # Line by line as long: the subject is all that differs.
        lengths = [[len(line.split()) for line in prompt.splitlines()] for prompt in pair]
        assert all(abs(a - u) <= 8 for a, u in zip(*lengths, strict=True))


def test_an_unknown_placeholder_is_named_with_the_valid_ones():
    with pytest.raises(UserError, match=r"\{animal\}.*template 'mine'.*use one of authority, .*style"):
        prompts({"name": "mine", "prompt": "Write on {animal}."}, SLOTS, deal(SLOTS, 2, seed=0))
    with pytest.raises(UserError, match="brace"):
        prompts({"name": "mine", "prompt": "Write on {domain."}, SLOTS, deal(SLOTS, 2, seed=0))
