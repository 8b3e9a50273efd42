"""A checkpoint of a study: one model to evaluate."""

from dataclasses import dataclass

from core.cell.identity import Cell


@dataclass(frozen=True)
class Checkpoint:
    """One model to evaluate: an arm at a dose of SFT."""

    arm: str
    seed: int | None  # None where no training of ours made it
    dose: int
    cell: Cell
    chat: bool  # whether it is prompted by its chat template
    corpus: str | None  # that it was trained on, in midtraining or as replay
    replicate: int = 0  # of that corpus


def midtraining_of(cell: Cell) -> Cell | None:
    """The midtraining behind a checkpoint's cell; None where there is none."""
    while cell.stage == "sft":
        cell = cell.inputs["run" if "run" in cell.inputs else "start"]
    return cell if cell.stage == "midtrain" else None
