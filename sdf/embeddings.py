"""Stage `embeddings`: sentence embeddings of a corpus' documents, for their similarity and the map.

The model is one of sentence-transformers, such as all-mpnet-base-v2. It is run by transformers as
its own modules do: the last hidden states are averaged over the tokens, and scaled to length 1.
"""

import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from core.cell.context import StageContext
from core.errors import UserError
from core.files import write_atomically
from sdf.diversity import pairwise_similarity
from sdf.rows import read_documents

SAMPLE = 500  # documents
BATCH = 16


def run(context: StageContext) -> dict[str, int | float]:
    """Embed a random sample of the documents that are trained on.

    embeddings.npy    float32, shape (documents, dimensions), each row of length 1
    similarity.json   `model`, its name; `compared`, the documents; `mean_similarity` and
                      `similarity_sd`, of the cosines of all their pairs

    Settings: name (of the model), files {embedder: identity}. Resources: files {embedder: path}.
    Input: documents.

    Returns counts: documents.

    Raises:
        UserError: The model is none of sentence-transformers that averages tokens.
    """
    folder = Path(context.resources["files"]["embedder"])
    texts = [row["text"] for row in read_documents(context.inputs["documents"])]
    sample = random.Random("embeddings").sample(texts, min(SAMPLE, len(texts)))
    context.log(f"{len(sample)} of {len(texts)} documents by {context.settings['name']}")
    vectors = embed(folder, sample)
    np.save(context.folder / "embeddings.npy", vectors)
    facts = {"model": context.settings["name"], "compared": len(sample)}
    facts |= pairwise_similarity(vectors @ vectors.T)
    text = json.dumps(facts, indent=1, ensure_ascii=False)
    write_atomically(context.folder / "similarity.json", text + "\n")
    return {"documents": len(sample)}


def embed(folder: Path, texts: Sequence[str]) -> NDArray[np.float32]:
    """The embeddings of texts by the model in `folder`: one row each, of length 1.

    Texts are cut at the model's `max_seq_length` tokens.
    """
    import torch
    from transformers import AutoModel, AutoTokenizer

    length = _check(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    model = AutoModel.from_pretrained(folder, local_files_only=True, dtype=torch.float32).eval()
    rows = []
    for start in range(0, len(texts), BATCH):
        batch = tokenizer(
            list(texts[start : start + BATCH]),
            padding=True,
            truncation=True,
            max_length=length,
            return_tensors="pt",
        )
        with torch.inference_mode():
            states = model(**batch).last_hidden_state
        mask = batch["attention_mask"].unsqueeze(-1)
        means = (states * mask).sum(1) / mask.sum(1)
        rows.append(torch.nn.functional.normalize(means, dim=1).numpy())
    vectors: NDArray[np.float32] = np.concatenate(rows).astype(np.float32)
    return vectors


def _check(folder: Path) -> int:
    """The most tokens that a model of sentence-transformers takes.

    Raises UserError unless its modules are a transformer, the mean over tokens, and the scaling.
    """
    modules = [module["type"].rpartition(".")[2] for module in _read(folder, "modules.json")]
    pooling: dict[str, Any] = _read(folder, "1_Pooling/config.json")
    modes = [key for key, on in pooling.items() if key.startswith("pooling_mode_") and on is True]
    if modules != ["Transformer", "Pooling", "Normalize"] or modes != ["pooling_mode_mean_tokens"]:
        raise UserError(
            where=str(folder),
            what=f"its modules are {', '.join(modules)}, its pooling {', '.join(modes)}",
            fix="take a model that averages tokens and scales, such as all-mpnet-base-v2",
        )
    return int(_read(folder, "sentence_bert_config.json")["max_seq_length"])


def _read(folder: Path, name: str) -> Any:
    path = folder / name
    if not path.is_file():
        raise UserError(
            where=str(folder),
            what=f"has no {name}, as models of sentence-transformers have",
            fix="name such a model, such as all-mpnet-base-v2",
        )
    return json.loads(path.read_text(encoding="utf-8"))
