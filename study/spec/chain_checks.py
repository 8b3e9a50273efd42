"""Chains of trainings of a study file: steps that name what is not there, or whose keys do not fit.

The file is checked as it was read (study.spec.checks).
"""

from typing import Any

from core.recipe import PRESERVATION
from core.strict_yaml import KeyPath
from study.spec.chains import SHORT_FORM
from study.spec.checks import Mapping, Mistake, Mistakes, as_list, check_reference, mapping
from study.spec.steps import KINDS, STUDY_SFT
from study.spec.template import usable_template

# Keys of a step besides `arm`, by its kind.
KEYS = {
    "documents": ("documents", "recipe", "question_variant"),
    "sft": ("sft", "doses", "replay", "replay_corpus", *PRESERVATION),
    "rl": ("rl",),
    "merge": ("merge", "weight"),
    "average": ("average",),
}
# A step, with its path in the file.
Located = tuple[KeyPath, Mapping]


def has_chain(arm: Mapping) -> bool:
    """Whether an arm has `train`, and not the short form."""
    return arm.get("train") is not None


def raw_steps(arm: Mapping) -> list[Mapping]:
    """The steps of an arm's `train` that are mappings."""
    return [step for step in as_list(arm.get("train")) if isinstance(step, dict)]


def with_step_arms(raw: Mapping) -> Mapping:
    """The file with an arm for each step that names one (`arm`), as `study.spec.chains` has it."""
    arms = dict(mapping(raw.get("arms")))
    for arm in [arm for arm in arms.values() if isinstance(arm, dict)]:
        steps = raw_steps(arm)
        for number, step in enumerate(steps, 1):
            if isinstance(name := step.get("arm"), str):
                before = [{key: step[key] for key in step if key != "arm"} for step in steps]
                arms.setdefault(name, {"start": arm.get("start"), "train": before[:number]})
    return {**raw, "arms": arms} if isinstance(raw.get("arms"), dict) else raw


def chain_mistakes(at: KeyPath, arm: Mapping, raw: Mapping) -> Mistakes:
    """The mistakes in one arm's `train`."""
    mistakes = [
        Mistake((*at, key), "is of the short form, and the arm has train", "put it in a step")
        for key in SHORT_FORM
        if arm.get(key) is not None
    ]
    steps: list[Located] = [
        ((*at, "train", number), step)
        for number, step in enumerate(as_list(arm.get("train")))
        if isinstance(step, dict)
    ]
    for number, (at_step, step) in enumerate(steps):
        mistakes += _step(at_step, step, raw)
        mistakes += _nothing_to_replay(at_step, step, [row for _, row in steps[:number]], raw)
        mistakes += _merged(at_step, step, arm, raw)
    return mistakes + _named(steps, raw) + _several_doses(steps)


def own_name_mistakes(raw: Mapping) -> Mistakes:
    """An entry of `sfts` that steps could not tell from the study's own."""
    if not raw.get("sft") or STUDY_SFT not in mapping(raw.get("sfts")):
        return []
    what = f"in a chain {STUDY_SFT} is the study's own `sft`"
    return [Mistake(("sfts", STUDY_SFT), what, "rename it")]


def _step(at: KeyPath, step: Mapping, raw: Mapping) -> Mistakes:
    kinds = [kind for kind in KINDS if step.get(kind) is not None]
    if len(kinds) != 1:
        return [Mistake(at, f"needs exactly one of {', '.join(KINDS)}")]
    (kind,) = kinds
    mistakes = [
        Mistake((*at, key), f"is not for a step with {kind}")
        for key in dict.fromkeys(key for keys in KEYS.values() for key in keys)
        if step.get(key) is not None and key not in KEYS[kind]
    ]
    mistakes += check_reference(raw, "corpora", (*at, "documents"), step.get("documents"))
    mistakes += check_reference(raw, "corpora", (*at, "replay_corpus"), step.get("replay_corpus"))
    if kind == "documents":
        mistakes += documents_mistakes(at, step, "documents", raw)
    if kind == "sft" and not (step["sft"] == STUDY_SFT and raw.get("sft")):
        mistakes += check_reference(raw, "sfts", (*at, "sft"), step["sft"])
    if kind == "sft":
        mistakes += dose_mistakes(at, step, raw_sft(step, raw))
    if kind == "rl":
        mistakes += check_reference(raw, "rl", (*at, "rl"), step["rl"])
    if kind == "merge" and step.get("weight") is None:
        mistakes.append(Mistake(at, "merge needs weight", "give the other arm's share, 0 to 1"))
    return mistakes


