"""The ledger of paid calls: one JSON line for each answer, kept the moment it came, and for each failed attempt."""

import io
import json
import os
from collections import Counter
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Answer:
    """One finished call: a line of the ledger. `id` says what it is about, `draw` counts attempts at that from 0."""

    id: int | str  # a document's number, or a response
    draw: int
    role: str
    request_sha256: str
    model: str
    prompt_tokens: int
    completion_tokens: int
    cost: float  # in the currency of the prices; 0 without prices
    seconds: float  # latency of the call that succeeded
    finish_reason: str
    text: str
    estimated: bool = False  # the tokens, by the letters: the endpoint didn't say


def read_ledger(path: Path) -> tuple[dict[str, Answer], Counter[str]]:
    """The finished calls, and the number of failed attempts, by `request_sha256`.

    Damaged lines and one that isn't ended yet are left out: those calls are made again.
    """
    answers: dict[str, Answer] = {}
    failures: Counter[str] = Counter()
    content = path.read_bytes() if path.exists() else b""
    for line in content[: content.rfind(b"\n") + 1].splitlines():
        try:
            fields = json.loads(line)
            if "outcome" in fields:
                failures[fields["request_sha256"]] += 1
            else:
                answer = Answer(**fields)
                answers.setdefault(answer.request_sha256, answer)
        except (ValueError, TypeError, KeyError):
            continue
    return answers, failures


def cut_torn_line(path: Path) -> None:
    """Remove what a kill left behind the last whole line: the next line would be appended to it."""
    with path.open("r+b") as file:
        content = file.read()
        file.truncate(content.rfind(b"\n") + 1)


def append(file: io.FileIO, lines: bytes) -> None:
    """All of `lines` on the disk, or an OSError and none of them in the file."""
    size, view = os.fstat(file.fileno()).st_size, memoryview(lines)
    try:
        while view:
            view = view[file.write(view) :]
        os.fsync(file.fileno())  # NFS tells only now that the disk is full
    except OSError:
        os.ftruncate(file.fileno(), size)
        raise
