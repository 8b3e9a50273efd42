"""What the results say of the study's declaration, and when the first score came."""

import shutil
from collections.abc import Iterable
from pathlib import Path

from analysis.rows import Results, Row
from core.cell.manifest import read_manifest
from core.declaration import FILE, read_declaration, short
from core.errors import UserError

# Begins the one line of report and headline that differs between two runs of one study.
DATES = "Dates: "


def declaration_lines(results: Results) -> list[str]:
    """Whether the study was declared as it is now, then a line per difference. Without dates."""
    declaration = results["declaration"]
    if declaration is None:
        return ["No record that this was declared before the data."]
    named = f"declared before the data (declaration {short(declaration['sha256'])})"
    if not declaration["differences"]:
        return [f"As {named}."]
    return [f"Not as {named}:", *declaration["differences"]]


def declaration_note(results: Results) -> str:
    """`declaration_lines` as one text, for captions."""
    first, *differences = declaration_lines(results)
    return f"{first} {'; '.join(differences)}." if differences else first


def copy_declaration(base: Path, planned: Row | None, folder: Path) -> str | None:
    """Copy the declaration of the study in `base` to the analysis' folder; returns its time.

    planned: what the analysis was planned with (`sha256`), None for no declaration. Raises
    UserError where there is another one, or none, by now.
    """
    record = read_declaration(base)
    if (record and record["sha256"]) != (planned and planned["sha256"]):
        raise UserError(
            where=str(base / FILE),
            what="is not the declaration that this analysis was planned with",
            fix="run the study again, or submit it again",
        )
    if record is None:
        return None
    shutil.copyfile(base / FILE, folder / FILE)
    return str(record["time"])


def first_score(folders: Iterable[Path]) -> str | None:
    """When the first of these cells with scores ended (UTC), by their manifests."""
    manifests = [read_manifest(folder) for folder in folders]
    return min((manifest["ended"] for manifest in manifests if manifest), default=None)


def dates_line(declared: str | None, scored: str | None) -> str:
    """The line with the dates of declaration and first score."""
    if declared is None:
        return f"{DATES}not declared; first score {scored or 'unknown'}"
    if scored and scored < declared:
        return f"{DATES}declared {declared}, after the first score of {scored}"
    return f"{DATES}declared {declared}; first score {scored or 'unknown'}"
