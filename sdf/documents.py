"""Stage `documents`: a template and a deal of slots in, a corpus out: gated, without repetitions, matched to another.

`sdf.drafting` writes what passes the gates of one document; here is what only the whole corpus can tell.
"""

import json
import random
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from core.cell.context import StageContext
from core.errors import UserError
from core.files import write_atomically
from sdf.card import balance, card, counter, trim
from sdf.drafting import Drafting, corpus_name, counts, draft, open_drafting
from sdf.duplicates import duplicates
from sdf.existing import existing
from sdf.slots import Row, deal

RESUMABLE = True  # a killed run goes on from its ledger

Document = dict[str, Any]


def run(work: StageContext) -> dict[str, Any]:
    """Write the corpus: the same bytes whatever the order in which calls finish and however many jobs shared them.

    documents.jsonl   what is trained on: rows {"id": int, "text": str, "slots": {slot: name}} sorted by id; of
                      questions and answers the text is the answer, and "forms" has the question in each of its forms
    held_out.jsonl    the same of what never is, where `held_out` isn't 0
    FORM.jsonl        of questions and answers: {"messages": [...]} for SFT, a file for each form of the question
    corpus/           train.parquet and validation.parquet, which `datasets.load_dataset` reads as they are
    card.json         what the corpus is made of (sdf.card); balance.json: beside the corpus that it is matched to
    calls.jsonl       the ledger of calls made here, in the order in which they ended

    settings: those of `schema.Corpus`, with template and slots parsed; for an existing corpus `source` instead of
    writer, temperature, max_tokens and draws. resources: concurrency, address, limits, avoid (benchmarks' files),
    tokenizer (a folder) or the input `tokenizer`. input `matched_to`, optional: the corpus this one must match slot by
    slot, and in tokens within the fraction `tolerance`.
    Raises UserError when the endpoint fails for good, when documents stay rejected, or when the corpora don't match.
    """
    settings, match = work.settings, work.inputs.get("matched_to")
    aside = _aside(settings["held_out"], settings["documents"], settings["seed"]) if "held_out" in settings else set()
    theirs = json.loads((match / "card.json").read_text(encoding="utf-8")) if match else None
    if match:  # before a call is paid
        check_slots({i: row for i, row in enumerate(_planned(settings)) if i not in aside}, _read(match))
    documents, made = (existing if "source" in settings else write)(work)
    if "preview" in settings:
        _write(work.folder / "documents.jsonl", documents)
        return {"documents": len(documents), **made}

    held_out = [document for n, document in enumerate(documents) if n in aside]
    trained = [document for n, document in enumerate(documents) if n not in aside]
    tokenizer = Path(work.resources.get("tokenizer") or work.inputs["tokenizer"] / "model")
    count = counter(tokenizer)
    texts = [document["text"] for document in trained]
    written = sum(count(texts))
    budget = settings["tokens"] or (theirs and theirs["tokens"])
    if budget is not None:
        trained = [
            document | {"text": text} for document, text in zip(trained, trim(texts, budget, count), strict=True)
        ]

    own = card(trained, made, tokenizer, settings["seed"])
    own |= {"held_out": len(held_out), "tokens_trimmed": written - own["tokens"]}
    check_tokens(own["tokens"], budget, settings["tolerance"])
    if match and theirs:
        rows = balance({corpus_name(match): theirs, corpus_name(work.folder): own})
        for row in rows:
            if row["verdict"] == "differs":
                work.warn(f"{row['measure']}: {row['value']:.6g} against {row['reference']:.6g} of {row['against']}")
        write_atomically(work.folder / "balance.json", json.dumps(rows, indent=1) + "\n")
    write_atomically(work.folder / "card.json", json.dumps(own, indent=1, ensure_ascii=False) + "\n")
    for form in settings.get("template", {}).get("forms", []):
        _write(work.folder / f"{form}.jsonl", (_messages(document, form) for document in trained))
    if held_out:
        _write(work.folder / "held_out.jsonl", held_out)
    _parquet(work.folder / "corpus", {"train": trained, "validation": held_out})
    _write(work.folder / "documents.jsonl", trained)
    return {
        "documents": len(trained),
        "held_out": len(held_out),
        "words": own["words"],
        "tokens": own["tokens"],
        **made,
    }


