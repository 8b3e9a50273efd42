"""The corpora that were trained on, from the files beside their documents."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from analysis.rows import Row, select
from core.files import read_rows

SHOWN = 1200  # letters of an example
SIZES = ("documents", "held_out", "words", "tokens", "tokens_trimmed")
DIVERSITY = ("type_token", "distinct_2", "distinct_3", "over_words", "vendi")
SIMILARITY = ("mean_similarity", "similarity_sd")


def corpora(inputs: Mapping[str, Path], writers: Sequence[Row]) -> list[Row]:
    """A row for each input `corpus-NAME` or `corpus-NAME.replicateN`.

    `writers`: of the settings, with corpus and matched_to. The `name` of a row is the role's.

    Sizes, diversity (similarity by sentence embeddings where an input `embeddings-NAME` has them,
    else by TF-IDF: `similarity_by`), counts of rejected drafts and of paid calls, an example, and
    the balance: the measures in which a matched corpus differs from `reference_corpus`, None for a
    corpus that is matched to none.
    """
    matched_to = {row["corpus"]: row["matched_to"] for row in writers}
    rows = []
    for role, folder in inputs.items():
        if role.startswith("corpus-"):
            corpus, dot, replicate = role.removeprefix("corpus-").partition(".")
            reference = matched_to[corpus]
            reference = reference and f"{reference}{dot}{replicate}"
            name = f"{corpus}{dot}{replicate}"
            rows.append(_corpus_row(name, folder, inputs.get(f"embeddings-{name}"), reference))
    return rows


def _corpus_row(name: str, folder: Path, embedded: Path | None, matched_to: str | None) -> Row:
    card = json.loads((folder / "corpus_stats.json").read_text(encoding="utf-8"))
    similarity = card["diversity"]
    if embedded:
        similarity = json.loads((embedded / "similarity.json").read_text(encoding="utf-8"))
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
        **{key: similarity.get(key) for key in SIMILARITY},
        "similarity_by": similarity.get("model", "TF-IDF"),
        "calls": counts.get("calls"),
        "cost": counts.get("cost"),
        "rejected": rejected,
        "reference_corpus": matched_to if measures else None,
        "balance": differing if measures else None,
        "compared": len(measures),
        "example": card["examples"][0]["text"][:SHOWN] if card["examples"] else "",
    }


def sentence_embeddings(
    rows: Sequence[Row], inputs: Mapping[str, Path]
) -> dict[str, NDArray[np.float32]]:
    """The sentence embeddings of each corpus' documents, of all its replicates.

    Empty unless all corpora have them. `rows`: of `corpora`.
    """
    vectors: dict[str, list[NDArray[np.float32]]] = {}
    for row in rows:
        folder = inputs.get(f"embeddings-{row['name']}")
        if folder is None:
            return {}
        of_corpus = vectors.setdefault(row["name"].partition(".")[0], [])
        of_corpus.append(np.load(folder / "embeddings.npy"))
    return {corpus: np.concatenate(parts) for corpus, parts in vectors.items()}


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
