"""The questions about the data of a study: grades, answers, trainings, files, robustness."""

from collections import defaultdict
from collections.abc import Iterator
from typing import Any

from core.stages import TRAINING_STAGES
from study.review.answers import Answer, Light, counted, listed, percent, points, shortened
from study.review.design import RESULTS
from study.review.evidence import Evidence, folder_of

HUMAN = "human"  # the judge's name of grades by people (eval.labels)
ALPHA_USABLE = 0.667
"""Krippendorff's lowest agreement for tentative conclusions ("Content analysis", 2004, p. 241)."""
MALFORMED = 0.10  # a share of answers
UNEQUAL = 0.05  # a difference of two such shares, or of two numbers of steps
FEW_STEPS = 100
DECIDED = ("higher", "lower")


def people(evidence: Evidence) -> Answer:
    """Whether people have graded the same answers."""
    question = "Does the judge agree with people on a sample of the answers?"
    judged = [name for name, row in evidence.settings["benchmarks"].items() if row["judge"]]
    if not judged:
        text = "Nothing is judged: there is no grade to compare."
        return Answer("people", question, "green", text, RESULTS)
    pairs = {
        row["benchmark"]: pair
        for row in evidence.results["judges"]
        for pair in row["pairs"]
        if row["arm"] is None and pair["other"] == HUMAN and pair["judge"] == row["primary"]
    }
    missing = [name for name in judged if name not in pairs]
    lines = shortened(
        f"{name}: {pair['n']:,} grades, equal in {percent(pair['agreement'] or 0)}, "
        f"alpha {_number(pair['alpha'])}"
        for name, pair in pairs.items()
    )
    if missing:
        text = (
            f"No person has graded answers of {listed(missing)} (the command label draws a sample)."
        )
        return Answer("people", question, "amber", text, RESULTS, lines)
    low = [name for name, pair in pairs.items() if (pair["alpha"] or 0) < ALPHA_USABLE]
    if low:
        text = f"Krippendorff's alpha with people is below {ALPHA_USABLE} on {listed(low)}."
        return Answer("people", question, "amber", text, RESULTS, lines)
    text = f"Krippendorff's alpha with people is {ALPHA_USABLE} or more on {listed(judged)}."
    return Answer("people", question, "green", text, RESULTS, lines)


def missing(evidence: Evidence) -> Answer:
    """What is missing, and whether it could turn a result round."""
    question = "Is anything missing, and could it change a result?"
    unscored = evidence.results["missing"]
    bounds = evidence.results["bounds"]
    if not unscored and not bounds:
        text = "Every planned checkpoint is scored, and every answer has its grade."
        return Answer("missing", question, "green", text, RESULTS)
    verdicts = {_key(row): row["verdict"] for row in evidence.primary}
    open_rows = [
        row
        for row in bounds.get("contrasts", [])
        if verdicts.get(_key(row)) in DECIDED and row["low"] <= 0 <= row["high"]
    ]
    shares = [row for row in bounds.get("arms", []) if row["missing"]]
    details = [f"{_name(row)}: {points(row['low'])} to {points(row['high'])}" for row in open_rows]
    details += [
        f"{row['arm']} on {row['benchmark']}, {row['dimension']}: {percent(row['share'])} missing"
        for row in sorted(shares, key=lambda row: -row["share"])
    ]
    text = f"{counted(len(unscored), 'planned checkpoint')} without a score; "
    text += "the largest share of missing grades is "
    text += f"{percent(max((row['share'] for row in shares), default=0.0))}."
    light: Light = "amber"
    if open_rows:
        light = "red"
        text += f" The bounds of {counted(len(open_rows), 'decided contrast')} hold zero."
    elif bounds:
        text += " No decided contrast could change its sign by them."
    return Answer("missing", question, light, text, RESULTS, shortened(details))


