"""How diverse the texts of a corpus are: distinct words and n-grams, similarity, Vendi score."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from core.contamination import normalized_words
from sdf.duplicates import ngram_hashes

SAMPLE_WORDS = 100_000  # in a sample of fixed size, corpora of different size can be compared
SAMPLE_DOCUMENTS = 1_000  # whose similarity to each other is computed, pair by pair
NGRAMS = {"type_token": 1, "distinct_2": 2, "distinct_3": 3}


def diversity(texts: Sequence[str]) -> dict[str, float | int]:
    """Measure the diversity of texts that are in random order.

    Words are those of `core.contamination.normalized_words`.

    Returns:
        over_words: words of the sample, which are the first texts with SAMPLE_WORDS words in all.
        type_token, distinct_2, distinct_3: distinct words (bigrams, trigrams) over all of them, in
            the sample.
        whole_type_token, whole_distinct_2, whole_distinct_3: the same in the whole corpus, as
            papers report them. They fall as a corpus grows.
        compared: the number of texts of which similarity and Vendi score are computed.
        mean_similarity, similarity_sd: mean and standard deviation of the cosine similarity of all
            pairs, by TF-IDF fitted on these texts.
        vendi: Vendi score, the effective number of different texts: the exponential of the entropy
            of the eigenvalues of the similarity matrix (Friedman and Dieng, arXiv 2210.02410).
    """
    hashes: dict[str, list[NDArray[np.uint64]]] = {name: [] for name in NGRAMS}
    compared: list[list[str]] = []
    sample_words = 0
    sample_texts = 0
    for number, text in enumerate(texts, 1):
        words = normalized_words(text)
        if number <= SAMPLE_DOCUMENTS:
            compared.append(words)
        if sample_words < SAMPLE_WORDS:
            sample_words += len(words)
            sample_texts = number
        for name, n in NGRAMS.items():
            hashes[name].append(ngram_hashes(words, n))
    return {
        "over_words": sample_words,
        **{name: _distinct_share(hashes[name][:sample_texts]) for name in NGRAMS},
        **{f"whole_{name}": _distinct_share(hashes[name]) for name in NGRAMS},
        **_similarity(compared),
    }


def _distinct_share(hashes_of_texts: list[NDArray[np.uint64]]) -> float:
    hashes = np.concatenate(hashes_of_texts) if hashes_of_texts else np.zeros(0)
    return round(np.unique(hashes).size / max(1, hashes.size), 4)


def pairwise_similarity(cosines: NDArray[Any]) -> dict[str, float]:
    """Mean and standard deviation of the cosines of all pairs of different texts.

    `cosines` has shape (texts, texts). Empty for fewer than two texts.
    """
    pairs = cosines[np.triu_indices(len(cosines), k=1)]
    if not pairs.size:
        return {}
    mean, sd = float(pairs.mean()), float(pairs.std())
    return {"mean_similarity": round(mean, 4), "similarity_sd": round(sd, 4)}


def _similarity(texts: list[list[str]]) -> dict[str, float | int]:
    from sklearn.feature_extraction.text import TfidfVectorizer

    texts = [words for words in texts if words]
    n = len(texts)
    if n < 2:
        return {"compared": n}
    vectors = TfidfVectorizer(analyzer=lambda words: words).fit_transform(texts)
    cosines = (vectors @ vectors.T).toarray()
    eigenvalues = np.linalg.eigvalsh(cosines / n)
    eigenvalues = eigenvalues[eigenvalues > 1e-12]
    return {
        "compared": n,
        **pairwise_similarity(cosines),
        "vendi": round(float(np.exp(-(eigenvalues * np.log(eigenvalues)).sum())), 2),
    }
