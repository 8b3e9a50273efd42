"""Exact and near duplicates in a corpus: MinHash LSH proposes pairs, an exact comparison decides.

Two texts are near duplicates if the cosine similarity of their sets of three-word shingles is at
least `threshold`. The default of 0.9 is the value that published pipelines for synthetic documents
use. At 0.9, about 3 % of the words may differ at scattered positions, or 10 % in one passage.
Sentences that a template puts into every document stay far below it. Case, accents, punctuation
and spacing are ignored, so exact duplicates are found in the same way.
"""

from collections.abc import Iterable

import numpy as np
from datasketch import MinHash, MinHashLSH
from numpy.typing import NDArray
from xxhash import xxh3_64_intdigest

from core.contamination import normalized_words

SHINGLE_WORDS = 3
PERMUTATIONS = 128
MAX_MISSED_SHARE = 0.001  # of pairs exactly at the threshold, the share that LSH may not propose

Shingles = NDArray[np.uint32]


def find_duplicates(texts: Iterable[str], threshold: float = 0.9) -> dict[int, int]:
    """Find the texts that repeat an earlier one.

    Texts are taken in order, and each is compared with those accepted before it. The first text of
    a group is accepted, and no text is rejected for its similarity to a rejected one. No two
    accepted texts are near duplicates, except for about one pair in a thousand just above the
    threshold. The result depends on the texts and their order only.

    Memory: about 12 KB for a text of 1,000 words. `texts` is iterated once and not stored.

    Returns:
        {number of a text to reject: number of the earlier, accepted text that it repeats}.
    """
    lsh = MinHashLSH(num_perm=PERMUTATIONS, params=_bands_and_rows(threshold))
    empty = MinHash(num_perm=PERMUTATIONS, seed=1, hashfunc=int)  # shingles are hashes already
    accepted: dict[int, Shingles] = {}
    duplicates: dict[int, int] = {}
    for i, text in enumerate(texts):
        hashes = shingles(text)
        sketch = empty.copy()
        sketch.update_batch(hashes.tolist())
        candidates = sorted(lsh.query(sketch))
        earlier = next((j for j in candidates if cosine(accepted[j], hashes) >= threshold), None)
        if earlier is None:
            accepted[i] = hashes
            lsh.insert(i, sketch, check_duplication=False)
        else:
            duplicates[i] = earlier
    return duplicates


def shingles(text: str) -> Shingles:
    """Hashes of all runs of SHINGLE_WORDS words, sorted and unique, shape (number of shingles,).

    A text with fewer words, or with none, is a single shingle.
    """
    words = normalized_words(text) or [text]
    hashes = ngram_hashes(words, min(SHINGLE_WORDS, len(words)))
    return np.unique((hashes >> np.uint64(32)).astype(np.uint32))


def ngram_hashes(words: list[str], n: int) -> NDArray[np.uint64]:
    """Hashes of all runs of `n` words in order, shape (max(0, number of words - n + 1),).

    The hashes are the same in every process.
    """
    hashes = np.array(
        [xxh3_64_intdigest(word.encode("utf-8", "surrogatepass")) for word in words],
        dtype=np.uint64,
    )
    mixed = np.zeros(max(0, len(words) - n + 1), dtype=np.uint64)
    for k in range(n):
        mixed = mixed * np.uint64(0x9E3779B97F4A7C15) + hashes[k : k + mixed.size]  # wraps around
    return mixed


def cosine(a: Shingles, b: Shingles) -> float:
    """Cosine similarity of two sets: their intersection over the geometric mean of their sizes."""
    return float(np.intersect1d(a, b, assume_unique=True).size / np.sqrt(a.size * b.size))


def _bands_and_rows(threshold: float) -> tuple[int, int]:
    # Two sets of cosine c have a Jaccard similarity j of at least c * c (the case in which one
    # contains the other). A pair is proposed with probability 1 - (1 - j ** rows) ** bands. More
    # rows propose fewer pairs in vain.
    for rows in range(PERMUTATIONS // 2, 1, -1):
        if (1 - threshold ** (2 * rows)) ** (PERMUTATIONS // rows) <= MAX_MISSED_SHARE:
            return PERMUTATIONS // rows, rows
    return PERMUTATIONS, 1
