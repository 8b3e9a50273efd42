"""Where a cell lies: a finished cell is found by stage and identity, whatever its name and study.

The runs folder holds cells as STUDY/STAGE/NAME-HASH8. HASH8 are the first digits of the identity.
"""

import json
import os
from collections import defaultdict
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

import yaml

from core.cell.identity import Cell, relative_path
from core.stages import STAGES
from core.yaml_text import from_yaml


class RunsIndex:
    """The cell folders of a runs folder, as they were when the index was made.

    Only names are read at first, and manifests where a name fits.
    """

    def __init__(self, base: Path, stages: Iterable[str] = STAGES) -> None:
        """`base`: the folder of a study. Its own cells are preferred to those of other studies."""
        self.base = base
        self._folders: dict[tuple[str, str], list[Path]] = defaultdict(list)
        for stage in stages:
            folders = sorted(base.parent.glob(f"*/{stage}/*-*"))
            for folder in sorted(folders, key=lambda folder: folder.parents[1].name != base.name):
                self._folders[stage, folder.name.rpartition("-")[2]].append(folder)

    def finished(self, stage: str, identity: str) -> Path | None:
        """The folder of the finished cell of an identity; None where no study has finished it."""
        for folder in self._folders.get((stage, identity[:8]), ()):
            if _recorded_identity(folder / "manifest.json") == identity:
                return folder
        return None

    def folder_of(self, cell: Cell) -> str:
        """`Cell.folder`: that of the finished cell, else one that this study began, else empty."""
        folders = self._folders.get((cell.stage, cell.identity[:8]), [])
        named = self.base / cell.relpath
        if folders in ([], [named]):
            return ""
        begun = [
            folder
            for folder in folders
            if folder.parents[1] == self.base
            and _recorded_identity(folder / "config.yaml") == cell.identity
        ]
        folder = self.finished(cell.stage, cell.identity)
        if not folder and begun and named not in begun:
            folder = begun[0]
        if folder in (None, named):
            return ""
        is_ours = folder.is_relative_to(self.base)
        return relative_path(folder, self.base) if is_ours else str(folder)


def input_folder(base: Path, source: dict[str, Any]) -> Path:
    """The folder of an input that a config.yaml or manifest of a cell in `base` names.

    Another study may have finished the input first, or its folder may have been moved: then it is
    found by its identity. Else it is the named folder, finished or not.
    """
    named = Path(os.path.normpath(base / source["cell"]))
    if _recorded_identity(named / "manifest.json") == source["identity"]:
        return named
    stage = named.parent.name
    return RunsIndex(base, [stage]).finished(stage, source["identity"]) or named


def _recorded_identity(path: Path) -> str | None:
    """The identity in a manifest or a config.yaml; None where it can't be read."""
    with suppress(OSError, ValueError, yaml.YAMLError, TypeError, KeyError):
        text = path.read_text(encoding="utf-8")
        record = json.loads(text) if path.suffix == ".json" else from_yaml(text)
        return str(record["identity"])
    return None
