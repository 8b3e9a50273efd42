"""The cell: one unit of work, its identity and its folder.

A cell is finished when its manifest exists: it is written last, atomically (`core.cell.manifest`).
"""

import hashlib
import json
import os
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from core.errors import UserError
from core.files import write_atomically
from core.stages import SHARDING_STAGES
from core.yaml_text import from_yaml, to_yaml

LABEL_CHARACTERS = 200  # of a cell's name, in that of its folder


@dataclass(frozen=True)
class Cell:
    """One unit of work of a study.

    Stage, settings and the inputs' identities make the identity; resources and the name do not. So
    a moved data file changes nothing, and a changed setting is a new cell.

    Attributes:
        stage: A name of `core.stages.STAGES`.
        name: The label of the folder.
        settings: What changes the output, as JSON values. `files` says what each file from outside
            the runs folder is (`core.cell.external_files`).
        inputs: Role -> the cell whose outputs are read.
        resources: What does not: paths, addresses, worker counts. `files` says where each of the
            settings' files lies.
        folder: Where it lies, if it was begun or finished under another name or in another study
            (`core.cell.lookup`); else empty.
    """

    stage: str
    name: str
    settings: dict[str, Any]
    inputs: dict[str, "Cell"] = field(default_factory=dict)
    resources: dict[str, Any] = field(default_factory=dict)
    folder: str = ""

    @cached_property
    def identity(self) -> str:
        """sha256 (hex) of stage, settings and inputs' identities.

        Inputs that only shard this cell's work do not count.
        """
        inputs = {
            role: cell.identity
            for role, cell in self.inputs.items()
            if cell.stage not in SHARDING_STAGES
        }
        return _identity(self.stage, self.settings, inputs)

    @property
    def label(self) -> str:
        """Today's name, and the hash that tells it from others of that name.

        Of a long chain of trainings the name is cut: file systems take 255 bytes.
        """
        return f"{self.name[:LABEL_CHARACTERS]}-{self.identity[:8]}"

    @property
    def relpath(self) -> str:
        """The cell's folder relative to the study's folder, or absolute in another study."""
        return self.folder or f"{self.stage}/{self.label}"


def _identity(stage: str, settings: dict[str, Any], inputs: dict[str, str]) -> str:
    text = json.dumps(
        [stage, settings, inputs], sort_keys=True, separators=(",", ":"), allow_nan=False
    )
    return hashlib.sha256(text.encode()).hexdigest()


def relative_path(folder: Path, base: Path) -> str:
    """A cell's folder relative to its study's folder: STAGE/CELL, or ../STUDY/STAGE/CELL."""
    return Path(os.path.relpath(folder, base)).as_posix()


def create_cell_dir(cell: Cell, base: Path) -> Path:
    """Make the cell's folder below the study's folder `base` and write its config.yaml.

    A finished cell stays as it is: its record has the names that it was made under.

    Returns:
        The cell's folder.
    """
    folder = base / cell.relpath
    if (folder / "manifest.json").exists():
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    config = {
        "stage": cell.stage,
        "name": cell.name,
        "identity": cell.identity,
        "settings": cell.settings,
        "inputs": {
            role: {
                "cell": relative_path(base / source.folder, base)
                if source.folder
                else source.relpath,
                "identity": source.identity,
            }
            for role, source in sorted(cell.inputs.items())
        },
        "resources": cell.resources,
    }
    text = to_yaml(config)
    path = folder / "config.yaml"
    if not path.exists() or path.read_text(encoding="utf-8") != text:
        write_atomically(path, text)
    return folder


def read_config(folder: Path) -> dict[str, Any]:
    """A cell's config.yaml, checked against the identity it claims.

    Raises:
        UserError: The folder is not a cell's, or its config.yaml was edited.
    """
    path = folder / "config.yaml"
    try:
        config: dict[str, Any] = from_yaml(path.read_text(encoding="utf-8"))
        inputs = {
            role: source["identity"]
            for role, source in config["inputs"].items()
            if Path(source["cell"]).parent.name not in SHARDING_STAGES
        }
        is_own = _identity(config["stage"], config["settings"], inputs) == config["identity"]
    except OSError:
        raise UserError(
            where=str(folder),
            what="is not a cell: it has no config.yaml",
            fix="`plan STUDY` lists the cells",
        ) from None
    except (yaml.YAMLError, ValueError, TypeError, KeyError, AttributeError):
        is_own = False
    if not is_own:
        raise UserError(
            where=str(path),
            what="was edited by hand",
            fix="change the study file instead and run it again",
        )
    return config
