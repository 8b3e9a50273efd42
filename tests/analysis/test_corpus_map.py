"""The map of documents: corpora with other words lie apart; large and very small corpora."""

import re

import pytest

from analysis import corpus_map
from tests.analysis.sketches import corpora, drawn

pytestmark = pytest.mark.filterwarnings("error")


def test_corpora_with_other_words_lie_apart_and_the_words_say_where():
    text = corpus_map.describe_corpus_map(corpora())
    assert "animal: 40 of 40 documents" in text
    x = [float(x) for x in re.findall(r"centre \((-?[\d.]+)", text)]
    assert x[0] == pytest.approx(-x[1], abs=0.002) and abs(x[0]) > 0.2


def test_a_map_shows_the_same_500_documents_of_a_large_corpus():
    many = {"a": [f"w{n % 7} w{n % 11} w{n % 13}" for n in range(600)], "b": ["w1 w2"]}
    text = corpus_map.describe_corpus_map(many)
    assert "a: 500 of 600 documents" in text and "b: 1 of 1 documents" in text
    assert text == corpus_map.describe_corpus_map(many)


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
    assert words in drawn(corpus_map.corpus_map(texts))
