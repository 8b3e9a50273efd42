"""What a corpus is made of, on one card; two cards side by side; and cutting a corpus to a budget of tokens."""

import heapq
import random
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from core.contamination import normalized_words
from core.errors import UserError
from sdf.duplicates import runs

QUANTILES = (0, 0.05, 0.25, 0.5, 0.75, 0.95, 1)
EXAMPLES = 3
WORDS = 100_000  # in which types and n-grams are counted, so that corpora of different size compare
LISTED = 200  # a slot with more values (names) is not listed value by value, nor compared
SIMILAR = 1_000  # documents that are compared with each other
# How far a matched corpus may lie from the other, as a share of it; documents and slots must be equal.
TOLERANCES = {"tokens": 0.01, "words": 0.05, "median length": 0.05, "diversity": 0.1}
KEPT = 0.5  # of a document's tokens, at least, when a corpus is cut

Count = Callable[[Sequence[str]], list[int]]
Card = dict[str, Any]


def card(
    documents: Sequence[Mapping[str, Any]], counts: Mapping[str, Any], tokenizer: Path | None = None, seed: int = 0
) -> Card:
    """The card of a corpus, ready for JSON.

    documents: rows {"id", "text", "slots" (optional): {slot: value}}. counts: what writing them took, as the caller
    counted it (calls, draws, cost, rejections by gate), set down as it is. tokenizer: the study's, a folder with
    tokenizer.json; without one, `tokens` is None. `seed` chooses the examples and the samples.

    `diversity`, of words as `overlap.normalized_words` finds them, in an order of documents drawn by seed:
    type_token, distinct_2, distinct_3 -- different words (runs of two, of three) over all, in the first documents that
    have WORDS words together (`over_words`); with `whole_` before them in the whole corpus, as papers print them:
    those fall as a corpus grows. mean_similarity -- the mean cosine of all pairs of `compared` documents, by TF-IDF
    fitted on these. vendi -- of the same cosines, the effective number of different documents (the exponential of the
    eigenvalues' entropy; Friedman and Dieng, arXiv 2210.02410).
    """
    texts = [document["text"] for document in documents]
    order = random.Random(f"{seed}/card").sample(range(len(texts)), len(texts))
    slots: dict[str, Counter[str]] = {}
    for document in documents:
        for slot, value in document.get("slots", {}).items():
            slots.setdefault(slot, Counter())[value] += 1
    words = [len(text.split()) for text in texts]
    tokens = counter(tokenizer)(texts) if tokenizer else None
    return {
        "documents": len(texts),
        "words": sum(words),
        "tokens": sum(tokens) if tokens is not None else None,
        "length": {"words": _quantiles(words), "tokens": _quantiles(tokens) if tokens is not None else None},
        "slots": {slot: dict(sorted(values.items())) for slot, values in slots.items() if len(values) <= LISTED},
        "slot_balance": {
            slot: {"values": len(values), "fewest": min(values.values()), "most": max(values.values())}
            for slot, values in slots.items()
        },
        "counts": dict(counts),
        "diversity": _diversity([texts[i] for i in order]),
        "examples": [dict(documents[i]) for i in order[:EXAMPLES]],
    }


def counter(tokenizer: Path) -> Count:
    """Counts the tokens of texts, without special ones, by the tokenizer.json in a folder. Raises UserError."""
    from tokenizers import Tokenizer

    path = tokenizer / "tokenizer.json"
    try:
        loaded = Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises nothing more special
        raise UserError(f"can't load the tokenizer ({error}); {path}; give a model's folder with this file") from None
    # Both may be saved in the file, and both would falsify the count.
    loaded.no_truncation()
    loaded.no_padding()

    def count(texts: Sequence[str]) -> list[int]:
        found: list[int] = []
        for start in range(0, len(texts), 1000):
            found += map(len, loaded.encode_batch_fast(list(texts[start : start + 1000]), add_special_tokens=False))
        return found

    return count


def balance(cards: Mapping[str, Card]) -> list[dict[str, Any]]:
    """Corpora beside the first of them, a row for each measure: whether anything but the topic differs.

    Rows: measure, corpus, against, value, reference (the same measure of the first corpus), difference (a share of
    `reference`; for documents and slots a number of documents), allowed, verdict ("matched" or "differs"; "not
    compared" where one of the two lacks the measure). A slot's difference is the largest over its values.
    """
    (first, reference), *others = cards.items()
    rows: list[dict[str, Any]] = []
    for name, other in others:
        pair = {"corpus": name, "against": first}
        for measure, ours, theirs in [("documents", other["documents"], reference["documents"])] + [
            (f"slot {slot}", other["slots"].get(slot), reference["slots"].get(slot))
            for slot in {**reference["slots"], **other["slots"]}
        ]:
            rows.append({"measure": measure, **pair, **_exact(ours, theirs)})
        for measure, kind, ours, theirs in [
            ("tokens", "tokens", other["tokens"], reference["tokens"]),
            ("words", "words", other["words"], reference["words"]),
            ("median length", "median length", *(c["length"]["words"].get("50%") for c in (other, reference))),
            *((key, "diversity", other["diversity"].get(key), reference["diversity"].get(key))
              for key in reference["diversity"] if key not in ("over_words", "compared")),
        ]:  # fmt: skip
            rows.append({"measure": measure, **pair, **_relative(ours, theirs, TOLERANCES[kind])})
    return rows


