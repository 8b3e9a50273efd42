"""The ledger of paid calls: one JSON line for each answer, kept the moment it came, and for each failed attempt."""

import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

CHARACTERS_PER_TOKEN = 4  # of English, where nobody counts


@dataclass(frozen=True)
class LedgerEntry:
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


def read_ledger(path: Path) -> tuple[dict[str, LedgerEntry], Counter[str]]:
    """The finished calls, and the number of failed attempts, by `request_sha256`.

    Damaged lines and one that isn't ended yet are left out: those calls are made again.
    """
    answers: dict[str, LedgerEntry] = {}
    failures: Counter[str] = Counter()
    content = path.read_bytes() if path.exists() else b""
    for line in content[: content.rfind(b"\n") + 1].splitlines():
        try:
            fields = json.loads(line)
            if "outcome" in fields:
                failures[fields["request_sha256"]] += 1
            else:
                answer = LedgerEntry(**fields)
                answers.setdefault(answer.request_sha256, answer)
        except (ValueError, TypeError, KeyError):
            continue
    return answers, failures
