"""Whether the published results are those of the study file as it is now, and what differs."""

import json
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from core.cell.identity import Cell
from core.errors import UserError
from core.stages import STAGES
from study.spec import expand
from study.spec.schema import Study
from study.upkeep.provenance import Row

MAX_DIFFERENCES = 8


def find_differences(study: Study, base: Path, rows: list[Row]) -> list[str]:
    """How the study's cells differ from those that the published results were made of.

    Results of an unfinished study differ in nothing where only cells are missing that they list as
    missing.

    Args:
        study: The study file as it is now, and the files that it names.
        base: The study's folder.
        rows: Of `provenance.lineage`; the published analysis is the last.

    Returns:
        Texts such as "sft base-animal-s0-d80: recipe.lr"; empty where nothing differs.
    """
    published = {_identity(row) for row in rows}
    try:
        complete = expand.analysis(study, base)
        missing = {cell.identity for cell in complete.inputs.values()} - published
        expected = expand.analysis(study, base, without=missing)
    except (OSError, UserError) as error:  # a file that it names is gone, for one
        return [f"its cells can't be planned: {error}"]
    if expected.identity == _identity(rows[-1]):
        return []
    texts = [*_differences(complete, published, rows)]
    more = f"and {len(texts) - MAX_DIFFERENCES} more"
    return texts[:MAX_DIFFERENCES] + [more] * (len(texts) > MAX_DIFFERENCES)


def differing_keys(old: Any, new: Any, prefix: str = "") -> Iterator[str]:
    """The keys, as key.path, in which two settings differ."""
    if isinstance(old, dict) and isinstance(new, dict):
        for key in sorted(old.keys() | new.keys()):
            path = f"{prefix}.{key}" if prefix else str(key)
            yield from differing_keys(old.get(key), new.get(key), path)
    elif old != new:
        yield prefix


def _differences(last: Cell, published: set[str], rows: list[Row]) -> Iterator[str]:
    """A text for each kind of difference, with the first cell that has it."""
    made = {(row["stage"], row["config"].get("name")): row["config"] for row in rows}
    planned = {(cell.stage, cell.name) for cell in expand.in_order(last)}
    used = {cell.identity for cell in expand.in_order(last)}
    names: dict[str, list[str]] = defaultdict(list)  # by what differs, in the order of the work
    for cell in expand.in_order(last):
        if cell.identity in published:
            continue
        config = made.get((cell.stage, cell.name))
        settings = json.loads(json.dumps(cell.settings))
        if config is None:
            names["not in the results"].append(f"{cell.stage} {cell.name}")
        elif keys := ", ".join(differing_keys(config["settings"], settings)):
            names[keys].append(f"{cell.stage} {cell.name}")
    by_name = sorted(rows, key=lambda row: str(row["config"].get("name")))
    for row in sorted(by_name, key=lambda row: STAGES.index(row["stage"])):
        label = row["stage"], row["config"].get("name")
        if label not in planned and _identity(row) not in used:
            names["no longer in the study"].append(f"{row['stage']} {row['config'].get('name')}")
    for what, cells in names.items():
        more = f" and {len(cells) - 1} more" if cells[1:] else ""
        yield f"{cells[0]}{more}: {what}"


def _identity(row: Row) -> str:
    return str((row["manifest"] or row["config"]).get("identity", ""))
