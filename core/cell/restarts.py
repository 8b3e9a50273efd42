"""How often a cell was started, and whether it got on in between: from the lines of its log."""

import json
import re
from dataclasses import dataclass
from pathlib import Path

_START = re.compile(r" starts \(process \d+(?:, after (\d+) of \d+ (.+))?\)$", re.MULTILINE)
_RETRY = r" retry \d+ of \d+ of job {job}(?: on \S+)?: "


@dataclass(frozen=True)
class Restarts:
    """The restarts of a cell.

    Attributes:
        count: Starts after the first one.
        retries: Those after a failure that passes by itself (`retries` of a cluster profile).
        without_progress: Whether the last start before this one added nothing, and this one has
            not done so either up to now.
    """

    count: int
    retries: int
    without_progress: bool


def start_text(folder: Path, process: int) -> str:
    """How a start is logged, with the progress that the run before had made."""
    progress = read_progress(folder)
    after = f", after {progress[0]} of {progress[1]} {progress[2]}" if progress else ""
    return f"starts (process {process}{after})"


def retry_text(job: str, number: int, retries: int, cause: str, node: str = "") -> str:
    """How it is logged that a job is queued again after a failure. `node`: on which it ran."""
    return f"retry {number} of {retries} of job {job}{' on ' if node else ''}{node}: {cause}"


def count_retries(folder: Path, job: str = "") -> int:
    """How often the log says that a job of the cell was queued again after a failure.

    `job`: count those of this job alone.
    """
    pattern = _RETRY.format(job=re.escape(job) if job else r"\S+")
    return len(re.findall(pattern, _log(folder)))


def read_restarts(folder: Path) -> Restarts:
    """The restarts of the cell in `folder`."""
    before = [(int(done or 0), unit) for done, unit in _START.findall(_log(folder))]
    without_progress = False
    if len(before) > 1:
        progress = read_progress(folder)
        now = (progress[0], progress[2]) if progress else before[-1]
        without_progress = not _later(before[-2], before[-1]) and not _later(before[-1], now)
    return Restarts(max(0, len(before) - 1), count_retries(folder), without_progress)


def _later(before: tuple[int, str], after: tuple[int, str]) -> bool:
    """Whether the second of two states of progress is the later one: (number, unit).

    A stage that counts in another unit has gone on to its next part. The unit is "" where the
    start before had not got to its first report.
    """
    if before[1] and after[1] and before[1] != after[1]:
        return True
    return after[0] > before[0]


def read_progress(folder: Path) -> tuple[int, int, str] | None:
    """What `progress.json` says: done, total, unit. None where there is none."""
    try:
        progress = json.loads((folder / "progress.json").read_text())
        return progress["done"], progress["total"], progress["unit"]
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _log(folder: Path) -> str:
    try:
        return (folder / "log.txt").read_text(errors="replace")
    except OSError:
        return ""
