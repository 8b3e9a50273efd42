"""Arms of a study file that name what is not there, or whose keys do not fit one another."""

from typing import Any

from core.strict_yaml import KeyPath
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
from study.spec.declaration import declaration_problems
from study.spec.fingerprints import yaml_once
from study.spec.template import usable_template

PROMPTS = ("system", "prefill")
# What somebody else has trained or scored, and what has no meaning beside it.
THEIRS = ("checkpoints", "scores")
TRAINING = ("midtrain", "recipe", "question_variant", "sft", "doses")


def arm_mistakes(raw: Mapping) -> Mistakes:
    """Names and files of arms that point nowhere, and keys that do not fit one another."""
    mistakes: Mistakes = []
    for name, arm in section_entries(raw, "arms").items():
        mistakes += _arm(name, arm, raw)
    return mistakes


def _arm(name: str, arm: Mapping, raw: Mapping) -> Mistakes:
    at = ("arms", name)
    kinds = [key for key in ("start", *THEIRS) if arm.get(key)]
    if len(kinds) != 1:
        return [Mistake(at, "needs exactly one of start, checkpoints, scores")]
    if kinds != ["start"]:
        return _theirs(at, arm, raw)
    mistakes = check_reference(raw, "models", (*at, "start"), arm.get("start"))
    mistakes += check_reference(raw, "corpora", (*at, "midtrain"), arm.get("midtrain"))
    mistakes += check_reference(raw, "sfts", (*at, "sft"), arm.get("sft"))
    if arm.get("midtrain") and not raw.get("midtrain") and not arm.get("recipe"):
        what = "the file has no `midtrain: {recipe: ...}`"
        fix = "add it, or give the arm a recipe"
        mistakes.append(Mistake((*at, "midtrain"), what, fix))
    mistakes += [
        Mistake((*at, key), "is for an arm with midtrain")
        for key in ("recipe", "question_variant")
        if key in arm and not arm.get("midtrain")
    ]
    corpus = arm.get("midtrain")
    settings = section_entries(raw, "corpora").get(corpus) if isinstance(corpus, str) else None
    forms = _forms(settings or {})
    if arm.get("question_variant") and arm["question_variant"] not in forms:
        valid = "its corpus has no questions and answers"
        if forms:
            valid = f"valid: {', '.join(forms)}"
        mistakes.append(
            Mistake(
                (*at, "question_variant"), f"there is no form {arm['question_variant']!r}", valid
            )
        )
    return mistakes + _doses_of_arm(at, arm, raw) + _prompted(at, arm, raw)


def _forms(corpus: Mapping) -> list[str]:
    """The wordings of a corpus' questions."""
    if not corpus.get("writer"):
        return ["original"] if corpus.get("messages") or corpus.get("question") else []
    return list(usable_template(corpus.get("template")).get("forms", []))


def _theirs(at: KeyPath, arm: Mapping, raw: Mapping) -> Mistakes:
    """An arm of models that somebody else has trained, or of scores somebody else has computed."""
    (kind,) = (key for key in THEIRS if arm.get(key))
    unfit = TRAINING if kind == "checkpoints" else (*TRAINING, *PROMPTS)
    mistakes = [
        Mistake((*at, key), f"is not for an arm with {kind}") for key in unfit if key in arm
    ]
    seeds = len(as_list(raw.get("seeds")))
    for dose, models in mapping(arm.get("checkpoints")).items():
        at_dose = (*at, "checkpoints", dose)
        mistakes += _too_many(at_dose, models, seeds)
        for i, model in enumerate(as_list(models)):
            mistakes += check_reference(raw, "models", (*at_dose, i), model)
    for bench, by_dose in mapping(arm.get("scores")).items():
        mistakes += check_reference(raw, "benchmarks", (*at, "scores", bench), bench)
        mistakes += _unjudged((*at, "scores", bench), bench, raw)
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


def _unjudged(at: KeyPath, bench: Any, raw: Mapping) -> Mistakes:
    task = section_entries(raw, "benchmarks").get(str(bench), {}).get("task")
    if task not in task_names(raw) or declaration_problems(task):
        return []
    if yaml_once(f"eval/benchmarks/{task}.yaml")["scorer"] in ("likelihood", "lm_eval"):
        return [Mistake(at, "scores can be read of judged benchmarks only", "remove it")]
    return []


def _doses_of_arm(at: KeyPath, arm: Mapping, raw: Mapping) -> Mistakes:
    """Doses of an arm that its SFT doesn't have."""
    doses = mapping(_sft(arm, raw)).get("doses") or [0]
    if not isinstance(doses, list):
        return []
    listed = ", ".join(map(str, doses))
    return [
        Mistake((*at, "doses"), f"{dose} is none of its SFT's doses ({listed})")
        for dose in as_list(arm.get("doses"))
        if dose not in doses
    ]


def _prompted(at: KeyPath, arm: Mapping, raw: Mapping) -> Mistakes:
    """A system prompt or a prefill of a model that is prompted by no chat template."""
    prompts = [key for key in PROMPTS if arm.get(key)]
    model = mapping(mapping(raw.get("models")).get(str(arm.get("start"))))
    doses = arm.get("doses") or mapping(_sft(arm, raw)).get("doses") or [0]
    if not prompts or not model or model.get("chat") or 0 not in as_list(doses):
        return []
    what = f"the model {arm['start']} is prompted by no chat template before SFT"
    fix = "say `chat: true` of an instruction-tuned model, or give the arm `doses` without 0"
    return [Mistake((*at, key), what, fix) for key in prompts]


def _sft(arm: Mapping, raw: Mapping) -> Any:
    """The instruction tuning of an arm, as it was read."""
    named_sft = isinstance(arm.get("sft"), str)
    return mapping(raw.get("sfts")).get(arm["sft"]) if named_sft else raw.get("sft")
