"""Texts of a benchmark in the documents of a corpus: an evaluation then refuses to run."""

import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from shlex import quote

from core.cell.context import StageContext
from core.contamination import find_hits, read_benchmark_items
from core.errors import UserError
from core.files import read_rows, write_atomically

HITS = "hits.jsonl"
EXCLUDE = "exclude.txt"
SHOWN = 10  # ids of documents in an error


def run(context: StageContext) -> dict[str, int | float]:
    """List every document of a corpus that holds a text of a benchmark.

    hits.jsonl    a line for each document and item of the benchmark: document (id), item, text
                  (that both hold, normalized)
    exclude.txt   the ids of these documents, one a line, as the setting `exclude` takes them

    Settings: files {name: identity}. Resources: files {name: path}. Input: documents. Held-out
    documents are not looked at, because no model is trained on them.

    Returns counts: documents (looked at), hits, documents_hit.

    Raises:
        UserError: A file can't be read.
    """
    files = sorted(context.resources["files"].items())
    items = [item for _, path in files for item in read_benchmark_items(Path(path))]
    documents = dict(_texts(context.inputs["documents"]))
    hits = find_hits(documents.items(), items)
    lines = (json.dumps(asdict(hit), ensure_ascii=False) + "\n" for hit in hits)
    write_atomically(context.folder / HITS, "".join(lines))
    numbers = sorted({hit.document for hit in hits})
    write_atomically(context.folder / EXCLUDE, "".join(f"{number}\n" for number in numbers))
    if hits:
        context.warn(f"{len(numbers)} documents hold text of the benchmark; see {HITS}")
    return {"documents": len(documents), "hits": len(hits), "documents_hit": len(numbers)}


def check(context: StageContext) -> None:
    """Refuse to evaluate a checkpoint that was trained on the benchmark's texts.

    Inputs: `contamination` for the first corpus that it was trained on, contamination2 for the
    second; none for a model that this study has trained on no documents.

    Raises:
        UserError: One of them lists hits.
    """
    for role in sorted(context.inputs):
        if role.startswith("contamination"):
            number = role.removeprefix("contamination")
            _check_corpus(context.inputs[role], context.resources.get(f"corpus{number}", {}))


def _check_corpus(folder: Path, named: dict[str, str | None]) -> None:
    """`named`: the corpus' `name` in the study file, and its file `exclude`."""
    hits = [row for _, row in read_rows(folder / HITS)]
    if not hits:
        return
    numbers = sorted({row["document"] for row in hits})
    listed = ", ".join(map(str, numbers[:SHOWN]))
    more = f" and {len(numbers) - SHOWN} more" if numbers[SHOWN:] else ""
    corpus, exclude = named["name"], named["exclude"]
    file = exclude or f"studies/{corpus}_exclude.txt"
    setting = "" if exclude else f", then set corpora.{corpus}.exclude: {file} in the study file"
    example = f'{hits[0]["item"]}: "{hits[0]["text"]}"'
    raise UserError(
        where=str(folder / HITS),
        what=f"the checkpoint was trained on text of the benchmark: documents {listed}{more} of "
        f"corpus {corpus} ({example})",
        fix=f"cat {quote(str(folder / EXCLUDE))} >> {quote(file)}{setting}",
    )


def _texts(corpus: Path) -> Iterator[tuple[int, str]]:
    """The id and the text of each document that is trained on, questions included."""
    for _, row in read_rows(corpus / "documents.jsonl"):
        yield row["id"], "\n".join([*row.get("forms", {}).values(), row["text"]])
