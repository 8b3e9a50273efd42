"""A contrast of two SFT doses has its own numbers in every part of the results."""

from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import pytest

from analysis.bounds import contrast_bounds
from analysis.contrasts import _caution, contrast_rows
from analysis.estimates import ALPHA, Arm, two_way
from analysis.headline import doses
from analysis.judges import differential_bias
from analysis.next_data import next_data_rows
from analysis.report import sentence, title, when
from analysis.rows import Row
from analysis.settings import Contrast, Costs
from analysis.table import OVERALL, question_means

EROSION = Contrast("erosion", "A", "A", ("ahb",), "primary", treatment_dose=200, control_dose=0)
CROSSED = Contrast("crossed", "A", "B", ("ahb",), "primary", treatment_dose=200, control_dose=0)


def table(judges: tuple[str, ...] = ("main",)) -> pd.DataFrame:
    """Two arms at two doses: A scores about .8 and .4, B .6 and .5 (before SFT, after it)."""
    rng = np.random.default_rng(0)
    levels = {("A", 0): 0.8, ("A", 200): 0.4, ("B", 0): 0.6, ("B", 200): 0.5}
    rows = [
        {
            "arm": arm,
            "dose": dose,
            "seed": seed,
            "question": f"q{question}",
            "epoch": epoch,
            # The other judge is kinder to A after SFT.
            "score": level + rng.normal(0, 0.05) + 0.1 * (judge == "other" and dose == 200),
            "judge": judge,
        }
        for (arm, dose), level in levels.items()
        for seed in range(3)
        for question in range(8)
        for epoch in (1, 2)
        for judge in judges
    ]
    long = pd.DataFrame(rows).astype({"seed": "Int64"})
    return long.assign(
        benchmark="ahb", dimension=OVERALL, scenario=long["question"], response="r", missing=None
    )


@pytest.mark.parametrize(("contrast", "right"), [(EROSION, -0.4), (CROSSED, -0.2)])
def test_bounds_of_two_doses(contrast: Contrast, right: float) -> None:
    long = table()
    lost = (long["arm"] == "A") & (long["dose"] == 200) & (long["question"] == "q0")
    long.loc[lost & (long["seed"] == 0), "score"] = np.nan
    (row,) = contrast_bounds(long, [contrast])
    assert (row["dose"], row["control_dose"]) == (200, 0)
    assert row["estimate"] == pytest.approx(right, abs=0.03)
    # one of three seeds of one of eight questions of one side
    assert row["high"] - row["low"] == pytest.approx(1 / 24)


@pytest.mark.parametrize(("contrast", "right"), [(EROSION, -0.4), (CROSSED, -0.2)])
def test_a_judges_bias_between_two_doses(contrast: Contrast, right: float) -> None:
    (row,) = differential_bias(table(("main", "other")), {"ahb": "main"}, [contrast])
    assert (row["dose"], row["control_dose"], row["questions"]) == (200, 0, 8)
    assert row["primary_difference"] == pytest.approx(right, abs=0.03)
    assert row["estimate"] == pytest.approx(0.1, abs=0.03)


def all_seeds(rows: list[Row]) -> list[Row]:
    """The rows of contrasts as of no look."""
    return [row | {"look": None} for row in rows]


@pytest.mark.parametrize(("contrast", "right"), [(EROSION, -0.4), (CROSSED, -0.2)])
def test_components_of_two_doses(contrast: Contrast, right: float) -> None:
    """The arms' own effect, .2 or .4, is no part of the variance of either."""
    long = table()
    rows = contrast_rows(long, question_means(long), [contrast], [])
    assert rows[0]["estimate"] == pytest.approx(right, abs=0.03)
    (row,) = next_data_rows(long, all_seeds(rows), {"ahb": "main"}, Costs(), [])
    assert (row["dose"], row["control_dose"]) == (200, 0)
    assert (row["design"]["arms"], row["design"]["seeds"]) == (2, 3)
    variances = {part["component"]: part["variance"] for part in row["components"]}
    assert sum(variance for variance in variances.values() if variance) < 0.1**2


