"""What cells say, for the report, of answers that are malformed, have no end or are empty, and of
instruction data that was left out."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from analysis.rows import Row
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


def malformed_rows(files: Sequence[ScoreFile], inputs: Mapping[str, Path]) -> list[Row]:
    """The shares of malformed answers of each arm on each judged benchmark, at each dose.

    A row has benchmark, dose, arm, checkpoints (those that were counted), answers, malformed (the
    share of answers that are malformed in any way) and kinds (the share of each kind, of which an
    answer can have several). The rules are those of eval.malformed. A checkpoint whose grades are
    from before there were rules is not counted.
    """
    counts: dict[tuple[str, int, str], list[Row]] = {}
    for file in files:
        counted = (read_manifest(inputs[file.role]) or {}).get("malformed")
        if counted and file.other_judge is None:
            counts.setdefault((file.benchmark, file.dose, file.arm), []).append(counted)
    rows = []
    for (benchmark, dose, arm), of_arm in counts.items():
        totals = {key: sum(counted[key] for counted in of_arm) for key in of_arm[0]}
        answers = totals.pop("answers")
        shares = {key: total / answers for key, total in totals.items()}
        facts = {"benchmark": benchmark, "dose": dose, "arm": arm, "checkpoints": len(of_arm)}
        facts |= {"answers": answers, "malformed": shares.pop("malformed")}
        rows.append({**facts, "kinds": shares})
    return rows


def training_notes(base: Path, trainings: Sequence[dict[str, Any]]) -> list[str]:
    """What trainings say that are here: answers may have no end, rows were dropped. Each once.

    Args:
        base: The study's folder.
        trainings: Resource `trainings` of the analysis.
    """
    notes: dict[str, None] = {}
    for training in trainings:
        manifest = read_manifest(input_folder(base, training)) or {}
        remarks = [*manifest.get("answers", [])]
        if dropped := manifest.get("dropped_rows"):
            remarks.append(_dropped(dropped))
        for remark in remarks:
            notes[f"{training['stage']} of {training['arm']}: {remark}"] = None
    return [*notes]


def _dropped(dropped: Mapping[str, Any]) -> str:
    """`dropped_rows` of a manifest in words."""
    rows: Mapping[str, list[str]] = dropped["rows"]
    reasons = ", ".join(f"{len(places)} x {rule}" for rule, places in rows.items())
    count = sum(map(len, rows.values()))
    file = Path(dropped["file"]).name
    return f"{count} of {dropped['of']} rows of {file} can't be used and were dropped: {reasons}"
