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
    """A benchmark by likelihood, on which an arm with a system prompt or a prefill has no score."""
    task = section_entries(raw, "benchmarks").get(str(bench), {}).get("task")
    if task not in task_names(raw) or declaration_problems(task):
        return []
    if yaml_once(f"eval/benchmarks/{task}.yaml")["scorer"] not in UNPROMPTED:
        return []
    arms = section_entries(raw, "arms")
    sides = [contrast.get(side) for side in ("treatment", "control")]
    what = "asks without a chat template: {} has no scores on it, having a system prompt or prefill"
    return [
        Mistake(at, what.format(side), "take the benchmark out of the contrast")
        for side in sides
        if any(arms.get(str(side), {}).get(key) for key in PROMPTS)
    ]


def _repeated_contrasts(raw: Mapping) -> Mistakes:
    """Contrasts of the same sides on the same benchmark, also turned round."""
    first: dict[Any, Any] = {}
    mistakes: Mistakes = []
    for i, contrast in enumerate(as_list(raw.get("contrasts"))):
        if not isinstance(contrast, dict):
            continue
        sides = [
            (contrast.get(arm), contrast.get(f"{arm}_dose")) for arm in ("treatment", "control")
        ]
        doses = contrast.get("doses")
        for bench in as_list(contrast.get("benchmarks")):
            key = repr((sorted(map(repr, sides)), bench, sorted(map(repr, as_list(doses)))))
            before = first.setdefault(key, i)
            if before != i:
                name = raw["contrasts"][before].get("name")
                what = f"compares on {bench} what contrast {name!r} compares"
                mistakes.append(Mistake(("contrasts", i), what, "keep one of the two"))
    return mistakes


def _looks(raw: Mapping) -> Mistakes:
    looks = [look for look in as_list(raw.get("looks")) if isinstance(look, int)]
    seeds = as_list(raw.get("seeds"))
    if looks and looks != sorted(set(looks)):
        return [Mistake(("looks",), f"{looks} do not increase", "list each look once, in order")]
    if looks and looks[-1] != len(seeds):
        what = f"the last look is at {looks[-1]} seeds, and {len(seeds)} seeds are planned"
        return [Mistake(("looks",), what, f"end with {len(seeds)}, or change seeds")]
    return []
