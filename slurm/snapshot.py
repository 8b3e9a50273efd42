"""The code as it was at submission: jobs run from a copy, so editing the checkout is safe."""

import hashlib
import json
import os
import shutil
from pathlib import Path

from core.cell.manifest import code_version
from core.git import git

NOT_CODE = {"runs", "results", "__pycache__"}


def snapshot(checkout: Path, folder: Path) -> Path:
    """Copy the checkout's files to `folder`/code-<hash of their content>.

    Returns that path. A copy that exists already is reused.
    """
    runs = folder.parents[1]  # it may lie in the checkout without being ignored by git
    files = {
        path: (checkout / path).read_bytes()
        for path in _files(checkout)
        if not (checkout / path).is_relative_to(runs)
    }
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
