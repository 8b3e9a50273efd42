"""A cell that waits for something outside, such as a batch of hours: its process ends meanwhile."""

import json
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from core import utc
from core.errors import UserError
from core.files import write_atomically

FILE = "waiting.json"
STATUS = 75  # exit status of a process whose cells wait: EX_TEMPFAIL of sysexits.h


class Waiting(UserError):
    """What a cell waits for takes longer than a job may wait. Its state is on the disk.

    Attributes:
        seconds: After which the cell should be run again.
    """

    def __init__(self, what: str, seconds: float) -> None:
        super().__init__(what=f"waits for {what}", fix="run the cell again later")
        self.awaited = what
        self.seconds = seconds


@dataclass(frozen=True)
class WaitingRecord:
    """What `waiting.json` of a cell says.

    Attributes:
        what: What the cell waits for.
        since: When its last run ended, UTC.
        until: When it should be run again, in seconds since the epoch.
    """

    what: str
    since: str
    until: float

    @property
    def seconds(self) -> float:
        """Until it should be run again, by the clock of this machine."""
        return max(0.0, self.until - time.time())


def write_waiting(folder: Path, waiting: Waiting) -> None:
    """Record what the cell in `folder` waits for."""
    record = {
        "what": waiting.awaited,
        "since": utc.text(),
        "until": round(time.time() + waiting.seconds),
    }
    write_atomically(folder / FILE, json.dumps(record) + "\n")


def read_waiting(folder: Path) -> WaitingRecord | None:
    """What the cell in `folder` waits for; None where it waits for nothing."""
    with suppress(OSError, ValueError, TypeError, KeyError):
        record = json.loads((folder / FILE).read_text(encoding="utf-8"))
        return WaitingRecord(str(record["what"]), str(record["since"]), float(record["until"]))
    return None


def clear_waiting(folder: Path) -> None:
    """Forget what the cell in `folder` waited for: it runs, or is finished."""
    (folder / FILE).unlink(missing_ok=True)
