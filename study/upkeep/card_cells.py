"""Finished cells as cards read them: from their manifests and settings alone."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from shlex import quote
from typing import Any

from tabulate import tabulate

from core.cell.external_files import is_pin
from core.cell.identity import read_config
from core.cell.lookup import input_folder
from core.cell.manifest import read_manifest
from core.errors import UserError
from core.stages import TRAINING_STAGES
from study.upkeep.card_facts import StudyFacts

CITE = """## How to cite

{what} is the cell `{cell.relpath}` (identity {identity:.16}), made on {ended:.10} by the kit at
commit {commit}{dirty}. The study that it reproduces:

```bibtex
@misc{{brazilek2026alignment, title={{Alignment Midtraining for Animals}}, year={{2026}},
  author={{Brazilek, Jasmine and Tidmarsh, Miles}}, eprint={{2604.13076}}, archivePrefix={{arXiv}},
  primaryClass={{cs.LG}}}}
```
"""


@dataclass(frozen=True)
class FinishedCell:
    """A cell as its manifest and its config.yaml have it, with its inputs by role."""

    base: Path
    relpath: str
    study: str
    name: str
    manifest: dict[str, Any]
    settings: dict[str, Any]
    resources: dict[str, Any]
    inputs: dict[str, "FinishedCell"]

    @property
    def folder(self) -> Path:
        return self.base / self.relpath

    @property
    def identity(self) -> str:
        return str(self.manifest["identity"])

    @property
    def stage(self) -> str:
        return str(self.manifest["stage"])

    @property
    def counts(self) -> dict[str, Any]:
        return dict(self.manifest["counts"])

    @property
    def warnings(self) -> list[str]:
        return list(self.manifest["warnings"])


def read_cell(folder: Path, facts: StudyFacts | None) -> FinishedCell:
    """The cell in a folder, under today's name or its own.

    Raises UserError where it, or a cell behind it, is unfinished.
    """
    manifest = read_manifest(folder)
    if not manifest:
        raise UserError(
            where=str(folder),
            what="is not finished",
            fix=f"python -m study cell {quote(str(folder))}",
        )
    base = folder.parents[1]
    config = read_config(folder)
    return FinishedCell(
        base=base,
        relpath=f"{folder.parent.name}/{folder.name}",
        study=facts.study if facts else base.name,
        name=(facts.names if facts else {}).get(manifest["identity"], manifest["name"]),
        manifest=manifest,
        settings=config["settings"],
        resources=config["resources"],
        inputs={
            role: read_cell(input_folder(base, used), facts)
            for role, used in manifest["inputs"].items()
        },
    )


def behind(cell: FinishedCell) -> list[FinishedCell]:
    """The start models, trainings and merges that led to a checkpoint, itself at the end.

    A dose that a longer run has kept counts as that run. Each is there once, after its own starts.
    """
    cells: dict[str, FinishedCell] = {}

    def walk(made: FinishedCell) -> None:
        made = made.inputs.get("run", made)
        if made.identity in cells:
            return
        for role, used in made.inputs.items():
            if role == "start" or role.startswith("other"):
                walk(used)
        cells[made.identity] = made

    walk(cell)
    return [*cells.values()]


def trainings(cells: Iterable[FinishedCell]) -> list[FinishedCell]:
    """Those of the cells that are trainings."""
    return [cell for cell in cells if cell.stage in TRAINING_STAGES]


def pin(cell: FinishedCell, key: str) -> dict[str, Any]:
    """The pin of a file or folder that a cell has from the network; {} of any other."""
    planned = cell.settings.get("files", {}).get(key)
    return planned if is_pin(planned) else {}


def is_by_dummy(corpus: FinishedCell) -> bool:
    """Whether the kit's dummy wrote a corpus."""
    return bool(corpus.settings.get("writer", {}).get("served_by") == "dummy")


def topic(corpus: FinishedCell) -> str:
    """What a corpus is about, else its name."""
    return str(corpus.settings.get("template", {}).get("topic") or corpus.name)


def hours_of(cell: FinishedCell) -> float:
    """The hours of a cell's last run, which a resumed cell has had others before."""
    start, end = (datetime.fromisoformat(cell.manifest[key]) for key in ("started", "ended"))
    return (end - start).total_seconds() / 3600


def table(rows: Any, headers: Any) -> str:
    """A table in GitHub's Markdown. `rows`: of values, or mappings."""
    shown = [
        {key: _cell(value) for key, value in row.items()}
        if isinstance(row, Mapping)
        else [*map(_cell, row)]
        for row in rows
    ]
    return tabulate(shown, headers=headers, tablefmt="github", floatfmt=".4g", intfmt=",")


def _cell(value: Any) -> Any:
    """A text as it is: a bar would end the cell, and `list<text>` would be a tag."""
    return re.sub(r"[|<]", r"\\\g<0>", value) if isinstance(value, str) else value


def content(header: str, text: Iterable[str]) -> str:
    """A card: its YAML header and its parts, those that are empty left out."""
    return f"---\n{header}\n---\n\n" + "\n\n".join(part.strip() for part in text if part) + "\n"


def citation(what: str, cell: FinishedCell) -> str:
    """How to cite `what`, and which cell at which commit it is."""
    code = cell.manifest["code"]
    return CITE.format(
        what=what,
        cell=cell,
        identity=cell.identity,
        ended=cell.manifest["ended"],
        commit=code["commit"] or "unknown",
        dirty=", with uncommitted changes" if code["dirty"] else "",
    )