def malformed(evidence: Evidence) -> Answer:
    """Whether answers are malformed, and in one arm more than in the other."""
    question = "Are answers malformed, and in both arms alike?"
    rows = evidence.results["malformed"]
    if not rows:
        text = "Malformed answers were not counted: nothing is judged, or the grades are older."
        return Answer("malformed", question, "amber", text, RESULTS)
    shares = {(row["benchmark"], row["arm"], row["dose"]): row["malformed"] for row in rows}
    unequal = []
    for row in evidence.primary:
        sides = [
            shares.get((row["benchmark"], row[side], row[dose]))
            for side, dose in (("treatment", "dose"), ("control", "control_dose"))
        ]
        if None not in sides and abs(sides[0] - sides[1]) > UNEQUAL:  # type: ignore[operator]
            unequal.append(f"{_name(row)}: {sides[0]:.1%} and {sides[1]:.1%}")
    largest = max(shares.values())
    text = f"At most {percent(largest)} of an arm's answers are malformed"
    text += ", in the arms of a contrast unequally." if unequal else "; contrasted arms are alike."
    light: Light = "amber" if unequal or largest > MALFORMED else "green"
    return Answer("malformed", question, light, text, RESULTS, shortened(unequal))


def steps(evidence: Evidence) -> Answer:
    """How many optimizer steps a training took, in both arms alike."""
    question = "How many optimizer steps did each training take, in both arms alike?"
    counts = {
        row["cell"]: row["manifest"]["counts"].get("steps") or 0
        for row in evidence.of_stage(*TRAINING_STAGES)
        if "run" not in row["manifest"]["inputs"]
    }
    if not counts:
        text = "The study trains nothing itself."
        return Answer("steps", question, "amber", text, f"{evidence.analysis}/config.yaml")
    fewest = min(counts, key=lambda cell: counts[cell])
    file = "cells/" + "/".join(fewest.split("/")[-2:]) + "/manifest.json"
    unequal = shortened(_unequal_steps(evidence, counts))
    most = max(counts.values())
    span = f"{most:,}" if counts[fewest] == most else f"{counts[fewest]:,} to {most:,}"
    text = f"{counted(len(counts), 'training')} of {span} optimizer steps."
    light: Light = "green"
    if unequal or counts[fewest] < FEW_STEPS:
        light = "amber"
        text += " Contrasted arms differ." if unequal else " So few steps change a model little."
    if not counts[fewest]:
        light = "red"
        text += " One took none."
    return Answer("steps", question, light, text, file, unequal)


def _unequal_steps(evidence: Evidence, counts: dict[str, int]) -> Iterator[str]:
    """Stages in which the two arms of a primary contrast took other numbers of steps."""
    by_arm: dict[tuple[str, str], list[int]] = defaultdict(list)
    for training in evidence.trainings:
        if training["cell"] in counts:
            by_arm[training["stage"], training["arm"]].append(counts[training["cell"]])
    for stage in dict.fromkeys(stage for stage, _ in by_arm):
        for row in evidence.primary:
            sides = [by_arm.get((stage, row[side])) for side in ("treatment", "control")]
            if not all(sides):
                continue
            means = [sum(side) / len(side) for side in sides if side]
            if abs(means[0] - means[1]) > UNEQUAL * max(means):
                yield f"{row['name']}, {stage}: {means[0]:,.0f} and {means[1]:,.0f} steps"


def negative_control(evidence: Evidence) -> Answer:
    """Whether the control arm moves away from the untrained model."""
    question = "Does the negative control move?"
    untrained = evidence.settings.get("untrained", {})
    controls = {
        row["control"]: untrained[row["control"]]
        for row in evidence.primary
        if untrained.get(row["control"], row["control"]) != row["control"]
    }
    if not controls:
        text = "No control arm is compared with its untrained model: add an arm that has a start "
        text += "model and nothing else."
        return Answer("negative control", question, "amber", text, RESULTS)
    tested = [
        row
        for row in evidence.results["contrasts"]
        for control, start in controls.items()
        if {row["treatment"], row["control"]} == {control, start}
    ]
    moved = [row for row in tested if row["verdict"] in DECIDED]
    if moved:
        text = "A control arm differs from its untrained model, so a difference between the arms "
        text += "is not the treatment's alone."
        details = shortened(f"{_name(row)}: {points(row['estimate'])}" for row in moved)
        return Answer("negative control", question, "red", text, RESULTS, details)
    details = shortened(_moves(evidence, controls))
    if not tested:
        text = "No contrast of a control arm with its untrained model is declared; means alone are "
        text += "compared here."
        return Answer("negative control", question, "amber", text, RESULTS, details)
    text = f"{counted(len(tested), 'declared contrast')} of a control arm with its untrained "
    text += "model: none found a difference."
    return Answer("negative control", question, "green", text, RESULTS, details)


