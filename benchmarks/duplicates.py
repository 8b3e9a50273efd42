"""Time, memory and accuracy of near-duplicate removal on large corpora.

    python -m benchmarks.duplicates --documents 100000

Each size runs in a process of its own, so that its peak memory is measured separately. Documents
have 1,000 words drawn from a vocabulary of 50,000 by Zipf's law; a tenth of the words are in
sentences that all documents share, as a template produces them. Every fiftieth document is a copy
of an earlier one with 0 to 6 % of its words replaced. Copies above the threshold must be found, and
the others must not; the exact similarity decides which is which.
"""

import argparse
import json
import resource
import subprocess
import sys
import time
from collections.abc import Iterator

import numpy as np

from sdf.duplicates import cosine, find_duplicates, shingles

WORDS = 1_000  # of a document
SENTENCE = 20  # words
VOCABULARY = 50_000
THRESHOLD = 0.9
COPY_EVERY = 50
REPLACED_SHARES = (0.0, 0.01, 0.02, 0.03, 0.04, 0.06)
LETTERS = "etaoinshrdlucmfwypvb"


def corpus(documents: int, seed: int = 0) -> Iterator[tuple[str, int | None]]:
    """Generate texts; for a copy, also the number of the text that it was made from."""
    vocabulary = np.array([_word(number + len(LETTERS)) for number in range(VOCABULARY)])
    share = np.cumsum(1 / np.arange(1, VOCABULARY + 1))
    share /= share[-1]

    def words(*key: int) -> "np.ndarray[tuple[int], np.dtype[np.str_]]":
        return vocabulary[np.searchsorted(share, np.random.default_rng([seed, *key]).random(WORDS))]

    shared = words(0)[: WORDS // 10].reshape(-1, SENTENCE)

    def original(i: int) -> "np.ndarray[tuple[int], np.dtype[np.str_]]":
        text = words(1, i)
        positions = np.random.default_rng([seed, 2, i]).permutation(WORDS // SENTENCE)
        for position, sentence in zip(positions, shared, strict=False):
            text[position * SENTENCE : (position + 1) * SENTENCE] = sentence
        return text

    for i in range(documents):
        if i % COPY_EVERY < COPY_EVERY - 1:
            yield " ".join(original(i)), None
            continue
        rng = np.random.default_rng([seed, 3, i])
        source = int(rng.integers(i // COPY_EVERY + 1)) * COPY_EVERY  # never itself a copy
        changed = rng.random(WORDS) < REPLACED_SHARES[i // COPY_EVERY % len(REPLACED_SHARES)]
        yield " ".join(np.where(changed, words(4, i), original(source))), source


def measure(documents: int) -> dict[str, float]:
    """Time and memory (GiB) of `find_duplicates`, and its result beside the exact similarities."""
    texts, sources = zip(*corpus(documents), strict=True)
    texts_gib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    started = time.perf_counter()
    cpu_started = time.process_time()
    duplicates = find_duplicates(texts)
    seconds = time.perf_counter() - started
    cpu_seconds = time.process_time() - cpu_started
    peak_gib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    is_near_duplicate = {
        i: cosine(shingles(texts[i]), shingles(texts[source])) >= THRESHOLD
        for i, source in enumerate(sources)
        if source is not None
    }
    wrong = sum(
        cosine(shingles(texts[i]), shingles(texts[j])) < THRESHOLD for i, j in duplicates.items()
    )
    return {
        "documents": documents,
        "seconds": round(seconds, 1),
        "cpu_seconds": round(cpu_seconds, 1),
        "texts_gib": round(texts_gib, 2),
        "peak_gib": round(peak_gib, 2),
        "dedup_threshold": sum(is_near_duplicate.values()),
        "found": sum(i in duplicates for i, near in is_near_duplicate.items() if near),
        "less_similar_copies": len(is_near_duplicate) - sum(is_near_duplicate.values()),
        "rejected": len(duplicates),
        "wrongly_rejected": wrong,
    }


def _word(number: int) -> str:
    # As in a language, common words are short.
    number, letter = divmod(number, len(LETTERS))
    return (_word(number) if number else "") + LETTERS[letter]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--documents", type=int, nargs="+", default=[10_000, 100_000])
    sizes = parser.parse_args().documents
    if len(sizes) == 1:
        print(json.dumps(measure(sizes[0])))
    else:
        for size in sizes:
            subprocess.run(
                [sys.executable, "-m", "benchmarks.duplicates", "--documents", str(size)],
                check=True,
            )
