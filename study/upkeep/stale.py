"""Cells of earlier versions of a study file: their folders are beside those of today's cells."""

from collections import defaultdict
from pathlib import Path
from typing import Any

from tabulate import tabulate

from core import utc
from core.cell.identity import Cell
from core.cell.manifest import read_manifest
from study.upkeep.prune import cells_on_disk

Row = dict[str, Any]


def stale(cells: list[Cell], base: Path) -> list[Row]:
    """The cell folders below `base` that the study file does not name now.

    `cells`: all of the study. A row: stage, cell (the folder's name), state (finished or begun),
    last (the date of its end or of its last change), bytes, and today's cells of its name (`now`).
    """
    current = {base / cell.relpath for cell in cells}
    by_name: dict[tuple[str, str], list[str]] = defaultdict(list)
    for cell in cells:
        by_name[cell.stage, cell.name].append(cell.label)
    rows: list[Row] = []
    for folder in cells_on_disk(base):
        if folder in current:
            continue
        manifest = read_manifest(folder)
        stage, name = folder.parent.name, folder.name.rpartition("-")[0]
        files = (path for path in folder.rglob("*") if not path.is_symlink() and path.is_file())
        rows.append(
            {
                "stage": stage,
                "cell": folder.name,
                "state": "finished" if manifest else "begun",
                "last": (manifest or {}).get("ended") or utc.text(folder.stat().st_mtime),
                "bytes": sum(path.stat().st_size for path in files),
                "now": by_name[stage, name],
            }
        )
    return rows


def show(rows: list[Row]) -> str:
    """The rows as a table."""
    lines = [
        [
            *(row[key] for key in ("stage", "cell", "state")),
            row["last"][:10],
            f"{row['bytes'] / 1e9:.3f}",
            ", ".join(row["now"]) or "no cell of that name",
        ]
        for row in rows
    ]
    headers = ["stage", "cell", "state", "last change", "GB", "of that name now"]
    return tabulate(lines, headers=headers, disable_numparse=True)
