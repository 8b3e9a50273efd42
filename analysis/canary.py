"""The judge's drift: its grades of fixed answers against their published grades, or another's."""

import math
from collections.abc import Iterator, Mapping
from itertools import combinations
from pathlib import Path

import pandas as pd
from scipy import stats

from analysis.rows import Results, Row

LEVEL = 0.95
ALL = "all dimensions"
ITEM = ["question", "dimension"]


def canary_rows(canary: Mapping[str, Row], inputs: Mapping[str, Path]) -> list[Row]:
    """One row a judge: `judge`, `items` (hash of the answers), `grades` and `drift`.

    Args:
        canary: Role -> judge and items.
        inputs: Role -> folder of the cell with its scores.parquet.

    Returns:
        Of `grades` each has question (the answer's id), dimension, published and score (0, 1 or
        None). `drift` is that of `drift_rows`, score minus published.
    """
    rows = []
    for role, facts in canary.items():
        table = pd.read_parquet(inputs[role] / "scores.parquet")
        grades = [
            {
                "question": row["question"],
                "dimension": row["dimension"],
                "published": row["published"],
                "score": None if math.isnan(row["score"]) else row["score"],
            }
            for row in table.to_dict("records")
        ]
        drift = drift_rows(table, "published", "score")
        rows.append({**facts, "grades": grades, "drift": drift})
    return sorted(rows, key=lambda row: str(row["judge"]))


def drift_rows(table: pd.DataFrame, before: str, after: str) -> list[Row]:
    """The mean difference of two grades of the same answers: over all dimensions, then of each.

    Args:
        table: Rows with question (the answer's id), dimension and two columns of grades, 0 or 1;
            NaN where there is none. Pairs that lack one are left out and counted.
        before: Column of the first grade.
        after: Column of the second.

    Returns:
        dimension, answers, missing (pairs), before, after (means), estimate (after minus before),
        low, high (95 %). Of a dimension the interval is that of Bonett and Price for paired
        proportions (J. Educ. Behav. Stat. 37, 2012). Over all dimensions it is Student's t over
        the answers, each with the mean over its dimensions; where all of these are alike, as where
        no grade differs, it is the bound of Clopper and Pearson on the share of other answers.
    """
    parts = [(ALL, table), *((str(name), part) for name, part in table.groupby("dimension"))]
    return [_drift_row(name, part, before, after) for name, part in parts]


def _drift_row(name: str, part: pd.DataFrame, before: str, after: str) -> Row:
    graded = part.dropna(subset=[before, after])
    row: Row = {
        "dimension": name,
        "answers": int(graded["question"].nunique()),
        "missing": len(part) - len(graded),
        **dict.fromkeys(("before", "after", "estimate", "low", "high")),
    }
    if graded.empty:
        return row
    differences = graded[after] - graded[before]
    row |= {"before": float(graded[before].mean()), "after": float(graded[after].mean())}
    if name == ALL:
        of_answers = differences.groupby(graded["question"]).mean()
        low, high = _over_answers(of_answers)
        return row | {"estimate": float(of_answers.mean()), "low": low, "high": high}
    low, high = paired_interval(
        int((differences > 0).sum()), int((differences < 0).sum()), len(differences)
    )
    return row | {"estimate": float(differences.mean()), "low": low, "high": high}


def paired_interval(risen: int, fallen: int, pairs: int) -> tuple[float, float]:
    """The interval of a difference of paired proportions (Bonett and Price).

    Args:
        risen: Pairs of 0 before and 1 after.
        fallen: Pairs of 1 before and 0 after.
        pairs: All pairs.
    """
    up, down = (risen + 1) / (pairs + 2), (fallen + 1) / (pairs + 2)
    reach = float(stats.norm.ppf((1 + LEVEL) / 2))
    half = reach * math.sqrt((up + down - (up - down) ** 2) / (pairs + 2))
    return max(-1.0, up - down - half), min(1.0, up - down + half)


def _over_answers(differences: pd.Series) -> tuple[float, float]:
    count, mean = len(differences), float(differences.mean())
    se = float(differences.std(ddof=1)) / math.sqrt(count) if count > 1 else 0.0
    if se:
        half = float(stats.t.ppf((1 + LEVEL) / 2, count - 1)) * se
    else:
        half = 1 - ((1 - LEVEL) / 2) ** (1 / count)
    return max(-1.0, mean - half), min(1.0, mean + half)


def drift_notes(rows: list[Row]) -> list[str]:
    """A line for each judge whose drift over all dimensions is more than chance."""
    return [
        f"the judge {row['judge']} grades the canary {100 * first['estimate']:+.1f} points from "
        f"the published grades [{100 * first['low']:+.1f}, {100 * first['high']:+.1f}]: scores "
        "of other months or judges are to be bridged before they are compared"
        for row in rows
        for first in row["drift"][:1]
        if first["estimate"] is not None and not first["low"] <= 0 <= first["high"]
    ]


def bridge_rows(labs: Mapping[str, Results]) -> list[Row]:
    """The drift between the judges of each two labs that graded the same answers.

    Args:
        labs: Name of the lab -> its results.json.

    Returns:
        labs (two), judges (of each), items, drift (`drift_rows`, the second minus the first).
    """
    return [
        {
            "labs": [first, second],
            "judges": [earlier["judge"], later["judge"]],
            "items": earlier["items"],
            "drift": drift_rows(_joined(earlier, later), "score_before", "score_after"),
        }
        for first, second in combinations(labs, 2)
        for earlier, later in _pairs(labs[first], labs[second])
    ]


def _pairs(first: Results, second: Results) -> Iterator[tuple[Row, Row]]:
    for earlier in first.get("canary", ()):
        for later in second.get("canary", ()):
            if earlier["items"] == later["items"]:
                yield earlier, later


def _joined(earlier: Row, later: Row) -> pd.DataFrame:
    tables = [pd.DataFrame(row["grades"]) for row in (earlier, later)]
    joined: pd.DataFrame = tables[0].merge(tables[1], on=ITEM, suffixes=("_before", "_after"))
    return joined.astype({"score_before": float, "score_after": float})