def write(work: StageContext) -> tuple[list[Document], dict[str, Any]]:
    """The documents by a writer, sorted by id, and what writing them took."""
    settings = work.settings
    ids = range(settings.get("preview") or settings["documents"])
    with open_drafting(work) as drafting:
        work.log(f"{len(ids)} documents on {settings['template']['topic']} from {settings['writer']['model']}")
        draft(work, drafting, ids)
        repeats = _repeats(drafting, [], ids, settings["near_duplicates"])
        while repeats:
            drafting.rejections["duplicate"] += len(repeats)
            work.log(f"{len(repeats)} documents repeat others and are written again")
            again = set(repeats)
            kept = [i for i in ids if i not in again]
            for i in repeats:
                del drafting.found[i]
            draft(work, drafting, repeats)
            repeats = _repeats(drafting, kept, repeats, settings["near_duplicates"])
        work.log(
            f"{drafting.caller.counts['calls_reused']} of {drafting.caller.counts['calls']} answers had been paid for"
        )
    if estimated := drafting.caller.counts["calls_estimated"]:
        work.warn(f"of {estimated} calls the endpoint didn't say the tokens: these and their cost are estimated")
    documents = []
    for i in ids:
        found = drafting.found[i]
        forms = {"forms": found.forms} if found.forms else {}
        documents.append({"id": i, "text": found.text, "slots": drafting.rows[i], **forms})
    return documents, counts(drafting)


def _repeats(drafting: Drafting, kept: list[int], fresh: Iterable[int], threshold: float) -> list[int]:
    """Those of `fresh` that repeat one of `kept` or of the fresh before them; what is kept stays, whatever comes."""
    order = [*kept, *sorted(fresh)]
    return [order[n] for n in duplicates((drafting.found[i].whole for i in order), threshold)] if threshold else []


def check_slots(rows: dict[int, Row], other: list[Document]) -> None:
    """Raises UserError unless the corpora have as many documents to train on and, where both have any, equal slots."""
    if len(rows) != len(other):
        raise UserError(
            f"{len(rows)} documents against {len(other)} in the corpus to match; study file, corpora; "
            "give both the same number, and the same share held out"
        )
    pairs = [(i, row, theirs.get("slots") or {}) for (i, row), theirs in zip(rows.items(), other, strict=True)]
    differ = [i for i, row, theirs in pairs if any(row[slot] != theirs[slot] for slot in row.keys() & theirs)]
    if differ:
        raise UserError(
            f"{len(differ)} of {len(rows)} documents differ in their slots from the corpus to match, the first is "
            f"document {differ[0]}; study file, corpora; give both the same number of documents"
        )


def _planned(settings: dict[str, Any]) -> list[Row]:
    """The slots of each document to come; those of an existing corpus are unknown."""
    if "source" in settings:
        return [{}] * settings["documents"]
    return deal(settings["slots"], settings["documents"], settings["seed"], settings["template"].get("slots"))


def check_tokens(tokens: int, budget: int | None, tolerance: float) -> None:
    """Raises UserError when the corpus has fewer tokens than asked for, by more than the fraction `tolerance`."""
    if budget and budget - tokens > tolerance * budget:
        raise UserError(
            f"{tokens} tokens were written, {budget} are wanted, {(budget - tokens) / budget:.1%} more; study file, "
            f"corpora; give both corpora tokens: {tokens} (the longer one is cut; nothing is paid again) or raise "
            "tolerance"
        )


def _aside(share: float, documents: int, seed: int) -> set[int]:
    """The documents held out: the same ones in corpora of the same size and seed."""
    return set(random.Random(f"{seed}/held out").sample(range(documents), round(share * documents)))


def _messages(document: Document, form: str) -> Document:
    return {
        "messages": [
            {"role": "user", "content": document["forms"][form]},
            {"role": "assistant", "content": document["text"]},
        ]
    }


def _read(cell: Path) -> list[Document]:
    with (cell / "documents.jsonl").open(encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def _write(path: Path, rows: Iterable[Document]) -> None:
    write_atomically(path, "".join(json.dumps(row, ensure_ascii=False, sort_keys=True) + "\n" for row in rows))


def _parquet(folder: Path, splits: dict[str, list[Document]]) -> None:
    import pandas as pd

    folder.mkdir(exist_ok=True)
    for name, documents in splits.items():
        if documents:
            pd.DataFrame(documents).to_parquet(folder / f"{name}.parquet", index=False)
