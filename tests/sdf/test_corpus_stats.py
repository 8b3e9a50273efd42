"""Statistics of a corpus, compared with counts by hand."""

import json
import math
from pathlib import Path

import pytest

from core.errors import UserError
from sdf import diversity
from sdf.corpus_stats import corpus_stats
from sdf.rows import DocumentRow
from sdf.tokens import token_counter
from tests.sdf.support import random_corpus, save_word_tokenizer


def test_statistics_equal_counts_by_hand(tmp_path: Path) -> None:
    save_word_tokenizer(tmp_path)
    documents: list[DocumentRow] = [
        {"id": 0, "text": "A b, a B.", "slots": {"type": "x"}},
        {"id": 1, "text": "a b a b", "slots": {"type": "x"}},
        {"id": 2, "text": "c d e f", "slots": {"type": "y"}},
    ]
    counts = {"calls": 4, "rejected": {"length": 1}}
    stats = corpus_stats(documents, counts, tmp_path)
    assert json.loads(json.dumps(stats)) == stats
    assert (stats["documents"], stats["words"]) == (3, 12)
    assert stats["tokens"] == 14, "the truncation and the padding in the file are switched off"
    assert stats["length"]["words"]["0%"] == stats["length"]["words"]["100%"] == 4
    assert stats["slots"] == {"type": {"x": 2, "y": 1}}
    assert stats["slot_balance"] == {"type": {"values": 2, "fewest": 1, "most": 2}}
    assert stats["counts"] == counts
    assert {row["id"] for row in stats["examples"]} == {0, 1, 2}
    measures = stats["diversity"]
    assert measures["over_words"] == 12
    assert measures["type_token"] == measures["whole_type_token"] == 0.5
    assert measures["distinct_2"] == round(5 / 9, 4)
    assert measures["distinct_3"] == round(4 / 6, 4)
    # Two equal documents and one that shares nothing: one similar pair of three, and two kinds
    # with shares 2/3 and 1/3.
    assert measures["mean_similarity"] == round(1 / 3, 4) and measures["compared"] == 3
    entropy = -(2 / 3) * math.log(2 / 3) - (1 / 3) * math.log(1 / 3)
    assert measures["vendi"] == round(math.exp(entropy), 2)


def test_statistics_of_an_empty_corpus_and_of_texts_without_words() -> None:
    assert corpus_stats([], {})["documents"] == 0
    stats = corpus_stats([{"id": 0, "text": ""}, {"id": 1, "text": "\U0001f404"}], {})
    assert stats["tokens"] is None and stats["slots"] == {}
    assert stats["diversity"]["compared"] == 0


def test_a_missing_tokenizer_is_a_user_error() -> None:
    with pytest.raises(UserError) as error:
        token_counter(Path("nowhere"))
    assert error.value.problems[0].where == "nowhere/tokenizer.json"


def test_examples_and_samples_depend_on_the_seed_only() -> None:
    documents = random_corpus(300)
    first, again, other = (corpus_stats(documents, {}, seed=seed) for seed in (1, 1, 2))
    assert first == again
    assert [row["id"] for row in first["examples"]] != [row["id"] for row in other["examples"]]


def test_a_slot_with_many_values_is_not_listed() -> None:
    stats = corpus_stats(random_corpus(300), {})
    assert "name" not in stats["slots"]
    assert stats["slot_balance"]["name"] == {"values": 300, "fewest": 1, "most": 1}


def test_diversity_of_the_sample_does_not_fall_as_the_corpus_grows(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(diversity, "SAMPLE_WORDS", 10_000)
    small, large = (corpus_stats(random_corpus(n), {})["diversity"] for n in (100, 1000))
    assert abs(small["type_token"] / large["type_token"] - 1) < 0.1
    assert large["whole_type_token"] < 0.3 * small["whole_type_token"]
