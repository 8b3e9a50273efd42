"""Comparison of corpora: matched ones pass, and each kind of difference is reported."""

from pathlib import Path

from sdf.corpus_stats import corpus_stats
from sdf.matching import compare_corpora
from sdf.rows import DocumentRow
from tests.sdf.support import random_corpus, save_word_tokenizer


def test_matched_corpora_match_and_every_difference_is_reported(tmp_path: Path) -> None:
    save_word_tokenizer(tmp_path)
    base = random_corpus(300)
    few_words = random_corpus(300, vocabulary=50)
    shorter: list[DocumentRow] = [
        {**row, "text": row["text"][: -len(row["text"]) // 12]} for row in base
    ]
    poorer: list[DocumentRow] = [
        {**row, "text": poor["text"]} for row, poor in zip(base, few_words, strict=True)
    ]
    moved = [*base]
    moved[1] = {**base[1], "slots": {**base[1]["slots"], "type": "a"}}
    corpora = {
        "base": base,
        "same": random_corpus(300, seed=9),
        "fewer": base[:299],
        "shorter": shorter,
        "poorer": poorer,
        "moved": moved,
    }
    stats = {name: corpus_stats(documents, {}, tmp_path) for name, documents in corpora.items()}
    stats["bare"] = corpus_stats([{"id": 0, "text": "a"}], {})

    rows = [
        {"corpus": name, **row}
        for name, corpus in stats.items()
        for row in compare_corpora(corpus, stats["base"])
    ]
    differs = {
        name: {
            row["measure"] for row in rows if row["corpus"] == name and row["verdict"] == "differs"
        }
        for name in stats
    }
    assert differs["base"] == differs["same"] == set()
    assert differs["fewer"] == {"documents", "slot type"}
    assert differs["shorter"] - {"vendi"} == {"tokens", "words", "median length"}
    assert {"type_token", "distinct_2"} <= differs["poorer"]
    assert not differs["poorer"] & {"documents", "tokens", "slot type"}
    assert differs["moved"] == {"slot type"}

    bare = {row["measure"]: row["verdict"] for row in rows if row["corpus"] == "bare"}
    assert {bare[name] for name in ("tokens", "slot type", "vendi")} == {"not compared"}
    (slot_type,) = (
        row for row in rows if row["corpus"] == "moved" and row["measure"] == "slot type"
    )
    assert (slot_type["value"], slot_type["reference"]) == (2, 2)
    assert (slot_type["difference"], slot_type["allowed"]) == (1, 0)
