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
    seed: int | None  # None where no training of ours made it
    dose: int
    cell: Cell
    start: str  # its start model, by its name in the study file
    chat: bool  # whether it is prompted by its chat template
    corpus: str | None  # that it was trained on, in midtraining or as replay
    replicate: int = 0  # of that corpus
    prompts: Prompts = ()


def midtraining_of(cell: Cell) -> Cell | None:
    """The midtraining behind a checkpoint's cell; None where there is none."""
    while cell.stage == "sft":
        cell = cell.inputs["run" if "run" in cell.inputs else "start"]
    return cell if cell.stage == "midtrain" else None


def prompts_of(arm: Arm) -> Prompts:
    """`Checkpoint.prompts` of an arm."""
    prompts = {"system": arm.system, "prefill": arm.prefill}
    return tuple((key, path) for key, path in prompts.items() if path)
