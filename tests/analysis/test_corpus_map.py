"""The map of documents: corpora with other words lie apart; large and very small corpora."""

import re

import numpy as np
import pytest

from analysis import corpus_map
from tests.analysis.sketches import corpora, drawn

pytestmark = pytest.mark.filterwarnings("error")


def mapped(
    texts: dict[str, list[str]], vectors: corpus_map.Embeddings | None = None
) -> corpus_map.DocumentMap:
    """The map as a report from an archive reads it."""
    documents = corpus_map.document_map(texts, vectors or {})
    again = corpus_map.DocumentMap.from_json(documents.to_json())
    assert again == documents
    return again


def test_corpora_with_other_words_lie_apart_and_the_words_say_where():
    text = corpus_map.describe_corpus_map(mapped(corpora()))
    assert "animal: 40 of 40 documents" in text
    x = [float(x) for x in re.findall(r"centre \((-?[\d.]+)", text)]
    assert x[0] == pytest.approx(-x[1], abs=0.002) and abs(x[0]) > 0.2


def test_a_map_shows_the_same_500_documents_of_a_large_corpus():
    many = {"a": [f"w{n % 7} w{n % 11} w{n % 13}" for n in range(600)], "b": ["w1 w2"]}
    text = corpus_map.describe_corpus_map(mapped(many))
    assert "a: 500 of 600 documents" in text and "b: 1 of 1 documents" in text
    assert text == corpus_map.describe_corpus_map(mapped(many))


@pytest.mark.parametrize(
    ("texts", "words"),
    [
        ({}, "Nothing to show: too few"),
        ({"animal": ["a b c", "--"], "urban": []}, "Nothing to show: too few"),
        ({"animal": ["a b", "a b", "b a", "b"]}, "Nothing to show: too few"),
        ({"one": ["a b", "b c", "c d e", "a d"], "none": ["--"]}, "no documents: none"),
    ],
)
def test_odd_corpora_are_drawn(texts, words):
    assert words in drawn(corpus_map.corpus_map(mapped(texts)))


def test_a_map_by_embeddings_says_so_and_shows_their_directions() -> None:
    rng = np.random.default_rng(0)
    noise = rng.normal(0, 0.01, (40, 6)).astype(np.float32)
    far = noise[20:] + np.eye(6, dtype=np.float32)[0]
    texts = {"animal": ["the same"] * 20, "urban": ["the same"] * 20}
    vectors = {"animal": noise[:20], "urban": far}
    text = corpus_map.describe_corpus_map(mapped(texts, vectors))
    assert text.startswith("Documents in the two main directions of their sentence embeddings")
    assert "animal: 20 of 20 documents" in text
    x = [float(x) for x in re.findall(r"centre \((-?[\d.]+)", text)]
    assert abs(x[0] - x[1]) == pytest.approx(1, abs=0.02)
    assert "Nothing to show" in drawn(corpus_map.corpus_map(mapped(texts)))
    assert "Nothing to show" not in drawn(corpus_map.corpus_map(mapped(texts, vectors)))