def test_more_data_is_priced_by_the_contrasts_kind() -> None:
    """A benchmark has a row for each kind of its primary contrasts."""
    long = table()
    paired = replace(EROSION, name="within", paired=True)
    fixed = long.copy()
    fixed.loc[(fixed["arm"] == "B") & (fixed["dose"] == 0), "seed"] = pd.NA
    fixed = fixed.drop_duplicates(["arm", "dose", "seed", "question", "epoch"])
    rows = contrast_rows(fixed, question_means(fixed), [paired, CROSSED], [])
    priced = next_data_rows(fixed, all_seeds(rows), {"ahb": "main"}, Costs(), [])
    assert [(row["name"], row["kind"]) for row in priced] == [
        ("within", "paired"),
        ("crossed", "fixed"),
    ]
    assert all(row["purchases"][0]["detectable"] for row in priced)
    assert [row["design"]["arms"] for row in priced] == [2, 1], "with training seeds"


def test_the_doses_of_a_contrast_hold_in_every_part() -> None:
    contrast = Contrast("A - B", "A", "B", ("ahb",), "primary", only_doses=(200,))
    long = table(("main", "other"))
    main = long[long["judge"] == "main"]
    rows = contrast_rows(main, question_means(main), [contrast], [])
    rows += contrast_bounds(main, [contrast])
    rows += differential_bias(long, {"ahb": "main"}, [contrast])
    assert [(row["dose"], row["control_dose"]) for row in rows] == [(200, 200)] * 3


def test_both_doses_are_shown() -> None:
    row: dict[str, Any] = {"dose": 200, "control_dose": 0, "verdict": "lower", "benchmark": "ahb"}
    row |= {"treatment": "A", "control": "A"}
    results = {"benchmarks": {"ahb": {"direction": "lower"}}}
    assert doses(row) == "200 v 0"
    assert when(row) == "at SFT dose 200 v 0"
    text = "A at SFT dose 200 scores lower than A before SFT on ahb"
    assert sentence(row, results) == f"{text} (lower is better)."
    undecided = {"contrasts": [row | {"name": "erosion", "verdict": "inconclusive"}] * 2}
    arms = "A at SFT dose 200 and A before SFT"
    assert title(undecided) == f"No difference established between {arms}: 2 inconclusive"
    assert doses(row | {"control_dose": 200}) == "200"
    assert when(row | {"dose": 0}) == "before SFT"
    assert doses(row | {"dose": None, "control_dose": None}) == "-"


def test_an_arm_of_two_seeds_with_another_spread_is_a_caution() -> None:
    long = table()
    spread = {0: 0.0, 1: 0.2}
    wild = long[long["seed"] < 2].assign(
        score=lambda rows: rows["score"] + rows["seed"].map(spread) * (rows["arm"] == "B")
    )
    contrast = Contrast("A - B", "A", "B", ("ahb",), "primary")
    rows = contrast_rows(wild, question_means(wild), [contrast], [])
    assert all("unequal" in row["caution"] and row["p"] > ALPHA for row in rows)
    rows = contrast_rows(long, question_means(long), [contrast], [])
    assert [row["caution"] for row in rows] == [None, None]


@pytest.mark.parametrize(("seeds", "is_caution"), [(2, True), (3, True), (4, False)])
def test_few_seeds_with_another_spread_are_a_caution(seeds: int, is_caution: bool) -> None:
    """At 4 times the other's spread 3 v 3 seeds reject .88 % at .31 % (benchmarks/README.md)."""
    rng = np.random.default_rng(0)
    spread = np.array([-1.0, 1.0, 0.5, -0.5])[:seeds, None]
    first, second, alike = (
        Arm(0.5 + size * spread + rng.normal(0, 0.001, (seeds, 20))) for size in (0.05, 0.01, 0.01)
    )
    text = _caution(two_way([first, second], np.arange(20)))
    assert (text is not None and f"an arm has {seeds} seeds" in text) == is_caution
    text = _caution(two_way([alike, second], np.arange(20)))
    assert (text is not None and text.startswith("both arms have 2 seeds: in a")) == (seeds == 2)
