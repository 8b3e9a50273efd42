"""Make room: remove what a study can do without, on record.

The study stays finished and its numbers traceable. Removed are step checkpoints of trainings that
are over, weights of checkpoints that every benchmark of the study has used, what killed processes
left, ledgers that another holds, copies of the code. Kept are all inputs of unfinished cells, and
samples, ledgers, manifests, corpora, scores, results and logs.
"""

import json
import os
import shlex
import shutil
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from core import utc
from core.cell.identity import Cell, read_config, relative_path
from core.cell.lookup import RunsIndex, input_folder
from core.cell.manifest import read_manifest
from core.cell.release import is_weights, remove_on_record
from core.cell.run import HALF_WRITTEN
from core.endpoints.ledger import read_ledger
from core.errors import Problem, UserError
from core.files import locked, read_record, sha256, write_atomically
from core.stages import CHECKPOINT_STAGES, STAGES, TRAINING_STAGES
from study.upkeep.provenance import lineage, pruned_cells, pruned_files, published, read_all

Row = dict[str, Any]
# Files of a training that only it reads, until it is over.
STEP_FILES = {"steps", "best", "rows", "rows_held_out"}
# Kind of the cells that the study file does not name: they go only when that is asked for.
OTHERS = "other cells"
HARMLESS = ("steps", "temporary")  # kinds that no cell reads


@dataclass(frozen=True)
class Queue:
    """What the scheduler answers about a study's jobs."""

    jobs: bool = False  # whether any is queued or running
    trouble: str | None = None  # why that is not known


def plan(cells: list[Cell], base: Path, study_args: str) -> list[Row]:
    """What may go and what must stay, below the study's folder `base`. Changes nothing.

    cells: all of the study. study_args: what names it on the command line. A row: kind (steps,
    weights, temporary, ledger, code, other cells, records), cell (or folder), files, bytes, go
    (whether it may), why.
    """
    names = {cell.relpath for cell in cells}
    needed = _needed(cells, base)
    users: dict[str, list[Cell]] = defaultdict(list)
    for cell in cells:
        for used in cell.inputs.values():
            for source in (used, *_linked(used)):
                users[source.relpath].append(cell)
    rows: list[Row] = []
    for cell in cells:
        # What another study has made is removed as that study allows.
        if not Path(cell.folder).is_absolute() and (base / cell.relpath).is_dir():
            needed_by = needed.get(cell.relpath)
            rows += _cell_rows(cell, base, needed_by, users[cell.relpath], study_args)
    reasons = dict.fromkeys(_behind_results(base), "behind the published results")
    reasons |= _used_elsewhere(base)
    # Users before their inputs.
    for folder in sorted(cells_on_disk(base), key=lambda folder: -STAGES.index(folder.parent.name)):
        relpath = f"{folder.parent.name}/{folder.name}"
        if relpath in names:
            continue
        why = "no cell of the study file; it goes with --orphans, but for its ledger"
        files = [name for name in _files(folder) if name != "calls.jsonl"]
        rows.append(
            _row(OTHERS, folder, base, files, relpath not in reasons, reasons.get(relpath, why))
        )
    return rows + list(_code_copies(base))


def total(rows: list[Row], others: bool = False) -> list[dict[str, Any]]:
    """Bytes that go and bytes that stay, by kind."""
    sums: dict[str, Counter[str]] = defaultdict(Counter)
    for row in rows:
        goes = row["go"] and (others or row["kind"] != OTHERS)
        sums[row["kind"]]["goes" if goes else "stays"] += row["bytes"]
    return [
        {"kind": kind, "goes": count["goes"], "stays": count["stays"]}
        for kind, count in sums.items()
    ]


