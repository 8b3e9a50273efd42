"""What cells say of answers that have no end or are empty, for the report."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from analysis.settings import ScoreFile
from analysis.table import checkpoint_name
from core.cell.identity import read_config
from core.cell.lookup import input_folder
from core.cell.manifest import read_manifest


def answer_notes(files: Sequence[ScoreFile], inputs: Mapping[str, Path]) -> list[str]:
    """A line for each checkpoint and benchmark whose answers are empty or cut off too often."""
    notes: dict[str, None] = {}
    for file in files:
        judged = inputs[file.role]
        if not (judged / "config.yaml").exists():
            continue
        samples = read_config(judged)["inputs"].get("samples")
        if samples is None:
            continue
        manifest = read_manifest(input_folder(judged.parents[1], samples)) or {}
        for warning in manifest.get("answers", []):
            notes[f"{file.benchmark}: {warning}: {checkpoint_name(vars(file))}"] = None
    return [*notes]


def training_notes(base: Path, trainings: Sequence[dict[str, Any]]) -> list[str]:
    """A line for each training after which answers may have no end, of those that are here.

    Args:
        base: The study's folder.
        trainings: Resource `trainings` of the analysis.
    """
    notes: dict[str, None] = {}
    for training in trainings:
        manifest = read_manifest(input_folder(base, training)) or {}
        for warning in manifest.get("answers", []):
            notes[f"{training['stage']} of {training['arm']}: {warning}"] = None
    return [*notes]
