"""What a study could find, before it has run: the power of the deciding test in its primary contrasts."""

import math
from dataclasses import asdict, dataclass
from typing import Any

from tabulate import tabulate

from analysis import inference

# Published differences: documents against QA pairs after 2,500 samples, two writers, animal against urban documents.
EFFECTS = (0.062, 0.083, 0.109)


@dataclass(frozen=True)
class Design:
    """A contrast on one judged benchmark, as it is planned."""

    contrast: str
    benchmark: str
    seeds: int
    questions: int
    epochs: int  # answers per question


def rows(designs: list[Design]) -> list[dict[str, Any]]:
    """For each design: the difference that is `detectable` with a power of 80 %, and the `power` for EFFECTS.

    By `inference.power` and its assumed variances, with every question a scenario of its own. None with one seed,
    where no test is made.
    """
    rows = []
    for design in designs:
        variances = inference.Variances(epochs=design.epochs)
        detectable = inference.detectable(variances, design.seeds, design.questions)
        power = {str(effect): inference.power(effect, variances, design.seeds, design.questions) for effect in EFFECTS}
        if math.isnan(detectable):
            rows.append(asdict(design) | {"detectable": None, "power": dict.fromkeys(power)})
        else:
            rows.append(asdict(design) | {"detectable": detectable, "power": power})
    return rows


def show(found: list[dict[str, Any]]) -> str:
    """The rows as a table, with what they assume."""
    headers = ["primary contrast", "on", "seeds", "questions", "epochs", "detectable, points"]
    headers += [f"power for {100 * effect:.1f}" for effect in EFFECTS]
    lines = []
    for row in found:
        shares = ["-" if share is None else f"{share:.0%}" for share in row["power"].values()]
        least = "-" if row["detectable"] is None else f"{100 * row['detectable']:.1f}"
        lines.append([*(row[key] for key in ("contrast", "benchmark", "seeds", "questions", "epochs")), least, *shares])
    note = "by assumed variances (analysis.inference.Variances): run pilot.yaml first, whose report has your own"
    return tabulate(lines, headers=headers) + "\n" + note
