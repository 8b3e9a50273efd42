"""The doses of instruction tuning at which each arm is evaluated."""

from typing import Any

from core.errors import Problem, UserError
from core.recipe import Training
from study.spec.chains import dose_of, dose_step, replay_corpus, sft_of, steps_of
from study.spec.fingerprints import load_recipe_once
from study.spec.schema import Sft, Study


def doses(study: Study, arm: str) -> list[int]:
    """The doses at which an arm is evaluated: those of one step of its chain (`dose_step`)."""
    settings = study.arms[arm]
    if settings.scores or settings.checkpoints:
        given = {dose for by_dose in (settings.scores or {}).values() for dose in by_dose}
        return sorted(given | {*(settings.checkpoints or {})})
    number = dose_step(settings)
    if number is None:
        return [0]
    step = steps_of(settings)[number]
    sft = sft_of(study, step)
    return [dose for dose in sft.doses if step.doses is None or dose in step.doses]


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
        for number, step in enumerate(steps_of(arm)):
            if not step.sft:
                continue
            sft = sft_of(study, step)
            replays = replay_corpus(study, arm, number) is not None
            given = {dose_of(study, arm, number, dose) for dose in doses(study, name)}
            for problem in _unreached(sft, sorted(given), replays):
                problems[problem.what] = problem
    return [*problems.values()]


def _unreached(sft: Sft, given: list[int], replays: bool) -> list[Problem]:
    """A problem for each of the doses that the steps of one SFT end before."""
    recipe = load_recipe_once(sft.recipe, Training)
    if not recipe["max_steps"] or not recipe["global_batch_size"]:
        return []
    limit = recipe["max_steps"] * recipe["global_batch_size"]
    problems = []
    for dose in given:
        # Rows of instruction data and of documents are mixed: after all of them, all are seen.
        replayed = round(sft.replay * dose) if sft.replay and replays else 0
        if dose + replayed > limit:
            rows = f"{dose} rows{f' and {replayed} replayed ones' if replayed else ''}"
            what = f"max_steps {recipe['max_steps']} of {recipe['global_batch_size']} rows end "
            what += f"before the dose {dose} is seen: {rows}"
            fix = "raise max_steps, or lower sft.doses"
            problems.append(Problem(sft.recipe, what, fix))
    return problems
