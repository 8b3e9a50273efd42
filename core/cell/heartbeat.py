"""Whether the ranks of a cell still take steps: each writes ranks/RANK.json while it works.

A rank that hangs in a collective, or in its data, looks alive to Slurm until the time-out of the
collective, an hour later.
"""

import contextlib
import json
import socket
import statistics
import threading
import time
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from core.files import write_atomically

FOLDER = "ranks"
BEAT_SECONDS = 30.0
SILENT_BEATS = 4  # a rank that has not written for so many has stopped
STEPS = 3  # before the median of their times is taken for a measure
MEDIANS = 10  # a step that takes so many times the median of the steps hangs
LEAST_SECONDS = 300.0  # a shorter step never hangs: it may save, or evaluate


class Heartbeat:
    """What one rank writes: its node, the step that it has begun, and for how long it has run.

    A context manager: a thread writes while the block runs. The stage removes FOLDER at its end.
    """

    def __init__(self, folder: Path, rank: int, world_size: int) -> None:
        self.path = folder / FOLDER / f"{rank}.json"
        self.world_size = world_size
        self.step = 0
        self.begun = time.monotonic()
        self.intervals: deque[float] = deque(maxlen=200)
        self.longest = 0.0
        self._is_paused = False
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._beat, daemon=True)

    def begin(self, step: int) -> None:
        """Take note that this rank begins a step."""
        now = time.monotonic()
        if self.step:
            self.intervals.append(now - self.begun)
            self.longest = max(self.longest, now - self.begun)
        self.step = step
        self.begun = now

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """While the block runs no step does: an evaluation or a save takes as long as it takes."""
        self._is_paused = True
        try:
            yield
        finally:
            self._is_paused = False

    def __enter__(self) -> "Heartbeat":
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._stop.set()
        self._thread.join()

    def _beat(self) -> None:
        while True:
            with contextlib.suppress(OSError):  # a full disk ends the cell, not this thread
                self.path.parent.mkdir(exist_ok=True)
                write_atomically(self.path, json.dumps(self._facts()))
            if self._stop.wait(BEAT_SECONDS):
                return

    def _facts(self) -> dict[str, Any]:
        intervals = list(self.intervals)
        is_known = len(intervals) >= STEPS and not self._is_paused
        median = statistics.median(intervals) if is_known else None
        return {
            "host": socket.gethostname(),
            "world_size": self.world_size,
            "step": self.step,
            "seconds": time.monotonic() - self.begun,
            "median": median,
            "limit": median and max(MEDIANS * median, 2 * self.longest, LEAST_SECONDS),
        }


def stalled(folder: Path) -> str | None:
    """Why a cell's ranks take no steps any more, with the rank and its node. None: they do.

    The times are the ranks' own; of the files' times only differences count. What was written
    before the cell began to run (before its .lock was taken) is of an earlier run.
    """
    beats: dict[int, dict[str, Any]] = {}
    lock = folder / ".lock"
    begun = lock.stat().st_mtime if lock.exists() else 0.0
    for path in (folder / FOLDER).glob("*.json"):
        with contextlib.suppress(OSError, ValueError):
            if (written := path.stat().st_mtime) >= begun:
                beats[int(path.stem)] = json.loads(path.read_text()) | {"time": written}
    if not beats:
        return None
    newest = max(beats.values(), key=lambda beat: beat["time"])
    # Others are of an earlier run with more ranks.
    beats = {rank: beat for rank, beat in beats.items() if rank < newest["world_size"]}
    late = {rank: newest["time"] - beat["time"] for rank, beat in beats.items()}
    if not newest["limit"] or newest["seconds"] < newest["limit"]:
        return None
    minutes = newest["seconds"] / 60
    finding = f"no step for {minutes:.0f} min, where one takes {newest['median']:.2g} s"
    if silent := [rank for rank in beats if late[rank] > SILENT_BEATS * BEAT_SECONDS]:
        return f"{finding}: {_named(silent, beats)} has stopped"
    first = min(beat["step"] for beat in beats.values())
    behind = [rank for rank, beat in beats.items() if beat["step"] == first]
    if len(behind) < len(beats):
        return f"{finding}: {_named(behind, beats)} is still in step {first}"
    return f"{finding}: all ranks are in step {first}, {_named(sorted(beats), beats)}"


def _named(ranks: list[int], beats: dict[int, dict[str, Any]]) -> str:
    return ", ".join(f"rank {rank} on {beats[rank]['host']}" for rank in sorted(ranks)[:4])
