"""From published numbers back to every cell and file behind them, by hash.

`lineage` reads what is on disk, `study.upkeep.changes` says what has changed since, and `trace`
follows one score.
"""

import os
import re
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import yaml

from core.cell.identity import read_config, relative_path
from core.cell.lookup import input_folder
from core.cell.manifest import NOT_OUTPUTS
from core.cell.publish import results as results_of
from core.errors import UserError
from core.files import content_files, read_record, sha256
from core.paths import ROOT
from core.stages import in_stage_order
from core.strict_yaml import did_you_mean
from core.yaml_text import from_yaml

Row = dict[str, Any]
SCORE = ("benchmark", "arm", "seed", "dose")
# Facts of a cell in a trace, by their names in its settings and counts.
TRACED_FACTS = {
    "template",
    "writer",
    "judge",
    "source",
    "seed",
    "dose",
    "documents",
    "tokens",
    "rows",
    "steps",
    "last_loss",
    "temperature",
    "questions",
    "epochs",
    "answers",
    "grades",
    "missing_grades",
    "cost",
}
# A manifest without one of these is damaged.
MANIFEST_KEYS = {
    **dict.fromkeys(("identity", "stage", "name", "started", "ended"), str),
    **dict.fromkeys(("inputs", "outputs", "counts", "packages", "code"), dict),
}


def published(base: Path, study_args: str, results: Path | None = None) -> Path:
    """The analysis cell that the study's published results name.

    The newest one where they name none that there is. study_args: what names the study on the
    command line, for the command to type next. Raises UserError where nothing is published, or the
    study has no analysis.
    """
    results = results or results_of(base)
    folders = sorted((base / "analysis").glob("*-*"), key=os.path.getmtime)
    if not results.is_dir() or not folders:
        raise UserError(
            where=str(results),
            what=f"no results of {base} are published",
            fix=f"python -m study run {study_args}",
        )
    identity = (read_record(results / "manifest.json") or {}).get("identity", "")
    for folder in folders:
        if identity and folder.name.endswith(identity[:8]):
            return folder
    return folders[-1]


def lineage(analysis: Path, base: Path, hashes: bool = True) -> list[Row]:
    """Every cell behind an analysis, inputs before users: what is on disk and what was recorded.

    A row: cell, stage, `manifest` (its content, None without one), `manifest_sha256` (now),
    `config`, `pruned`, `inputs` (role, cell, wanted and wanted_results: the sha256 of its manifest
    and of its results when it was used) and `checks` (kind: output or external; file, path, wanted,
    now, state: same, changed, missing, added, pruned, unread). Sizes are compared first; with
    `hashes` every file is then read, the small ones first, several at a time and none twice.
    """
    rows: dict[str, Row] = {}

    def walk(relpath: str) -> None:
        rows[relpath] = _row(relpath, base)
        for used in rows[relpath]["inputs"]:
            if used["cell"] not in rows:
                walk(used["cell"])
        rows[relpath] = rows.pop(relpath)  # behind its inputs

    walk(relative_path(analysis, base))
    if hashes:
        checks = [check for row in rows.values() for check in row["checks"]]
        todo = [check for check in checks if check["state"] in ("unread", "changed")]
        digests = read_all([check["path"] for check in todo])
        for check in todo:
            check["now"] = digests[check["path"]]
            check["state"] = "same" if check["now"] == check["wanted"] else "changed"
    stages = {relpath: row["stage"] for relpath, row in rows.items()}
    inputs = {relpath: [used["cell"] for used in row["inputs"]] for relpath, row in rows.items()}
    return [rows[relpath] for relpath in in_stage_order(stages, inputs)]


def read_all(paths: Iterable[str]) -> dict[str, str | None]:
    """sha256 of files by path, None of those that can't be read.

    Small files come first: most changes are in them.
    """

    def digest(path: str) -> str | None:
        with suppress(OSError):
            return sha256(Path(path))
        return None

    def size(path: str) -> int:
        return os.path.getsize(path) if os.path.exists(path) else 0

    ordered = sorted(set(paths), key=size)
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        return dict(zip(ordered, pool.map(digest, ordered), strict=True))


def _row(relpath: str, base: Path) -> Row:
    folder = base / relpath
    manifest = read_record(folder / "manifest.json", **MANIFEST_KEYS)
    pruned = pruned_files(folder)
    config: Row = {}
    with suppress(OSError, yaml.YAMLError):  # of an edited one the hash tells
        config = from_yaml((folder / "config.yaml").read_text(encoding="utf-8"))
    config = config if isinstance(config, dict) else {}
    checks = [*_outputs(folder, manifest, pruned), *_external(manifest, folder)] if manifest else []
    path = folder / "manifest.json"
    inputs = (manifest or config).get("inputs", {})
    return {
        "cell": relpath,
        "stage": folder.parent.name,
        "manifest": manifest,
        "manifest_sha256": sha256(path) if path.exists() else None,
        "config": config,
        "pruned": pruned,
        "inputs": [
            {
                "role": role,
                "cell": relative_path(input_folder(folder.parents[1], used), base),
                "wanted": used.get("manifest_sha256"),
                "wanted_results": used.get("results_sha256"),
            }
            for role, used in inputs.items()
        ],
        "checks": checks,
    }


def pruned_files(folder: Path) -> Row:
    """What prune removed of a finished cell: name -> sha256, bytes, kind, date."""
    files: Row = (read_record(folder / "pruned.json", files=dict) or {"files": {}})["files"]
    return files


def pruned_cells(base: Path) -> Row:
    """The cells of a study that prune removed: path in `base` -> manifest_sha256, date, bytes."""
    cells: Row = (read_record(base / "pruned.json", cells=dict) or {"cells": {}})["cells"]
    return cells


