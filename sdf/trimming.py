"""Cut a corpus to a number of tokens without dropping a document."""

import heapq
import re
from collections.abc import Sequence

from core.errors import UserError
from sdf.tokens import TokenCounter

TOLERANCE = 0.01  # of the target, by which the result may exceed it
MIN_REMAINING_SHARE = 0.5  # of each document's tokens

SENTENCE_END = re.compile(r"\w{3}[.!?][\"')\]\u201d\u2019]*(?=\s)|[。！？]")
# A heading, a line that ends in a colon, or a rule: it only introduces the next paragraph.
INTRODUCTION = re.compile(r"^#|^\*\*[^\n]*\*\*$|:\**$|^[-*_\s]+$")


def trim_to_tokens(texts: Sequence[str], target: int, count_tokens: TokenCounter) -> list[str]:
    """Cut the last paragraphs of the longest documents until about `target` tokens remain.

    One paragraph is cut at a time, always from the document that is the longest then. No document
    is dropped, so the number of documents and their slots stay equal to those of a matched corpus.
    A document with one paragraph loses its last sentence instead. A heading that would be left at
    the end is cut too. The result depends on the arguments only, and is as near to the target as
    the last cuts allow. A corpus below the target is returned unchanged.

    Raises:
        UserError: the target would take more than half of a document's tokens.
    """
    trimmed = list(texts)
    lengths = count_tokens(texts)
    fewest = [MIN_REMAINING_SHARE * length for length in lengths]
    total = sum(lengths)
    longest_first = [(-length, i) for i, length in enumerate(lengths)]
    heapq.heapify(longest_first)
    while total > target and longest_first:
        negative_length, i = heapq.heappop(longest_first)
        shorter = _without_last_paragraph(trimmed[i])
        (remaining,) = count_tokens([shorter])
        total_after = total + negative_length + remaining
        if remaining >= fewest[i] and target - total_after < total - target:
            trimmed[i] = shorter
            total = total_after
            heapq.heappush(longest_first, (-remaining, i))
    if total - target > TOLERANCE * target:
        raise UserError(
            where="study file, corpora",
            what=f"{sum(lengths)} tokens can't be cut to {target} "
            "by whole paragraphs and at most half of any document",
            fix="change the templates or max_tokens so that the corpora have about one length",
        )
    return trimmed


def _without_last_paragraph(text: str) -> str:
    text = text.strip()
    paragraphs = re.split(r"\n\s*\n", text)
    if len(paragraphs) == 1:
        ends = [match.end() for match in SENTENCE_END.finditer(text[:-1])]
        return text[: ends[-1]] if ends else ""
    paragraphs.pop()
    while paragraphs and INTRODUCTION.search(paragraphs[-1].split("\n")[-1].strip()):
        paragraphs.pop()
    return "\n\n".join(paragraphs)
