"""The card of a corpus against counts by hand; the balance of two; and cutting to a budget of tokens."""

import json
import math
import random
from pathlib import Path

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers

from core.errors import UserError
from sdf import card as cards


@pytest.fixture
def tokenizer(tmp_path: Path) -> Path:
    """One token for a word, one for a sign; saved with a truncation, as some models' files are."""
    made = Tokenizer(models.WordLevel({"[UNK]": 0}, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.enable_truncation(5)
    made.enable_padding(length=9)
    made.save(str(tmp_path / "tokenizer.json"))
    return tmp_path


def words(texts: list[str]) -> list[int]:
    return [len(text.split()) for text in texts]


def corpus(documents: int, seed: int = 0, vocabulary: int = 500) -> list[dict]:
    rng = random.Random(seed)
    return [
        {
            "id": i,
            "text": "\n\n".join(" ".join(f"w{int(vocabulary ** rng.random())}" for _ in range(30)) for _ in range(4)),
            "slots": {"type": "ab"[i % 2], "name": f"name {i}"},
        }
        for i in range(documents)
    ]


def test_a_card_counts_what_can_be_counted_by_hand(tokenizer: Path) -> None:
    documents = [
        {"id": 0, "text": "A b, a B.", "slots": {"type": "x"}},
        {"id": 1, "text": "a b a b", "slots": {"type": "x"}},
        {"id": 2, "text": "c d e f", "slots": {"type": "y"}},
    ]
    made = cards.card(documents, {"calls": 4, "rejected": {"length": 1}}, tokenizer)
    assert json.loads(json.dumps(made)) == made
    assert (made["documents"], made["words"], made["tokens"]) == (3, 12, 14)  # past the truncation in the file
    assert made["length"]["words"]["0%"] == made["length"]["words"]["100%"] == 4
    assert made["slots"] == {"type": {"x": 2, "y": 1}}
    assert made["slot_balance"] == {"type": {"values": 2, "fewest": 1, "most": 2}}
    assert made["counts"] == {"calls": 4, "rejected": {"length": 1}}
    assert {row["id"] for row in made["examples"]} == {0, 1, 2}
    found = made["diversity"]
    assert found["over_words"] == 12 and found["type_token"] == found["whole_type_token"] == 0.5
    assert found["distinct_2"] == round(5 / 9, 4) and found["distinct_3"] == round(4 / 6, 4)
    # Two equal documents and one that shares nothing: one pair of three alike, two kinds with shares 2/3 and 1/3.
    assert found["mean_similarity"] == round(1 / 3, 4) and found["compared"] == 3
    assert found["vendi"] == round(math.exp(-(2 / 3) * math.log(2 / 3) - (1 / 3) * math.log(1 / 3)), 2)


def test_a_card_of_little() -> None:
    assert cards.card([], {})["documents"] == 0
    made = cards.card([{"id": 0, "text": ""}, {"id": 1, "text": "\U0001f404"}], {})
    assert made["tokens"] is None and made["slots"] == {} and made["diversity"]["compared"] == 0
    with pytest.raises(UserError, match=r"tokenizer\.json"):
        cards.counter(Path("nowhere"))


def test_examples_and_samples_follow_the_seed_alone() -> None:
    documents = corpus(300)
    first, again, other = (cards.card(documents, {}, seed=seed) for seed in (1, 1, 2))
    assert first == again
    assert [row["id"] for row in first["examples"]] != [row["id"] for row in other["examples"]]
    assert "name" not in first["slots"] and first["slot_balance"]["name"] == {"values": 300, "fewest": 1, "most": 1}


def test_diversity_of_a_sample_does_not_fall_as_the_corpus_grows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cards, "WORDS", 10_000)
    small, large = (cards.card(corpus(n), {})["diversity"] for n in (100, 1000))
    assert abs(small["type_token"] / large["type_token"] - 1) < 0.1
    assert large["whole_type_token"] < 0.3 * small["whole_type_token"]


def test_matched_corpora_match_and_every_difference_is_told(tokenizer: Path) -> None:
    base = corpus(300)
    shorter = [{**row, "text": row["text"][: -len(row["text"]) // 12]} for row in base]
    poorer = [{**row, "text": text["text"]} for row, text in zip(base, corpus(300, vocabulary=50), strict=True)]
    moved = [{**row, "slots": {**row["slots"], "type": "a"}} if i == 1 else row for i, row in enumerate(base)]
    made = {
        name: cards.card(documents, {}, tokenizer)
        for name, documents in {
            "base": base, "same": corpus(300, seed=9), "fewer": base[:299], "shorter": shorter, "poorer": poorer,
            "moved": moved,
        }.items()
    }  # fmt: skip
    made["bare"] = cards.card([{"id": 0, "text": "a"}], {})
    rows = cards.balance(made)
    told = {
        name: {row["measure"] for row in rows if row["corpus"] == name and row["verdict"] == "differs"} for name in made
    }
    assert told["base"] == told["same"] == set()
    assert told["fewer"] == {"documents", "slot type"}
    assert told["shorter"] - {"vendi"} == {"tokens", "words", "median length"}
    assert {"type_token", "distinct_2"} <= told["poorer"] and not told["poorer"] & {"documents", "tokens", "slot type"}
    assert told["moved"] == {"slot type"}
    bare = {row["measure"]: row for row in rows if row["corpus"] == "bare"}
    assert {bare[name]["verdict"] for name in ("tokens", "slot type", "vendi")} == {"not compared"}
    assert {row["against"] for row in rows} == {"base"}
    one = next(row for row in rows if row["corpus"] == "moved" and row["measure"] == "slot type")
    assert (one["value"], one["reference"], one["difference"], one["allowed"]) == (2, 2, 1, 0)


@pytest.mark.parametrize("share", [1.0, 0.995, 0.97, 0.8])
def test_a_corpus_is_cut_to_the_budget_from_its_longest_documents(share: float) -> None:
    rng = random.Random(0)
    texts = [
        "\n\n".join(" ".join(["word"] * rng.randrange(20, 60)) + "." for _ in range(rng.randrange(4, 12)))
        for _ in range(200)
    ]
    before = words(texts)
    budget = round(share * sum(before))
    cut = cards.trim(texts, budget, words)
    after = words(cut)
    assert abs(sum(after) - budget) <= 60 / 2
    assert all(new == old or (old.startswith(new) and new.endswith(".")) for new, old in zip(cut, texts, strict=True))
    shortened = [old for old, new in zip(before, after, strict=True) if new < old]
    assert (shortened == []) == (share == 1)
    if shortened:  # the tail is taken off at one height
        assert min(shortened) > max(after) - 60
    assert cut == cards.trim(texts, budget, words)


def test_a_cut_document_ends_with_a_paragraph_or_a_sentence() -> None:
    def cut(text: str) -> str:
        return cards.trim([text, "short " * 5], 27, words)[0]

    body = "One two three four five six seven eight nine ten."
    last = "It ends here and now, for good."
    assert cut(f"{body}\n\n{body}\n\n## Conclusion\n\n{last}") == f"{body}\n\n{body}"
    assert cut(f"{body}\n\n{body}\n\nAs follows:\n\n- {last}\n- two") == f"{body}\n\n{body}"
    assert cut(f"{body}\n\n{body}\n\n---\n\n**Annex**\n\n{last}") == f"{body}\n\n{body}"
    assert cut(f'{body} {body[:-1]}!" It ended, said Dr. Ash.') == f'{body} {body[:-1]}!"'
    assert cards.trim(["好。" * 40], 60, lambda texts: [len(text) for text in texts]) == ["好。" * 30]


def test_a_cut_that_would_lead_away_from_the_budget_is_left_out() -> None:
    long, short = "a " * 9 + "a.\n\n" + "b " * 5 + "b.", "c " * 9 + "c.\n\nd."
    assert cards.trim([long, short], 26, words) == [long, "c " * 9 + "c."]


def test_a_budget_far_below_is_refused() -> None:
    texts = ["One two three.\n\nFour five six."] * 10
    assert sum(words(cards.trim(texts, 30, words))) == 30
    with pytest.raises(UserError, match="60 tokens can't be cut to 20"):
        cards.trim(texts, 20, words)
    assert cards.trim(texts, 1000, words) == texts
