"""The questions about the design of a study: what was compared, by whom graded, when declared."""

from collections.abc import Iterator
from typing import Any

from study.review.answers import Answer, Light, counted, family, listed, shortened
from study.review.evidence import Evidence, folder_of

FEW_SEEDS = 3
RESULTS = "results/results.json"


def seeds(evidence: Evidence) -> Answer:
    """How many trainings stand behind each side of a primary contrast."""
    question = "Does each primary contrast rest on several training seeds?"
    counts: dict[str, int] = {}
    for row in evidence.primary:
        for side, dose in (("treatment", "dose"), ("control", "control_dose")):
            trained = [
                score["seed"]
                for score in evidence.results["scores"]
                if (score["benchmark"], score["arm"], score["dose"])
                == (row["benchmark"], row[side], row[dose])
                and score["seed"] is not None
            ]
            scored = evidence.results["scores"]
            is_trained = any(s["arm"] == row[side] and s["seed"] is not None for s in scored)
            if is_trained:
                label = f"{row[side]} on {row['benchmark']} at dose {row[dose]}"
                counts[label] = len({*trained})
    if not counts:
        return Answer("seeds", question, "amber", "No trained arm is in a contrast.", RESULTS)
    fewest = min(counts.values())
    text = f"The fewest are {counted(fewest, 'seed')}, the most {max(counts.values())}."
    light: Light = "green"
    if fewest < FEW_SEEDS:
        light = "amber"
        text += " The interval over two seeds is wide."
    if fewest < 2:
        light = "red"
        text = "A side of a contrast has one training seed: nothing tells the effect of the data "
        text += "from that of the seed."
    few = (f"{name}: {counted(n, 'seed')}" for name, n in counts.items() if n < FEW_SEEDS)
    return Answer("seeds", question, light, text, RESULTS, shortened(few))


def confounds(evidence: Evidence) -> Answer:
    """In how many things the arms of a contrast differ."""
    question = "Do the two arms of each contrast differ in one thing alone?"
    file = f"{evidence.analysis}/config.yaml"
    primary = {row["name"] for row in evidence.primary}
    units: dict[str, list[str]] = {}
    keys: dict[str, list[str]] = {}
    for row in evidence.results["contrasts"]:
        keys[row["name"]] = row["differences"]
        units[row["name"]] = list(dict.fromkeys(key.partition(".")[0] for key in keys[row["name"]]))
    if not units:
        return Answer("confounds", question, "amber", "No contrast is declared.", file)
    several = {name: of for name, of in units.items() if len(of) > 1}
    unclear = [name for name, of in units.items() if not of or "what is not recorded" in of[0]]
    details = shortened(
        [f"{name}: {listed(keys[name])}" for name in several]
        + [f"{name}: {listed(keys[name]) or 'nothing differs'}" for name in unclear]
    )
    if several.keys() & primary:
        count = counted(len(several.keys() & primary), "primary contrast")
        text = f"In {count} the arms differ in several things: the effect is of none of them alone."
        return Answer("confounds", question, "red", text, file, details)
    if several or unclear:
        text = "Outside the primary family arms differ in several things, or it is not recorded."
        return Answer("confounds", question, "amber", text, file, details)
    text = (
        f"The audit of all settings finds one thing in each ({counted(len(units), 'contrast')}): "
    )
    text += f"{listed(of[0] for of in units.values())}."
    return Answer("confounds", question, "green", text, file)


