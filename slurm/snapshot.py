"""The code as it was when it was submitted: jobs run from a copy, so that editing the checkout changes nothing."""

import hashlib
import json
import os
import shutil
import subprocess
from pathlib import Path

from core.cell.manifest import code_version

NOT_CODE = {"runs", "results", "__pycache__"}


def snapshot(checkout: Path, folder: Path) -> Path:
    """Copy the checkout's files to `folder`/code-<hash of their content>, once, and return that path."""
    files = {path: (checkout / path).read_bytes() for path in _files(checkout) if not _below(checkout / path, folder)}
    digest = hashlib.sha256()
    for path, content in files.items():
        digest.update(f"{path}\0{len(content)}\0".encode() + content)
    copy = folder / f"code-{digest.hexdigest()[:12]}"
    if copy.exists():
        return copy
    staged = folder / f".{copy.name}.{os.getpid()}"
    shutil.rmtree(staged, ignore_errors=True)
    for path, content in files.items():
        (staged / path).parent.mkdir(parents=True, exist_ok=True)
        (staged / path).write_bytes(content)
        shutil.copymode(checkout / path, staged / path)
    (staged / "code.json").write_text(json.dumps(code_version()) + "\n")
    staged.rename(copy)
    return copy


def _files(checkout: Path) -> list[str]:
    """What git tracks or would add; where there is no git, everything but results. Never what starts with a dot.

    No code does, but files with keys (.env) do, and .venv.
    """
    command = ["git", "-C", str(checkout), "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    try:
        listed = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split("\0")
    except (OSError, subprocess.CalledProcessError):
        listed = []
        for place, folders, names in os.walk(checkout):
            folders[:] = [f for f in folders if f not in NOT_CODE and not f.startswith(".")]
            listed += [str((Path(place) / name).relative_to(checkout)) for name in names]
    seen = {path for path in listed if path and not any(part.startswith(".") for part in Path(path).parts)}
    return sorted(path for path in seen if (checkout / path).is_file())


def _below(path: Path, folder: Path) -> bool:
    return path.is_relative_to(folder.parents[1])  # the runs folder, where it is inside the checkout and not ignored
