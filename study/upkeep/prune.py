"""Make room: remove what a study can do without, on record, so that it stays finished and its numbers traceable.

What goes: step checkpoints of trainings that are over, weights of checkpoints that every benchmark of the study has
used, what killed processes left, ledgers that another holds, copies of the code. What stays: anything an unfinished
cell needs, and samples, ledgers, manifests, corpora, scores, results and logs.
"""

import json
import shutil
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from core.cell.identity import Cell, read_config
from core.cell.manifest import read_manifest
from core.cell.run import HALF_WRITTEN
from core.endpoints.ledger import read_ledger
from core.errors import UserError
from core.files import locked, sha256, write_atomically
from core.stages import STAGES, TRAINING_STAGES
from study.upkeep.provenance import chain, published, read, read_all

Row = dict[str, Any]
STEPS = {"steps", "best", "rows", "rows_held_out"}  # a training's own, until it is over
OTHERS = "other cells"  # that the study file does not name: they go only when that is asked for
HARMLESS = ("steps", "temporary")  # kinds that no cell reads


@dataclass(frozen=True)
class Queue:
    """What the scheduler says of a study's jobs."""

    jobs: bool = False  # whether any is queued or running
    trouble: str | None = None  # why that is not known


def plan(cells: list[Cell], base: Path) -> list[Row]:
    """What may go and what must stay, below the study's folder `base`; changes nothing. `cells`: all of the study.

    A row: kind (steps, weights, temporary, ledger, code, other cells, records), cell (or folder), files, bytes, go
    (whether it may), why.
    """
    named, needed = {cell.relpath for cell in cells}, _needed(cells, base)
    users: dict[str, list[Cell]] = defaultdict(list)
    for cell in cells:
        for used in cell.inputs.values():
            for source in (used, *(used.inputs[role] for role in used.inputs if role == "run")):
                users[source.relpath].append(cell)
    rows: list[Row] = []
    for cell in cells:
        if (base / cell.relpath).is_dir():
            rows += _cell(cell, base, needed.get(cell.relpath), users[cell.relpath])
    behind = _behind(base)
    for folder in sorted(_on_disk(base), key=lambda f: -STAGES.index(f.parent.name)):  # users before their inputs
        if (place := f"{folder.parent.name}/{folder.name}") not in named:
            go, why = place not in behind, "no cell of the study file; it goes with --others, but for its ledger"
            files = [name for name in _files(folder) if name != "calls.jsonl"]
            rows.append(_row(OTHERS, folder, base, files, go, why if go else "behind the published results"))
    return rows + list(_code(base))


def total(rows: list[Row], others: bool = False) -> list[dict[str, Any]]:
    """Bytes that go and bytes that stay, by kind."""
    found: dict[str, Counter[str]] = defaultdict(Counter)
    for row in rows:
        found[row["kind"]]["goes" if row["go"] and (others or row["kind"] != OTHERS) else "stays"] += row["bytes"]
    return [{"kind": kind, "goes": found[kind]["goes"], "stays": found[kind]["stays"]} for kind in found]


def prune(rows: list[Row], cells: list[Cell], base: Path, others: bool = False, queue: Queue = Queue()) -> list[str]:
    """Remove what may go by the plan's `rows`; `others`: cells that the study file does not name too. `queue`: what
    Slurm says of the study's jobs.

    What goes is on record before it goes: `pruned.json` beside the manifest. Killed, it goes on when planned and run
    again. Returns a line for each thing that was left where it is, because it is not as the plan or its manifest says.
    Raises UserError where a cell or a job of the study is at work, or may be.
    """
    _idle(base, queue)
    needed, left = _needed(cells, base), []
    for row in rows:
        folder = base / row["cell"]
        if not row["go"] or (row["kind"] == OTHERS and not others) or not folder.is_dir():
            continue
        if row["kind"] == "code":
            shutil.rmtree(folder)
            continue
        with locked(folder / ".lock", wait=False) as free:
            manifest = read_manifest(folder)
            stale = row["cell"] in needed and row["kind"] not in HARMLESS if manifest else True
            if not free or (row["kind"] != OTHERS and stale):
                left.append(f"{folder}: is needed or at work since it was planned; plan again")
            elif row["kind"] == OTHERS:
                _remove_other(folder, base, manifest, row["bytes"])
            else:
                left += _remove(folder, row, (manifest or {"outputs": {}})["outputs"])
    return left


