"""The corpora that were trained on, from the files beside their documents."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from analysis.rows import Row, select
from core.files import read_rows

SHOWN = 1200  # letters of an example
SIZES = ("documents", "held_out", "words", "tokens", "tokens_trimmed")
DIVERSITY = ("type_token", "distinct_2", "distinct_3", "over_words", "mean_similarity", "vendi")


def corpora(inputs: Mapping[str, Path], writers: Sequence[Row]) -> list[Row]:
    """A row for each input `corpus-NAME` or `corpus-NAME.replicateN`.

    `writers`: of the settings, with corpus and matched_to. The `name` of a row is the role's.

    Sizes, diversity, counts of rejected drafts and of paid calls, an example, and the balance:
    the measures in which a matched corpus differs from its counterpart `against`, None for a
    corpus that is matched to none.
    """
    matched_to = {row["corpus"]: row["matched_to"] for row in writers}
    rows = []
    for role, folder in inputs.items():
        if role.startswith("corpus-"):
            corpus, dot, replicate = role.removeprefix("corpus-").partition(".")
            reference = matched_to[corpus]
            reference = reference and f"{reference}{dot}{replicate}"
            rows.append(_corpus_row(f"{corpus}{dot}{replicate}", folder, reference))
    return rows


def _corpus_row(name: str, folder: Path, matched_to: str | None) -> Row:
    card = json.loads((folder / "corpus_stats.json").read_text(encoding="utf-8"))
    counts = card["counts"]
    rejected = {
        key.removeprefix("rejected_"): count
        for key, count in counts.items()
        if key.startswith("rejected_")
    }
    match_file = folder / "match.json"
    measures = json.loads(match_file.read_text(encoding="utf-8")) if match_file.exists() else []
    differing = [row for row in measures if row["verdict"] == "differs"]
    return {
        "name": name,
        **select(card, SIZES),
        "median_words": card["length"]["words"]["50%"],
        **{key: card["diversity"].get(key) for key in DIVERSITY},
        "calls": counts.get("calls"),
        "cost": counts.get("cost"),
        "rejected": rejected,
        "reference_corpus": matched_to if measures else None,
        "balance": differing if measures else None,
        "compared": len(measures),
        "example": card["examples"][0]["text"][:SHOWN] if card["examples"] else "",
    }


def training_texts(rows: Sequence[Row], inputs: Mapping[str, Path]) -> dict[str, list[str]]:
    """The texts of the documents that each corpus trains on, of all its replicates.

    `rows`: of `corpora`.
    """
    texts: dict[str, list[str]] = {}
    for row in rows:
        documents = read_rows(inputs[f"corpus-{row['name']}"] / "documents.jsonl")
        of_corpus = texts.setdefault(row["name"].partition(".")[0], [])
        of_corpus += [document["text"] for _, document in documents]
    return texts
