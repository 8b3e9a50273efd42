"""Stage `documents`: a template and a deal of slots in, a corpus of synthetic documents out."""

import asyncio
import json
import os
import re
from pathlib import Path
from typing import Any

from sdf.slots import Row, deal, prompts
from sdf.writer import Answer, write_all
from study.endpoints import open_endpoint
from study.errors import UserError
from study.work import Work

CONTINUES = True  # a killed run goes on from its ledger

# What writers leave behind instead of a fact: a slot's own name in braces, or "[Insert ...]", "[Date]".
UNFILLED = re.compile(
    r"\{(?:authority|institution|marker|domain|document_type|style|reasoning(?:_phrase)?|scope(?:_phrase)?)\}"
    r"|\[(?:insert|your|date|name|institution|organi[sz]ation|title)\b[^\]\n]*\]",
    re.IGNORECASE,
)


def run(work: Work) -> dict[str, int | float]:
    """Write `documents.jsonl`, rows {"id": int, "text": str, "slots": {slot: name}} sorted by id.

    settings: template and slots (parsed YAML), documents, seed, writer (endpoint), temperature, max_tokens, tolerance.
    resources: concurrency, address. input `matched_to`, optional: the corpus this one must match slot by slot,
    and in words within the fraction `tolerance`.
    The file is the same bytes whatever the order in which calls finish. `calls.jsonl`, the ledger of finished calls, is
    in that order; a killed run goes on from it.
    Raises UserError when the endpoint fails for good, when documents stay rejected, or when the corpora don't match.
    """
    settings = work.settings
    rows = deal(settings["slots"], settings["documents"], settings["seed"])
    other = _read(work.inputs["matched_to"]) if "matched_to" in work.inputs else None
    if other is not None:
        check_slots(rows, [document["slots"] for document in other])

    with open_endpoint(settings["writer"], work.resources["address"]) as endpoint:
        work.log(f"{len(rows)} documents on {settings['template']['topic']} from {endpoint.model}, {endpoint.base_url}")
        writing = write_all(
            prompts=prompts(settings["template"], settings["slots"], rows),
            sampling={"temperature": settings["temperature"], "max_tokens": settings["max_tokens"]},
            seed=lambda i, draw: work.seed("document", i, *(["draw", draw] if draw else [])),
            reject=reject,
            ledger=work.folder / "calls.jsonl",
            endpoint=endpoint,
            concurrency=work.resources["concurrency"],
            progress=lambda done: work.progress(done, len(rows), "documents"),
        )
        texts, counts = asyncio.run(writing)
    if other is not None:
        check_words(texts, [document["text"] for document in other], settings["tolerance"])
    documents = [{"id": i, "text": text, "slots": row} for i, (text, row) in enumerate(zip(texts, rows, strict=True))]
    _write(work.folder / "documents.jsonl", documents)
    return {"documents": len(texts), "words": _words(texts), **counts}


def reject(answer: Answer) -> str | None:
    """Why an answer won't do as a document, or None."""
    if not answer.text:
        return "empty text"
    if answer.finish_reason != "stop":
        return f"finish_reason {answer.finish_reason!r}"
    unfilled = UNFILLED.search(answer.text)
    return f"unfilled placeholder {unfilled[0]}" if unfilled else None


def check_slots(rows: list[Row], other: list[Row]) -> None:
    """Raises UserError unless the two corpora have the same slots, document by document."""
    if len(rows) != len(other):
        raise UserError(
            f"{len(rows)} documents against {len(other)} in the corpus to match; study file, corpora; "
            "give both the same number"
        )
    differ = [i for i, (row, match) in enumerate(zip(rows, other, strict=True)) if row != match]
    if differ:
        raise UserError(
            f"{len(differ)} of {len(rows)} documents differ in their slots from the corpus to match, the first is "
            f"document {differ[0]}; study file, corpora; give both the same seed and slots"
        )


def check_words(texts: list[str], other: list[str], tolerance: float) -> None:
    """Raises UserError when the totals of words differ by more than the fraction `tolerance` of `other`'s."""
    words, match = _words(texts), _words(other)
    if abs(words - match) > tolerance * match:
        raise UserError(
            f"{words} words against {match} in the corpus to match, a difference of {abs(words - match) / match:.1%}, "
            f"more than the {tolerance:.1%} allowed; study file, corpora; mend the template or raise tolerance"
        )


def _words(texts: list[str]) -> int:
    return sum(len(text.split()) for text in texts)


def _read(cell: Path) -> list[dict[str, Any]]:
    with (cell / "documents.jsonl").open(encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def _write(path: Path, rows: list[dict[str, Any]]) -> None:
    # Renamed when whole: half a corpus would train without complaint.
    part = path.with_suffix(".part")
    with part.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(row, ensure_ascii=False, sort_keys=True) + "\n" for row in rows)
        file.flush()
        os.fsync(file.fileno())
    os.replace(part, path)
