"""The corpora's cards in the results: what a reader is told of the treatment."""

import json
from pathlib import Path

import numpy as np

from analysis.corpora import corpora, sentence_embeddings

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


def test_similarity_is_by_embeddings_where_there_are_some(tmp_path: Path) -> None:
    tf_idf = {**CARD["diversity"], "mean_similarity": 0.1, "similarity_sd": 0.05}  # type: ignore[dict-item]
    inputs = {}
    for name in ("animal", "urban"):
        for stage in ("corpus", "embeddings"):
            inputs[f"{stage}-{name}"] = tmp_path / f"{stage}-{name}"
            inputs[f"{stage}-{name}"].mkdir()
        card = json.dumps({**CARD, "diversity": tf_idf})
        (inputs[f"corpus-{name}"] / "corpus_stats.json").write_text(card)
        facts = {"model": "mpnet", "compared": 9, "mean_similarity": 0.4, "similarity_sd": 0.2}
        (inputs[f"embeddings-{name}"] / "similarity.json").write_text(json.dumps(facts))
        np.save(inputs[f"embeddings-{name}"] / "embeddings.npy", np.ones((9, 4), np.float32))
    writers = [{"corpus": name, "matched_to": None} for name in ("animal", "urban")]
    rows = corpora(inputs, writers)
    keys = ("mean_similarity", "similarity_sd", "similarity_by")
    assert [[row[key] for key in keys] for row in rows] == [[0.4, 0.2, "mpnet"]] * 2
    vectors = sentence_embeddings(rows, inputs)
    assert {name: rows.shape for name, rows in vectors.items()} == {
        "animal": (9, 4),
        "urban": (9, 4),
    }
    del inputs["embeddings-urban"]
    rows = corpora(inputs, writers)
    assert [row["similarity_by"] for row in rows] == ["mpnet", "TF-IDF"]
    assert rows[1]["mean_similarity"] == 0.1
    assert sentence_embeddings(rows, inputs) == {}, "a map is of one kind"
