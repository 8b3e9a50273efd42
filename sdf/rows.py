"""The rows of documents.jsonl."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NotRequired, TypedDict

from core.files import read_rows, write_atomically


class DocumentRow(TypedDict):
    """One document of a corpus."""

    id: int  # number of the document; of an existing corpus, the row in its source
    text: str  # of questions and answers, the answer
    slots: NotRequired[dict[str, str]]  # slot -> value; absent in an existing corpus
    forms: NotRequired[dict[str, str]]  # form of the question -> question


def read_documents(folder: Path) -> list[DocumentRow]:
    """The documents of a finished `documents` cell."""
    return [row for _, row in read_rows(folder / "documents.jsonl")]


def write_json_lines(path: Path, rows: Iterable[DocumentRow | dict[str, Any]]) -> None:
    """Write one JSON object a line, keys sorted, atomically."""
    lines = (json.dumps(row, ensure_ascii=False, sort_keys=True) + "\n" for row in rows)
    write_atomically(path, "".join(lines))
