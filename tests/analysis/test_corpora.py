"""The corpora's cards in the results: what a reader is told of the treatment."""

import json
from pathlib import Path

from analysis.corpora import corpora

CARD = {
    "documents": 90,
    "held_out": 10,
    "words": 9000,
    "tokens": 12000,
    "tokens_trimmed": 34,
    "length": {"words": {"50%": 101.0}},
    "diversity": {
        "type_token": 0.1,
        "distinct_2": 0.4,
        "distinct_3": 0.6,
        "over_words": 9000,
        "compared": 90,
    },
    "counts": {
        "calls": 105,
        "cost": 0.25,
        "rejected": 5,
        "rejected_length": 3,
        "rejected_duplicate": 2,
    },
    "examples": [{"id": 4, "text": "A report."}],
}
BALANCE = [
    {"measure": "tokens", "verdict": "matched"},
    {"measure": "vendi", "verdict": "differs"},
]


def test_a_row_says_what_was_rejected_paid_and_unequal(tmp_path: Path) -> None:
    for name in ("animal", "urban"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "corpus_stats.json").write_text(json.dumps(CARD))
    (tmp_path / "urban/match.json").write_text(json.dumps(BALANCE))
    animal, urban = corpora(
        {f"corpus-{name}": tmp_path / name for name in ("animal", "urban")} | {"ahb-x": tmp_path},
        [{"corpus": "animal", "matched_to": None}, {"corpus": "urban", "matched_to": "animal"}],
    )
    assert animal["rejected"] == {"length": 3, "duplicate": 2} and (
        animal["calls"],
        animal["cost"],
    ) == (105, 0.25)
    assert (
        animal["balance"] is None and animal["example"] == "A report." and animal["vendi"] is None
    )
    assert (
        urban["reference_corpus"],
        urban["compared"],
        [row["measure"] for row in urban["balance"]],
    ) == (
        "animal",
        2,
        ["vendi"],
    )