def prune(
    rows: list[Row],
    cells: list[Cell],
    base: Path,
    study_args: str,
    others: bool = False,
    queue: Queue = Queue(),
) -> list[str]:
    """Remove what may go by the plan's `rows`.

    others: also cells that the study file does not name. queue: what Slurm answers about the
    study's jobs. study_args: what names the study on the command line.

    Each removal is on record before it happens: `pruned.json` beside the manifest. After a kill,
    plan and prune again to continue. Returns a line for each thing that was not removed, because it
    is not as the plan or its manifest says. Raises UserError where a cell or a job of the study is
    running, or may be.
    """
    _check_idle(base, queue, study_args)
    needed = _needed(cells, base)
    refused: list[str] = []
    for row in rows:
        folder = base / row["cell"]
        if not row["go"] or (row["kind"] == OTHERS and not others) or not folder.is_dir():
            continue
        if row["kind"] == "code":
            shutil.rmtree(folder)
            continue
        with locked(folder / ".lock", wait=False) as is_held:
            manifest = read_manifest(folder)
            is_needed = row["cell"] in needed and row["kind"] not in HARMLESS
            is_stale = row["kind"] != OTHERS and (manifest is None or is_needed)
            if not is_held or is_stale:
                refused.append(f"{folder}: is needed or running since it was planned; plan again")
            elif row["kind"] == OTHERS:
                _remove_other(folder, base, manifest, row["bytes"])
            else:
                outputs = (manifest or {"outputs": {}})["outputs"]
                refused += _remove(folder, row, outputs, study_args)
    return refused


@dataclass(frozen=True)
class NeededAgain(Problem):
    """A pruned cell that an unfinished one needs."""

    manifests: tuple[Path, ...] = ()
    """Those to delete, so that it is made again, inputs before users."""


def needed_again(cells: list[Cell], base: Path) -> list[NeededAgain]:
    """Each pruned cell that an unfinished one needs: which manifests to delete to make it again."""
    first_users: dict[str, tuple[Cell, Cell]] = {}  # many cells use one
    for cell in (cell for cell in cells if not read_manifest(base / cell.relpath)):
        for used in cell.inputs.values():
            for source in (*_linked(used), used):
                first_users.setdefault(source.relpath, (source, cell))
    problems = []
    for relpath, (source, cell) in first_users.items():
        folder = base / relpath
        date = pruned_on(folder)
        if not date:
            continue
        manifests = [*_pruned_inputs(source, base), folder / "manifest.json"]
        problems.append(
            NeededAgain(
                str(folder),
                f"was pruned on {date}, and {cell.relpath} needs it",
                "--yes makes it anew; or by hand: "
                f"rm {shlex.join(map(str, manifests))} and run the study again",
                tuple(manifests),
            )
        )
    return problems


def pruned_on(folder: Path) -> str | None:
    """The date on which files of a finished cell that others read were pruned.

    None where all of them are there.
    """
    if not read_manifest(folder):
        return None
    for name, file in pruned_files(folder).items():
        if file["kind"] not in HARMLESS and not (folder / name).exists():
            return str(file["date"])
    return None


def _linked(cell: Cell) -> list[Cell]:
    """The run to whose files a cell links, if it is a dose of a longer run."""
    return [cell.inputs["run"]] if "run" in cell.inputs else []


def _pruned_inputs(cell: Cell, base: Path) -> list[Path]:
    """Manifests of pruned cells that a cell needs to be made again, inputs before users."""
    manifests: list[Path] = []
    for used in cell.inputs.values():
        path = base / used.relpath / "manifest.json"
        if pruned_on(base / used.relpath) and path not in manifests:
            manifests += [p for p in _pruned_inputs(used, base) if p not in manifests]
            manifests.append(path)
    return manifests


def _needed(cells: list[Cell], base: Path) -> dict[str, str]:
    """Relative paths of the cells that unfinished ones need -> one that does.

    Unfinished cells on disk of other study files, and of other studies, count too.
    """
    needed: dict[str, str] = {}

    def need(relpath: str, by: str) -> None:
        if relpath in needed:
            return
        needed[relpath] = by
        manifest = read_manifest(base / relpath)
        if manifest is None:
            return
        for role, used in manifest["inputs"].items():
            # It links to that one's files, or would be made again from it.
            if role == "run" or pruned_on(base / relpath):
                need(_input_relpath(relpath, used, base), by)

    for cell in cells:
        if not read_manifest(base / cell.relpath):
            for used in cell.inputs.values():
                need(relative_path(base / used.relpath, base), cell.relpath)
    for folder in (folder for study in _studies(base) for folder in cells_on_disk(study)):
        if not read_manifest(folder):
            relpath = relative_path(folder, base)
            config = read_config(folder)
            if RunsIndex(base, [config["stage"]]).finished(config["stage"], config["identity"]):
                continue  # another study was faster
            for recorded in config["inputs"].values():
                need(_input_relpath(relpath, recorded, base), relpath)
    return needed


