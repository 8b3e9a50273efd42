"""What more data would make a smaller difference of two arms detectable, at the least cost."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

import numpy as np
import pandas as pd

from analysis.looks import tables_of_looks
from analysis.planned_test import Design, Kind, Scenarios, Variances, kind_of, planned_test
from analysis.rows import Row, select, sides_of
from analysis.settings import Costs
from analysis.variance import LACKS, components

MORE = 26  # questions: as many as the paper's benchmark has
TINY = 1e-12  # of a cost
# What the test's variance is made of: the question's own effect cancels in a contrast.
NEEDED = ("seed", "seed x question", "arm x question", "sample")


def next_data_rows(
    table: pd.DataFrame,
    contrasts: Sequence[Row],
    judges: Mapping[str, str | None],
    costs: Costs,
    seeds: Sequence[int],
) -> list[Row]:
    """Components and the worth of more data for each benchmark with a primary contrast.

    They are of the benchmark's first primary contrast of each kind (free, fixed, paired), at its
    first dose with numbers, and rest on the seeds that this contrast rests on. `judges` maps a
    benchmark to the judge that decides; `seeds` are the planned training seeds, in the order in
    which they are run. `settled`: see the function `settled`.
    """
    tables = tables_of_looks(table, contrasts, seeds)
    rows: list[Row] = []
    primary: dict[tuple[str, Kind], Row] = {}
    for contrast in contrasts:
        if contrast["family"] == "primary" and contrast["estimate"] is not None:
            primary.setdefault((contrast["benchmark"], kind_of(contrast)), contrast)
    for (benchmark, kind), contrast in primary.items():
        part = tables[contrast["look"]]
        result = components(part, benchmark, judges[benchmark], sides_of(contrast), kind)
        keys = ("name", "benchmark", "dose", "control_dose")
        row = select(contrast, keys) | {"unit": costs.unit}
        row |= result
        row["purchases"] = next_data(result, result["design"], costs)
        row["settled"] = settled(row["purchases"])
        rows.append(row)
    return rows


@dataclass(frozen=True)
class Size:
    """How much data a study has for the comparison of two arms."""

    seeds: int  # training seeds per arm
    questions: int  # scenarios
    epochs: int  # answers per question


def next_data(components: Row, design: Row | None, costs: Costs) -> list[Row]:
    """What would make a smaller difference of two arms detectable, the best gain per cost first.

    A row for `now` comes before. The options are one seed more for each of the arms (or one corpus
    more, with as many runs as the others; its writing is not in the cost), 26 more scenarios of as
    many questions, and twice the epochs.

    Args:
        components: of the function `components`.
        design: `components["design"]`, or a planned one.
        costs: of one more seed, question and epoch.

    Returns:
        Rows with the sizes after the purchase; `detectable`, the difference (score units) that the
        deciding test (analysis.estimates.two_way, 5 %, two-sided) of a contrast of this kind finds
        in 80 % of studies, `se` and `df` (see analysis.planned_test); `cost`; `gain`, how much less
        is detectable than now; `gain_per_cost`; `note`, the components estimated below 0; `reason`
        where a number is None. `detectable_at_upper`, `gain_at_upper` and `gain_per_cost_at_upper`
        are the same with the variance over seeds at its upper limit, since few seeds show little of
        it; the other components count as known. No smaller difference counts as detectable there,
        also where a larger seed part leaves the test more degrees of freedom.
    """
    negative = [row["component"] for row in components["components"] if row["negative"]]
    note = f"estimated below 0, taken as 0: {', '.join(negative)}" if negative else None
    known_design = design or {}
    now = Size(*(known_design.get(key, 0) for key in ("seeds", "questions", "epochs")))
    arms = known_design.get("arms", 1)
    per_scenario = known_design.get("per_scenario", 1)
    runs = known_design.get("runs", 1)
    unit_name = components.get("training_unit", "seed")
    more_seeds = Size(now.seeds + 1, now.questions, now.epochs)
    more_questions = Size(now.seeds, now.questions + MORE, now.epochs)
    more_epochs = Size(now.seeds, now.questions, 2 * now.epochs)
    options = [
        (f"one more {unit_name} per arm", more_seeds, "seed", arms * runs),
        (f"{MORE} more questions", more_questions, "question", MORE * per_scenario),
        ("twice the epochs", more_epochs, "epoch", now.epochs),
    ]
    first = _option_row("now", now, components, per_scenario * runs, 0.0, note)
    rows: list[Row] = []
    for name, size, unit, count in options:
        price = getattr(costs, unit)
        cost = None if price is None else count * price
        row = _option_row(name, size, components, per_scenario * runs, cost, note)
        for suffix in ("", "_at_upper"):
            before, after = first["detectable" + suffix], row["detectable" + suffix]
            if None not in (before, after):
                row["gain" + suffix] = before - after
                row["gain_per_cost" + suffix] = (before - after) / cost if cost else None
        if row["reason"] is None and price is None:
            row["reason"] = f"the cost of one {unit} is not given"
        rows.append(row)
    return [first, *sorted(rows, key=_worth, reverse=True)]


def settled(purchases: Sequence[Row]) -> bool | None:
    """Whether the options come in one order at the estimate and at the upper limit of the seeds.

    None where fewer than two options have a worth, or where there is no upper limit.
    """
    priced = [row for row in purchases[1:] if row["cost"] is not None and row["gain"] is not None]
    if len(priced) < 2 or any(row["gain_at_upper"] is None for row in priced):
        return None
    at_upper = sorted(priced, key=lambda row: _worth(row, "_at_upper"), reverse=True)
    return [row["purchase"] for row in priced] == [row["purchase"] for row in at_upper]


def _option_row(
    name: str,
    size: Size,
    components: Row,
    per_epoch: float,
    cost: float | None,
    note: str | None,
) -> Row:
    row = {"purchase": name, **asdict(size), **_detectable(components, size, per_epoch)}
    row |= dict.fromkeys(("gain", "gain_per_cost", "gain_at_upper", "gain_per_cost_at_upper"))
    return row | {"cost": cost, "note": note}


def _worth(row: Row, suffix: str = "") -> float:
    """Gain per cost; infinite for a free option and for one that makes a first verdict possible."""
    if row["detectable" + suffix] is None or row["cost"] is None:
        return -np.inf
    gain = row["gain" + suffix]
    return (np.inf if gain is None else float(gain)) / (row["cost"] or TINY)


def _detectable(components: Row, size: Size, per_epoch: float) -> Row:
    """The detectable differences, with the expected standard error and df of the test.

    `per_epoch`: answers to a scenario by the runs of one unit, in each epoch.
    """
    parts = {part["component"]: part for part in components["components"]}
    variances = {name: part["variance"] for name, part in parts.items()}
    if variances.get("sample", 0.0) is None and size.epochs == components["design"]["epochs"]:
        variances["sample"] = 0.0
    reasons = [components["reason"]] if components["reason"] else []
    if size.seeds < 2:
        reasons.append("one training seed per arm")
    if size.questions < 2:
        reasons.append("one question scenario")
    for name in NEEDED:
        if variances.get(name, 0.0) is None:
            reasons.append(f"{name} is unknown: {LACKS[name]}")
    row: Row = dict.fromkeys(("detectable", "detectable_at_upper", "se", "df"))
    if reasons:
        return row | {"reason": reasons[0]}
    scenarios = Scenarios.equal(size.questions, per_epoch)
    design = Design(size.seeds, scenarios, components["kind"])
    test = planned_test(variances_of(variances, size.epochs), design)
    if test is None:
        return row | {"reason": "the scores vary neither over seeds nor over questions"}
    row |= {"detectable": test.detectable(), "se": test.se, "df": test.df, "reason": None}
    if (upper := parts["seed"]["upper"]) is not None:
        at_upper = planned_test(variances_of(variances | {"seed": upper}, size.epochs), design)
        if at_upper is not None:
            row["detectable_at_upper"] = max(at_upper.detectable(), row["detectable"])
    return row


def variances_of(variances: Mapping[str, float | None], epochs: int) -> Variances:
    """Variances by the names of components, as standard deviations; None counts as 0."""
    sd = {name: (variances[name] or 0.0) ** 0.5 for name in NEEDED}
    return Variances(
        question=(variances.get("question") or 0.0) ** 0.5,
        arm_question=sd["arm x question"],
        seed=sd["seed"],
        seed_question=sd["seed x question"],
        sampling=sd["sample"],
        epochs=epochs,
    )