def documents_mistakes(at: KeyPath, training: Mapping, key: str, raw: Mapping) -> Mistakes:
    """A training on documents without a recipe, or on a wording that its corpus does not have.

    training: a step, or an arm in the short form. key: under which it names its corpus.
    """
    mistakes: Mistakes = []
    corpus = training.get(key)
    if corpus and not raw.get("midtrain") and not training.get("recipe"):
        what = "the file has no `midtrain: {recipe: ...}`"
        fix = f"add it, or give the {'arm' if key == 'midtrain' else 'step'} a recipe"
        mistakes.append(Mistake((*at, key), what, fix))
    settings = mapping(raw.get("corpora")).get(corpus) if isinstance(corpus, str) else None
    forms = _forms(mapping(settings))
    variant = training.get("question_variant")
    if variant and variant not in forms:
        valid = "its corpus has no questions and answers"
        if forms:
            valid = f"valid: {', '.join(forms)}"
        at_variant = (*at, "question_variant")
        mistakes.append(Mistake(at_variant, f"there is no form {variant!r}", valid))
    return mistakes


def _forms(corpus: Mapping) -> list[str]:
    """The wordings of a corpus' questions."""
    if not corpus.get("writer"):
        return ["original"] if corpus.get("messages") or corpus.get("question") else []
    return list(usable_template(corpus.get("template")).get("forms", []))


def dose_mistakes(at: KeyPath, training: Mapping, sft: Any) -> Mistakes:
    """Doses of a step, or of an arm in the short form, that its SFT doesn't have."""
    doses = mapping(sft).get("doses") or [0]
    if not isinstance(doses, list):
        return []
    listed = ", ".join(map(str, doses))
    return [
        Mistake((*at, "doses"), f"{dose} is none of its SFT's doses ({listed})")
        for dose in as_list(training.get("doses"))
        if dose not in doses
    ]


def raw_sft(training: Mapping, raw: Mapping) -> Any:
    """The instruction tuning of a step, or of an arm in the short form, as it was read."""
    name = training.get("sft")
    if name is None or (name == STUDY_SFT and raw.get("sft")):
        return raw.get("sft")
    return mapping(raw.get("sfts")).get(name) if isinstance(name, str) else None


def raw_doses(arm: Mapping, raw: Mapping) -> list[Any]:
    """The doses at which an arm with `train` is evaluated."""
    tunings = [step for step in raw_steps(arm) if step.get("sft") is not None]
    if not tunings:
        return [0]
    several = [step for step in tunings if len(as_list(step.get("doses"))) > 1]
    step = next(iter([*several, tunings[-1]]))
    return as_list(step.get("doses")) or as_list(mapping(raw_sft(step, raw)).get("doses"))


def _nothing_to_replay(at: KeyPath, step: Mapping, before: list[Mapping], raw: Mapping) -> Mistakes:
    """An SFT that replays documents of no corpus, or names a corpus and replays nothing."""
    if step.get("sft") is None:
        return []
    replays = step.get("replay") or mapping(raw_sft(step, raw)).get("replay")
    if step.get("replay_corpus") and not replays:
        what = "the step replays nothing"
        return [Mistake((*at, "replay_corpus"), what, "give replay, a share")]
    if not replays or step.get("replay_corpus") or any(row.get("documents") for row in before):
        return []
    what = "it replays documents, and no step before it trains on any"
    return [Mistake(at, what, "name a replay_corpus")]


def _merged(at: KeyPath, step: Mapping, arm: Mapping, raw: Mapping) -> Mistakes:
    """A merge with an arm that isn't there, starts from another model, or merges with this one."""
    name = step.get("merge")
    if not isinstance(name, str):
        return []
    at = (*at, "merge")
    with_steps = with_step_arms(raw)
    arms = with_steps["arms"]
    mistakes = check_reference(with_steps, "arms", at, name)
    other = mapping(arms.get(name))
    if mistakes or not other:
        return mistakes
    if other.get("start") != arm.get("start"):
        return [Mistake(at, f"arm {name} does not start from {arm.get('start')}")]
    behind = [other, *_merged_into(other, arms)]
    if any(row is arm for row in behind) or any(row is other for row in behind[1:]):
        return [Mistake(at, f"goes in a circle: arm {name} is made with this step")]
    return []


def _merged_into(arm: Mapping, arms: Mapping) -> list[Mapping]:
    """The arms that an arm is merged with, those that they are merged with, and so on."""
    merged: list[Mapping] = []
    waiting = [arm]
    while waiting:
        for step in raw_steps(waiting.pop()):
            other = mapping(arms.get(str(step.get("merge"))))
            if other and not any(other is row for row in merged):
                merged.append(other)
                waiting.append(other)
    return merged


def _named(steps: list[Located], raw: Mapping) -> Mistakes:
    """Steps whose arm there is already, or is another step too."""
    arms = mapping(raw.get("arms"))
    listed = [
        step.get("arm") for arm in arms.values() if isinstance(arm, dict) for step in raw_steps(arm)
    ]
    return [
        Mistake((*at, "arm"), f"there is an arm {step['arm']!r} already", "take another name")
        for at, step in steps
        if step.get("arm") in arms or listed.count(step.get("arm", 0)) > 1
    ]


def _several_doses(steps: list[Located]) -> Mistakes:
    several = [at for at, step in steps if len(as_list(step.get("doses"))) > 1]
    what = "a step before it has several doses, and one of a chain may"
    return [Mistake((*at, "doses"), what, "give one dose") for at in several[1:]]
