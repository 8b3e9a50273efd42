"""What a stage function is given: one cell's folder, settings and finished inputs."""

import hashlib
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


def derive_seed(*parts: object) -> int:
    """A seed in [0, 2**31) that follows from `parts` alone. Libraries disagree on the widest seed; 31 bits suit all."""
    text = "/".join(map(str, parts))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big") >> 1


@dataclass
class StageContext:
    """One running cell, as its stage function sees it.

    `settings` is part of the cell's identity; `resources` (paths, addresses, worker counts) is not.
    `inputs` maps each role to the folder of a finished cell. Everything written below `folder` becomes an
    output in the manifest, which the caller writes last.
    """

    folder: Path
    identity: str
    settings: dict[str, Any]
    resources: dict[str, Any]
    inputs: dict[str, Path]
    report: Callable[[int, int, str], None] | None = None
    warnings: list[str] = field(default_factory=list)

    def seed(self, *purpose: object) -> int:
        """A seed (`derive_seed`) for one purpose within this cell: same cell and purpose, same seed."""
        return derive_seed(self.identity, *purpose)

    def progress(self, done: int, total: int, unit: str) -> None:
        """Tell whoever watches that `done` of `total` units (updates, documents, answers) are finished."""
        if self.report:
            self.report(done, total, unit)

    def log(self, text: str) -> None:
        """One line, with its time (UTC), on stdout: the cell's log.txt when an engine runs the cell."""
        print(time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), text, file=sys.stdout, flush=True)

    def warn(self, text: str) -> None:
        """A warning that goes to the log and is kept in the manifest."""
        self.warnings.append(text)
        self.log(f"warning: {text}")