def trim(texts: Sequence[str], budget: int, count: Count) -> list[str]:
    """The same documents in about `budget` tokens: the longest lose their last paragraphs, one at a time.

    No document is dropped, so counts and slots stay exact; the shorter ones stay as they were written, and what is cut
    ends with a paragraph (a sentence, where there is one paragraph only), never with a heading. The result depends on
    the arguments alone and is the nearest to the budget that the last cuts allow; a corpus within it is returned as it
    is. `count` gives the tokens of texts (`counter`).
    Raises UserError when that takes more than half of a document, or documents are too few to come near.
    """
    cut, lengths = list(texts), count(texts)
    least = [KEPT * length for length in lengths]
    total = sum(lengths)
    longest = [(-length, i) for i, length in enumerate(lengths)]
    heapq.heapify(longest)
    while total > budget and longest:
        length, i = heapq.heappop(longest)
        shorter = _shorter(cut[i])
        (left,) = count([shorter])
        after = total + length + left
        if left >= least[i] and budget - after < total - budget:
            cut[i], total = shorter, after
            heapq.heappush(longest, (-left, i))
    if total - budget > TOLERANCES["tokens"] * budget:
        raise UserError(
            f"{sum(lengths)} tokens can't be cut to {budget} by whole paragraphs and at most half of any document; "
            "study file, corpora; mend the templates or max_tokens so that the corpora come out at about one length"
        )
    return cut


def _shorter(text: str) -> str:
    paragraphs = re.split(r"\n\s*\n", text.strip())
    if len(paragraphs) == 1:
        ends = [
            match.end() for match in re.finditer(r"\w{3}[.!?][\"')\]\u201d\u2019]*(?=\s)|[。！？]", text.strip()[:-1])
        ]
        return text.strip()[: ends[-1]] if ends else ""
    paragraphs.pop()
    # What only announces the paragraph that went.
    while paragraphs and re.search(r"^#|^\*\*[^\n]*\*\*$|:\**$|^[-*_\s]+$", paragraphs[-1].split("\n")[-1].strip()):
        paragraphs.pop()
    return "\n\n".join(paragraphs)


def _diversity(texts: list[str]) -> dict[str, float | int]:
    hashes: dict[str, list[NDArray[np.uint64]]] = {"type_token": [], "distinct_2": [], "distinct_3": []}
    compared: list[list[str]] = []
    over = head = 0
    for number, text in enumerate(texts, 1):
        words = normalized_words(text)
        if number <= SIMILAR:
            compared.append(words)
        if over < WORDS:
            over, head = over + len(words), number
        for size, found in enumerate(hashes.values(), 1):
            found.append(runs(words, size))
    result: dict[str, float | int] = {"over_words": over}
    result |= {name: _distinct(found[:head]) for name, found in hashes.items()}
    result |= {f"whole_{name}": _distinct(found) for name, found in hashes.items()}
    return result | _similarity(compared)


def _distinct(hashes: list[NDArray[np.uint64]]) -> float:
    found = np.concatenate(hashes) if hashes else np.zeros(0)
    return round(np.unique(found).size / max(1, found.size), 4)


def _similarity(words: list[list[str]]) -> dict[str, float | int]:
    from sklearn.feature_extraction.text import TfidfVectorizer

    words = [text for text in words if text]
    n = len(words)
    if n < 2:
        return {"compared": n}
    vectors = TfidfVectorizer(analyzer=lambda text: text).fit_transform(words)
    cosines = (vectors @ vectors.T).toarray()
    shares = np.linalg.eigvalsh(cosines / n)
    shares = shares[shares > 1e-12]
    return {
        "compared": n,
        "mean_similarity": round(float((cosines.sum() - n) / (n * (n - 1))), 4),
        "vendi": round(float(np.exp(-(shares * np.log(shares)).sum())), 2),
    }


def _quantiles(lengths: list[int]) -> dict[str, float]:
    if not lengths:
        return {}
    return {f"{q:.0%}": float(value) for q, value in zip(QUANTILES, np.quantile(lengths, QUANTILES), strict=True)}


def _exact(ours: Any, theirs: Any) -> dict[str, Any]:
    if ours is None or theirs is None:
        return _row(None, None, None, 0)
    if isinstance(ours, int):
        return _row(ours, theirs, abs(ours - theirs), 0)
    difference = max((abs(ours.get(value, 0) - theirs.get(value, 0)) for value in {**ours, **theirs}), default=0)
    return _row(len(ours), len(theirs), difference, 0)


def _relative(ours: float | None, theirs: float | None, allowed: float) -> dict[str, Any]:
    if ours is None or theirs is None:
        return _row(ours, theirs, None, allowed)
    return _row(ours, theirs, abs(ours - theirs) / theirs if theirs else float(ours != theirs), allowed)


def _row(value: Any, reference: Any, difference: float | None, allowed: float) -> dict[str, Any]:
    verdict = "not compared" if difference is None else "matched" if difference <= allowed else "differs"
    return {"value": value, "reference": reference, "difference": difference, "allowed": allowed, "verdict": verdict}
