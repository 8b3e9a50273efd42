"""The file rollouts.jsonl of a training by GRPO: every sampled answer with its reward.

A line: step, prompt (its number), sample (its number in the group), tokens, log_probs, text,
response (whether it has one), reward, cut. A step's lines are there before the step is taken.
"""

import io
import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

from core.files import append, cut_torn_line, read_rows

FILE = "rollouts.jsonl"
Key = tuple[int, int, int]  # step, prompt, sample


@dataclass(frozen=True)
class Rollout:
    """One line of the file."""

    step: int
    prompt: int
    sample: int
    tokens: list[int]
    log_probs: list[float]
    text: str
    response: bool
    reward: float
    cut: bool

    @property
    def key(self) -> Key:
        """What its seed follows from, in a cell."""
        return self.step, self.prompt, self.sample


class RolloutFile(dict[Key, Rollout]):
    """The rollouts of a cell's folder by key; new ones are appended in their order."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        path = folder / FILE
        self._file = io.FileIO(path, "ab")
        cut_torn_line(path)
        for _, row in read_rows(path):
            rollout = Rollout(**row)
            self[rollout.key] = rollout

    def append(self, rollouts: Iterable[Rollout]) -> None:
        """Write rollouts to the file, and on to the disk."""
        new = list(rollouts)
        append(self._file, "".join(json.dumps(asdict(row)) + "\n" for row in new).encode())
        for rollout in new:
            self[rollout.key] = rollout

    def close(self) -> None:
        """Close the file."""
        self._file.close()
