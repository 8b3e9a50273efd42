"""Batches in a ledger: which requests are in which batch, and how far each batch is.

A batch is written to the ledger step by step, each line before the next step is taken:

    {"batch": KEY, "request_sha256": ..., "id": ..., "attempt": ..., "role": ..., "characters": N}
    {"batch": KEY, "event": "uploaded", "file": ID}      the file with the requests
    {"batch": KEY, "event": "created", "batch_id": ID}   the provider's id of the batch
    {"batch": KEY, "event": "ended", "status": ...}      its answers are in the ledger

There is a line of the first kind for each request. KEY is the kit's own name of the batch, by which
it is found at the provider if a kill came before its id was written.
"""

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from core.errors import Problem
from core.files import read_rows


@dataclass(frozen=True)
class BatchRequest:
    """A request of a batch.

    Attributes:
        request_sha256: Its key in the ledger, and its custom_id in the batch.
        id: `LedgerEntry.id`, and so are `attempt` and `role`.
        characters: Of its prompt.
    """

    request_sha256: str
    id: int | str
    attempt: int
    role: str
    characters: int

    @property
    def labels(self) -> dict[str, Any]:
        """What its answer is labelled with in the ledger."""
        return {
            "id": self.id,
            "attempt": self.attempt,
            "role": self.role,
            "request_sha256": self.request_sha256,
        }


@dataclass
class Batch:
    """A batch as a ledger knows it.

    Attributes:
        key: The kit's name for it.
        requests: request_sha256 -> the request.
        time: When its requests were written to the ledger, in seconds since the epoch.
        file: The provider's id of the file with the requests; None: it was not uploaded.
        batch_id: The provider's id of the batch; None: it is not known.
        ended: The status with which it ended; None: it is still out.
    """

    key: str
    requests: dict[str, BatchRequest] = field(default_factory=dict)
    time: float = 0.0
    file: str | None = None
    batch_id: str | None = None
    ended: str | None = None

    def request_lines(self) -> list[dict[str, Any]]:
        """The lines that put its requests into the ledger."""
        return [
            {"batch": self.key, "time": self.time, **request.labels}
            | {"characters": request.characters}
            for request in self.requests.values()
        ]

    def event_line(self, event: str, **facts: Any) -> dict[str, Any]:
        """The line about a step of it."""
        return {"batch": self.key, "event": event, **facts}


def read_batches(path: Path) -> dict[str, Batch]:
    """The batches of a ledger, by their keys. Damaged lines and a missing file hold none.

    Raises:
        UserError: The file exists and can't be read.
    """
    damaged: list[Problem] = []
    if not path.exists():
        return {}
    return _batches(
        fields
        for _, fields in read_rows(path, damaged, skip_torn_line=True, allow_surrogates=True)
        if "batch" in fields
    )


def _batches(lines: Iterable[dict[str, Any]]) -> dict[str, Batch]:
    batches: dict[str, Batch] = {}
    for line in lines:
        batch = batches.setdefault(line["batch"], Batch(line["batch"]))
        match line.get("event"):
            case "uploaded":
                batch.file = line.get("file")
            case "created":
                batch.batch_id = line.get("batch_id")
            case "ended":
                batch.ended = line.get("status")
            case None:
                request = BatchRequest(
                    line.get("request_sha256", ""),
                    line.get("id", ""),
                    line.get("attempt", 0),
                    line.get("role", ""),
                    line.get("characters", 0),
                )
                batch.requests[request.request_sha256] = request
                batch.time = line.get("time", 0.0)
    return batches


def parse_batch_request(line: bytes) -> str | None:
    """The request_sha256 in a line that puts a request into a batch; None of any other line."""
    if not line.startswith(b'{"batch": '):
        return None
    try:
        fields = json.loads(line)
    except ValueError:
        return None
    digest = fields.get("request_sha256")
    return digest if isinstance(digest, str) and "event" not in fields else None
