"""Statistics of a corpus: sizes, lengths, use of the slots, diversity, examples."""

import random
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sdf.diversity import diversity
from sdf.rows import DocumentRow
from sdf.tokens import token_counter

QUANTILES = (0, 0.05, 0.25, 0.5, 0.75, 0.95, 1)
EXAMPLES = 3
MAX_LISTED_VALUES = 200  # a slot with more values (names) is not listed value by value

CorpusStats = dict[str, Any]  # the content of corpus_stats.json


def corpus_stats(
    documents: Sequence[DocumentRow],
    counts: Mapping[str, Any],
    tokenizer: Path | None = None,
    seed: int = 0,
) -> CorpusStats:
    """Compute the statistics of a corpus, as a dict that can be written as JSON.

    Args:
        documents: the rows of documents.jsonl.
        counts: of making the corpus (calls, cost, rejections by gate), copied as they are.
        tokenizer: a folder with tokenizer.json. Without one, numbers of tokens are None.
        seed: chooses the examples and the samples.

    Returns:
        documents, words, tokens: totals.
        length: quantiles of words and tokens per document.
        slots: {slot: {value: documents}}, of slots with at most MAX_LISTED_VALUES values.
        slot_balance: {slot: number of values, fewest and most uses of one}.
        counts: the argument.
        diversity: see `sdf.diversity`.
        examples: EXAMPLES documents.
    """
    texts = [document["text"] for document in documents]
    order = random.Random(f"{seed}/card").sample(range(len(texts)), len(texts))
    uses: dict[str, Counter[str]] = {}
    for document in documents:
        for slot, value in document.get("slots", {}).items():
            uses.setdefault(slot, Counter())[value] += 1
    words = [len(text.split()) for text in texts]
    tokens = token_counter(tokenizer)(texts) if tokenizer else None
    return {
        "documents": len(texts),
        "words": sum(words),
        "tokens": sum(tokens) if tokens is not None else None,
        "length": {
            "words": _quantiles(words),
            "tokens": _quantiles(tokens) if tokens is not None else None,
        },
        "slots": {
            slot: dict(sorted(values.items()))
            for slot, values in uses.items()
            if len(values) <= MAX_LISTED_VALUES
        },
        "slot_balance": {
            slot: {
                "values": len(values),
                "fewest": min(values.values()),
                "most": max(values.values()),
            }
            for slot, values in uses.items()
        },
        "counts": dict(counts),
        "diversity": diversity([texts[i] for i in order]),
        "examples": [dict(documents[i]) for i in order[:EXAMPLES]],
    }


def _quantiles(lengths: list[int]) -> dict[str, float]:
    if not lengths:
        return {}
    values = np.quantile(lengths, QUANTILES)
    return {f"{q:.0%}": float(value) for q, value in zip(QUANTILES, values, strict=True)}
