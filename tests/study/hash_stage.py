"""Stands in for every stage in the tests of edits: its output is a hash of all that it reads.

Two cells have the same output exactly if they read the same settings, the same bytes from outside
and the same outputs of inputs. So an output that is stale, or somebody else's, is another value.
"""

import hashlib
import json
from pathlib import Path
from typing import Any

from core.cell.context import StageContext

RESUMABLE = False
runs: list[str] = []  # the folders that ran to their end, as STAGE/NAME-HASH8
kill_after: list[int] = []  # run so many cells to their end, then be killed; empty: never


class Killed(BaseException):
    """As by SIGKILL in the middle of a cell: no stage catches it."""


def run(context: StageContext) -> dict[str, int | float]:
    """Write `output.txt`, of the analysis `results.json`."""
    (context.folder / "output.txt").write_text("half of it")
    if kill_after:
        if not kill_after[0]:
            raise Killed
        kill_after[0] -= 1
    if context.folder.parent.name == "analysis":
        rows = [
            row | {"value": (context.inputs[row["role"]] / "output.txt").read_text()}
            for row in context.settings["rows"]
        ]
        (context.folder / "results.json").write_text(json.dumps(rows))
    digest = hashlib.sha256(context.folder.parent.name.encode())
    for part in (context.settings, _outside(context.resources)):
        digest.update(json.dumps(part, sort_keys=True).encode())
    inputs = sorted(
        (folder / "output.txt").read_text()
        for folder in context.inputs.values()
        if folder.parent.name not in ("drafts", "contamination")  # they only share or check work
    )
    digest.update(json.dumps(inputs).encode())
    (context.folder / "output.txt").write_text(digest.hexdigest())
    runs.append(f"{context.folder.parent.name}/{context.folder.name}")
    return {"steps": 1, "tokens": 1}


def _outside(resources: Any) -> list[str]:
    """Hashes of the files that the resources name, sorted: not their paths."""
    if isinstance(resources, dict | list):
        values = resources.values() if isinstance(resources, dict) else resources
        return sorted(digest for value in values for digest in _outside(value))
    if not isinstance(resources, str) or not resources.startswith("/"):
        return []
    path = Path(resources)
    files = sorted(path.rglob("*")) if path.is_dir() else [path]
    return [
        hashlib.sha256(f"{file.name}\n".encode() + file.read_bytes()).hexdigest()
        for file in files
        if file.is_file()
    ]
