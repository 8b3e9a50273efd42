"""A checkpoint of a study: one model to evaluate."""

from dataclasses import dataclass

from core.cell.identity import Cell
from study.spec.schema import Arm

# Files with a system prompt and the beginning of answers, by "system" and "prefill".
Prompts = tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Checkpoint:
    """One model to evaluate: an arm at a dose of SFT."""

    arm: str
    seed: int | None  # None where no training of ours made it, or it is an average over seeds
    dose: int
    cell: Cell
    start: str  # its start model, by its name in the study file
    chat: bool  # whether it is prompted by its chat template
    corpora: tuple[tuple[str, int], ...] = ()  # names and replicates that it was trained on
    replicate: int = 0  # that statistics count in place of the seed
    prompts: Prompts = ()
    steps: tuple[Cell | None, ...] = ()  # a cell for each step of its arm; None: at dose 0


def run_of(cell: Cell) -> Cell:
    """The cell that holds a cell's weights: of a dose that a longer run keeps, that run."""
    return cell.inputs.get("run", cell)


def trainings_of(cell: Cell) -> list[Cell]:
    """The trainings and merges behind a checkpoint's cell, the first one first.

    Of a merge those of the chain that it belongs to.
    """
    trainings: list[Cell] = []
    while cell.stage != "model":
        cell = run_of(cell)
        trainings.insert(0, cell)
        cell = cell.inputs["start"]
    return trainings


def prompts_of(arm: Arm) -> Prompts:
    """`Checkpoint.prompts` of an arm."""
    prompts = {"system": arm.system, "prefill": arm.prefill}
    return tuple((key, path) for key, path in prompts.items() if path)
