"""What an archive of a study says: its results and the settings of its cells."""

import hashlib
import json
import re
import tarfile
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from core.cell.manifest import results_sha256
from core.errors import UserError
from core.yaml_text import from_yaml
from study.upkeep.unpacked import SUMS, members, parse_sums, stem

_NEEDED = re.compile(
    r"[^/]+/(SHA256SUMS|results/results\.json|"
    r"cells/[^/]+/[^/]+/(config\.yaml|manifest\.json))"
)
# Of a row of contrasts, what is pooled (analysis.pooling) or compared.
CONTRAST_KEYS = (
    *("name", "treatment", "control", "benchmark", "dose", "control_dose", "estimate", "se"),
    *("low", "high", "level", "reference", "judge", "treatment_seeds", "control_seeds", "reason"),
)
_SEED = re.compile(r"-s\d+(?=-|$)")
_FIX = "name a .tar.gz or .zip that `python -m study archive` has written"


@dataclass(frozen=True)
class ArchivedStudy:
    """One archive.

    Attributes:
        name: Of the file, without its ending.
        results: results.json.
        cells: STAGE/CELL -> `name` and `settings` of its config.yaml.
        outputs: STAGE/CELL -> the hash of what the cell made.
    """

    name: str
    results: dict[str, Any]
    cells: dict[str, dict[str, Any]]
    outputs: dict[str, str]

    def settings(self) -> dict[str, dict[str, Any]]:
        """`STAGE/NAME` without the seed -> the settings of the first such cell, without its seed.

        Those of the analysis name all others, and are left out.
        """
        settings: dict[str, dict[str, Any]] = {}
        for cell, config in sorted(self.cells.items()):
            stage = cell.partition("/")[0]
            name = f"{stage}/{_SEED.sub('', config['name'])}"
            if stage != "analysis" and name not in settings:
                settings[name] = {k: v for k, v in config["settings"].items() if k != "seed"}
        return settings


def read_archive(path: Path) -> ArchivedStudy:
    """Read an archive; every file that is read is checked by its hash.

    Raises UserError where it is none, or a hash does not hold.
    """
    try:
        files = dict(_needed(path))
    except FileNotFoundError:
        raise UserError(where=str(path), what="no such file", fix=_FIX) from None
    except (OSError, EOFError, tarfile.TarError, zipfile.BadZipFile) as error:
        raise UserError(where=str(path), what=f"is no archive ({error})", fix=_FIX) from None
    if not {SUMS, "results/results.json"} <= files.keys():
        raise UserError(where=str(path), what="holds no study's results", fix=_FIX)
    sums = parse_sums(files.pop(SUMS))
    changed = [n for n in files if hashlib.sha256(files[n]).hexdigest() != sums.get(n)]
    if changed:
        raise UserError(
            where=str(path),
            what=f"{', '.join(changed[:3])} changed after it was packed (SHA256SUMS)",
            fix="get the archive again from where it was published",
        )
    try:
        return _parsed(stem(path), files)
    except (ValueError, KeyError, TypeError, AttributeError, yaml.YAMLError):
        what = "holds results or settings that this version of the kit can't read"
        fix = "pack the study again by this version, or pool by the version that packed it"
        raise UserError(where=str(path), what=what, fix=fix) from None


def _parsed(name: str, files: dict[str, bytes]) -> ArchivedStudy:
    results = json.loads(files.pop("results/results.json"))
    for row in results["contrasts"]:
        if missing := {*CONTRAST_KEYS} - row.keys():
            raise KeyError(*missing)
    cells, outputs = {}, {}
    for path, content in files.items():
        cell, _, file = path.removeprefix("cells/").rpartition("/")
        if file == "config.yaml":
            config = from_yaml(content.decode())
            cells[cell] = {"name": str(config["name"]), "settings": dict(config["settings"])}
        else:
            outputs[cell] = results_sha256(json.loads(content))
    return ArchivedStudy(name, results, cells, outputs)


def _needed(path: Path) -> Iterator[tuple[str, bytes]]:
    """The files that are needed, by their names below the archive's one folder."""
    for name, file in members(path):
        if _NEEDED.fullmatch(name):
            yield name.partition("/")[2], file.read()
