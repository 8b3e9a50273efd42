"""What a stage is given: one cell's folder, settings and finished inputs."""

import hashlib
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from core import utc
from core.errors import printable


def derive_seed(*parts: object) -> int:
    """A seed in [0, 2**31) that follows from `parts` alone.

    Libraries disagree on the widest seed; all of them take 31 bits.
    """
    text = "/".join(map(str, parts))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big") >> 1


@dataclass
class StageContext:
    """One running cell, as its stage function sees it.

    Attributes:
        folder: The cell's folder. Everything that the stage writes below it becomes an output in
            the manifest, which the caller writes last.
        identity: The cell's identity (sha256, hex).
        settings: What is part of the cell's identity.
        resources: What is not: paths, addresses, worker counts.
        inputs: Role -> folder of a finished cell.
        report: Receives (done, total, unit) of each `progress`.
        warnings: Texts that go into the manifest.
        facts: More entries of the manifest: what a result depends on that is no setting.
    """

    folder: Path
    identity: str
    settings: dict[str, Any]
    resources: dict[str, Any]
    inputs: dict[str, Path]
    report: Callable[[int, int, str], None] | None = None
    warnings: list[str] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)

    def seed(self, *purpose: object) -> int:
        """A seed for one purpose within this cell: same cell and purpose, same seed."""
        return derive_seed(self.identity, *purpose)

    def progress(self, done: int, total: int, unit: str) -> None:
        """Report that `done` of `total` units (steps, documents, answers) are finished."""
        if self.report:
            self.report(done, total, unit)

    def log(self, text: str) -> None:
        """Print one line with its time (UTC); stdout is log.txt where an executor runs the cell."""
        print(utc.text(), printable(text), file=sys.stdout, flush=True)

    def warn(self, text: str) -> None:
        """Log a warning and keep it for the manifest."""
        self.warnings.append(text)
        self.log(f"warning: {text}")
