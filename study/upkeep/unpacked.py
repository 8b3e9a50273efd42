"""An archive laid out as a runs folder, so that what reads a study reads it too.

Nothing but the archive is read: cells are below FOLDER/runs/STUDY, the published results in
FOLDER/results/STUDY, all else in FOLDER/archive.
"""

import hashlib
import os
import tarfile
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Any

from core.cell.manifest import results_sha256
from core.cell.publish import results as results_of
from core.declaration import FILE
from core.errors import UserError
from core.files import read_record
from study.upkeep.changes import MADE_AGAIN, Change, find_changes, is_made_again
from study.upkeep.provenance import Row, lineage, published

# Files of a cell that are packed where it has them. Weights, corpora and step checkpoints are not.
PACKED = (
    "config.yaml",
    "manifest.json",
    "log.txt",
    "corpus_stats.json",
    "match.json",
    "similarity.json",
    "calls.jsonl",
    "scores.parquet",
    "directions.npz",
)
SUMS = "SHA256SUMS"
REPLACED = "replaced.json"
CLAIMS = "claims.yaml"  # the file of claims that the analysis has read
ENDINGS = (".tar.gz", ".zip")
IN_BASE = (FILE, "looks.json")  # of the results; an analysis reads them in the study's folder
_FIX = "get the archive again from where it was published"


@dataclass(frozen=True)
class Unpacked:
    """An archive on disk.

    Attributes:
        base: Its cells, as STAGE/CELL.
        digests: sha256 of each file by its name in the archive, but of SHA256SUMS.
        listed: The same, as SHA256SUMS lists them.
        originals: sha256 of a file before paths of the machine were replaced in it, by its name.
    """

    base: Path
    digests: dict[str, str]
    listed: dict[str, str]
    originals: dict[str, str]

    @property
    def results(self) -> Path:
        """The published results."""
        return results_of(self.base)

    @property
    def others(self) -> Path:
        """The folder of what is neither a cell's nor of the results."""
        return self.base.parents[1] / "archive"


def parse_sums(content: bytes) -> dict[str, str]:
    """Name -> sha256, of the content of SUMS."""
    lines = content.decode(errors="replace").splitlines()
    return {name: digest for digest, _, name in (line.partition("  ") for line in lines)}


def is_archive(path: Path) -> bool:
    """Whether a path of the command line names an archive, packed or not, and no study file."""
    return path.name.endswith(ENDINGS) or os.path.isfile(path / SUMS)  # False where it may not look


def stem(path: Path) -> str:
    """The name of an archive without its ending, or of the folder that it was unpacked in."""
    name = path.resolve().name if path.is_dir() else path.name  # . has no name
    return name.removesuffix(".zip").removesuffix(".tar.gz")


def beside(path: Path, ending: str) -> Path:
    """`stem` and `ending`, in the folder that an archive is in."""
    folder = path.resolve().parent if path.is_dir() else path.parent
    return folder / f"{stem(path)}{ending}"


def unpack(path: Path, folder: Path) -> Unpacked:
    """Lay an archive out below `folder`. Links and names that lead out of it are left out.

    Args:
        path: The archive, or a folder that it was unpacked in.
        folder: A new folder.

    Raises:
        UserError: It is none, holds no results, or more than one folder.
    """
    digests: dict[str, str] = {}
    study = ""
    try:
        for name, file in members(path):
            top, _, inside = name.partition("/")
            if study not in ("", top):
                what = f"holds two folders, {study} and {top}, and an archive holds one"
                raise UserError(where=str(path), what=what, fix=_FIX)
            study = top
            target = folder / _location(study, inside)
            target.parent.mkdir(parents=True, exist_ok=True)
            digest = hashlib.sha256()
            with open(target, "wb") as copy:
                while block := file.read(1 << 20):
                    digest.update(block)
                    copy.write(block)
            digests[inside] = digest.hexdigest()
    except FileNotFoundError:
        raise UserError(
            where=str(path),
            what="no such file",
            fix="name an archive that `python -m study archive` has written",
        ) from None
    except (OSError, EOFError, tarfile.TarError, zipfile.BadZipFile) as error:
        raise UserError(where=str(path), what=f"is no archive ({error})", fix=_FIX) from None
    if not {SUMS, "results/results.json", "results/manifest.json"} <= digests.keys():
        raise UserError(where=str(path), what="holds no study's results", fix=_FIX)
    base = folder / "runs" / study
    base.mkdir(parents=True, exist_ok=True)
    for name in IN_BASE:
        if (record := results_of(base) / name).exists():
            (base / name).write_bytes(record.read_bytes())
    others = folder / "archive"
    del digests[SUMS]
    listed = parse_sums((others / SUMS).read_bytes())
    originals = {
        name: digest
        for name, digest in (read_record(others / REPLACED) or {}).items()
        if _can_hold_paths(folder / _location(study, name))
    }
    return Unpacked(base, digests, listed, originals)


def _can_hold_paths(file: Path) -> bool:
    """Whether paths can have been replaced in a file: it is a text, or packs texts.

    Of any other file the hash that manifests record is that of the file itself.
    """
    if file.name.endswith(".eval"):
        return True
    try:
        file.read_bytes().decode()
    except (OSError, UnicodeDecodeError):
        return False
    return True


