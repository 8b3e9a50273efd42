"""Tables, report, macros and results.json say the same of a contrast, in its corners too."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from analysis import sensitivity
from analysis.contrast_details import prediction_interval, question_signs
from analysis.contrasts import contrast_rows
from analysis.erosion import erosion_rows
from analysis.estimates import Arm, two_way
from analysis.headline import detectable_text, interval, interval_header, missing_lines
from analysis.looks import seeds_of_curves
from analysis.next_data import next_data, next_data_rows
from analysis.settings import Contrast, Costs
from analysis.supplementary_tables import sensitivity_table
from analysis.table import dimension_normalized_averages, question_means
from analysis.tables import contrasts_table, number
from core.cell.context import StageContext
from tests.analysis.small_study import edit, results_of, study
from tests.analysis.test_replicates import long
from tests.analysis.test_variance import COSTS

pytestmark = pytest.mark.usefixtures("undrawn")


def looked_at(folder: Path) -> StageContext:
    """Five seeds with looks at three and five: of dose 0 the first decides, of 200 the last."""
    context = study(folder, seeds=5)
    context.settings["looks"] = [3, 5]
    context.settings["claim_roles"] = {"documents": "animal", "qa": "urban", "before_sft": 0}
    context.settings["claim_roles"]["anima"] = "ahb"
    context.settings["contrasts"][0]["benchmarks"] = ["ahb"]
    for name in ("rows", "missing"):
        rows = context.settings[name]
        context.settings[name] = [row for row in rows if row["benchmark"] == "ahb"]
    del context.settings["benchmarks"]["concern"]
    rng = np.random.default_rng(2)

    def shifted(by: float) -> Any:
        return lambda frame: frame.assign(score=0.45 + by + rng.normal(0, 0.02, len(frame)))

    for role in context.inputs:
        arm, seed, dose, _ = role.split("-")
        later = 0.3 * (seed in "12") if dose == "200" else 0.0
        edit(context, role, shifted(0.2 - later if arm == "animal" else 0.0))
    return context


@pytest.mark.slow
def test_a_look_names_its_interval_and_its_seeds_wherever_it_is_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sensitivity, "RESAMPLES", 100)
    context = looked_at(tmp_path)
    edit(context, "urban-4-0-ahb", lambda frame: frame.assign(score=frame["score"].mask(
        frame.index == 3)))  # fmt: skip
    results = results_of(context)
    first, last = results["contrasts"]
    assert (first["look"], first["dose"], last["look"]) == (3, 0, 5)
    low = f"lower end of its {100 - 100 * first['level']:.2f} % interval"
    macros = (context.folder / "macros.tex").read_text()
    (line,) = re.findall(r".*ContrastLowAnimalMinusUrbanAhbDoseZero.*", macros)
    assert low in line
    headline = (context.folder / "headline.txt").read_text()
    assert "points    interval" in headline and "points    95 % interval" not in headline
    page = (context.folder / "report.html").read_text()
    assert '<p class="soft">98.86 %: ' in page and page.count('<th scope="col">Interval</th>') == 2
    table = (context.folder / "tables" / "contrasts.tex").read_text()
    claims = (context.folder / "tables" / "claims.tex").read_text()
    assert "& Interval &" in claims and "claims" in page
    assert r"ahb, SFT dose 0" in table and "& Interval &" in table
    # The grade that is lost is of a seed that the first look does not have.
    bound = results["bounds"]["contrasts"][0]
    assert bound["dose"] == 0 and bound["low"] == bound["high"]
    assert bound["estimate"] == pytest.approx(first["estimate"], abs=1e-6)
    assert results["variance"][0]["design"]["seeds"] == 3
    (erosion,) = results["erosion"]
    assert [len(of["by_seed"]) for of in erosion["advantages"]] == [5, 5]


def test_a_curve_rests_on_the_seeds_of_its_last_look() -> None:
    rows = [{"name": "c", "benchmark": "b", "look": look} for look in (3, 5)]
    assert seeds_of_curves(rows, [7, 8, 9, 1, 2, 3]) == {("c", "b"): {7, 8, 9, 1, 2}}
    assert seeds_of_curves([*rows, rows[0] | {"look": None}], [7]) == {("c", "b"): None}


def dosed(doses: tuple[int, ...], seeds: int = 4) -> pd.DataFrame:
    rng = np.random.default_rng(1)
    tables = [
        long({"A": 0.6 + rng.normal(0, 0.1, (seeds, 9)), "B": rng.normal(0.5, 0.1, (seeds, 9))}, {})
        for _ in doses
    ]
    return pd.concat(
        [table.assign(dose=dose) for dose, table in zip(doses, tables, strict=True)],
        ignore_index=True,
    )


def test_erosion_is_of_the_declared_doses_and_of_the_seeds_of_the_look() -> None:
    contrast = Contrast("c", "A", "B", ("ahb",), "primary", only_doses=(0, 400))
    means = question_means(dosed((0, 100, 400)))
    (row,) = erosion_rows(means, [contrast], {("c", "ahb"): {0, 1}})
    assert row["doses"] == [0, 400]
    assert {change["treatment_seeds"] for change in row["changes"]} == {2}
    (row,) = erosion_rows(means, [contrast])
    assert {change["treatment_seeds"] for change in row["changes"]} == {4}


def test_what_to_buy_next_rests_on_the_seeds_of_the_look() -> None:
    table = dosed((0,), 5)
    contrast = Contrast("c", "A", "B", ("ahb",), "primary")
    (row,) = contrast_rows(table, question_means(table), [contrast], [])
    for look, seeds in ((3, 3), (None, 5)):
        (bought,) = next_data_rows(
            table, [row | {"look": look}], {"ahb": "j"}, Costs(), [0, 1, 2, 3, 4]
        )
        assert bought["design"]["seeds"] == seeds


def test_notes_of_some_rows_name_benchmark_and_dose() -> None:
    row = {
        "name": "c", "benchmark": "ahb", "control_dose": 0, "estimate": 0.1, "low": 0.0,
        "high": 0.2, "treatment_seeds": 3, "control_seeds": 3, "treatment_corpora": None,
        "control_corpora": None, "df": 3.0, "p": 0.1, "p_holm": 0.1, "family": "primary",
        "family_size": 2, "verdict": "interim", "p_response_level": 0.1, "caution": "both",
        "recomputed": None, "level": 0.05, "look": None, "differences": [],
    }  # fmt: skip
    rows = [row | {"dose": 0, "reason": "why"}, row | {"dose": 5, "reason": None}]
    results = {
        "contrasts": rows, "writers": [], "benchmarks": {}, "missing": [], "scores": [],
        "arms": [], "declaration": None, "study": "s",
    }  # fmt: skip
    notes = contrasts_table(results).notes
    assert "c (ahb, SFT dose 0): why." in notes and "c: both." in notes


def test_an_interval_with_one_end_is_none() -> None:
    assert interval({"low": 0.1, "high": None}) == interval({"low": None, "high": 0.1}) == "-"


def test_headers_name_the_level_that_all_intervals_have() -> None:
    assert interval_header([{"level": 0.05}]) == "95 % interval"
    assert interval_header([{"level": 0.05}, {"level": 0.0386}]) == "interval"


def test_a_difference_of_rounding_alone_has_no_sign() -> None:
    rng = np.random.default_rng(0)
    scores = rng.random((3, 10))
    moved = scores + np.where(np.arange(10) < 7, 0.1, -0.7 / 3)
    arms = [Arm(scores), Arm(moved)]
    result = two_way(arms, np.arange(10))
    assert result.estimate == 0.0 and result.p == 1.0
    assert question_signs(arms, result.estimate) == (None, 0)
    assert number(-0.001, "+.2f") == "+0.00" and number(-0.01, "+.2f") == "-0.01"


def test_a_contrast_without_a_number_has_no_opposite_questions(tmp_path: Path) -> None:
    table = long({"A": np.full((2, 3), np.nan), "B": np.ones((2, 3))}, {})
    contrast = Contrast("c", "A", "B", ("ahb",), "primary")
    (row,) = contrast_rows(table, question_means(table), [contrast], [])
    assert (row["estimate"], row["questions_opposite"]) == (None, None)


def test_ungraded_answers_are_counted_of_all_that_their_arms_gave() -> None:
    rows = [
        {"benchmark": "b", "arm": "a", "n": 0, "missing": 24},
        {"benchmark": "b", "arm": "a", "n": 24, "missing": 0},
        {"benchmark": "b", "arm": "other", "n": 24, "missing": 0},
    ]
    results = {"missing": [], "benchmarks": {"b": {}}, "scores": rows}
    assert missing_lines(results) == ["no grade: 24 of 48 answers, on b (arms a)"]


def test_the_official_average_weighs_replicates_alike() -> None:
    scores = np.array([[0.0], [1.0], [0.5]])
    table = long({"A": scores}, {"A": (0, 1, 0)})
    table = pd.concat([table, table.assign(dimension="Harm")], ignore_index=True)
    means = question_means(table)
    (average,) = dimension_normalized_averages(table, means)
    assert average == pytest.approx((0.25 + 1) / 2) == two_way(
        [Arm(scores, replicates=(0, 1, 0))], np.arange(1)
    ).estimate  # fmt: skip


def test_a_new_run_is_no_surer_than_the_mean_of_runs() -> None:
    """With two questions the variance over runs has more degrees of freedom than the rest."""
    rng = np.random.default_rng(0)
    narrower = 0
    for _ in range(40):
        arms = [Arm(rng.random((5, 2)) * [0.2, 1]) for _ in range(2)]
        result = two_way(arms, np.arange(2))
        ends = prediction_interval(result, arms)
        assert ends is not None and result.low is not None and result.high is not None
        assert ends[0] <= result.low and ends[1] >= result.high
        narrower += ends == pytest.approx((result.low, result.high))
    assert narrower


def test_more_variance_over_seeds_detects_no_smaller_difference() -> None:
    def part(name: str, variance: float, upper: float) -> dict[str, Any]:
        return {"component": name, "variance": variance, "upper": upper, "negative": False}

    variances = {"seed": (0.005, 0.12), "seed x question": (0.0, 0.1), "sample": (0.17, 0.3)}
    components = {
        "components": [
            *(part(name, *values) for name, values in variances.items()),
            part("arm x question", 0.02, 0.3),
        ],
        "reason": None,
        "kind": "free",
    }
    design = {"arms": 2, "seeds": 3, "questions": 2, "epochs": 2, "per_scenario": 1, "runs": 1}
    rows = next_data(components, design, COSTS)
    assert all(row["detectable_at_upper"] >= row["detectable"] for row in rows)
    assert detectable_text(rows[0]["detectable"]) == ">100"
    assert (detectable_text(0.124), detectable_text(None)) == ("12.4", "-")


def test_the_smallest_p_of_many_seeds_is_not_shown() -> None:
    nothing = {"low": None, "high": None, "estimate": None, "p": None}
    row = {"name": "c", "benchmark": "b", "dose": 0, "control_dose": 0, "equivalence": None}
    results = {"benchmarks": {}, "missing": [], "scores": [], "writers": [], "declaration": None}
    results["study"] = "s"
    for smallest, text in ((0.1, "< .001 (≥ .100)"), (1e-5, "< .001")):
        permutation = {"p": 1e-5, "smallest_p": smallest}
        rows = [row | {"bootstrap": nothing, "mixed": nothing, "permutation": permutation}]
        assert text in sensitivity_table(results | {"sensitivity": rows}).rows[0]
