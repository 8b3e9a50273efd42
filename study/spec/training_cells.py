"""The cells of the steps of a chain: one training, or one merge of weights, each."""

from pathlib import Path
from typing import Any

from core.cell.identity import Cell
from core.errors import UserError
from core.grpo_recipe import split_grpo
from core.recipe import PRESERVATION, Training, split_recipe
from study.spec.chains import sft_of
from study.spec.chat import chat_date, chat_files
from study.spec.doses import check_shared_run
from study.spec.fingerprints import (
    PARALLEL_OPTIONS,
    engine_arguments,
    load_grpo_once,
    load_recipe_once,
)
from study.spec.schema import Study
from study.spec.sources import file_source, identities, model_folder, paths
from study.spec.steps import STUDY_SFT, Step


def midtraining(study: Study, step: Step, label: str, start: Cell, model: str, seed: int) -> Cell:
    """The cell of a training on documents, without its input `documents`.

    model: the start model of the chain, whose chat template question variants are rendered with.
    """
    path = step.recipe or _own_recipe(study)
    assert path
    recipe, runtime = _recipe("sft" if step.question_variant else "midtrain", path)
    settings: dict[str, Any] = {"recipe": recipe, "seed": seed}
    if step.question_variant:
        files = chat_files(study, model)
        settings |= {"question_variant": step.question_variant, **chat_date(study)}
        if files:
            settings |= identities(files)
            runtime = runtime | paths(files)
    return Cell("midtrain", label, settings, {"start": start}, runtime)


def midtraining_label(study: Study, label: str, step: Step) -> str:
    """The name of a chain, `label`, with a training on documents at its end."""
    form = f"_{step.question_variant}" if step.question_variant else ""
    named = step.recipe if step.recipe != _own_recipe(study) else None
    recipe = f"_{Path(named).stem}" if named else ""
    return f"{label}-{step.documents}{form}{recipe}"


def _own_recipe(study: Study) -> str | None:
    return study.midtrain.recipe if study.midtrain else None


def tuning(
    study: Study,
    step: Step,
    label: str,
    start: Cell,
    model: str,
    seed: int,
    dose: int,
    replayed: Cell | None,
) -> Cell:
    """The cell of an instruction tuning to `dose`; with `shared_run` that of the longest dose.

    replayed: the corpus whose documents it trains on again.
    """
    sft = sft_of(study, step)
    *passed, last = sorted({dose for dose in sft.doses if dose}) if sft.shared_run else [dose]
    recipe, runtime = _recipe("sft", sft.recipe, _preservation(step))
    files = {"data": file_source(sft.data), **chat_files(study, model)}
    settings = {"recipe": recipe, **identities(files), "dose": last, "seed": seed}
    settings |= chat_date(study)
    if passed:
        check_shared_run(sft, recipe)
        settings["doses"] = passed
    inputs = {"start": start}
    if sft.replay and replayed:
        settings["replay"] = sft.replay
        inputs["replay"] = replayed
    return Cell("sft", f"{label}-d{last}", settings, inputs, {**paths(files), **runtime})


def tuning_label(label: str, step: Step) -> str:
    """The name of a chain, `label`, with an instruction tuning at its end, without its dose."""
    named = "" if step.sft == STUDY_SFT else f"-{step.sft}"
    replay = f"_replay{100 * step.replay:g}" if step.replay else ""
    factors = [f"_{key[:2]}{factor:g}" for key, factor in _preservation(step).items()]
    return label + named + replay + "".join(factors)


def _preservation(step: Step) -> dict[str, float]:
    """What a step sets in place of its recipe's."""
    given = {key: getattr(step, key) for key in PRESERVATION}
    return {key: factor for key, factor in given.items() if factor is not None}


def reinforcement(study: Study, step: Step, label: str, start: Cell, model: str, seed: int) -> Cell:
    """The cell of a training by GRPO, without its input `documents`."""
    assert step.rl
    rl = study.rl[step.rl]
    recipe, runtime = split_grpo(load_grpo_once(rl.recipe))
    files = chat_files(study, model)
    rewards: dict[str, Any] = {}
    for role, reward in (("reward", rl.reward), ("second_reward", rl.second_reward)):
        if reward and reward.model:
            files[role] = model_folder(study.models[reward.model])
            rewards[role] = {"model": True}
        elif reward:
            rewards[role] = {"contains": reward.contains}
    prompts = {"system": rl.system, "prefill": rl.prefill}
    files |= {key: {"path": path} for key, path in prompts.items() if path}
    engine, engine_resources = engine_arguments(study.engine)
    settings = {
        **recipe,
        **rewards,
        "response_only": rl.response_only,
        "shuffled": rl.shuffled,
        "seed": seed,
        "engine": engine,
        **identities(files),
        **chat_date(study),
    }
    # Of the engine's memory the recipe speaks: the model is trained on the same GPU.
    unfit = ("max_model_len", "gpu_memory_utilization", *PARALLEL_OPTIONS)
    speed = {key: value for key, value in engine_resources.items() if key not in unfit}
    resources = {**runtime, **paths(files), "engine": speed}
    return Cell("rl", label, settings, {"start": start}, resources)


def merge(label: str, models: list[Cell], weights: list[float]) -> Cell:
    """The cell of a weighted sum of models: the chain's own first, then the others."""
    roles = ["start", *(f"other{number}" for number in range(1, len(models)))]
    return Cell("merge", label, {"weights": weights}, dict(zip(roles, models, strict=True)))


def _recipe(
    stage: str, path: str, changes: dict[str, Any] | None = None
) -> tuple[dict[str, Any], dict[str, Any]]:
    """A recipe's settings that are identity, and how it runs (core.recipe.RUNTIME_KEYS)."""
    recipe = load_recipe_once(path, Training) | (changes or {})
    if stage == "sft" and not recipe["global_batch_size"]:
        raise UserError(
            where=path,
            what="a recipe for sft needs global_batch_size",
            fix="give it, or name another recipe",
        )
    return split_recipe(recipe)
