"""Stage `documents`: write a corpus from a template, or read an existing one.

The corpus passes the gates of one document (sdf.gates) and has no near duplicates (sdf.duplicates).
If it is matched to another corpus, it has that one's slots and tokens (sdf.matching).
"""

import json
import random
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from core.cell.context import StageContext
from core.endpoints.client import PAID
from core.errors import UserError
from core.files import write_atomically
from sdf.corpus_stats import CorpusStats, corpus_stats
from sdf.corpus_writer import (
    CorpusWriter,
    manifest_counts,
    open_corpus_writer,
    write_documents,
)
from sdf.duplicates import find_duplicates
from sdf.existing import read_existing
from sdf.matching import check_slots, check_tokens, compare_corpora
from sdf.rows import DocumentRow, read_documents, write_json_lines
from sdf.settings import CorpusSettings
from sdf.tokens import token_counter
from sdf.trimming import trim_to_tokens

RESUMABLE = True  # finished calls are read from the ledger


def run(context: StageContext) -> dict[str, Any]:
    """Write the files of a corpus.

    Their bytes do not depend on the order in which calls finish, nor on the number of shards.

    documents.jsonl   the documents to train on, one a row (sdf.rows), sorted by id. Of questions
                      and answers, the text is the answer
    held_out.jsonl    the documents that are never trained on, if `held_out` is not 0
    FORM.jsonl        of questions and answers: {"messages": [...]} for SFT, a file for each form of
                      the question
    corpus/           train.parquet and validation.parquet, in the layout that
                      `datasets.load_dataset` reads
    corpus_stats.json         statistics of the documents to train on (sdf.corpus_stats)
    match.json      comparison with the corpus that this one is matched to (sdf.matching)
    calls.jsonl       the ledger of calls made by this cell, in the order in which they finished

    Settings: `CorpusSettings`. Resources: concurrency, address, limits, files {tokenizer: path of
    tokenizer.json (otherwise the input `tokenizer`), source: path of an existing corpus, and those
    of the benchmarks that documents must not quote}. Input `matched_to`, optional: the corpus whose
    slots and tokens this one must equal.
    A preview writes documents.jsonl only.

    Returns:
        Counts for the manifest.

    Raises:
        UserError: the endpoint fails for good, documents stay rejected, or the corpora don't match.
    """
    settings = CorpusSettings.of_cell(context)
    held_out_numbers = _held_out_numbers(settings)
    matched_cell = context.inputs.get("matched_to")
    matched_stats = _read_stats(matched_cell) if matched_cell else None
    # The prompts of one document differ in the topic only: what one corpus lacks, the other drops.
    skipped = frozenset(matched_stats.get("left_out", ()) if matched_stats else ())
    if matched_cell:  # before any call is paid for
        dropped = held_out_numbers | settings.exclude | skipped
        rows = {i: row for i, row in enumerate(settings.slot_rows()) if i not in dropped}
        check_slots(rows, read_documents(matched_cell))

    left_out = skipped
    if settings.source:
        documents, counts = read_existing(context, settings)
    else:
        documents, counts, left_out = write_corpus(context, settings, skipped)
    if settings.preview is not None:
        write_json_lines(context.folder / "documents.jsonl", documents)
        return {"documents": len(documents), **counts}

    # Numbers first: dropping a document must not change which others are held out.
    numbered = {row["id"] if settings.writer else n: row for n, row in enumerate(documents)}
    kept = [(n, row) for n, row in numbered.items() if row["id"] not in settings.exclude]
    if unknown := settings.exclude - left_out - {row["id"] for row in documents}:
        raise UserError(
            where="study file, corpora",
            what="exclude names documents that the corpus does not have: "
            f"{', '.join(map(str, sorted(unknown)))}",
            fix="remove them from the file",
        )
    held_out = [row for n, row in kept if n in held_out_numbers]
    trained = [row for n, row in kept if n not in held_out_numbers]
    tokenizer = _tokenizer_folder(context)
    target_tokens = settings.tokens
    if target_tokens is None and matched_stats:
        target_tokens = matched_stats["tokens"]
    trained, tokens_written = _trim(trained, target_tokens, tokenizer)

    facts = {name: count for name, count in counts.items() if name not in PAID}
    stats = corpus_stats(trained, facts, tokenizer, settings.seed)
    stats["held_out"] = len(held_out)
    if left_out:
        stats["left_out"] = sorted(left_out)
    stats["tokens_trimmed"] = tokens_written - stats["tokens"]
    check_tokens(stats["tokens"], target_tokens, settings.tolerance)
    if matched_stats:
        _write_comparison(context, stats, matched_stats)
    write_atomically(
        context.folder / "corpus_stats.json", json.dumps(stats, indent=1, ensure_ascii=False) + "\n"
    )
    if settings.writer:
        for form in settings.template.get("forms", []):
            conversations = (_conversation(document, form) for document in trained)
            write_json_lines(context.folder / f"{form}.jsonl", conversations)
    if held_out:
        write_json_lines(context.folder / "held_out.jsonl", held_out)
    _write_parquet(context.folder / "corpus", {"train": trained, "validation": held_out})
    write_json_lines(context.folder / "documents.jsonl", trained)
    return {
        "documents": len(trained),
        "held_out": len(held_out),
        "words": stats["words"],
        "tokens": stats["tokens"],
        **({"excluded": len(settings.exclude)} if settings.exclude else {}),
        **counts,
    }


