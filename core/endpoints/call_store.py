"""What a cell's client has of calls: its own ledger, and those of the other cells."""

import asyncio
from collections import Counter
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from core.endpoints.batch_ledger import read_batches
from core.endpoints.call_index import CallIndex
from core.endpoints.ledger import (
    CHARACTERS_PER_TOKEN,
    FAILED,
    LedgerEntry,
    LedgerWriter,
    read_ledger,
)
from core.endpoints.replies import Reply, token_counts
from core.endpoints.sender import RequestFailed
from core.errors import UserError


class CallStore:
    """The open ledger of one client. To be made in a running event loop.

    Args:
        ledger: The file that responses are appended to.
        index: The ledgers of all cells of the runs folder. None: only the ledger is used.
        model: The model's name in requests.
        max_tokens: The limit on an answer's tokens.
        prices: Per million prompt tokens and per million completion tokens.

    Attributes:
        failures: Failed attempts of earlier runs by the hash of their request.

    Raises:
        UserError: The ledger can't be read or written.
    """

    def __init__(
        self,
        ledger: Path,
        index: CallIndex | None,
        model: str,
        max_tokens: int,
        prices: tuple[float, float],
    ) -> None:
        self.path = ledger
        self._index = index
        self._model = model
        self._max_tokens = max_tokens
        self._prices = prices
        self._failed_now: Counter[str] = Counter()
        self._failed: list[LedgerEntry] = []  # kept when an answer shows that the endpoint is up
        self._writer = LedgerWriter(ledger, index.extend if index else None)
        try:
            self._entries, self.failures = read_ledger(ledger)
        except UserError:
            self._writer.close()
            raise

    async def open_index(self) -> None:
        """Read the index."""
        if self._index:
            await asyncio.to_thread(self._index.open)

    def close(self) -> None:
        """Write what is left, and give up all claims."""
        self._writer.close()
        if self._index:
            self._index.close()

    def disk_error(self) -> UserError | None:
        """Why nothing more should be paid for: the disk failed."""
        return self._writer.error

    async def append(self, line: dict[str, Any]) -> None:
        """Append a line, which is on the disk afterwards."""
        await self._writer.append(line)

    async def recorded(self, digest: str, labels: dict[str, Any]) -> LedgerEntry | None:
        """The answer in this ledger, or in another, from which it is then copied to this one."""
        if digest in self._entries:
            return replace(self._entries[digest], **labels)
        if not self._index or not (entry := self._index.find(digest)):
            return None
        copy = self._entries[digest] = replace(entry, **labels)
        await self._writer.append(asdict(copy))
        return copy

    async def claim(self, digest: str) -> bool:
        """Keep other cells from making a request. False: another one is making it."""
        return self._index is None or await asyncio.to_thread(self._index.claim, digest)

    def release(self, digest: str) -> None:
        """Give up the claim on a request."""
        if self._index:
            self._index.release(digest)

    def batch_elsewhere(self, digest: str) -> Path | None:
        """The ledger of another cell in whose open batch a request is."""
        for ledger in self._index.find_batched(digest) if self._index else ():
            if ledger != self.path and any(
                digest in batch.requests and not batch.ended
                for batch in read_batches(ledger).values()
            ):
                return ledger
        return None

    def failed_attempts(self, digest: str) -> int:
        """Failed attempts at a request, those of this run included."""
        return self.failures[digest] + self._failed_now[digest]

    async def keep_failed_attempt(
        self, labels: dict[str, Any], outcome: str, seconds: float = 0.0
    ) -> None:
        """Keep that an attempt failed. `labels`: of the line."""
        self._failed_now[labels["request_sha256"]] += 1
        await self._writer.append({**labels, "outcome": outcome, "seconds": seconds})

    async def keep_failure(self, failure: RequestFailed, labels: dict[str, Any]) -> None:
        """Keep that a request failed for good, so that no later run sends it again.

        Unless the endpoint is known to be up, the line is written before the next answer's: one
        that is down must not use up anybody's attempts.
        """
        entry = LedgerEntry(
            **labels,
            model=self._model,
            prompt_tokens=0,
            completion_tokens=0,
            cost=0.0,
            seconds=0.0,
            finish_reason=FAILED,
            text="",
            no_answer=failure.problems[0].what,
        )
        self._failed.append(entry)
        if failure.endpoint_is_up:
            await self._write_failures()

    async def _write_failures(self) -> None:
        failed = self._failed
        self._failed = []
        for entry in failed:
            self._entries[entry.request_sha256] = entry
            await self._writer.append(asdict(entry))

    async def keep_answer(
        self, reply: Reply, seconds: float, labels: dict[str, Any], prompt_characters: int
    ) -> LedgerEntry:
        """Keep an answer in the ledger."""
        await self._write_failures()
        prompt_tokens, completion_tokens = token_counts(
            reply.usage, prompt_characters, reply.text, self._max_tokens
        )
        unreported = prompt_tokens is None or completion_tokens is None
        if prompt_tokens is None:
            prompt_tokens = tokens_of(prompt_characters)
        if completion_tokens is None:
            completion_tokens = tokens_of(len(reply.text))
        prompt_price, completion_price = self._prices
        answer = LedgerEntry(
            **labels,
            model=self._model,
            prompt_tokens=prompt_tokens,
            completion_tokens=completion_tokens,
            cost=(prompt_tokens * prompt_price + completion_tokens * completion_price) / 1e6,
            seconds=seconds,
            finish_reason=reply.finish_reason,
            text=reply.text.strip(),
            estimated=unreported,
            answered_by=reply.model,
            no_answer=reply.no_answer,
        )
        await self._writer.append(asdict(answer))
        self._entries[answer.request_sha256] = answer
        return answer


def tokens_of(characters: int) -> int:
    """Tokens of a text of so many characters, estimated."""
    return -(-characters // CHARACTERS_PER_TOKEN)
