"""Places that the tests of Slurm work in: the kit's folder, a Slurm that only takes notes, a real one."""

import json
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.place import ROOT, SMALL


@dataclass
class Kit:
    """The kit's command line with a folder of its own."""

    folder: Path

    @property
    def base(self) -> Path:
        return self.folder / "runs/small"

    def words(self, command: str, *more: str, study: Path = SMALL) -> list[str]:
        cluster = (
            [] if command == "cancel" or "--cluster" in more else ["--cluster", str(ROOT / "tests/small/cluster.yaml")]
        )
        study_words = [command, str(study), *cluster, "--runs", str(self.folder / "runs"), "--json", *more]
        return [sys.executable, str(ROOT / "study"), *study_words]

    def call(self, command: str, *more: str, study: Path = SMALL) -> subprocess.CompletedProcess[str]:
        return subprocess.run(self.words(command, *more, study=study), capture_output=True, text=True)

    def done(self, command: str, *more: str, study: Path = SMALL) -> dict[str, Any]:
        result = self.call(command, *more, study=study)
        assert result.returncode == 0, result.stderr
        return json.loads(result.stdout)

    def refused(self, command: str, *more: str, study: Path = SMALL) -> list[str]:
        """The lines for the user; a traceback would not be one."""
        result = self.call(command, *more, study=study)
        assert result.returncode and all(line.startswith("error: ") for line in result.stderr.splitlines())
        assert not result.stdout
        return result.stderr.splitlines()


@dataclass
class Fake:
    """Commands of Slurm's names that note how they were called."""

    folder: Path

    @property
    def scripts(self) -> list[str]:
        """What was submitted, in order."""
        return [path.read_text() for path in sorted(self.folder.glob("[0-9]*.sh"))]

    def in_queue(self, *lines: str) -> None:
        """Lines of JOB|STATE|REASON|COMMENT."""
        (self.folder / "queue").write_text("".join(line + "\n" for line in lines))

    def say(self, file: str, text: str) -> None:
        (self.folder / file).write_text(text)


@dataclass
class Lab:
    """The real cluster; its jobs go by the current environment."""

    folder: Path
    accounting: bool

    def ask(self, *command: str) -> str:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout

    def jobs(self) -> dict[str, str]:
        """Id -> state of what is not over."""
        lines = self.ask("squeue", "--noheader", "--array", "--format=%i %T").splitlines()
        return dict(line.split() for line in lines)  # type: ignore[misc]

    def wait(self) -> None:
        """Until nothing is queued."""
        end = time.monotonic() + 600  # a busy machine is slow, not wrong
        while self.jobs():
            assert time.monotonic() < end, self.ask("squeue", "--array")
            time.sleep(0.3)
