"""What a study could find, before it has run: the power of the deciding test in its primary contrasts."""

import importlib
import math
from typing import Any

from tabulate import tabulate

from study.benchmarks import declaration, sources
from study.schema import Benchmark, Study
from study.sources import locate

# Published differences: documents against QA pairs after 2,500 samples, two writers, animal against urban documents.
EFFECTS = (0.062, 0.083, 0.109)


def rows(study: Study) -> list[dict[str, Any]]:
    """Per primary contrast and judged benchmark: what is `detectable` with a power of 80 %, and `power` for EFFECTS.

    By analysis.inference's formula and its assumed variances, with every question a scenario of its own; None with one
    seed, where no test is made.
    """
    inference, found = importlib.import_module("analysis.inference"), []
    for contrast in (one for one in study.contrasts if one.family == "primary"):
        for name in contrast.on:
            bench = study.benchmarks[name]
            if (questions := _questions(bench)) is None:
                continue
            variances = inference.Variances(epochs=bench.epochs)
            power = [inference.power(effect, variances, len(study.seeds), questions) for effect in EFFECTS]
            least = inference.detectable(variances, len(study.seeds), questions)
            row: dict[str, Any] = {"contrast": contrast.name, "benchmark": name, "seeds": len(study.seeds)}
            row |= {"questions": questions, "epochs": bench.epochs, "detectable": None if math.isnan(least) else least}
            found.append(
                row | {"power": dict(zip(map(str, EFFECTS), power if row["detectable"] else [None] * 3, strict=True))}
            )
    return found


def _questions(bench: Benchmark) -> int | None:
    """How many questions a judged benchmark has; None where that is not known here, or no judge grades it."""
    if "questions" not in (files := sources(bench)):
        return None
    path = locate(files["questions"])
    held = path.read_text(encoding="utf-8").splitlines() if path.is_file() and path.suffix == ".jsonl" else []
    return declaration(bench)["rows"] or len(held) or None


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