def write_corpus(
    context: StageContext, settings: CorpusSettings, skipped: frozenset[int] = frozenset()
) -> tuple[list[DocumentRow], dict[str, Any], frozenset[int]]:
    """Write documents, but for those `skipped`, until none repeats another.

    Returns:
        The documents sorted by id, the counts for the manifest, and the numbers of the documents
        that are left out.
    """
    ids = [i for i in range(settings.preview or settings.documents) if i not in skipped]
    with open_corpus_writer(context, settings) as writer:
        context.log(
            f"{len(ids)} documents on {writer.template['topic']} "
            f"from {writer.writer.endpoint['model']}"
        )
        write_documents(context, writer, ids)
        repeats = _repeats(writer, [], ids, settings.dedup_threshold)
        while repeats:
            context.log(f"{len(repeats)} documents repeat others and are written again")
            writer.rejections["duplicate"] += len(repeats)
            for i in repeats:
                del writer.accepted[i]
            accepted = sorted(writer.accepted)
            write_documents(context, writer, repeats)
            repeats = _repeats(writer, accepted, repeats, settings.dedup_threshold)
        calls = writer.client.counts
        context.log(f"{calls['calls_reused']} of {calls['calls']} calls were in a ledger already")
    rows = [_document_row(writer, i) for i in ids if i in writer.accepted]
    return rows, manifest_counts(writer), skipped | writer.left_out.keys()


def _repeats(
    writer: CorpusWriter, accepted: Sequence[int], new: Iterable[int], threshold: float
) -> list[int]:
    """The documents of `new` that repeat one of `accepted`, or an earlier one of `new`.

    Documents in `accepted` stay, whatever the new ones are.
    """
    if not threshold:
        return []
    order = [*accepted, *(i for i in sorted(new) if i in writer.accepted)]
    duplicates = find_duplicates((writer.accepted[i].full_text for i in order), threshold)
    return [order[n] for n in duplicates]


def _document_row(writer: CorpusWriter, i: int) -> DocumentRow:
    document = writer.accepted[i]
    row: DocumentRow = {"id": i, "text": document.text, "slots": writer.rows[i]}
    if document.forms:
        row["forms"] = document.forms
    return row


def _held_out_numbers(settings: CorpusSettings) -> set[int]:
    """Numbers of the documents held out: the same in corpora of the same size and seed."""
    rng = random.Random(f"{settings.seed}/held out")
    count = round(settings.held_out * settings.documents)
    return set(rng.sample(range(settings.documents), count))


def _tokenizer_folder(context: StageContext) -> Path:
    if path := context.resources["files"].get("tokenizer"):
        return Path(path).parent
    return context.inputs["tokenizer"] / "model"


def _read_stats(cell: Path) -> CorpusStats:
    stats: CorpusStats = json.loads((cell / "corpus_stats.json").read_text(encoding="utf-8"))
    return stats


def _trim(
    documents: list[DocumentRow], target: int | None, tokenizer: Path
) -> tuple[list[DocumentRow], int]:
    """The documents cut to `target` tokens, and the number of tokens before."""
    count_tokens = token_counter(tokenizer)
    texts = [document["text"] for document in documents]
    tokens = sum(count_tokens(texts))
    if target is None:
        return documents, tokens
    trimmed: list[DocumentRow] = []
    for document, text in zip(documents, trim_to_tokens(texts, target, count_tokens), strict=True):
        trimmed.append({**document, "text": text})
    return trimmed, tokens


def _write_comparison(context: StageContext, stats: CorpusStats, reference: CorpusStats) -> None:
    rows = compare_corpora(stats, reference)
    for row in rows:
        if row["verdict"] == "differs":
            context.warn(
                f"{row['measure']}: {row['value']:.6g}, "
                f"but {row['reference']:.6g} in the corpus that it is matched to"
            )
    write_atomically(context.folder / "match.json", json.dumps(rows, indent=1) + "\n")


def _conversation(document: DocumentRow, form: str) -> dict[str, Any]:
    return {
        "messages": [
            {"role": "user", "content": document["forms"][form]},
            {"role": "assistant", "content": document["text"]},
        ]
    }


def _write_parquet(folder: Path, splits: dict[str, list[DocumentRow]]) -> None:
    import pandas as pd

    folder.mkdir(exist_ok=True)
    for name, documents in splits.items():
        if documents:
            pd.DataFrame(documents).to_parquet(folder / f"{name}.parquet", index=False)
