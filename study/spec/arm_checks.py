"""Arms of a study file that name what is not there, or whose keys do not fit one another."""

from typing import Any

from core.paths import is_there
from core.strict_yaml import KeyPath
from study.spec.chain_checks import (
    chain_mistakes,
    documents_mistakes,
    dose_mistakes,
    has_chain,
    own_name_mistakes,
    raw_doses,
    raw_sft,
    raw_steps,
)
from study.spec.chains import SHORT_FORM
from study.spec.checks import (
    Mapping,
    Mistake,
    Mistakes,
    as_list,
    check_reference,
    mapping,
    remote_mistakes,
    section_entries,
    task_names,
)
from study.spec.declaration import FILES_OF, declaration_problems
from study.spec.fingerprints import content_hash, yaml_once

PROMPTS = ("system", "prefill")
# What somebody else has trained or scored, and what has no meaning beside it.
THEIRS = ("checkpoints", "scores")
TRAINING = ("train", *SHORT_FORM)


def arm_mistakes(raw: Mapping) -> Mistakes:
    """Names and files of arms that point nowhere, and keys that do not fit one another."""
    mistakes: Mistakes = []
    for name, arm in section_entries(raw, "arms").items():
        mistakes += _arm(name, arm, raw)
    return mistakes + own_name_mistakes(raw)


def _arm(name: str, arm: Mapping, raw: Mapping) -> Mistakes:
    at = ("arms", name)
    kinds = [key for key in ("start", *THEIRS) if arm.get(key)]
    if len(kinds) != 1:
        return [Mistake(at, "needs exactly one of start, checkpoints, scores")]
    if kinds != ["start"]:
        return _theirs(at, arm, raw)
    mistakes = check_reference(raw, "models", (*at, "start"), arm.get("start"))
    if has_chain(arm):
        return mistakes + chain_mistakes(at, arm, raw) + _prompted(at, arm, raw)
    mistakes += check_reference(raw, "corpora", (*at, "midtrain"), arm.get("midtrain"))
    mistakes += check_reference(raw, "sfts", (*at, "sft"), arm.get("sft"))
    mistakes += [
        Mistake((*at, key), "is for an arm with midtrain")
        for key in ("recipe", "question_variant")
        if key in arm and not arm.get("midtrain")
    ]
    mistakes += documents_mistakes(at, arm, "midtrain", raw)
    return mistakes + dose_mistakes(at, arm, raw_sft(arm, raw)) + _prompted(at, arm, raw)


def _theirs(at: KeyPath, arm: Mapping, raw: Mapping) -> Mistakes:
    """An arm of models that somebody else has trained, or of scores somebody else has computed."""
    (kind,) = (key for key in THEIRS if arm.get(key))
    unfit = TRAINING if kind == "checkpoints" else (*TRAINING, *PROMPTS)
    mistakes = [
        Mistake((*at, key), f"is not for an arm with {kind}") for key in unfit if key in arm
    ]
    seeds = len(as_list(raw.get("seeds")))
    by_dose = mapping(arm.get("checkpoints"))
    mistakes += _repeated((*at, "checkpoints"), by_dose)
    for dose, models in by_dose.items():
        at_dose = (*at, "checkpoints", dose)
        mistakes += _too_many(at_dose, models, seeds)
        for i, model in enumerate(as_list(models)):
            mistakes += check_reference(raw, "models", (*at_dose, i), model)
    for bench, by_dose in mapping(arm.get("scores")).items():
        mistakes += check_reference(raw, "benchmarks", (*at, "scores", bench), bench)
        mistakes += _unjudged((*at, "scores", bench), bench, raw)
        mistakes += _repeated((*at, "scores", bench), mapping(by_dose))
        for dose, files in mapping(by_dose).items():
            mistakes += _too_many((*at, "scores", bench, dose), files, seeds)
            for i, file in enumerate(as_list(files)):
                if isinstance(file, dict):
                    mistakes += remote_mistakes((*at, "scores", bench, dose, i), file)
    return mistakes


def _too_many(at: KeyPath, entries: Any, seeds: int) -> Mistakes:
    count = len(as_list(entries))
    if count <= seeds:
        return []
    what = f"{count} training runs, and the study has {seeds} seeds, which they take in order"
    return [Mistake(at, what, "list more seeds")]


def _repeated(at: KeyPath, by_dose: Mapping) -> Mistakes:
    """A model or a file of scores as two training runs of an arm, or at two of its doses."""
    mistakes: Mistakes = []
    firsts: dict[str, tuple[Any, int]] = {}
    for dose, entries in by_dose.items():
        for i, entry in enumerate(as_list(entries)):
            is_file = isinstance(entry, str) and is_there(entry)
            content = content_hash(entry) if is_file else repr(entry)
            if (first := firsts.setdefault(content, (dose, i))) != (dose, i):
                what = f"is the training run that dose {first[0]} has already"
                mistakes.append(Mistake((*at, dose, i), what, "give each run once"))
    return mistakes


def _unjudged(at: KeyPath, bench: Any, raw: Mapping) -> Mistakes:
    task = section_entries(raw, "benchmarks").get(str(bench), {}).get("task")
    if task not in task_names(raw) or declaration_problems(task):
        return []
    if yaml_once(f"eval/benchmarks/{task}.yaml")["scorer"] in FILES_OF:
        return [Mistake(at, "scores can be read of judged benchmarks only", "remove it")]
    return []


def _prompted(at: KeyPath, arm: Mapping, raw: Mapping) -> Mistakes:
    """A system prompt or a prefill of a model that is prompted by no chat template."""
    prompts = [key for key in PROMPTS if arm.get(key)]
    model = mapping(mapping(raw.get("models")).get(str(arm.get("start"))))
    if has_chain(arm):
        doses = raw_doses(arm, raw)
        steps = raw_steps(arm)
        if sum(step.get("sft") is not None for step in steps) > 1:
            return []  # an SFT remains where another is left out
        if any(step.get("rl") for step in steps):
            return []  # it is trained by the chat template
    else:
        doses = as_list(arm.get("doses") or mapping(raw_sft(arm, raw)).get("doses") or [0])
    if not prompts or not model or model.get("chat") or 0 not in doses:
        return []
    what = f"the model {arm['start']} is prompted by no chat template before SFT"
    fix = "say `chat: true` of an instruction-tuned model, or give the arm `doses` without 0"
    return [Mistake((*at, key), what, fix) for key in prompts]
