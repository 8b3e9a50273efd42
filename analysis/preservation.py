"""What keeps a midtrained value through later training, and what that costs.

Of the contrasts of the family `preservation`: each compares an arm with a method (the treatment)
with the same chain without it (the control).
"""

from collections.abc import Mapping
from statistics import fmean

from analysis.headline import interval, percent
from analysis.rows import Results, Row
from analysis.table_text import Table
from analysis.tables import BENCHMARK, number_columns, table, text_columns

FAMILY = "preservation"
INSTRUCTION = "ifeval"
INTRUSION = "topic_intrusion"
Means = Mapping[tuple[str, str, int], float | None]  # by benchmark, arm, dose
PAID = ("instruction_paid", "capability_paid")


def kind_of(benchmark: Row) -> str:
    """What a benchmark measures: instruction, intrusion, capability or compassion; or `probe`."""
    if benchmark["task"] in (INSTRUCTION, INTRUSION):
        return "instruction" if benchmark["task"] == INSTRUCTION else "intrusion"
    if benchmark["judge"] == "probe":
        return "probe"
    return "capability" if benchmark["judge"] == "lm-eval" else "compassion"


def preservation_rows(results: Results, untrained: Mapping[str, str]) -> list[Row]:
    """A row for each arm of a contrast of FAMILY, on each benchmark of compassion.

    Args:
        results: with `arms`, `contrasts` and `benchmarks`.
        untrained: arm -> the arm that has its start model without documents.

    Returns:
        Rows with benchmark, control, arm (the control among them), dose, and in score units:

        - `score`; `before`: of the control at dose 0; `floor`: of the untrained arm at this dose,
          or else at dose 0; `retained`: (score - floor) / (before - floor), the
          share of what midtraining gave; None with a `reason`.
        - `instruction`, `capability` (mean over the benchmarks by lm-eval) and `intrusion`, and
          what the method costs against the control: `instruction_paid`, `capability_paid` (of
          benchmarks that both have) and `added_intrusion`.
        - `paid`: mean of the two that there are; `pareto`: whether no other arm of this control
          keeps as much for less, or more for as much.
        - `estimate`, `low`, `high`, `verdict`: of the contrast on this benchmark; None: a control.
    """
    means: Means = {
        (row["benchmark"], row["arm"], row["dose"]): row["mean"] for row in results["arms"]
    }
    kinds = {name: kind_of(row) for name, row in results["benchmarks"].items()}
    rows: list[Row] = []
    for benchmark in (name for name, kind in kinds.items() if kind == "compassion"):
        of_benchmark = [
            row
            for row in results["contrasts"]
            if row["family"] == FAMILY and row["benchmark"] == benchmark
        ]
        controls = dict.fromkeys((row["control"], row["control_dose"]) for row in of_benchmark)
        for control in controls:
            group = [_row(means, kinds, benchmark, control, control, untrained, None)]
            for contrast in of_benchmark:
                if (contrast["control"], contrast["control_dose"]) == control:
                    arm = (contrast["treatment"], contrast["dose"])
                    group.append(_row(means, kinds, benchmark, control, arm, untrained, contrast))
            _mark_front(group)
            rows += group
    return rows


def _row(
    means: Means,
    kinds: Mapping[str, str],
    benchmark: str,
    control: tuple[str, int],
    arm: tuple[str, int],
    untrained: Mapping[str, str],
    contrast: Row | None,
) -> Row:
    name, dose = arm
    row: Row = {"benchmark": benchmark, "control": control[0], "arm": name, "dose": dose}
    row |= _retained(means, benchmark, control, arm, untrained.get(control[0]))
    for kind in ("instruction", "capability", "intrusion"):
        asked = [n for n, k in kinds.items() if k == kind and means.get((n, *arm)) is not None]
        row[kind] = _mean([means[n, *arm] for n in asked])
        shared = [n for n in asked if means.get((n, *control)) is not None]
        pairs = [(means[n, *control], means[n, *arm]) for n in shared]
        cost = _mean([a - b for a, b in pairs if a is not None and b is not None])
        if kind == "intrusion":
            row["added_intrusion"] = None if cost is None else -cost
        else:
            row[f"{kind}_paid"] = cost
    row["paid"] = _mean([row[key] for key in PAID])
    for key in ("estimate", "low", "high", "verdict"):
        row[key] = contrast and contrast[key]
    return row


def _retained(
    means: Means,
    benchmark: str,
    control: tuple[str, int],
    arm: tuple[str, int],
    untrained: str | None,
) -> Row:
    score = means.get((benchmark, *arm))
    before = means.get((benchmark, control[0], 0))
    floor = means.get((benchmark, untrained or "", arm[1]))
    if floor is None:
        floor = means.get((benchmark, untrained or "", 0))
    row: Row = {"score": score, "before": before, "floor": floor, "retained": None, "reason": None}
    if None in (score, before, floor):
        names = {"score": "this arm", "before": "the control before SFT", "floor": "its untrained"}
        absent = next(text for key, text in names.items() if row[key] is None)
        return row | {"reason": f"no score of {absent}"}
    if before <= floor:  # type: ignore[operator]
        return row | {"reason": "midtraining raised no score"}
    return row | {"retained": (score - floor) / (before - floor)}  # type: ignore[operator]


def _mean(values: list[float | None]) -> float | None:
    given = [value for value in values if value is not None]
    return fmean(given) if given else None


def _mark_front(rows: list[Row]) -> None:
    """Say of each row whether no other is better in one of kept and paid, and not worse in both."""
    for row in rows:
        if row["retained"] is None or row["paid"] is None:
            row["pareto"] = None
            continue
        row["pareto"] = not any(
            other["retained"] >= row["retained"]
            and other["paid"] <= row["paid"]
            and (other["retained"], other["paid"]) != (row["retained"], row["paid"])
            for other in rows
            if other["retained"] is not None and other["paid"] is not None
        )


def mark(row: Row) -> str:
    """Whether an arm is on the front, as a cell of a table."""
    return {True: "yes", False: "no", None: "-"}[row["pareto"]]


def preservation_table(results: Results) -> Table:
    """Kept and paid of each arm beside its control."""
    rows = [
        [
            row["benchmark"],
            f"{row['control']} (control)",
            row["arm"],
            str(row["dose"]),
            percent(row["score"]),
            percent(row["retained"]),
            percent(row["estimate"], "+"),
            interval(row, "+"),
            *(percent(row[key], "+") for key in (*PAID, "added_intrusion")),
            mark(row),
        ]
        for row in results["preservation"]
    ]
    columns = text_columns(BENCHMARK, "Control", "Arm")
    columns += number_columns("SFT dose", "Score", "Kept", "Points", "Interval")
    columns += number_columns("Paid: IFEval", "Capa\u00adbility", "Added intru\u00adsion")
    columns += text_columns("Front")
    return table(
        results,
        "preservation",
        "What keeps the value, and what it costs",
        "What each method keeps of the midtrained value, and what it costs against the same chain "
        "without it",
        columns,
        rows,
        [
            "Kept: the score less that of the untrained model, in percent of the same before SFT.",
            "Points and interval: of the contrast with the control, on this benchmark.",
            "Paid: what IFEval, and the mean of the other tasks by lm-eval (capability), lose "
            "against the control, in points; added: what topic intrusion gains. Their scores are "
            "in the table of scores.",
            "Front: no other arm keeps as much for less, or more for as much, paid being the mean "
            "of both. Means over seeds; a front is described, not tested.",
        ],
        group_by=2,
    )
