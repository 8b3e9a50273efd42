"""How the `setup` lines of a cluster profile end on a node: doctor's jobs write it down."""

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

_ERROR = re.compile(r"error|unable to|not found|no such|unknown|denied", re.IGNORECASE)


@dataclass(frozen=True)
class LineEnd:
    """How one line ended."""

    line: str
    status: int | None  # None: it has not ended, or it has ended the shell
    error: str  # the last line that it wrote to stderr

    @property
    def failed(self) -> bool:
        """Whether it failed. Some versions of `module` exit with 0 whatever happens."""
        return bool(self.error and (self.status or _ERROR.search(self.error)))


def watched(setup: list[str], folder: Path) -> list[str]:
    """The lines, for a batch script that also writes to `folder` how each of them ends.

    They run as in any job: in the shell of the batch script, outside a container.
    """
    lines = []
    for number, line in enumerate(setup):
        name = f'{shlex.quote(str(folder))}/"setup-$SLURM_JOB_ID-{number}'
        lines += [
            f'exec 7>&2 2>{name}.err"',
            line,
            f'echo "$?" >{name}.status"; exec 2>&7 7>&-; cat {name}.err" >&2',
        ]
    return lines


def read_ends(setup: list[str], folder: Path, job: str) -> list[LineEnd]:
    """What the `watched` lines of a job have written. Those that were not begun are left out."""
    ends = []
    for number, line in enumerate(setup):
        errors, status = (folder / f"setup-{job}-{number}.{end}" for end in ("err", "status"))
        if errors.exists():
            text = status.read_text().strip() if status.exists() else ""
            messages = [m for m in errors.read_text(errors="replace").splitlines() if m.strip()]
            ends.append(LineEnd(line, int(text) if text else None, (messages or [""])[-1]))
    return ends
