"""A folder in which tests run the small study."""

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from analysis.declaration import DATES

ROOT = Path(__file__).parents[1]
SMALL = ROOT / "tests/small/small.yaml"


def comparable(path: Path) -> bytes:
    """A file of the results without its line of dates, which differs between runs of one study."""
    lines = path.read_bytes().splitlines(keepends=True)
    return b"".join(line for line in lines if DATES.encode() not in line)


@dataclass
class Place:
    """A folder in which studies run."""

    folder: Path

    def command(self, command: str, *more: str) -> list[str]:
        # One process at a time where trainings are done: each of them imports vLLM or Inspect for
        # seconds.
        more = (*more, "--jobs", "1") if command == "run" and "--jobs" not in more else more
        return [
            sys.executable,
            "-m",
            "study",
            command,
            str(SMALL),
            "--runs",
            str(self.folder / "runs"),
            *more,
        ]

    def study(self, command: str, *more: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self.command(command, *more), cwd=ROOT, capture_output=True, text=True
        )

    @property
    def results(self) -> Path:
        return self.folder / "results/small"

    @property
    def manifests(self) -> list[Path]:
        """Of finished cells. Not rglob: it fails when a folder vanishes that a running cell was
        working in."""
        return sorted((self.folder / "runs").glob("*/*/*/manifest.json"))

    def begun(self, stage: str) -> int:
        """How often a cell of the stage has started."""
        logs = (self.folder / "runs").glob(f"*/{stage}/*/log.txt")
        return sum(path.read_text(errors="replace").count(" starts (") for path in logs)

    def scores(self) -> dict[tuple[str, str, int], float]:
        rows = json.loads((self.results / "results.json").read_text())["scores"]
        return {(r["benchmark"], r["arm"], r["dose"]): r["score"] for r in rows}