def _used_elsewhere(base: Path) -> dict[str, str]:
    """Relative paths of this study's cells that those of other studies need -> why they stay."""
    reasons: dict[str, str] = {}

    def keep(relpath: str, study: str) -> None:
        if relpath in reasons:
            return
        reasons[relpath] = f"the study {study} uses it"
        for used in (read_manifest(base / relpath) or {"inputs": {}})["inputs"].values():
            keep(_input_relpath(relpath, used, base), study)

    for study in _studies(base):
        for folder in cells_on_disk(study) if study != base else ():
            record = read_manifest(folder) or read_config(folder)
            for used in record["inputs"].values():
                keep(_input_relpath(relative_path(folder, base), used, base), study.name)
    return reasons


def _input_relpath(relpath: str, used: dict[str, Any], base: Path) -> str:
    """An input of the cell in `relpath`, relative to the study in `base` too."""
    return relative_path(input_folder((base / relpath).parents[1], used), base)


def _studies(base: Path) -> list[Path]:
    """The folders of this study and of all others in its runs folder."""
    return sorted(path for path in base.parent.glob("*") if path.is_dir())


def _cell_rows(
    cell: Cell, base: Path, needed_by: str | None, users: list[Cell], study_args: str
) -> Iterator[Row]:
    folder = base / cell.relpath
    manifest = read_manifest(folder)
    kinds: dict[str, list[str]] = defaultdict(list)
    for name in _files(folder):
        kinds[_kind(cell.stage, name) if manifest else "records"].append(name)
    for kind, names in kinds.items():
        if kind == "records":
            why = "always kept" if manifest else "not finished"
            yield _row(kind, folder, base, names, False, why)
            continue
        why = f"needed by {needed_by}, which is not finished" if needed_by else ""
        if kind in HARMLESS:
            outputs = manifest["outputs"] if manifest else {}
            if not any(name in outputs for name in names):
                why = ""
        elif not why:
            why = _reason_to_keep(kind, folder, base, users, study_args)
        go = not why
        yield _row(kind, folder, base, names, go, why or "no cell of the study needs it any more")


def _reason_to_keep(kind: str, folder: Path, base: Path, users: list[Cell], study_args: str) -> str:
    """Why a finished cell's weights or ledger must stay, though no unfinished cell needs them.

    Empty where they may go.
    """
    if not users:
        return "no cell of the study has used it yet"
    for user in users:
        pruned = pruned_files(base / user.relpath)
        manifest = read_manifest(base / user.relpath) or {"outputs": {}}
        for name, output in manifest["outputs"].items():
            path = base / user.relpath / name
            if name in pruned or (os.path.isfile(path) and path.stat().st_size == output["bytes"]):
                continue
            fix = f"python -m study verify {study_args}"
            return f"{user.relpath}/{name}, made with it, is damaged; {fix}"
    if kind == "ledger":
        corpora = [user for user in users if user.stage == "documents"]
        ledgers = [read_ledger(base / corpus.relpath / "calls.jsonl")[0] for corpus in corpora]
        copied = {digest for ledger in ledgers for digest in ledger}
        if lost := read_ledger(folder / "calls.jsonl")[0].keys() - copied:
            return f"{len(lost)} paid answers are in no other ledger"
    return ""


def _kind(stage: str, name: str) -> str:
    parts = name.split("/")
    if any(_is_temporary(part) for part in parts):
        return "temporary"
    if stage in (*TRAINING_STAGES, "model") and parts[0] in STEP_FILES:
        return "steps"
    if stage in CHECKPOINT_STAGES and is_weights(name):
        return "weights"
    return "ledger" if stage == "drafts" and name == "calls.jsonl" else "records"


def _is_temporary(name: str) -> bool:
    prefixes = (".tmp", "temporary-")
    return bool(HALF_WRITTEN.search(name)) or name.startswith(prefixes) or name.endswith(".reserve")


def _files(folder: Path) -> list[str]:
    files = (path for path in folder.rglob("*") if path.is_symlink() or path.is_file())
    return sorted(str(path.relative_to(folder)) for path in files)