def _outputs(folder: Path, manifest: Row, pruned: Row) -> list[Row]:
    """Checks of a cell's outputs by their sizes, and of files that were added."""
    checks = []
    outputs = manifest["outputs"]
    for name, output in outputs.items():
        path = folder / name
        is_pruned = pruned.get(name, {}).get("sha256") == output["sha256"]
        state = "unread" if os.path.isfile(path) else "pruned" if is_pruned else "missing"
        if state == "unread" and path.stat().st_size != output["bytes"]:
            state = "changed"
        checks.append(_check("output", name, path, output["sha256"], state))
    expected = {*NOT_OUTPUTS, *outputs}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if os.path.isfile(path) and not {name, path.name} & expected and not name.startswith("."):
            checks.append(_check("output", name, path, None, "added"))
    return checks


def _check(kind: str, file: str, path: Path, wanted: str | None, state: str) -> Row:
    return {
        "kind": kind,
        "file": file,
        "path": str(path),
        "wanted": wanted,
        "now": None,
        "state": state,
    }


def _external(manifest: Row, folder: Path) -> list[Row]:
    """Checks of the files that the cell in `folder` read from outside of the study's folder."""
    checks = []
    for entry in manifest.get("files", {}).values():
        path = read_from(entry["path"], folder)
        wanted = entry["sha256"]
        for name in sorted({*wanted, *(content_files(path) if os.path.isdir(path) else ())}):
            file = path / name
            state = "unread" if name in wanted else "added"
            if not os.path.isfile(file):
                state = "missing"
            checks.append(_check("external", str(file), file, wanted.get(name), state))
    return checks


def read_from(recorded: str, folder: Path) -> Path:
    """Where a file is now. Its copy of the code may have been pruned, or moved with the study.

    The recorded path may be in another user's home: os.path takes what it may not see as missing.
    """
    copied = re.sub(r".*/slurm/(?=code-\w+/)", "", recorded)
    if copied == recorded:
        return Path(recorded)
    in_checkout = ROOT / copied.partition("/")[2]
    paths = [Path(recorded), folder.parents[1] / "slurm" / copied]
    return next((path for path in paths if os.path.exists(path)), in_checkout)


def trace(
    results: Path,
    base: Path,
    study_args: str,
    benchmark: str,
    arm: str,
    seed: int | None,
    dose: int,
) -> list[dict[str, str]]:
    """The cells and files behind one published score, the analysis first.

    A row: {stage, cell, facts, sha256, recorded}. sha256 is that of the cell's manifest, `recorded`
    whether whoever used the cell had the same. Files from outside (questions, data, models) come
    last, with their state in `lineage`. Raises UserError where there is no such score.
    """
    analysis = published(base, study_args, results)
    rows = lineage(analysis, base, hashes=False)
    score_key = (benchmark, arm, seed, dose)
    role = _role_of_score(analysis, score_key, results)
    scores = (read_record(results / "results.json", scores=list) or {"scores": []})["scores"]
    score_facts = [
        f"score {score['score']}, n {score['n']}"
        for score in scores
        if tuple(score[key] for key in SCORE) == score_key
    ]
    last = rows[-1]
    # (cell, sha256 of its manifest) as its users recorded it.
    recorded = {(last["cell"], *read_all([str(results / "manifest.json")]).values())}
    steps: list[tuple[str, ...]] = []
    files: dict[tuple[str, ...], list[str]] = {}
    for row in reversed(rows):
        digests = {digest for cell, digest in recorded if cell == row["cell"]}
        if not digests:
            continue
        inputs = [used for used in row["inputs"] if row is not last or used["role"] == role]
        recorded |= {(used["cell"], used["wanted"]) for used in inputs}
        facts = ", ".join(score_facts) if row is last else _facts(row)
        same = "yes" if digests == {row["manifest_sha256"]} else "no"
        steps.append((row["stage"], row["cell"], facts, row["manifest_sha256"] or "", same))
        for check in row["checks"]:
            if check["kind"] == "external":
                key = (check["file"], check["wanted"] or "", check["state"])
                files.setdefault(key, []).append(row["stage"])
    for (name, *rest), stages in files.items():
        steps.append(("file", name, f"read by {', '.join(stages)}", *rest))
    keys = ("stage", "cell", "facts", "sha256", "recorded")
    return [dict(zip(keys, step, strict=True)) for step in steps]


def _role_of_score(analysis: Path, score_key: tuple[Any, ...], results: Path) -> str:
    """The role under which the analysis has the cell with a score."""
    role_of: dict[tuple[Any, ...], str] = {}
    for row in read_config(analysis)["settings"]["rows"]:
        # The judge that counts comes first.
        role_of.setdefault(tuple(row[key] for key in SCORE), row["role"])
    if score_key not in role_of:
        name = " ".join(map(str, score_key))
        valid = [" ".join(map(str, key)) for key in role_of]
        raise UserError(
            where=str(results),
            what=f"no score of {name}{did_you_mean(name, valid)}",
            fix="results.json there lists the scores",
        )
    return role_of[score_key]


def _facts(row: Row) -> str:
    """The key facts of a cell, from its settings and its counts."""
    settings = row["config"].get("settings", {})
    counts = (row["manifest"] or {"counts": {}})["counts"]
    facts = []
    for key, value in {**settings, **settings.get("sampling", {}), **counts}.items():
        if key not in TRACED_FACTS or value is None:
            continue
        if isinstance(value, dict):
            names = ("model", "topic", "hub", "url", "sha256")
            value = next((value[name] for name in names if value.get(name)), "given")
        facts.append(f"{key.replace('_', ' ')} {value}")
    return ", ".join(facts)
