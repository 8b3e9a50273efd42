"""The analysis of an archive done again, from what is in the archive alone."""

import shutil
from dataclasses import dataclass
from pathlib import Path

from core.cell.context import StageContext
from core.cell.identity import read_config
from core.cell.lookup import input_folder
from core.cell.stage import import_stage
from core.errors import UserError
from core.files import sha256
from study.upkeep.provenance import published
from study.upkeep.unpacked import CLAIMS, Unpacked, check_sums

NOT_RESULTS = ("config.yaml", "manifest.json", "log.txt")


@dataclass(frozen=True)
class Again:
    """What the analysis wrote.

    Attributes:
        folder: Where it is.
        same: Files that are those of the archive to the byte.
        other: Files that differ, or that only one of the two has.
    """

    folder: Path
    same: list[str]
    other: list[str]


def analyze_again(archive: Path, unpacked: Unpacked, out: Path) -> Again:
    """Compute results, tables, figures and report anew into the new folder `out`.

    Scores, corpora and losses are read from the cells. The examples of answers and the map of the
    documents are as published: the texts that they are made of are not packed.

    Raises UserError where a file is not the one that was packed, or `out` is there.
    """
    check_sums(archive, unpacked)
    if out.exists():
        raise UserError(where=str(out), what="is there already", fix="name another folder by --out")
    base = unpacked.base
    packed = published(base, "")
    config = read_config(packed)
    inputs = {role: input_folder(base, source) for role, source in config["inputs"].items()}
    resources = config["resources"] | {"published": str(unpacked.results)}
    if (claims := unpacked.others / CLAIMS).is_file():  # where it was read is of another machine
        resources["files"] = resources.get("files", {}) | {"claims": str(claims)}
    # In a new folder, or what was packed would count as made.
    fresh = packed.with_name(f"again-{config['identity'][:8]}")
    fresh.mkdir()
    context = StageContext(fresh, config["identity"], config["settings"], resources, inputs)
    import_stage("analysis").run(context)
    before, now = _digests(unpacked.results), _digests(fresh)
    shutil.copytree(fresh, out)
    names = sorted({*before, *now})
    same = [name for name in names if before.get(name) == now.get(name)]
    return Again(out, same, [name for name in names if name not in same])


def _digests(folder: Path) -> dict[str, str]:
    """sha256 of the files of results, by their names."""
    return {
        str(path.relative_to(folder)): sha256(path)
        for path in folder.rglob("*")
        if path.is_file() and path.name not in NOT_RESULTS
    }