def _row(kind: str, folder: Path, base: Path, files: list[str], go: bool, why: str) -> Row:
    return {
        "kind": kind,
        "cell": folder.relative_to(base).as_posix(),
        "files": files,
        "bytes": sum((folder / name).lstat().st_size for name in files),
        "go": go,
        "why": why,
    }


def cells_on_disk(base: Path) -> list[Path]:
    """Folders of all cells, of this and of other study files."""
    return [
        path.parent for stage in STAGES for path in sorted((base / stage).glob("*/config.yaml"))
    ]


def _behind_results(base: Path) -> set[str]:
    """The cells that the published results were made of; none where nothing is published."""
    try:
        analysis = published(base, study_args="")
    except UserError:
        return set()
    return {row["cell"] for row in lineage(analysis, base, hashes=False)}


def _code_copies(base: Path) -> Iterator[Row]:
    """Copies of the code that jobs ran from. Code that no commit holds exists only there."""
    unfinished = [folder for folder in cells_on_disk(base) if not read_manifest(folder)]
    configs = [(folder / "config.yaml").read_text(encoding="utf-8") for folder in unfinished]
    for folder in sorted((base / "slurm").glob("*code-*")):
        code = read_record(folder / "code.json") or {}
        is_complete = not folder.name.startswith(".")
        is_committed = code.get("dirty") is False and code.get("commit")
        why = ""
        if any(folder.name in config for config in configs):
            why = "a cell that is not finished runs from it"
        elif is_complete and not is_committed:
            why = "no commit holds this code"
        go = not why
        why = why or f"commit {str(code.get('commit'))[:8]} holds it"
        yield _row("code", folder, base, _files(folder), go, why)


def _check_idle(base: Path, queue: Queue, study_args: str) -> None:
    """Raise UserError where a cell or a job of the study is running, or may be."""
    for lock in (path for stage in STAGES for path in (base / stage).glob("*/.lock")):
        with locked(lock, wait=False) as is_held:
            if not is_held:
                raise UserError(
                    where=str(lock.parent),
                    what="is running",
                    fix="prune when nothing of the study runs "
                    f"(python -m study status {study_args})",
                )
    if queue.trouble:
        raise UserError(
            where=str(base),
            what=f"what is queued is unknown: {queue.trouble}",
            fix="prune where squeue answers, or move slurm/jobs.jsonl away if no job remains",
        )
    if queue.jobs:
        raise UserError(
            where=str(base),
            what="jobs of the study are in the queue",
            fix=f"wait for them, or python -m study cancel {study_args}",
        )


def _remove(folder: Path, row: Row, outputs: dict[str, Any], study_args: str) -> list[str]:
    """Remove files of a finished cell, on record first.

    Nothing is removed where a file is not what the manifest says; returns a line for it.
    """
    names = [name for name in row["files"] if (folder / name).is_file()]
    digests = read_all([str(folder / name) for name in names if name in outputs])
    for name in names:
        if name in outputs and digests[str(folder / name)] != outputs[name]["sha256"]:
            what = "is not what its manifest says; left as it is"
            return [f"{folder / name}: {what}; python -m study verify {study_args}"]
    hashes = {name: {"sha256": digests[str(folder / name)]} for name in names if name in outputs}
    remove_on_record(folder, names, row["kind"], hashes, "python -m study prune")
    return []


def _remove_other(folder: Path, base: Path, manifest: Row | None, size: int) -> None:
    """Remove a cell but for its ledger, which others may read: manifest first, config.yaml last."""
    record: Row = {"by": "python -m study prune", "cells": pruned_cells(base)}
    if manifest:
        record["cells"][folder.relative_to(base).as_posix()] = {
            "manifest_sha256": sha256(folder / "manifest.json"),
            "date": utc.date(),
            "bytes": size,
        }
        text = json.dumps(record, indent=1, sort_keys=True) + "\n"
        write_atomically(base / "pruned.json", text)
    (folder / "manifest.json").unlink(missing_ok=True)
    order = {".lock": 1, "config.yaml": 2}
    for path in sorted(folder.iterdir(), key=lambda path: order.get(path.name, 0)):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        elif path.name != "calls.jsonl":
            path.unlink()
    with suppress(OSError):
        folder.rmdir()
