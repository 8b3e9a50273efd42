"""Looks at a study whose seeds are added in steps, and the level that each look may spend."""

from collections.abc import Callable, Sequence, Set

import pandas as pd
from scipy import stats

from analysis.estimates import ALPHA
from analysis.rows import Row
from analysis.verdicts import DECIDED

KEY = ("name", "benchmark", "dose", "control_dose")
SEEDS = ("treatment_seeds", "control_seeds")
# `contrast_rows` of the seeds given (None: all that are finished), at a level.
RowsOf = Callable[[set[int] | None, float], list[Row]]


def levels(looks: Sequence[int]) -> list[float]:
    """The level of each look at `looks` seeds, the last of which are all that are planned.

    Lan and DeMets (Biometrika 70, 1983) with a spending function of O'Brien and Fleming's kind,
    2 - 2 Phi(z / sqrt(share of the seeds)): each look gets what is spent since the one before, as a
    level of its own. These add up to .05, so that the error over all looks is at most that,
    whatever the joint distribution of the tests in small samples. [3, 5] gives .0114 and .0386.
    """
    z = stats.norm.isf(ALPHA / 2)
    spent = [2 * float(stats.norm.sf(z / (n / looks[-1]) ** 0.5)) for n in looks]
    return [now - before for before, now in zip([0.0, *spent], spent, strict=False)]


def judged_at_looks(
    rows_of: RowsOf, looks: Sequence[int], seeds: Sequence[int], finished: Set[int]
) -> list[Row]:
    """The rows of contrasts of a study that is looked at after some of its seeds.

    A look counts for a row once both its sides are finished with all of the look's seeds. A
    difference that a look finds stands, with the numbers of that look. Before the last look, and
    with seeds that are of no look, what is not found is "interim". Each row gets `look`, its number
    of seeds (None: of none), and `level`, that of its test and interval.

    Args:
        rows_of: the rows of contrasts of some seeds.
        looks: numbers of seeds; empty: one look at all that are planned.
        seeds: the planned training seeds, in the order in which they are run.
        finished: the training seeds that have scores.
    """
    looks = looks or [len(seeds)]
    at_looks: list[list[Row]] = []
    for n, level in zip(looks, levels(looks), strict=True):
        rows = rows_of(set(seeds[:n]), level)
        at_looks.append([row | {"look": n, "level": level} for row in rows])
    everything = at_looks[-1]
    if not finished <= set(seeds[: looks[-1]]) or len(looks) > 1:
        everything = [row | {"look": None, "level": ALPHA} for row in rows_of(None, ALPHA)]
    judged = []
    for row in everything:
        key = [row[name] for name in KEY]
        of_row = [
            at_look
            for rows in at_looks
            for at_look in rows
            if [at_look[name] for name in KEY] == key
            and not at_look["unfinished"]
            and at_look["seeds"] in (0, at_look["look"])
        ]
        decided = [at_look for at_look in of_row if at_look["verdict"] in DECIDED]
        if decided:
            judged.append(decided[0])
        elif of_row and all(of_row[-1][name] == row[name] for name in SEEDS):
            is_last = of_row[-1]["look"] == looks[-1]
            judged.append(of_row[-1] if is_last else _interim(of_row[-1], looks))
        else:
            judged.append(_interim(row, looks) | {"look": None})
    return judged


def of_seeds(table: pd.DataFrame, seeds: set[int] | None) -> pd.DataFrame:
    """The rows of a table with these training seeds, or without one; None: all."""
    return table if seeds is None else table[table["seed"].isna() | table["seed"].isin(seeds)]


def _interim(row: Row, looks: Sequence[int]) -> Row:
    """A row with verdict interim and the reason; as it is where it has no test."""
    if row["verdict"] == "none":
        return row
    if row["unfinished"]:
        reason = f"{row['unfinished']} of its checkpoints are not finished"
    elif row["seeds"] in looks[:-1]:
        following = next(n for n in looks if n > row["seeds"])
        reason = f"not found at the look at {row['seeds']} seeds; the next is at {following}"
    elif row["seeds"] > looks[-1]:
        reason = f"{row['seeds']} seeds, {looks[-1]} were planned"
    else:
        reason = f"{row['seeds']} of {looks[-1]} planned seeds"
    return row | {"verdict": "interim", "reason": reason}
