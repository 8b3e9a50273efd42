"""Contrasts and looks of a study file that have no meaning."""

from typing import Any

from core.strict_yaml import KeyPath
from study.spec.arm_checks import PROMPTS
from study.spec.checks import (
    Mapping,
    Mistake,
    Mistakes,
    as_list,
    check_reference,
    section_entries,
    task_names,
)
from study.spec.declaration import UNPROMPTED, declaration_problems
from study.spec.fingerprints import yaml_once
from study.spec.value_checks import arm_doses


def contrast_mistakes(raw: Mapping) -> Mistakes:
    """Sides that point nowhere, contrasts declared twice, looks in no order."""
    mistakes: Mistakes = []
    for i, contrast in enumerate(as_list(raw.get("contrasts"))):
        if isinstance(contrast, dict):
            mistakes += _contrast(("contrasts", i), contrast, raw)
    return mistakes + _repeated_contrasts(raw) + _looks(raw)


def _contrast(at: KeyPath, contrast: Mapping, raw: Mapping) -> Mistakes:
    mistakes = check_reference(raw, "arms", (*at, "treatment"), contrast.get("treatment"))
    mistakes += check_reference(raw, "arms", (*at, "control"), contrast.get("control"))
    for i, bench in enumerate(as_list(contrast.get("benchmarks"))):
        mistakes += check_reference(raw, "benchmarks", (*at, "benchmarks", i), bench)
        mistakes += _unprompted((*at, "benchmarks", i), bench, contrast, raw)
    if (contrast.get("treatment_dose") is None) != (contrast.get("control_dose") is None):
        mistakes.append(Mistake(at, "needs both of treatment_dose, control_dose, or neither"))
    if contrast.get("doses") and contrast.get("treatment_dose") is not None:
        mistakes.append(Mistake((*at, "doses"), "has no meaning beside treatment_dose", "keep one"))
    return mistakes


def _unprompted(at: KeyPath, bench: Any, contrast: Mapping, raw: Mapping) -> Mistakes:
    """A benchmark on which an arm with a system prompt or a prefill has no score."""
    task = section_entries(raw, "benchmarks").get(str(bench), {}).get("task")
    if task not in task_names(raw) or declaration_problems(task):
        return []
    if yaml_once(f"eval/benchmarks/{task}.yaml")["scorer"] not in UNPROMPTED:
        return []
    arms = section_entries(raw, "arms")
    sides = [contrast.get(side) for side in ("treatment", "control")]
    what = "takes no system prompt and no prefill: {} has one, and so no scores on it"
    return [
        Mistake(at, what.format(side), "take the benchmark out of the contrast")
        for side in sides
        if any(arms.get(str(side), {}).get(key) for key in PROMPTS)
    ]


def _repeated_contrasts(raw: Mapping) -> Mistakes:
    """Contrasts of the same sides at the same dose on the same benchmark, also turned round."""
    first: dict[tuple[str, str], int] = {}
    mistakes: Mistakes = []
    for i, contrast in enumerate(as_list(raw.get("contrasts"))):
        if not isinstance(contrast, dict):
            continue
        compared = _compared(contrast, raw)
        for bench in as_list(contrast.get("benchmarks")):
            repeated: dict[int, list[str]] = {}  # number of the contrast before -> doses
            for sides, dose in compared.items():
                before = first.setdefault((str(bench), sides), i)
                if before != i:
                    repeated.setdefault(before, []).append(dose)
            for before, doses in repeated.items():
                name = raw["contrasts"][before].get("name")
                at_doses = f" at dose {', '.join(doses)}" if all(doses) else ""
                what = f"compares on {bench} what contrast {name!r} compares{at_doses}"
                mistakes.append(Mistake(("contrasts", i), what, "keep one of the two"))
    return mistakes


def _compared(contrast: Mapping, raw: Mapping) -> dict[str, str]:
    """Both sides (arm, dose) of each test of a contrast, in one order, and the doses as text.

    The text is empty where the doses of an arm can't be told.
    """
    arms = [contrast.get(side) for side in ("treatment", "control")]
    given = [contrast.get(f"{side}_dose") for side in ("treatment", "control")]
    if given != [None, None]:
        return {_sides(arms, given): " v ".join(map(str, given))}
    of_arms = [arm_doses(arm, raw) or [] for arm in arms]
    shared = [dose for dose in of_arms[0] if dose in of_arms[1]]
    if doses := as_list(contrast.get("doses")) or shared:
        return {_sides(arms, [dose, dose]): str(dose) for dose in doses}
    return {_sides(arms, given): ""}


def _sides(arms: list[Any], doses: list[Any]) -> str:
    return repr(sorted(map(repr, zip(arms, doses, strict=True))))


def _looks(raw: Mapping) -> Mistakes:
    looks = [look for look in as_list(raw.get("looks")) if isinstance(look, int)]
    seeds = as_list(raw.get("seeds"))
    if looks and looks != sorted(set(looks)):
        return [Mistake(("looks",), f"{looks} do not increase", "list each look once, in order")]
    if looks and looks[-1] != len(seeds):
        what = f"the last look is at {looks[-1]} seeds, and {len(seeds)} seeds are planned"
        return [Mistake(("looks",), what, f"end with {len(seeds)}, or change seeds")]
    return []
