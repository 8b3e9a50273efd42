"""Exact and near duplicates in a corpus: MinHash LSH proposes pairs, an exact comparison decides.

Two texts are near duplicates when the cosine of their sets of three-word shingles is at least `threshold`; .9 is what
the richer pipelines for synthetic documents use (STUDY.md, section 4). Of a text of any length that is about 3 % of the
words changed here and there, or a tenth replaced in one piece. Sentences that a template puts into every document are
far from enough. Case, accents, punctuation and spacing count for nothing, so exact duplicates are found alike.
"""

from collections.abc import Iterable

import numpy as np
from datasketch import MinHash, MinHashLSH
from numpy.typing import NDArray
from xxhash import xxh3_64_intdigest

from core.contamination import normalized_words

SHINGLE = 3  # words
PERMUTATIONS = 128
MISSED = 0.001  # at most this share of pairs at the threshold is not proposed

Shingles = NDArray[np.uint32]


def duplicates(texts: Iterable[str], threshold: float = 0.9) -> dict[int, int]:
    """The number of each text to reject -> the number of the earlier, kept text that it repeats.

    Texts are taken in order and each is compared with those kept so far: no two that stay are near duplicates (but for
    one pair in a thousand just over the threshold), nothing is rejected for being like a rejected text, and the first
    of a group stays. The result depends on the texts and their order alone. Memory: about 12 KB for a text of 1,000
    words; `texts` is read once and not kept.
    """
    lsh = MinHashLSH(num_perm=PERMUTATIONS, params=_bands(threshold))
    empty = MinHash(num_perm=PERMUTATIONS, seed=1, hashfunc=int)  # shingles are hashes already
    kept: dict[int, Shingles] = {}
    found: dict[int, int] = {}
    for i, text in enumerate(texts):
        own = shingles(text)
        sketch = empty.copy()
        sketch.update_batch(own.tolist())
        earlier = next((j for j in sorted(lsh.query(sketch)) if cosine(kept[j], own) >= threshold), None)
        if earlier is None:
            kept[i] = own
            lsh.insert(i, sketch, check_duplication=False)
        else:
            found[i] = earlier
    return found


def shingles(text: str) -> Shingles:
    """Hashes of all runs of SHINGLE words, sorted, each once. A shorter text is one run; an empty one too."""
    words = normalized_words(text) or [text]
    return np.unique((runs(words, min(SHINGLE, len(words))) >> np.uint64(32)).astype(np.uint32))


def runs(words: list[str], size: int) -> NDArray[np.uint64]:
    """Hashes of all runs of `size` words, in order, the same in every process; none when there are fewer words."""
    hashes = np.array([xxh3_64_intdigest(word.encode("utf-8", "surrogatepass")) for word in words], dtype=np.uint64)
    mixed = np.zeros(max(0, len(words) - size + 1), dtype=np.uint64)
    for k in range(size):
        mixed = mixed * np.uint64(0x9E3779B97F4A7C15) + hashes[k : k + mixed.size]  # wraps around
    return mixed


def cosine(a: Shingles, b: Shingles) -> float:
    """The cosine of two sets of shingles: what they share over the geometric mean of their sizes."""
    return float(np.intersect1d(a, b, assume_unique=True).size / np.sqrt(a.size * b.size))


def _bands(threshold: float) -> tuple[int, int]:
    # Sets of cosine c have a Jaccard similarity j of at least c * c (that is, when one contains the other), and a pair
    # is proposed with probability 1 - (1 - j ** rows) ** bands. More rows propose fewer pairs in vain.
    for rows in range(PERMUTATIONS // 2, 1, -1):
        if (1 - threshold ** (2 * rows)) ** (PERMUTATIONS // rows) <= MISSED:
            return PERMUTATIONS // rows, rows
    return PERMUTATIONS, 1
