"""Trainings of a shakedown that are stopped and killed on purpose, and whether they resumed.

What shows it is the log of a training: how a run of it ended, and where the next one began.
"""

import re
import subprocess
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

from core.stages import TRAINING_STAGES
from slurm.profile import Profile
from study.commands.shakedown_page import FAILS, NOT_SEEN, WAITS, WORKS, Row, make_row

_START = re.compile(r" starts \(process \d+")
_RESUMED = re.compile(r"resumes after step \d+")
_KILLED = re.compile(r" retry \d+ of \d+ of job \S+(?: on \S+)?: killed: ")
_SAVED = "is being saved"
_ERROR = re.compile(r"^(error: |Traceback)|: error: ", re.MULTILINE)


@dataclass
class Stop:
    """A way to end a training from outside, after which Slurm queues it again."""

    what: str
    pattern: str
    """A file that a training has when it can be stopped so."""
    needs: str
    """The same in words."""
    signal: str
    step: str
    """Which of the job's steps gets the signal, behind the job's id."""
    off: str = ""
    """Why nothing is stopped so; "" where it is."""
    folder: Path | None = None
    """The cell that got the signal."""
    starts: int = 0
    """How often it had been started by then."""


@dataclass
class Stops:
    """Both ways: SIGTERM, as a preemption or a time limit; SIGKILL, as too little memory."""

    base: Path
    profile: Profile
    stops: list[Stop] = field(init=False)

    def __post_init__(self) -> None:
        # Of a step alone: a job that gets SIGKILL as a whole counts as cancelled.
        self.stops = [
            Stop("stopped and resumed", "metrics.jsonl", "was at its steps", "TERM", ""),
            Stop("killed and resumed", "steps/[0-9]*", "had a step checkpoint", "KILL", ".0"),
        ]
        if not self.profile.requeue:
            for stop in self.stops:
                stop.off = "requeue: 0 in the profile, so nothing is queued again"
        elif not self.profile.retries:
            self.stops[1].off = "retries: 0 in the profile, so nothing is queued again"

    def send(self, states: list[Row]) -> None:
        """Stop a running training in each way that is still to be tried.

        states: rows of `status`.
        """
        for stop in self.stops:
            if stop.folder or stop.off:
                continue
            for row in states:
                folder = self.base / row["folder"]
                if row["state"] != "running" or row["stage"] not in TRAINING_STAGES:
                    continue
                starts, _ = read_ends(folder)
                busy = any(s.folder == folder and s.starts == starts for s in self.stops)
                if not busy and any(folder.glob(stop.pattern)):
                    stop.folder, stop.starts = folder, starts
                    job = f"{row['job']}{stop.step}"
                    words = ["scancel", f"--signal={stop.signal}", job]
                    subprocess.run(words, check=False, stderr=subprocess.DEVNULL)
                    break

    def rows(self, states: list[Row]) -> list[Row]:
        """A row for each way. `states`: as for `send`, when all has ended."""
        trained = [row for row in states if row["stage"] in TRAINING_STAGES]
        return [self._row(stop, trained) for stop in self.stops]

    def _row(self, stop: Stop, trained: list[Row]) -> Row:
        kind = "killed" if stop.step else "stopped"
        what = f"{stop.what} (SIG{stop.signal})"
        for row in trained:
            if resumed := read_ends(self.base / row["folder"])[1].get(kind):
                return make_row("", what, WORKS, f"{row['stage']} {row['cell']} {resumed}")
        again = "the same command with another --runs"
        if stop.folder is None:
            reason = stop.off or f"no training that {stop.needs} was met running"
            return make_row("", what, NOT_SEEN, reason, "" if stop.off else again)
        (row,) = (row for row in trained if self.base / row["folder"] == stop.folder)
        name = f"{row['stage']} {row['cell']}"
        if row["state"] in ("running", "queued", "unknown"):
            return make_row("", what, WAITS, name, "the same command again waits for it")
        if read_ends(stop.folder)[0] == stop.starts and row["state"] == "done":
            return make_row("", what, NOT_SEEN, f"{name} had ended before the signal", again)
        how = "began anew" if row["state"] == "done" else f"was not resumed: {row['state']}"
        return make_row("", what, FAILS, f"{name} {how}", f"see {stop.folder}/log.txt")


def read_ends(folder: Path) -> tuple[int, dict[str, str]]:
    """How often a training was started, and how it resumed after it was `killed` or `stopped`."""
    try:
        log = (folder / "log.txt").read_text(errors="replace")
    except FileNotFoundError:
        return 0, {}
    begins = [match.start() for match in _START.finditer(log)]
    parts = [log[start:end] for start, end in pairwise([*begins, len(log)])]
    resumed = {}
    for before, after in pairwise(parts):
        if match := _RESUMED.search(after):
            if _KILLED.search(before):
                resumed["killed"] = match[0]
            elif _SAVED in before and not _ERROR.search(before):
                resumed["stopped"] = match[0]
    return len(parts), resumed
