"""Remove the weights of checkpoints that a study does not keep, once their readers are finished.

The manifest of the checkpoint stays, with the hashes. `pruned.json` records what was removed.
"""

import json
import os
from collections import defaultdict
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

from core import utc
from core.cell.identity import Cell, relative_path
from core.cell.lookup import input_folder
from core.cell.manifest import READERS, read_manifest
from core.errors import UserError
from core.files import locked, read_record, write_atomically
from core.stages import CHECKPOINT_STAGES

RECORD = "pruned.json"


def register_readers(cells: Iterable[Cell], base: Path) -> None:
    """Note in the folders of checkpoints which unfinished cells will read them.

    All of a study are noted before one runs: weights must not go while a later submission needs
    them. So are checkpoints of other studies, which may let them go.

    `cells`: the unfinished ones of the study in `base`.
    """
    readers: dict[Path, set[str]] = defaultdict(set)
    for cell in cells:
        for role, used in cell.inputs.items():
            is_ours = not Path(used.folder).is_absolute()
            if role in cell.resources.get("release", ()) or (not is_ours and _is_trained(used)):
                checkpoint = base / used.relpath
                readers[checkpoint].add(relative_path(base / cell.relpath, checkpoint))
    for checkpoint, planned in readers.items():
        with suppress(PermissionError):  # of another user, who cannot know
            before = _lines(checkpoint)
            # Those of an earlier study file count as long as they are there.
            begun = {line for line in before if (checkpoint / line / "config.yaml").exists()}
            if planned | begun != before:
                checkpoint.mkdir(parents=True, exist_ok=True)
                text = "".join(f"{line}\n" for line in sorted(planned | begun))
                write_atomically(checkpoint / READERS, text)


def _is_trained(cell: Cell) -> bool:
    return cell.stage in CHECKPOINT_STAGES


def release_inputs(folder: Path, config: dict[str, Any]) -> None:
    """Remove the weights that a finished cell was the last to read, where its study lets them go.

    `config`: the cell's config.yaml; `release` of its resources names the roles of such inputs.
    """
    base = folder.parents[1]
    for role in config["resources"].get("release", ()):
        release(input_folder(base, config["inputs"][role]), base)


def release(checkpoint: Path, base: Path) -> bool:
    """Remove the weights of a finished checkpoint unless an unfinished cell reads them.

    Nothing is removed from other studies than the one in `base`. A disk that refuses costs the
    room, not the cell. Returns whether they were removed.
    """
    with suppress(OSError, UserError):
        manifest = read_manifest(checkpoint)
        if manifest and "run" in manifest["inputs"]:  # a dose of a longer run: a link to its files
            run = input_folder(checkpoint.parents[1], manifest["inputs"]["run"])
            return release(run, base)
        names = [name for name in (manifest or {"outputs": {}})["outputs"] if is_weights(name)]
        names = [name for name in names if (checkpoint / name).exists()]
        if checkpoint.parents[1] != base or not names:
            return False
        with locked(checkpoint / ".lock", wait=False) as is_held:
            if not is_held or is_read(checkpoint):
                return False
            assert manifest
            remove_on_record(checkpoint, names, "weights", manifest["outputs"], "keep")
            return True
    return False


def is_read(checkpoint: Path) -> bool:
    """Whether a cell that is noted there reads the checkpoint and is not finished."""
    for line in _lines(checkpoint):
        reader = Path(os.path.normpath(checkpoint / line))
        manifest = read_manifest(reader)
        if not manifest or ("run" in manifest["inputs"] and is_read(reader)):
            return True
    return False


def is_weights(name: str) -> bool:
    """Whether a file of a training, by its path in the cell's folder, is one of its checkpoints."""
    parts = name.split("/")
    return parts[0] in ("model", "doses") and bool(parts[1:])


def remove_on_record(
    folder: Path, names: Iterable[str], kind: str, outputs: dict[str, Any], by: str
) -> None:
    """Remove files of a finished cell, with a record of what they were beside the manifest.

    Args:
        folder: The cell's folder.
        names: The files.
        kind: Of all of them, for the record; "temporary" ones are not recorded.
        outputs: sha256 of those that have one, as the manifest has them.
        by: What removes them: a command, or the setting `keep`.
    """
    names = list(names)
    date = utc.date()
    removed = {
        name: {
            "sha256": outputs.get(name, {}).get("sha256"),
            "bytes": (folder / name).stat().st_size,
            "kind": kind,
            "date": date,
        }
        for name in (names if kind != "temporary" else [])
    }
    before = read_record(folder / RECORD, files=dict) or {"files": {}}
    record: dict[str, Any] = {"by": by, "files": before["files"]}
    if any(record["files"].get(n, file)["sha256"] != file["sha256"] for n, file in removed.items()):
        record["files"] = {}  # it was made again since, with other bytes
    record["files"] |= removed
    if removed:
        text = json.dumps(record, indent=1, sort_keys=True) + "\n"
        write_atomically(folder / RECORD, text)
    for name in names:
        (folder / name).unlink()
    # A training takes a folder model/ for a complete model.
    parents = {parent for name in names for parent in (folder / name).parents}
    for parent in sorted(parents, reverse=True):
        with suppress(OSError):  # it is not empty
            parent.rmdir()


def _lines(checkpoint: Path) -> set[str]:
    """The noted readers, as paths from the checkpoint's folder."""
    try:
        return set((checkpoint / READERS).read_text(encoding="utf-8").splitlines())
    except FileNotFoundError:
        return set()
