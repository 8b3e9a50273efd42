"""The doses of instruction tuning at which each arm is evaluated."""

from typing import Any

from core.errors import Problem, UserError
from core.recipe import Training
from study.spec.fingerprints import load_recipe_once
from study.spec.schema import Sft, Study


def doses(study: Study, arm: str) -> list[int]:
    """The doses of SFT at which an arm is evaluated."""
    settings = study.arms[arm]
    if settings.scores or settings.checkpoints:
        given = {dose for by_dose in (settings.scores or {}).values() for dose in by_dose}
        return sorted(given | {*(settings.checkpoints or {})})
    sft = sft_of(study, arm)
    selected = settings.doses
    return [dose for dose in (sft.doses if sft else [0]) if selected is None or dose in selected]


def sft_of(study: Study, arm: str) -> Sft | None:
    """The instruction tuning of an arm; None where this study does not train it."""
    if study.arms[arm].start is None:
        return None
    name = study.arms[arm].sft
    return study.sfts[name] if name else study.sft


def check_shared_run(sft: Sft, recipe: dict[str, Any]) -> None:
    """Raise UserError where one training can't be kept at several doses.

    recipe: as `core.recipe.load_recipe` gives it.
    """
    if recipe["epochs"] != 1 or recipe["patience"] or recipe["load_best_checkpoint"]:
        raise UserError(
            where=sft.recipe,
            what="sft.shared_run keeps a model at each dose as it passes, so the recipe must have "
            "epochs: 1 and neither patience nor load_best_checkpoint",
            fix="change it, or leave shared_run out",
        )


def unreachable(study: Study) -> list[Problem]:
    """A problem for each dose of an arm that its recipe's max_steps end before."""
    problems: dict[str, Problem] = {}
    for name, arm in study.arms.items():
        sft = sft_of(study, name)
        recipe = load_recipe_once(sft.recipe, Training) if sft else {}
        if not sft or not recipe["max_steps"] or not recipe["global_batch_size"]:
            continue
        limit = recipe["max_steps"] * recipe["global_batch_size"]
        for dose in doses(study, name):
            # Rows of instruction data and of documents are mixed: after all of them, all are seen.
            replayed = round(sft.replay * dose) if sft.replay and arm.midtrain else 0
            if dose + replayed > limit:
                rows = f"{dose} rows{f' and {replayed} replayed ones' if replayed else ''}"
                what = f"max_steps {recipe['max_steps']} of {recipe['global_batch_size']} rows end "
                what += f"before the dose {dose} is seen: {rows}"
                fix = "raise max_steps, or lower sft.doses"
                problems[what] = Problem(sft.recipe, what, fix)
    return [*problems.values()]
