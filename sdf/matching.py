"""Matched corpora: a treatment corpus and its control may differ in their topic only.

`check_slots` and `check_tokens` refuse a corpus that does not match. `compare_corpora` reports
every measure of two or more corpora side by side.
"""

from collections.abc import Mapping
from typing import Any

from core.errors import UserError
from sdf.corpus_stats import CorpusStats
from sdf.rows import DocumentRow
from sdf.slots import SlotRow

# Largest difference that counts as matched, as a share of the reference. Documents and slots must
# be equal.
TOLERANCES = {"tokens": 0.01, "words": 0.05, "median length": 0.05, "diversity": 0.1}
SAMPLE_SIZES = ("over_words", "compared")  # of diversity: no measures

MatchRow = dict[str, Any]


def check_slots(rows: Mapping[int, SlotRow], reference: list[DocumentRow]) -> None:
    """Check that two corpora have equally many documents to train on, with equal slots.

    Only slots that both corpora have are compared.

    Args:
        rows: document number -> its slots, in the order of the reference.
        reference: the documents of the corpus to match.

    Raises:
        UserError: they differ.
    """
    where = "study file, corpora"
    if len(rows) != len(reference):
        raise UserError(
            where=where,
            what=f"{len(rows)} documents, but the corpus to match has {len(reference)}",
            fix="give both the same number, the same share held out, and the same exclude",
        )
    differing = []
    for (i, slots), document in zip(rows.items(), reference, strict=True):
        reference_slots = document.get("slots", {})
        shared = slots.keys() & reference_slots
        if any(slots[slot] != reference_slots[slot] for slot in shared):
            differing.append(i)
    if differing:
        raise UserError(
            where=where,
            what=f"{len(differing)} of {len(rows)} documents differ in their slots from the "
            f"corpus to match, the first is document {differing[0]}",
            fix="give both the same number of documents, and the same exclude",
        )


def check_tokens(tokens: int, target: int | None, tolerance: float) -> None:
    """Check that a corpus has the target number of tokens.

    Raises:
        UserError: it has fewer, by more than the share `tolerance` of the target.
    """
    if target and target - tokens > tolerance * target:
        raise UserError(
            where="study file, corpora",
            what=f"{tokens} tokens were written, the target is {target} "
            f"({(target - tokens) / target:.1%} more)",
            fix=f"give both corpora tokens: {tokens} (the longer one is cut; nothing is paid "
            "again), or raise tolerance",
        )


def compare_corpora(corpus: CorpusStats, reference: CorpusStats) -> list[MatchRow]:
    """Compare a corpus with the one that it is matched to, one row for each measure.

    Returns:
        Rows: measure, value, reference (the other's value), difference (a share of `reference`; for
        documents and slots a number of documents, for a slot the largest over its values), allowed,
        verdict ("matched", "differs", or "not compared" if one corpus lacks the measure).
    """
    comparisons = _exact_measures(corpus, reference) | _relative_measures(corpus, reference)
    return [{"measure": measure, **comparison} for measure, comparison in comparisons.items()]


def _exact_measures(corpus: CorpusStats, reference: CorpusStats) -> dict[str, MatchRow]:
    value = corpus["documents"]
    expected = reference["documents"]
    measures = {"documents": _comparison(value, expected, abs(value - expected), 0)}
    for slot in {**reference["slots"], **corpus["slots"]}:
        uses = corpus["slots"].get(slot)
        expected_uses = reference["slots"].get(slot)
        measures[f"slot {slot}"] = _compare_uses(uses, expected_uses)
    return measures


def _compare_uses(uses: dict[str, int] | None, expected: dict[str, int] | None) -> MatchRow:
    if uses is None or expected is None:
        return _comparison(None, None, None, 0)
    differences = (abs(uses.get(v, 0) - expected.get(v, 0)) for v in {**uses, **expected})
    return _comparison(len(uses), len(expected), max(differences, default=0), 0)


def _relative_measures(corpus: CorpusStats, reference: CorpusStats) -> dict[str, MatchRow]:
    def compare(value: float | None, expected: float | None, kind: str) -> MatchRow:
        difference = None
        if value is not None and expected is not None:
            gap = abs(value - expected)
            difference = gap / expected if expected else float(value != expected)
        return _comparison(value, expected, difference, TOLERANCES[kind])

    def median(stats: CorpusStats) -> float | None:
        words: dict[str, float] = stats["length"]["words"]
        return words.get("50%")

    measures = {key: compare(corpus[key], reference[key], key) for key in ("tokens", "words")}
    measures["median length"] = compare(median(corpus), median(reference), "median length")
    for key, expected in reference["diversity"].items():
        if key not in SAMPLE_SIZES:
            measures[key] = compare(corpus["diversity"].get(key), expected, "diversity")
    return measures


def _comparison(value: Any, reference: Any, difference: float | None, allowed: float) -> MatchRow:
    if difference is None:
        verdict = "not compared"
    else:
        verdict = "matched" if difference <= allowed else "differs"
    return {
        "value": value,
        "reference": reference,
        "difference": difference,
        "allowed": allowed,
        "verdict": verdict,
    }