def _moves(evidence: Evidence, controls: dict[str, str]) -> Iterator[str]:
    """By how much each control arm's mean lies from its untrained model's."""
    means = {
        (row["benchmark"], row["arm"], row["dose"]): row["mean"] for row in evidence.results["arms"]
    }
    for (benchmark, arm, dose), mean in means.items():
        start = means.get((benchmark, controls.get(arm, ""), dose))
        if start is not None and mean is not None:
            distance = f"{points(mean - start)} from {controls[arm]}"
            yield f"{arm} on {benchmark} at dose {dose}: {distance}"


def hashes(evidence: Evidence) -> Answer:
    """Whether all files are those that were recorded."""
    question = "Are all files those that the results were made of?"
    checked = sum(len(row["checks"]) for row in evidence.rows)
    if evidence.changes:
        first = evidence.changes[0]
        cell = next((row for row in evidence.rows if row["cell"] == first["cell"]), None)
        file = f"{folder_of(cell)}/{first['file']}" if cell else first["file"]
        text = f"{counted(len(evidence.changes), 'file')} of {checked:,} "
        text += "are not as they were recorded."
        details = shortened(
            f"{row['cell']}: {row['file']} {row['problem']}" for row in evidence.changes
        )
        return Answer("hashes", question, "red", text, file, details)
    file = "results/manifest.json"
    text = f"{checked:,} files of {counted(len(evidence.rows), 'cell')} have the recorded sha256."
    if evidence.differences:
        text += " The study file was edited since."
        return Answer("hashes", question, "amber", text, file, shortened(evidence.differences))
    return Answer("hashes", question, "green", text, file)


def overturn(evidence: Evidence) -> Answer:
    """Whether a result hangs on one seed, question, scenario or judge."""
    question = "What would overturn it: one seed, one question, another judge?"
    lines, verdicts = [], []
    for row in evidence.primary:
        if row["verdict"] == "none":
            continue
        verdicts.append(row["verdict"])
        for kind, holds in row["holds"].items():
            if holds and holds[0] < holds[1]:
                without = "by another judge" if kind == "judge" else f"without one {kind}"
                lines.append(
                    f"{_name(row)}: {row['verdict']} in {holds[0]} of {holds[1]} {without}"
                )
    if not verdicts:
        text = "No primary contrast has a verdict, so there is nothing to overturn."
        return Answer("overturn", question, "amber", text, RESULTS)
    counts = listed(f"{verdicts.count(verdict)} {verdict}" for verdict in verdicts)
    if lines:
        text = f"Some verdicts ({counts}) hang on one seed, question, scenario or judge."
        return Answer("overturn", question, "amber", text, RESULTS, shortened(lines))
    text = f"The verdicts ({counts}) hold without any one seed, question or scenario"
    judged = any(row["holds"]["judge"] for row in evidence.primary)
    text += ", and by the other judges." if judged else "; there is no other judge."
    return Answer("overturn", question, "green", text, RESULTS)


def _key(row: dict[str, Any]) -> tuple[Any, ...]:
    return tuple(row[key] for key in ("name", "benchmark", "dose", "control_dose"))


def _name(row: dict[str, Any]) -> str:
    """A row of contrasts as text."""
    doses = listed((row["dose"], row["control_dose"]))
    return f"{row['name']} on {row['benchmark']} at dose {doses}"


def _number(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.2f}"
