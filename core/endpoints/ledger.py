"""The ledger of paid calls (calls.jsonl): one JSON line per response and per failed attempt."""

import asyncio
import io
import json
import os
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from core.endpoints.thoughts import without_thoughts
from core.errors import Problem, UserError
from core.files import append, cut_torn_line, read_rows

LEDGER = "calls.jsonl"
CHARACTERS_PER_TOKEN = 4  # of English; used where the endpoint reports no token counts
# Reserved on the ledger's disk, so that answers under way can be kept when the disk fills up: some
# 300 documents.
RESERVE_BYTES = 4 << 20
EXCERPT_CHARACTERS = 200
FAILED = "request failed"  # finish_reason of a request that fails for good, alone
# finish_reason of an answer that the model ended by itself, in lower case: of OpenAI and most
# servers, Gemini, Anthropic, TGI, Cohere, Baidu, and of servers that report none.
FINISHED = frozenset(
    (
        *("stop", "end_turn", "eos", "eos_token", "stop_sequence", "stop_token", "complete"),
        *("completed", "finish_reason_stop", "normal", "none"),
    )
)


@dataclass(frozen=True)
class LedgerEntry:
    """One finished call: a line of the ledger.

    Attributes:
        id: What the call is about: a document's number, or a response.
        attempt: The number of the attempt at that, from 0.
        role: What the prompt asks for, such as "document" or "grade".
        request_sha256: Hash of the model's identity and of all else that was sent.
        model: The model's name in the request.
        prompt_tokens: Tokens read.
        completion_tokens: Tokens written.
        cost: In the currency of the prices; 0 without prices.
        seconds: Latency of the attempt that succeeded.
        finish_reason: As the endpoint reports it, "none" where it reports none, or FAILED.
        text: The answer, stripped.
        estimated: Whether tokens are estimated from the characters, because the endpoint reported
            none, or none that can be true.
        copied_from: The ledger that the call was paid in, below the runs folder; None where it was
            paid in this one.
        answered_by: The model's name as the endpoint reports it.
        no_answer: Why there is no answer, such as a refusal of the provider. None where there is
            one, though it may be empty.
    """

    id: int | str
    attempt: int
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
    copied_from: str | None = None
    answered_by: str | None = None
    no_answer: str | None = None

    @property
    def finished(self) -> bool:
        """Whether the model ended its answer by itself: it was neither cut off nor blocked."""
        return self.no_answer is None and self.finish_reason.lower() in FINISHED

    @property
    def answer(self) -> str:
        """The text without the model's thoughts. A reply that was cut off has no answer: ""."""
        return without_thoughts(self.text) if self.finished else ""

    @property
    def excerpt(self) -> str:
        """The end of what came, for messages."""
        reason = self.no_answer or f"finish_reason {self.finish_reason!r}"
        reason = "" if self.finished else f" ({reason[:EXCERPT_CHARACTERS]})"
        return f"{self.text[-EXCERPT_CHARACTERS:]!r}{reason}"


def parse_entry(line: bytes) -> LedgerEntry | None:
    """The answer in a line of a ledger; None of a failed attempt and of a damaged line."""
    try:
        entry = LedgerEntry(**json.loads(line))
    except (ValueError, TypeError, RecursionError):
        return None
    is_valid = isinstance(entry.request_sha256, str) and isinstance(entry.text, str)
    return entry if is_valid else None


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
    for _, fields in read_rows(path, damaged, skip_torn_line=True, allow_surrogates=True):
        try:
            if "outcome" in fields:
                failures[fields["request_sha256"]] += 1
            else:
                entry = LedgerEntry(**fields)
                entries.setdefault(entry.request_sha256, entry)
        except (TypeError, KeyError):
            continue
    return entries, failures


class LedgerWriter:
    """Appends lines to a ledger, each flushed to the disk before `append` returns.

    A file of RESERVE_BYTES beside the ledger keeps room. When the disk is full it is removed, so
    that the answers of calls under way still fit.

    Args:
        path: The ledger.
        on_append: Called with it after each append, in the thread that appends.

    Attributes:
        error: Why nothing more should be paid for: the disk failed. None while all is well.

    Raises:
        UserError: The ledger can't be opened, or there is no room for the reserve.
    """

    def __init__(self, path: Path, on_append: Callable[[Path], None] | None = None) -> None:
        self.error: UserError | None = None
        self._path = path
        self._on_append = on_append
        self._reserve = path.with_name(path.name + ".reserve")
        self._writing = asyncio.Lock()
        self._unwritten: list[str] = []
        self._lost = False  # whether a line could not be kept
        try:
            self._file = io.FileIO(path, "ab")
            cut_torn_line(path)
            # Random bytes, for file systems that compress.
            self._reserve.write_bytes(os.urandom(RESERVE_BYTES))
        except OSError as error:
            self._reserve.unlink(missing_ok=True)
            raise self._disk_error(error) from None

    async def append(self, line: dict[str, Any]) -> None:
        """Append a line. Lines that come while the disk is busy are written together.

        Raises:
            UserError: A line could not be kept.
        """
        self._unwritten.append(json.dumps(line) + "\n")
        async with self._writing:
            if self._unwritten:
                await asyncio.to_thread(self._write, self._take_unwritten())
        if self._lost:
            raise self.error or AssertionError

    def close(self) -> None:
        """Write what is left, of calls that ended while this one was being cancelled."""
        self._reserve.unlink(missing_ok=True)
        if self._unwritten:
            self._write(self._take_unwritten())
        self._file.close()

    def _take_unwritten(self) -> bytes:
        lines = self._unwritten
        self._unwritten = []
        return "".join(lines).encode()

    def _write(self, content: bytes) -> None:
        try:
            append(self._file, content)
        except OSError as error:
            self.error = self._disk_error(error)
            self._reserve.unlink(missing_ok=True)
            try:
                append(self._file, content)
            except OSError:
                self._lost = True
        if self._on_append:
            self._on_append(self._path)

    def _disk_error(self, error: OSError) -> UserError:
        return UserError(
            where=f"ledger {self._path}",
            what=os.strerror(error.errno or 0),
            fix="make room or repair the disk (or choose another --runs), "
            "then run the cell again (finished calls are kept)",
        )