def contamination(evidence: Evidence) -> Answer:
    """Whether texts of a benchmark were trained on."""
    question = "Were the training documents searched for the benchmarks' texts?"
    cells = evidence.of_stage("contamination")
    corpora = evidence.of_stage("documents")
    if not cells:
        text = "No corpus was compared with a benchmark."
        if not corpora:
            text = "The study has no documents of its own; others' training data are not searched."
        file = f"{evidence.analysis}/manifest.json"
        return Answer("contamination", question, "amber", text, file)
    hits = {folder_of(row): row["manifest"]["counts"].get("documents_hit", 0) for row in cells}
    searched = sum(row["manifest"]["counts"].get("documents", 0) for row in cells)
    worst = max(hits, key=lambda name: hits[name])
    file = f"{worst}/manifest.json"
    if hits[worst]:
        text = f"{counted(sum(hits.values()), 'document')} hold text of a benchmark."
        details = shortened(f"{name}: {n} documents" for name, n in hits.items() if n)
        return Answer("contamination", question, "red", text, file, details)
    text = f"{counted(len(cells), 'comparison')} of a corpus with a benchmark, "
    text += f"{searched:,} documents in all: none holds a text of a benchmark."
    return Answer("contamination", question, "green", text, file)


def judge(evidence: Evidence) -> Answer:
    """Whether the judge is another model than writer and start models."""
    question = "Is the judge apart from the writer and from the models that it grades?"
    file = "results/study.yaml"
    judges = {
        name: bench["judge"]
        for name, bench in evidence.settings["benchmarks"].items()
        if bench["judge"]
    }
    if not judges:
        text = "Nothing is judged: scores are likelihoods or rules."
        return Answer("judge", question, "green", text, file)
    faults, doubts = [], []
    if dummies := [n for n, b in evidence.settings["benchmarks"].items() if b["dummy"]]:
        faults.append(f"The judge of {listed(dummies)} is the kit's dummy, which is no model.")
    dummy_judges = {bench["judge"] for bench in _benchmarks(evidence) if bench["dummy"]}
    models = dict(_start_models(evidence))
    writers = {row["model"] for row in evidence.settings["writers"] if row["model"]}
    for name in dict.fromkeys(judges.values()):
        if name in dummy_judges:
            continue
        alike = [model for model, of in models.items() if family(of) == family(name)]
        if alike:
            faults.append(f"{name} grades models of its own family: {listed(alike)}.")
        wrote = [writer for writer in writers if family(writer) == family(name)]
        if wrote:
            doubts.append(f"{name} grades what was trained on texts of its family: {listed(wrote)}")
    names = listed(judges.values())
    if faults:
        return Answer("judge", question, "red", " ".join(faults), file, shortened(doubts))
    if doubts:
        text = f"The judge ({names}) and a writer of the documents are of one family."
        return Answer("judge", question, "amber", text, file, shortened(doubts))
    text = f"{names} judges, {listed(writers) or 'no model'} writes, "
    text += f"{listed(family(of) for of in models.values())} is trained."
    return Answer("judge", question, "green", text, file)


def _benchmarks(evidence: Evidence) -> list[dict[str, Any]]:
    return list(evidence.settings["benchmarks"].values())


def _start_models(evidence: Evidence) -> Iterator[tuple[str, str]]:
    """The name of each start model in the study file, and what it is."""
    for name, model in (evidence.study_file.get("models") or {}).items():
        yield name, next((model[key] for key in ("hub", "path", "make") if model.get(key)), name)


def declaration(evidence: Evidence) -> Answer:
    """Whether the contrasts were declared before the first score."""
    question = "Were contrasts, seeds and benchmarks declared before the data?"
    file = "results/declaration.json"
    planned = evidence.settings["declaration"]
    first = evidence.first_score() or "unknown"
    if evidence.declaration_fault:
        text = f"The record of the declaration does not count: {evidence.declaration_fault}."
        return Answer("declaration", question, "red", text, file)
    if planned is None:
        text = "No record shows that anything was declared before the first score."
        return Answer("declaration", question, "red", text, RESULTS)
    dates = f"declared {evidence.declared}, first score {first}"
    if planned["differences"]:
        text = f"The results are not of what was declared ({dates})."
        return Answer("declaration", question, "red", text, file, shortened(planned["differences"]))
    if evidence.declared and first < evidence.declared:
        text = f"The declaration is younger than the first score ({dates})."
        return Answer("declaration", question, "red", text, file)
    text = f"The results are of what was declared: {dates}. The dates are the kit's own; a pushed "
    text += "tag or a registration dates them for others."
    return Answer("declaration", question, "green", text, file)
