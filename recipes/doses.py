"""Smaller doses of a run of SFT: after which step each has been seen, and the link to its model."""

import os

from core.cell.context import StageContext
from core.errors import UserError
from core.recipe import Training
from recipes.schedule import batch_indices, num_steps


def steps(context: StageContext, rows: int, recipe: Training) -> dict[int, int]:
    """The optimizer step after which each of the cell's `doses` has been seen, as dose -> step.

    Raises UserError where the training ends before one of them.
    """
    doses = context.settings.get("doses", [])
    instruction_rows = context.settings.get("dose", rows)  # those replayed come after
    by_dose = steps_of_doses(doses, rows, instruction_rows, recipe, context.seed("order"))
    if missed := sorted({*doses} - by_dose.keys()):
        raise UserError(
            where=str(context.folder),
            what=f"the {num_steps(rows, recipe)} optimizer steps end before the dose {missed[0]} "
            "is seen",
            fix="raise the recipe's max_steps, or lower sft.doses",
        )
    return by_dose


def steps_of_doses(
    doses: list[int], rows: int, instruction_rows: int, recipe: Training, seed: int
) -> dict[int, int]:
    """The optimizer step after which each dose has been seen, as dose -> step.

    A dose counts rows of instruction data, the first `instruction_rows` of all `rows`; the others
    are replayed documents. A dose that no step reaches is left out.
    """
    steps: dict[int, int] = {}
    remaining = sorted(doses)
    seen = 0
    for step, indices in enumerate(batch_indices(rows, recipe, seed), 1):
        seen += int((indices < instruction_rows).sum())
        while remaining and remaining[0] <= seen:
            steps[remaining.pop(0)] = step
        if not remaining:
            break
    return steps


def link(context: StageContext) -> dict[str, int | float]:
    """Link to the checkpoint that a longer run of the same SFT has kept at this dose."""
    dose = context.settings["dose"]
    target = context.inputs["run"] / f"doses/{dose}/model"
    model = context.folder / "model"
    model.unlink(missing_ok=True)
    model.symlink_to(os.path.relpath(target, context.folder), target_is_directory=True)
    return {"rows": dose}