def again(cells: list[Cell], base: Path) -> list[str]:
    """A line for each pruned cell that an unfinished one needs: which manifests to delete, so that it is made anew."""
    unfinished = [cell for cell in cells if not read_manifest(base / cell.relpath)]
    lines: dict[str, str] = {}
    for cell in unfinished:
        for used in cell.inputs.values():
            for source in (*(used.inputs[role] for role in used.inputs if role == "run"), used):
                if (date := gone(base / source.relpath)) and source.relpath not in lines:
                    todo = [*_before(source, base), base / source.relpath / "manifest.json"]
                    lines[source.relpath] = (
                        f"{base / source.relpath}: was pruned on {date}, and {cell.relpath} needs it; to make it anew: "
                        f"rm {' '.join(map(str, todo))} and run the study again"
                    )
    return list(lines.values())


def gone(folder: Path) -> str | None:
    """The date on which files of a finished cell that others read were pruned; None where all are there."""
    files = (read(folder / "pruned.json") or {"files": {}})["files"] if read_manifest(folder) else {}
    lacking = (f["date"] for n, f in files.items() if f["kind"] not in HARMLESS and not (folder / n).exists())
    return next(lacking, None)


def _before(cell: Cell, base: Path) -> list[Path]:
    """Manifests of pruned cells that a cell needs to be made anew, inputs before users."""
    found: list[Path] = []
    for used in cell.inputs.values():
        path = base / used.relpath / "manifest.json"
        if gone(base / used.relpath) and path not in found:
            found += [*(p for p in _before(used, base) if p not in found), path]
    return found


def _needed(cells: list[Cell], base: Path) -> dict[str, str]:
    """Places of the cells that unfinished ones need -> one that does; those of other study files on disk count too."""
    found: dict[str, str] = {}

    def need(place: str, by: str) -> None:
        if place in found:
            return
        found[place] = by
        if (made := read_manifest(base / place)) is None:
            return
        for role, used in made["inputs"].items():
            if role == "run" or gone(base / place):  # it links to that one's files, or would be made again from it
                need(used["cell"], by)

    for cell in cells:
        for used in cell.inputs.values() if not read_manifest(base / cell.relpath) else ():
            need(used.relpath, cell.relpath)
    for folder in _on_disk(base):
        if not read_manifest(folder):
            for used in read_config(folder)["inputs"].values():
                need(used["cell"], f"{folder.parent.name}/{folder.name}")
    return found


def _cell(cell: Cell, base: Path, needed_by: str | None, users: list[Cell]) -> Iterator[Row]:
    folder, manifest = base / cell.relpath, read_manifest(base / cell.relpath)
    kinds: dict[str, list[str]] = defaultdict(list)
    for name in _files(folder):
        kinds[_kind(cell.stage, name) if manifest else "records"].append(name)
    for kind, names in kinds.items():
        if kind == "records":
            yield _row(kind, folder, base, names, False, "always kept" if manifest else "not finished")
            continue
        why = f"needed by {needed_by}, which is not finished" if needed_by else ""
        if kind in HARMLESS:
            read_by = manifest and needed_by and any(name in manifest["outputs"] for name in names)
            why = why if read_by else ""
        elif not why:
            why = _wanted(kind, folder, base, users)
        yield _row(kind, folder, base, names, not why, why or "no cell of the study needs it any more")


def _wanted(kind: str, folder: Path, base: Path, users: list[Cell]) -> str:
    """Why a finished cell's weights or ledger must stay, though no unfinished cell needs them; or nothing."""
    if not users:
        return "no cell of the study has used it yet"
    for user in users:
        pruned = (read(base / user.relpath / "pruned.json") or {"files": {}})["files"]
        for name, output in (read_manifest(base / user.relpath) or {"outputs": {}})["outputs"].items():
            path = base / user.relpath / name
            if name not in pruned and (not path.is_file() or path.stat().st_size != output["bytes"]):
                return f"{user.relpath}/{name}, made with it, is damaged; python -m study verify"
    if kind == "ledger":
        held = [read_ledger(base / user.relpath / "calls.jsonl")[0] for user in users if user.stage == "documents"]
        if lost := read_ledger(folder / "calls.jsonl")[0].keys() - {digest for answers in held for digest in answers}:
            return f"{len(lost)} paid answers are in no other ledger"
    return ""


def _kind(stage: str, name: str) -> str:
    parts = name.split("/")
    if any(HALF_WRITTEN.search(p) or p.startswith((".tmp", "temporary-")) or p.endswith(".reserve") for p in parts):
        return "temporary"
    if stage in (*TRAINING_STAGES, "model") and parts[0] in STEPS:
        return "steps"
    if stage in TRAINING_STAGES and parts[0] in ("model", "at") and parts[1:]:
        return "weights"
    return "ledger" if stage == "drafts" and name == "calls.jsonl" else "records"


def _files(folder: Path) -> list[str]:
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file() or p.is_symlink())


