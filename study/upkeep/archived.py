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

from core.cell.manifest import results_sha256
from core.errors import UserError
from core.yaml_text import from_yaml

_NEEDED = re.compile(
    r"[^/]+/(SHA256SUMS|results/results\.json|"
    r"cells/[^/]+/[^/]+/(config\.yaml|manifest\.json))"
)
_SEED = re.compile(r"-s\d+(?=-|$)")
_FIX = "name a .tar.gz or .zip that `python -m study archive` has written"


@dataclass(frozen=True)
class ArchivedStudy:
    """One archive.

    Attributes:
        name: The file's name without its ending.
        results: results.json.
        cells: STAGE/CELL -> config.yaml.
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
        files = dict(_members(path))
    except FileNotFoundError:
        raise UserError(where=str(path), what="no such file", fix=_FIX) from None
    except (OSError, EOFError, tarfile.TarError, zipfile.BadZipFile) as error:
        raise UserError(where=str(path), what=f"is no archive ({error})", fix=_FIX) from None
    if not {"SHA256SUMS", "results/results.json"} <= files.keys():
        raise UserError(where=str(path), what="holds no study's results", fix=_FIX)
    lines = files.pop("SHA256SUMS").decode().splitlines()
    sums = {name: digest for digest, _, name in (line.partition("  ") for line in lines)}
    changed = [n for n in files if hashlib.sha256(files[n]).hexdigest() != sums.get(n)]
    if changed:
        raise UserError(
            where=str(path),
            what=f"{', '.join(changed[:3])} changed after it was packed (SHA256SUMS)",
            fix="get the archive again from where it was published",
        )
    results = json.loads(files.pop("results/results.json"))
    cells, outputs = {}, {}
    for name, content in files.items():
        cell, _, file = name.removeprefix("cells/").rpartition("/")
        if file == "config.yaml":
            cells[cell] = from_yaml(content.decode())
        else:
            outputs[cell] = results_sha256(json.loads(content))
    ending = ".zip" if path.suffix == ".zip" else ".tar.gz"
    return ArchivedStudy(path.name.removesuffix(ending), results, cells, outputs)


def _members(path: Path) -> Iterator[tuple[str, bytes]]:
    """The files that are needed, by their names below the archive's one folder."""
    if path.suffix == ".zip":
        with zipfile.ZipFile(path) as packed:
            for name in filter(_NEEDED.fullmatch, packed.namelist()):
                yield name.partition("/")[2], packed.read(name)
        return
    with tarfile.open(path, "r|gz") as unpacked:  # as a stream: ledgers are large
        for member in unpacked:
            if _NEEDED.fullmatch(member.name) and (file := unpacked.extractfile(member)):
                yield member.name.partition("/")[2], file.read()
