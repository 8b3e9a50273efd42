"""The ledger of paid calls (calls.jsonl): one JSON line per response and per failed attempt."""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from core.errors import Problem
from core.files import read_rows

CHARACTERS_PER_TOKEN = 4  # of English; used where the endpoint reports no token counts


@dataclass(frozen=True)
class LedgerEntry:
    """One finished call: a line of the ledger.

    Attributes:
        id: What the call is about: a document's number, or a response.
        draw: The number of the attempt at that, from 0.
        role: What the prompt asks for, such as "document" or "grade".
        request_sha256: Hash of all that was sent.
        model: The model's name in the request.
        prompt_tokens: Tokens read.
        completion_tokens: Tokens written.
        cost: In the currency of the prices; 0 without prices.
        seconds: Latency of the attempt that succeeded.
        finish_reason: As the endpoint reports it.
        text: The answer, stripped.
        estimated: Whether the tokens are estimated from the characters, because the endpoint
            reported none.
    """

    id: int | str
    draw: int
    role: str
    request_sha256: str
    model: str
    prompt_tokens: int
    completion_tokens: int
    cost: float
    seconds: float
    finish_reason: str
    text: str
    estimated: bool = False


def read_ledger(path: Path) -> tuple[dict[str, LedgerEntry], Counter[str]]:
    """The finished calls and the number of failed attempts, each by `request_sha256`.

    Damaged lines and an unfinished last line are skipped: those calls are made again. A missing
    file is an empty ledger.

    Raises:
        UserError: The file exists and can't be read.
    """
    entries: dict[str, LedgerEntry] = {}
    failures: Counter[str] = Counter()
    if not path.exists():
        return entries, failures
    damaged: list[Problem] = []
    for _, fields in read_rows(path, damaged, skip_torn_line=True):
        try:
            if "outcome" in fields:
                failures[fields["request_sha256"]] += 1
            else:
                entry = LedgerEntry(**fields)
                entries.setdefault(entry.request_sha256, entry)
        except (TypeError, KeyError):
            continue
    return entries, failures
