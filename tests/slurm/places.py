"""What the tests of Slurm work with: the kit, a Slurm that only takes notes, a real one."""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.place import ROOT, SMALL
from tests.slurm.batch_script import BatchScript
from tests.waiting import until

CLUSTER = ROOT / "tests/small/cluster.yaml"


@dataclass
class Kit:
    """The kit's command line with a folder of its own."""

    folder: Path

    @property
    def base(self) -> Path:
        return self.folder / "runs/small"

    def words(self, command: str, *more: str, study: Path = SMALL) -> list[str]:
        if command == "submit" and "--cluster" not in more:
            more = ("--cluster", str(CLUSTER), *more)
        options = ["--runs", str(self.folder / "runs"), "--json", *more]
        return [sys.executable, str(ROOT / "study"), command, str(study), *options]

    def call(
        self, command: str, *more: str, study: Path = SMALL
    ) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self.words(command, *more, study=study), capture_output=True, text=True
        )

    def done(self, command: str, *more: str, study: Path = SMALL) -> dict[str, Any]:
        result = self.call(command, *more, study=study)
        assert result.returncode == 0, result.stderr
        return json.loads(result.stdout)

    def refused(self, command: str, *more: str, study: Path = SMALL) -> list[str]:
        """The lines for the user. Fails where a traceback is among them."""
        result = self.call(command, *more, study=study)
        assert result.returncode == 2 and all(
            line.startswith("error: ") for line in result.stderr.splitlines()
        )
        assert not result.stdout
        return result.stderr.splitlines()


@dataclass
class Fake:
    """Commands with the names of Slurm's, which note how they were called."""

    folder: Path

    @property
    def scripts(self) -> list[BatchScript]:
        """What was submitted, in order."""
        return [BatchScript.parse(p.read_text()) for p in sorted(self.folder.glob("[0-9]*.sh"))]

    def in_queue(self, *lines: str) -> None:
        """Set squeue's answer: lines of JOB|STATE|REASON|NAME|COMMENT."""
        form = "{}|{}|{}|{}|/batch.sh|{}\n".format
        (self.folder / "queue").write_text("".join(form(*line.split("|")) for line in lines))

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

    def only_here(self, folder: Path, shell: pytest.MonkeyPatch) -> None:
        """In this `shell`, have sbatch refuse what a node submits. `folder`: for a wrapper of it.

        AllocNodes, by which sites do that, can't tell nodes apart that share an address. Here the
        daemon of a job's step, among the ancestors, tells that it is a node.
        """
        refusal = "sbatch: error: Batch job submission failed: Access/permission denied"
        wrapper = folder / "sbatch"
        wrapper.write_text(
            f"""#!/bin/sh
            pid=$$
            while [ "$pid" -gt 1 ]; do
              case $(cat /proc/$pid/comm) in
                slurmstepd*) echo "{refusal}" >&2; exit 1 ;;
              esac
              pid=$(awk '/^PPid/ {{print $2}}' /proc/$pid/status)
            done
            exec {shutil.which("sbatch")} "$@"
            """
        )
        wrapper.chmod(0o755)
        shell.setenv("PATH", f"{folder}:{os.environ['PATH']}")

    def wait(self) -> None:
        """Until nothing is queued."""
        until(lambda: not self.jobs(), lambda: self.ask("squeue", "--array"))
