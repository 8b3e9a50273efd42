"""The power of the deciding test in a study's primary contrasts, before it has run."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from tabulate import tabulate

from analysis import inference
from analysis.rows import Row

# Published differences: documents against QA pairs after 2,500 samples, two writers, animal
# against urban documents.
EFFECTS = (0.062, 0.083, 0.109)


@dataclass(frozen=True)
class Design:
    """A contrast on one judged benchmark, as it is planned."""

    contrast: str
    benchmark: str
    seeds: int  # per arm
    questions: int
    epochs: int  # answers per question


def rows(designs: Sequence[Design]) -> list[Row]:
    """For each design the difference that is `detectable` in 80 % of studies, and `power`.

    `power` has the power for each of EFFECTS (score units). Both are by `inference.power` and its
    assumed variances, with every question a scenario of its own. None with one seed, where no test
    is made.
    """
    rows = []
    for design in designs:
        variances = inference.Variances(epochs=design.epochs)
        detectable = inference.detectable(variances, design.seeds, design.questions)
        if math.isnan(detectable):
            power: dict[str, float | None] = dict.fromkeys(map(str, EFFECTS))
            rows.append(asdict(design) | {"detectable": None, "power": power})
            continue
        power = {
            str(effect): inference.power(effect, variances, design.seeds, design.questions)
            for effect in EFFECTS
        }
        rows.append(asdict(design) | {"detectable": detectable, "power": power})
    return rows


def show(rows: Sequence[Row]) -> str:
    """The rows as a table, with their assumptions."""
    keys = ("contrast", "benchmark", "seeds", "questions", "epochs")
    headers = ["primary contrast", "on", "seeds", "questions", "epochs", "detectable, points"]
    headers += [f"power for {100 * effect:.1f}" for effect in EFFECTS]
    lines = []
    for row in rows:
        detectable = "-" if row["detectable"] is None else f"{100 * row['detectable']:.1f}"
        shares = ["-" if share is None else f"{share:.0%}" for share in row["power"].values()]
        lines.append([*(row[key] for key in keys), detectable, *shares])
    note = (
        "by assumed variances (analysis.inference.Variances): run pilot.yaml first, "
        "whose report has your own"
    )
    return tabulate(lines, headers=headers) + "\n" + note
