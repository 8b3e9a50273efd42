"""The cell: one unit of work, its identity, its folder and its manifest.

A cell is finished when its manifest is there: it is written last, atomically, and nothing else means done.
"""

import hashlib
import json
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from core.errors import UserError
from core.files import write_atomically
from core.stages import SHARDING_STAGES


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
        inputs = {
            role: cell.identity
            for role, cell in self.inputs.items()
            if cell.stage not in SHARDING_STAGES
        }
        return _identity(self.stage, self.settings, inputs)

    @property
    def relpath(self) -> str:
        """The cell's folder, relative to the study's folder."""
        return f"{self.stage}/{self.name}-{self.identity[:8]}"


def _identity(stage: str, settings: dict[str, Any], inputs: dict[str, str]) -> str:
    text = json.dumps(
        [stage, settings, inputs], sort_keys=True, separators=(",", ":"), allow_nan=False
    )
    return hashlib.sha256(text.encode()).hexdigest()


def create_cell_dir(cell: Cell, base: Path) -> Path:
    """Make the cell's folder below the study's folder `base` and write its config.yaml. Returns the folder."""
    folder = base / cell.relpath
    folder.mkdir(parents=True, exist_ok=True)
    config = {
        "stage": cell.stage,
        "name": cell.name,
        "identity": cell.identity,
        "settings": cell.settings,
        "inputs": {
            role: {"cell": i.relpath, "identity": i.identity}
            for role, i in sorted(cell.inputs.items())
        },
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
        raise UserError(
            f"{folder}: is not a cell: it has no config.yaml; `plan STUDY` lists the cells"
        ) from None
    inputs = {
        r: i["identity"]
        for r, i in config["inputs"].items()
        if i["cell"].split("/")[0] not in SHARDING_STAGES
    }
    if _identity(config["stage"], config["settings"], inputs) != config["identity"]:
        raise UserError(
            f"{path}: was edited by hand; change the study file instead and run it again"
        )
    return config
