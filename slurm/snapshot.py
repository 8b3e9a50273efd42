"""The code as it was at submission: jobs run from a copy, so editing the checkout is safe."""

import hashlib
import json
import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

from core.cell.identity import Cell
from core.cell.manifest import code_version
from core.files import named_errors
from core.git import git
from core.paths import ROOT

VERSION = "code.json"
NOT_CODE = {"runs", "results", "__pycache__"}


def snapshot(checkout: Path, folder: Path) -> Path:
    """Copy the checkout's files to `folder`/code-<hash of their content>.

    Returns that path. A copy that exists already is reused. Nothing of an unfinished copy stays.
    """
    files = _contents(checkout, folder)
    copy = _copy_of(files, folder)
    if copy.exists():
        return copy
    for half in folder.glob(".code-*"):  # of a submission that was killed: one runs at a time
        shutil.rmtree(half, ignore_errors=True)
    staged = folder / f".{copy.name}.{os.getpid()}"
    try:
        for parent in sorted({(staged / path).parent for path in files}):
            with named_errors(parent):
                parent.mkdir(parents=True, exist_ok=True)
        for path, content in files.items():
            with named_errors(copied := staged / path):
                copied.write_bytes(content)
                shutil.copymode(checkout / path, copied)
        with named_errors(staged / VERSION):
            (staged / VERSION).write_text(json.dumps(code_version()) + "\n")
        staged.rename(copy)
    except BaseException:
        shutil.rmtree(staged, ignore_errors=True)
        raise
    return copy


def snapshot_path(checkout: Path, folder: Path) -> Path:
    """Where `snapshot` copies the checkout as it is now."""
    return _copy_of(_contents(checkout, folder), folder)


def _contents(checkout: Path, folder: Path) -> dict[str, bytes]:
    runs = folder.parents[1]  # it may lie in the checkout without being ignored by git
    return {
        path: (checkout / path).read_bytes()
        for path in _files(checkout)
        if not (checkout / path).is_relative_to(runs)
    }


def _copy_of(files: dict[str, bytes], folder: Path) -> Path:
    digest = hashlib.sha256()
    for path, content in files.items():
        digest.update(f"{path}\0{len(content)}\0".encode() + content)
    return folder / f"code-{digest.hexdigest()[:12]}"


def _files(checkout: Path) -> list[str]:
    """What git tracks or would add; without git, all files but results.

    Paths with a part that starts with a dot are left out: files with keys (.env) and .venv.
    """
    output = git(checkout, "ls-files", "-z", "--cached", "--others", "--exclude-standard")
    if output is not None:
        listed = output.split("\0")
    else:
        listed = []
        for parent, folders, names in os.walk(checkout):
            folders[:] = [f for f in folders if f not in NOT_CODE and not f.startswith(".")]
            listed += [str((Path(parent) / name).relative_to(checkout)) for name in names]
    visible = {
        path
        for path in listed
        if path and not any(part.startswith(".") for part in Path(path).parts)
    }
    return sorted(path for path in visible if (checkout / path).is_file())


def relocated(cell: Cell, code: Path) -> Cell:
    """The cell with the checkout's data files replaced by their copies in the snapshot."""

    below_root = f"{ROOT}/"

    def relocate(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: relocate(item) for key, item in value.items()}
        if isinstance(value, list):
            return [relocate(item) for item in value]
        if isinstance(value, str) and value.startswith(below_root):
            copy = code / Path(value).relative_to(ROOT)
            return str(copy) if copy.is_file() else value
        return value

    return replace(cell, resources=relocate(cell.resources))
