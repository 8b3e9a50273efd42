"""Values of a study file that are valid by themselves and have no meaning together."""

from collections import Counter
from typing import Any

from study.spec.chain_checks import has_chain, raw_doses
from study.spec.checks import Mapping, Mistake, Mistakes, as_list, section_entries
from study.spec.doses import doses
from study.spec.placeholders import placeholder_mistakes, placeholders
from study.spec.schema import Benchmark, Contrast, Study


def value_mistakes(raw: Mapping) -> Mistakes:
    """Contrasts of an arm with itself, doses that no arm has, shards and held-out documents that
    a corpus can't have, prompts without their question. A value of a wrong type is passed over.
    """
    mistakes: Mistakes = []
    for name, corpus in section_entries(raw, "corpora").items():
        mistakes += _corpus(("corpora", name), corpus)
    for name, bench in section_entries(raw, "benchmarks").items():
        mistakes += _prompt(("benchmarks", name, "base_prompt"), bench.get("base_prompt"))
    for i, contrast in enumerate(as_list(raw.get("contrasts"))):
        if isinstance(contrast, dict):
            mistakes += _contrast(("contrasts", i), contrast, raw)
    return mistakes


def study_warnings(study: Study) -> list[str]:
    """What may be meant, and probably is not."""
    same_answers = [
        f"benchmarks.{name}: at temperature 0 all {bench.epochs} answers to a question are the "
        "same; epochs: 1 gives the same scores"
        for name, bench in study.benchmarks.items()
        if bench.temperature == 0 and bench.epochs > 1
    ]
    return same_answers + _families_of_one(study)


def _families_of_one(study: Study) -> list[str]:
    """Families of one test beside others: what is tested alone escapes Holm's correction."""
    tests: Counter[str] = Counter()
    for contrast in study.contrasts:
        for name in contrast.benchmarks:
            tests[contrast.family] += len(_dose_pairs(study, contrast, study.benchmarks[name]))
    return [
        f"contrasts: family {family} has one test, which Holm's correction leaves as it is; put "
        "it into the family of the contrasts that answer the same question"
        for family, count in tests.items()
        if count == 1 and len(tests) > 1
    ]


def _dose_pairs(study: Study, contrast: Contrast, bench: Benchmark) -> list[tuple[int, int]]:
    """The doses (of treatment, of control) that a contrast compares on a benchmark."""
    if contrast.treatment_dose is not None and contrast.control_dose is not None:
        return [(contrast.treatment_dose, contrast.control_dose)]
    of_arms = (doses(study, arm) for arm in (contrast.treatment, contrast.control))
    common = set.intersection(*map(set, of_arms))
    for chosen in (contrast.doses, bench.doses):
        common &= common if chosen is None else set(chosen)
    return [(dose, dose) for dose in sorted(common)]


def _corpus(at: tuple[Any, ...], corpus: Mapping) -> Mistakes:
    mistakes: Mistakes = []
    documents = corpus.get("documents")
    shards = corpus.get("shards", 1)
    held_out = corpus.get("held_out", 0)
    if type(documents) is not int or documents < 1:
        return []
    if type(shards) is int and shards > documents:
        what = f"{shards} shards of {documents} documents"
        mistakes.append(Mistake((*at, "shards"), what, f"at most {documents}"))
    if type(held_out) in (int, float) and 0 < held_out < 1:
        count = round(held_out * documents)
        if count in (0, documents):
            what = f"{held_out} of {documents} documents holds out {count or 'none'}"
            what += "" if not count else " and leaves none to train on"
            mistakes.append(Mistake((*at, "held_out"), what, "give more documents"))
    return mistakes


def _prompt(at: tuple[Any, ...], prompt: Any) -> Mistakes:
    if not isinstance(prompt, str):
        return []
    mistakes = placeholder_mistakes(prompt, {"question"})
    if not mistakes and "question" not in placeholders(prompt):
        what = "has no {question}: all questions would be the same prompt"
        mistakes.append((what, "use {question}"))
    return [Mistake(at, what, fix) for what, fix in mistakes]


def _contrast(at: tuple[Any, ...], contrast: Mapping, raw: Mapping) -> Mistakes:
    mistakes: Mistakes = []
    name = contrast.get("name")
    if isinstance(name, str) and not (name.isprintable() and name.strip()):
        mistakes.append(Mistake((*at, "name"), "is empty or has control characters", "reword it"))
    benchmarks = as_list(contrast.get("benchmarks"))
    for bench in sorted({str(bench) for bench in benchmarks if benchmarks.count(bench) > 1}):
        what = f"benchmark {bench} is listed twice"
        mistakes.append(Mistake((*at, "benchmarks"), what, "each benchmark once"))
    sides = [contrast.get(side) for side in ("treatment", "control")]
    doses = [contrast.get(f"{side}_dose") for side in ("treatment", "control")]
    if sides[0] is not None and sides[0] == sides[1] and doses[0] == doses[1]:
        what = f"compares {sides[0]} with itself"
        mistakes.append(Mistake((*at, "control"), what, "name another arm, or another dose"))
    of_arms = [arm_doses(arm, raw) for arm in sides]
    for side, dose, valid in zip(("treatment", "control"), doses, of_arms, strict=True):
        if dose is not None and valid is not None and dose not in valid:
            what = f"arm {contrast[side]} has no dose {dose}"
            mistakes.append(Mistake((*at, f"{side}_dose"), what, f"valid: {_listed(valid)}"))
    shared = [dose for dose in of_arms[0] or () if dose in (of_arms[1] or ())]
    if all(of_arms) and doses == [None, None] and not shared:
        what = f"{sides[0]} and {sides[1]} have no dose in common"
        mistakes.append(Mistake(at, what, "give treatment_dose and control_dose"))
    for dose in as_list(contrast.get("doses")):
        for arm, valid in zip(sides, of_arms, strict=True):
            if valid is not None and dose not in valid:
                what = f"arm {arm} has no dose {dose}"
                mistakes.append(Mistake((*at, "doses"), what, f"valid: {_listed(valid)}"))
    return mistakes


def _listed(doses: list[Any]) -> str:
    return ", ".join(map(str, doses))


def arm_doses(arm: Any, raw: Mapping) -> list[Any] | None:
    """The doses at which an arm is evaluated; None where that can't be told."""
    settings = section_entries(raw, "arms").get(arm) if isinstance(arm, str) else None
    if settings is None:
        return None
    if isinstance(settings.get("checkpoints"), dict):
        return _dose_keys(settings["checkpoints"])
    if isinstance(settings.get("scores"), dict):
        of_benchmarks = [value for value in settings["scores"].values() if isinstance(value, dict)]
        return _dose_keys(dict.fromkeys(dose for by_dose in of_benchmarks for dose in by_dose))
    if has_chain(settings):
        return raw_doses(settings, raw) or None
    if settings.get("doses") is not None:
        return as_list(settings["doses"]) or None
    name = settings.get("sft")
    sft = section_entries(raw, "sfts").get(name) if isinstance(name, str) else raw.get("sft")
    if sft is None and name is None:
        return [0]
    return as_list(sft.get("doses")) or None if isinstance(sft, dict) else None


def _dose_keys(by_dose: Mapping) -> list[Any]:
    """Doses that are keys; a kept study file has them as text."""
    return [int(dose) if str(dose).isdigit() else dose for dose in by_dose]