def _row(kind: str, folder: Path, base: Path, files: list[str], go: bool, why: str) -> Row:
    size = sum((folder / name).lstat().st_size for name in files)
    place = folder.relative_to(base).as_posix()
    return {"kind": kind, "cell": place, "files": files, "bytes": size, "go": go, "why": why}


def _on_disk(base: Path) -> list[Path]:
    return [path.parent for stage in STAGES for path in sorted((base / stage).glob("*/config.yaml"))]


def _behind(base: Path) -> set[str]:
    try:
        return {row["cell"] for row in chain(published(base), base, hashes=False)}
    except UserError:
        return set()


def _code(base: Path) -> Iterator[Row]:
    """Copies of the code that jobs ran from. Of code that no commit holds, the copy is all there is."""
    texts = [(f / "config.yaml").read_text(encoding="utf-8") for f in _on_disk(base) if not read_manifest(f)]
    for folder in sorted((base / "slurm").glob("*code-*")):
        code = read(folder / "code.json") or {}
        used = any(folder.name in text for text in texts)
        lost = not folder.name.startswith(".") and (code.get("dirty") is not False or not code.get("commit"))
        why = "a cell that is not finished runs from it" if used else "no commit holds this code" if lost else ""
        yield _row(
            "code", folder, base, _files(folder), not why, why or f"commit {str(code.get('commit'))[:8]} holds it"
        )


def _idle(base: Path, queue: Queue) -> None:
    """Raise UserError where a cell or a job of the study is at work, or may be."""
    for lock in (path for stage in STAGES for path in (base / stage).glob("*/.lock")):
        with locked(lock, wait=False) as free:
            if not free:
                raise UserError(f"{lock.parent}: is running; prune when nothing of the study runs (study status STUDY)")
    if queue.trouble:
        fix = "prune where squeue answers, or move slurm/jobs.jsonl away if no job is left"
        raise UserError(f"{base}: what is queued is unknown: {queue.trouble}; {fix}")
    if queue.jobs:
        raise UserError(f"{base}: jobs of the study are in the queue; wait for them, or study cancel STUDY")


def _remove(folder: Path, row: Row, outputs: dict[str, Any]) -> list[str]:
    """Remove files of a finished cell, on record first; nothing where one is not what the manifest says."""
    names = [name for name in row["files"] if (folder / name).is_file()]
    found = read_all([str(folder / name) for name in names if name in outputs])
    if bad := [name for name in names if name in outputs and found[str(folder / name)] != outputs[name]["sha256"]]:
        return [f"{folder / bad[0]}: is not what its manifest says; left as it is; python -m study verify STUDY"]
    record = read(folder / "pruned.json") or {"by": "python -m study prune", "manifests": [], "files": {}}
    date, kept = time.strftime("%Y-%m-%d", time.gmtime()), names if row["kind"] != "temporary" else []
    new = {
        name: {"sha256": found.get(str(folder / name)), "bytes": (folder / name).stat().st_size}
        | {"kind": row["kind"], "date": date}
        for name in kept
    }
    if any(record["files"].get(name, file)["sha256"] != file["sha256"] for name, file in new.items()):
        record |= {"manifests": [], "files": {}}  # it was made anew since, and otherwise
    digest = sha256(folder / "manifest.json")
    record["manifests"] += [digest] if digest not in record["manifests"] else []
    record["files"] |= new
    if new:
        write_atomically(folder / "pruned.json", json.dumps(record, indent=1, sort_keys=True) + "\n")
    for name in names:
        (folder / name).unlink()
    # A training takes a folder model/ for a whole model.
    for parent in sorted({parent for name in names for parent in (folder / name).parents}, reverse=True):
        with suppress(OSError):  # it is not empty
            parent.rmdir()
    return []


def _remove_other(folder: Path, base: Path, manifest: Row | None, size: int) -> None:
    """Remove a whole cell but for its ledger, which others may read: the manifest first, config.yaml last."""
    record = read(base / "pruned.json") or {"by": "python -m study prune", "cells": {}}
    if manifest:
        facts = {"manifest_sha256": sha256(folder / "manifest.json"), "date": time.strftime("%Y-%m-%d", time.gmtime())}
        record["cells"][folder.relative_to(base).as_posix()] = facts | {"bytes": size}
        write_atomically(base / "pruned.json", json.dumps(record, indent=1, sort_keys=True) + "\n")
    (folder / "manifest.json").unlink(missing_ok=True)
    for path in sorted(folder.iterdir(), key=lambda path: (path.name == "config.yaml", path.name == ".lock")):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        elif path.name != "calls.jsonl":
            path.unlink()
    with suppress(OSError):
        folder.rmdir()
