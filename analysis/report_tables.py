"""What the report shows in rows: the matrix of contrasts, dimensions, and a judge's favour."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from analysis.headline import doses, interval, percent, runs_text
from analysis.rows import Results, Row
from analysis.verdicts import DECIDED, HANGS

# Shapes say what colors say, also in black and white.
MARKS = {"higher": "▲", "lower": "▼", "inconclusive": "○", "interim": "□", HANGS: "△", "none": "–"}
GOOD = {
    "higher": "higher is better",
    "lower": "lower is better",
    "neither": "neither way is better",
}


def verdict_name(row: Row) -> str:
    """The verdict of a contrast in words."""
    return "no verdict" if row["verdict"] == "none" else str(row["verdict"])


def worth(results: Results, row: Row) -> str:
    """`better` or `worse`, of a verdict on a benchmark that has a good direction; else nothing."""
    direction = results["benchmarks"][row["benchmark"]]["direction"]
    if row["verdict"] not in DECIDED or direction == "neither":
        return ""
    return "better" if row["verdict"] == direction else "worse"


@dataclass
class MatrixPart:
    """The contrasts at one dose: a line for each, with a row of results or None a benchmark."""

    dose: str
    lines: dict[str, list[tuple[int, Row] | None]] = field(default_factory=dict)


def matrix(results: Results) -> tuple[list[str], list[MatrixPart]]:
    """Benchmarks with contrasts, and the matrix of contrasts x benchmarks dose by dose."""
    rows = results["contrasts"]
    tested = {row["benchmark"] for row in rows}
    benchmarks = [name for name in results["benchmarks"] if name in tested]
    parts: dict[str, MatrixPart] = {}
    for index, row in enumerate(rows):
        part = parts.setdefault(doses(row), MatrixPart(doses(row)))
        line = part.lines.setdefault(row["name"], [None] * len(benchmarks))
        line[benchmarks.index(row["benchmark"])] = (index, row)
    return benchmarks, [parts[dose] for dose in sorted(parts, key=_dose_order)]


def _dose_order(dose: str) -> tuple[bool, int, str]:
    """Doses by size; those that compare two, and none, come last."""
    return (False, int(dose), "") if dose.isdecimal() else (True, 0, dose)


@dataclass(frozen=True)
class DimensionTable:
    """Mean grades by dimension on one benchmark at one dose, a column an arm."""

    benchmark: str
    dose: int
    arms: list[str]
    # dimension, number of its questions, score of each arm
    lines: list[tuple[str, int, list[float | None]]]


def dimension_tables(results: Results) -> list[DimensionTable]:
    tables: dict[tuple[str, int], dict[str, dict[str, Row]]] = {}
    for row in results["dimensions"]:
        by_dimension = tables.setdefault((row["benchmark"], row["dose"]), {})
        by_dimension.setdefault(row["dimension"], {})[row["arm"]] = row
    shown = []
    for (benchmark, dose), by_dimension in tables.items():
        of = {arm for by_arm in by_dimension.values() for arm in by_arm}
        arms = [arm for arm in results["arm_order"] if arm in of]
        lines = [
            (
                dimension,
                max(row["questions"] for row in by_arm.values()),
                [by_arm[arm]["score"] if arm in by_arm else None for arm in arms],
            )
            for dimension, by_arm in by_dimension.items()
        ]
        shown.append(DimensionTable(benchmark, dose, arms, lines))
    return shown


def runs_of_both(results: Results, row: Row) -> str:
    """The training seeds of both arms of a contrast: `3 / fixed seeds`, `0 / 0 seeds`.

    `fixed`: a checkpoint without a training seed. 0: no answer of the arm has a grade yet.
    """
    fixed = {(of["benchmark"], of["dose"], of["arm"]) for of in results["arms"] if of["fixed"]}
    texts = []
    for side, dose in (
        ("treatment", row["dose"]),
        ("control", row.get("control_dose", row["dose"])),
    ):
        text = runs_text(row[f"{side}_seeds"], row[f"{side}_corpora"])
        is_fixed = text == "0" and (row["benchmark"], dose, row[side]) in fixed
        texts.append("fixed" if is_fixed else text)
    unit = "" if row["treatment_corpora"] or row["control_corpora"] else " seeds"
    return f"{' / '.join(texts)}{unit}"


def favour(bias: Row) -> str:
    """Which arm a judge favours more than the first judge does, by how many points."""
    if bias["estimate"] is None:
        return "no number"
    sign = -1 if bias["estimate"] < 0 else 1
    arm = bias["treatment"] if sign > 0 else bias["control"]
    text = f"it favours {arm} by {percent(sign * bias['estimate'])}"
    if None in (bias["low"], bias["high"]):
        return text
    low, high = sorted(sign * bias[end] for end in ("low", "high"))
    return f"{text} {interval({'low': low, 'high': high}, '+')}"


def by_checkpoint(results: Results) -> Mapping[tuple[str, int, str], Sequence[Row]]:
    """(benchmark, dose, arm) -> the rows of its seeds."""
    seeds: dict[tuple[str, int, str], list[Row]] = {}
    for score in results["scores"]:
        seeds.setdefault((score["benchmark"], score["dose"], score["arm"]), []).append(score)
    return seeds
