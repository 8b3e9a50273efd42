"""What a study or its archive shows to a reviewer.

Files are named as in an archive: results/results.json, cells/STAGE/CELL/manifest.json.
"""

import os
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from yaml import YAMLError

from core.cell.manifest import read_manifest
from core.declaration import FILE, read_declaration
from core.errors import UserError
from core.files import read_record
from core.yaml_text import from_yaml
from study.upkeep.provenance import Row, lineage

SCORING = ("judge", "likelihood", "lm_eval", "probe", "agent", "scores")


@dataclass(frozen=True)
class Evidence:
    """What the questions are answered from.

    Attributes:
        study: The study's name.
        results: results.json.
        settings: Those of the analysis cell.
        trainings: Its resource of that name: stage, arm, seed, cell, identity.
        study_file: The study file of the results; empty where they have none.
        rows: Every cell behind the results (`provenance.lineage`).
        changes: What is not as it was recorded (`changes.find_changes`).
        differences: How the study file differs now from that of the results.
        declared: The time of the declaration (UTC); None without one.
        declaration_fault: Why the record of the declaration does not count; empty where it does.
        locate: The link to a file by its name in an archive.
    """

    study: str
    results: dict[str, Any]
    settings: dict[str, Any]
    trainings: list[dict[str, Any]]
    study_file: dict[str, Any]
    rows: list[Row]
    changes: list[dict[str, str]]
    differences: list[str]
    declared: str | None
    declaration_fault: str
    locate: Callable[[str], str]

    @property
    def primary(self) -> list[dict[str, Any]]:
        """The rows of the primary contrasts, or of all where none is primary."""
        rows: list[dict[str, Any]] = self.results["contrasts"]
        return [row for row in rows if row["family"] == "primary"] or rows

    @property
    def analysis(self) -> str:
        """The folder of the analysis cell, as in an archive."""
        return folder_of(self.rows[-1])

    def of_stage(self, *stages: str) -> list[Row]:
        """The cells of these stages that have a manifest."""
        return [row for row in self.rows if row["stage"] in stages and row["manifest"]]

    def first_score(self) -> str | None:
        """When the first cell with scores ended (UTC)."""
        ends = (row["manifest"]["ended"] for row in self.of_stage(*SCORING))
        return min(ends, default=None)


def folder_of(row: Row) -> str:
    """The folder of a cell as in an archive, whichever study it was made in."""
    stage, cell = row["cell"].split("/")[-2:]
    return f"cells/{stage}/{cell}"


def gather(
    base: Path,
    results: Path,
    rows: list[Row],
    changes: list[dict[str, str]],
    differences: list[str],
    locate: Callable[[str], str],
) -> Evidence:
    """Read what the files of a study say.

    Args:
        base: The study's folder.
        results: The published results.
        rows: Of `provenance.lineage`; the analysis is the last.
        changes: Of `changes.find_changes`.
        differences: Of `study_file.find_differences`.
        locate: The link to a file by its name in an archive.
    """
    config = rows[-1]["config"]
    content = read_record(results / "results.json", contrasts=list, scores=list)
    if content is None or not config:
        raise _damaged(results)
    declared, fault = _declaration(base, config["settings"]["declaration"])
    study_file: Any = {}
    with suppress(OSError, ValueError, YAMLError):  # of an edited one the hash tells
        study_file = from_yaml((results / "study.yaml").read_text(encoding="utf-8"))
    return Evidence(
        base.name,
        content,
        config["settings"],
        config["resources"].get("trainings", []),
        study_file if isinstance(study_file, dict) else {},
        rows,
        changes,
        differences,
        declared,
        fault,
        locate,
    )


def _declaration(base: Path, planned: dict[str, Any] | None) -> tuple[str | None, str]:
    """When the study was declared, and why that does not count."""
    try:
        record = read_declaration(base)
    except UserError as error:
        return None, error.problems[0].what
    if record is None:
        return None, f"{FILE} is gone" if planned else ""
    if planned is None or record["sha256"] != planned["sha256"]:
        return record["time"], "the results were made with another declaration"
    return record["time"], ""


def links_of_study(base: Path, results: Path, page: Path) -> Callable[[str], str]:
    """Links from a page to the files of a study on this disk."""

    def locate(name: str) -> str:
        room, _, rest = name.partition("/")
        file = results / rest
        if room == "cells":
            file = base / rest
            if not file.exists():  # a cell of another study
                file = next(base.parent.glob(f"*/{rest}"), file)
        return Path(os.path.relpath(file, page.parent)).as_posix()

    return locate


def links_of_archive(study: str) -> Callable[[str], str]:
    """Links from a page to the files of an archive that is unpacked beside it."""
    return lambda name: f"{study}/{name}"


def published_rows(base: Path, results: Path, analysis: Path) -> list[Row]:
    """`provenance.lineage` of the published results; raises UserError where they are damaged."""
    rows = lineage(analysis, base)
    if not read_manifest(analysis) or not (results / "results.json").is_file():
        raise _damaged(results)
    return rows


def _damaged(results: Path) -> UserError:
    return UserError(
        where=str(results),
        what="the published results, or the analysis that they are of, can't be read",
        fix="python -m study verify, with the same study, says what is missing",
    )