def members(path: Path) -> Iterator[tuple[str, IO[bytes]]]:
    """The regular files of an archive, by their names, each open for reading until the next."""
    if path.is_dir():
        top = stem(path)
        for file in sorted(path.rglob("*")):
            if file.is_file() and not file.is_symlink():
                with open(file, "rb") as opened:
                    yield f"{top}/{file.relative_to(path).as_posix()}", opened
    elif path.name.endswith(".zip"):
        with zipfile.ZipFile(path) as packed:
            for name in packed.namelist():
                if _is_inside(name) and not name.endswith("/"):
                    with packed.open(name) as content:
                        yield _plain(name), content
    else:
        with tarfile.open(path, "r|gz") as unpacked:  # as a stream: ledgers are large
            for member in unpacked:
                if member.isreg() and _is_inside(member.name):
                    stream = unpacked.extractfile(member)
                    assert stream
                    yield _plain(member.name), stream


def _plain(name: str) -> str:
    """A name without the ./ that `tar` writes before the names of a folder that it was given so."""
    return PurePosixPath(name).as_posix()


def _is_inside(name: str) -> bool:
    parts = PurePosixPath(name).parts
    return len(parts) > 1 and ".." not in parts and not name.startswith("/")


def _location(study: str, name: str) -> Path:
    room, _, rest = name.partition("/")
    rooms = {"cells": Path("runs", study, rest), "results": Path("results", study, rest)}
    return rooms.get(room, Path("archive", name)) if rest else Path("archive", name)


def archive_lineage(unpacked: Unpacked) -> list[Row]:
    """`provenance.lineage` of what an archive holds: what is never packed is not checked."""
    base = unpacked.base
    rows = lineage(published(base, ""), base)
    for row in rows:
        cell = f"cells/{row['cell']}"
        checks = []
        for check in row["checks"]:
            name = f"{cell}/{check['file']}"
            is_packed = name in unpacked.digests or check["file"] in PACKED
            if check["kind"] == "external" or not is_packed:
                continue
            if name in unpacked.originals:  # the file that is packed is another than was recorded
                check["now"] = unpacked.originals[name]
                check["state"] = "same" if check["now"] == check["wanted"] else "changed"
            checks.append(check)
        row["checks"] = checks
        manifest = unpacked.originals.get(f"{cell}/manifest.json")
        row["manifest_sha256"] = manifest or row["manifest_sha256"]
    return rows


def archive_changes(unpacked: Unpacked, rows: list[Row]) -> list[dict[str, str]]:
    """What in an archive is not as it was packed, or as the cells recorded it.

    `rows`: of `archive_lineage`. Each as of `changes.find_changes`.
    """
    changes = [_change(*row) for row in _sums(unpacked)]
    originals = {
        name.removeprefix("results/"): digest
        for name, digest in unpacked.originals.items()
        if name.startswith("results/")
    }
    inside = find_changes(rows, unpacked.base, "", unpacked.results, originals)
    changes += [{**row, "fix": _FIX} for row in [*inside, *_unlike_results(rows)]]
    folder = f"{unpacked.results}/"
    return [{**row, "file": row["file"].replace(folder, "results/")} for row in changes]


def archive_notes(rows: list[Row]) -> list[str]:
    """Cells whose users had other manifests of them. `rows`: of `archive_lineage`."""
    again = [row["cell"] for row in rows if row["manifest"] and is_made_again(row, rows)]
    return [f"{MADE_AGAIN} since it was used, by what its manifest says: {name}" for name in again]


def _sums(unpacked: Unpacked) -> Iterator[Change]:
    """Files that SHA256SUMS does not list so."""
    for name in sorted({*unpacked.listed, *unpacked.digests}):
        wanted, now = unpacked.listed.get(name), unpacked.digests.get(name)
        if wanted != now:
            what = "is missing" if now is None else "was added"
            what = "changed after it was packed" if wanted and now else what
            yield "archive", name, f"{what} ({SUMS})", _FIX


def _unlike_results(rows: list[Row]) -> Iterator[dict[str, str]]:
    """Inputs whose manifest is as recorded by its hash alone, and not by what it lists."""
    manifests: dict[str, Any] = {row["cell"]: row["manifest"] for row in rows if row["manifest"]}
    for row in rows:
        for used in row["inputs"]:
            manifest = manifests.get(used["cell"])
            wanted = used["wanted_results"]
            if manifest and wanted and results_sha256(manifest) != wanted:
                what = f"lists other outputs than {row['cell']} has used"
                yield _change(used["cell"], "manifest.json", what, _FIX)


def _change(cell: str, file: str, problem: str, fix: str) -> dict[str, str]:
    keys = ("cell", "file", "problem", "fix", "consequence")
    return dict(zip(keys, (cell, file, problem, fix, "what rests on it"), strict=True))


def check_sums(path: Path, unpacked: Unpacked) -> None:
    """Raise UserError where a file is not the one that was packed."""
    if changes := list(_sums(unpacked)):
        named = ", ".join(file for _, file, _, _ in changes[:3])
        raise UserError(where=str(path), what=f"{named}: {changes[0][2]}", fix=_FIX)
