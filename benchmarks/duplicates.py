"""Near-duplicate removal at size: time, memory and what is found. `python -m benchmarks.duplicates --documents 100000`

Each size runs in a process of its own, so that its peak memory is its own. The documents have 1,000 words drawn from a
vocabulary of 50,000 by Zipf's law, a tenth of them in sentences that all documents share, as a template makes them.
Every fiftieth is a copy of an earlier one with 0 to 6 % of its words replaced, so that some copies lie above the
threshold and must be found and the others below it and must stay; the exact similarity decides which.
"""

import argparse
import json
import resource
import subprocess
import sys
import time
from collections.abc import Iterator

import numpy as np

from sdf.duplicates import cosine, duplicates, shingles

WORDS, SENTENCE, VOCABULARY, THRESHOLD = 1000, 20, 50_000, 0.9
EVERY = 50
REPLACED = (0.0, 0.01, 0.02, 0.03, 0.04, 0.06)
LETTERS = "etaoinshrdlucmfwypvb"


def corpus(documents: int, seed: int = 0) -> Iterator[tuple[str, int | None]]:
    """Texts, and of a copy the number of the text that it was made from."""
    vocabulary = np.array([_word(number + len(LETTERS)) for number in range(VOCABULARY)])
    share = np.cumsum(1 / np.arange(1, VOCABULARY + 1))
    share /= share[-1]

    def words(*key: int) -> "np.ndarray[tuple[int], np.dtype[np.str_]]":
        return vocabulary[np.searchsorted(share, np.random.default_rng([seed, *key]).random(WORDS))]

    shared = words(0)[: WORDS // 10].reshape(-1, SENTENCE)

    def original(i: int) -> "np.ndarray[tuple[int], np.dtype[np.str_]]":
        found, places = words(1, i), np.random.default_rng([seed, 2, i]).permutation(WORDS // SENTENCE)
        for place, sentence in zip(places, shared, strict=False):
            found[place * SENTENCE : (place + 1) * SENTENCE] = sentence
        return found

    for i in range(documents):
        if i % EVERY < EVERY - 1:
            yield " ".join(original(i)), None
            continue
        rng = np.random.default_rng([seed, 3, i])
        source = int(rng.integers(i // EVERY + 1)) * EVERY  # never itself a copy
        changed = rng.random(WORDS) < REPLACED[i // EVERY % len(REPLACED)]
        yield " ".join(np.where(changed, words(4, i), original(source))), source


def measure(documents: int) -> dict[str, float]:
    """Time and memory of `duplicates` alone, and its result against the exact similarity of each copy to its source."""
    texts, sources = zip(*corpus(documents), strict=True)
    texts_gib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    started, used = time.perf_counter(), time.process_time()
    found = duplicates(texts)
    seconds, cpu_seconds = time.perf_counter() - started, time.process_time() - used
    peak_gib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    similar = {
        i: cosine(shingles(texts[i]), shingles(texts[source])) >= THRESHOLD
        for i, source in enumerate(sources)
        if source is not None
    }
    wrong = sum(cosine(shingles(texts[i]), shingles(texts[j])) < THRESHOLD for i, j in found.items())
    return {
        "documents": documents,
        "seconds": round(seconds, 1),
        "cpu_seconds": round(cpu_seconds, 1),
        "texts_gib": round(texts_gib, 2),
        "peak_gib": round(peak_gib, 2),
        "near_duplicates": sum(similar.values()),
        "found": sum(i in found for i, near in similar.items() if near),
        "less_similar_copies": len(similar) - sum(similar.values()),
        "rejected": len(found),
        "wrongly_rejected": wrong,
    }


def _word(number: int) -> str:
    # As in a language, the commoner are the shorter.
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
            subprocess.run([sys.executable, "-m", "benchmarks.duplicates", "--documents", str(size)], check=True)
