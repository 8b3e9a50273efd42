"""The judge's drift on the canary: numbers by hand, coverage by enumeration, report and pool."""

from itertools import product
from math import comb
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from analysis.canary import ALL, bridge_rows, canary_rows, drift_notes, drift_rows, paired_interval
from core.cell.context import StageContext
from tests.analysis.small_study import results_of, study

DIMENSIONS = ("Harm", "Scope")


def grades(changes: dict[tuple[int, str], float], answers: int = 6) -> pd.DataFrame:
    """Grades of `answers` answers on two dimensions, even ones published as 1, and what differs."""
    rows = [
        {
            "question": f"a{n}",
            "dimension": name,
            "published": float(n % 2 == 0),
            "score": changes.get((n, name), float(n % 2 == 0)),
        }
        for n in range(answers)
        for name in DIMENSIONS
    ]
    return pd.DataFrame(rows)


def test_the_drift_by_hand() -> None:
    """Of six answers, 0 and 2 fall on Harm: -1/3 there, -1/6 over both dimensions."""
    table = grades({(0, "Harm"): 0.0, (2, "Harm"): 0.0})
    overall, harm, scope = drift_rows(table, "published", "score")
    assert [row["dimension"] for row in (overall, harm, scope)] == [ALL, *DIMENSIONS]
    assert harm["estimate"] == pytest.approx(-1 / 3) and scope["estimate"] == 0
    assert (harm["before"], harm["after"]) == (pytest.approx(1 / 2), pytest.approx(1 / 6))
    # Bonett and Price: (0 + 1) / 8 and (2 + 1) / 8.
    half = 1.959964 * np.sqrt((4 / 8 - (2 / 8) ** 2) / 8)
    assert (harm["low"], harm["high"]) == (
        pytest.approx(-2 / 8 - half, abs=1e-6),
        pytest.approx(-2 / 8 + half, abs=1e-6),
    )
    differences = [-0.5, 0, -0.5, 0, 0, 0]
    t = stats.ttest_1samp(differences, 0).confidence_interval(0.95)
    assert overall["estimate"] == pytest.approx(-1 / 6)
    assert (overall["low"], overall["high"]) == (pytest.approx(t.low), pytest.approx(t.high))
    assert overall["answers"] == 6 and overall["missing"] == 0


def test_a_missing_grade_is_left_out_and_counted() -> None:
    overall, harm, _ = drift_rows(grades({(0, "Harm"): np.nan}), "published", "score")
    assert (harm["answers"], harm["missing"], overall["missing"]) == (5, 1, 1)
    assert overall["estimate"] == 0
    empty = grades({(n, "Harm"): np.nan for n in range(6)})
    harm = drift_rows(empty, "published", "score")[1]
    assert harm["estimate"] is None and harm["low"] is None and harm["missing"] == 6


def test_without_any_difference_the_bound_is_clopper_and_pearson_s() -> None:
    overall, harm, _ = drift_rows(grades({}), "published", "score")
    assert overall["high"] == pytest.approx(1 - 0.025 ** (1 / 6)) == -overall["low"]
    assert harm["low"] < 0 < harm["high"] == pytest.approx(-harm["low"])


@pytest.mark.parametrize("pairs", [4, 6, 9])
def test_a_dimension_s_interval_covers_by_enumeration(pairs: int) -> None:
    """The exact coverage over all outcomes of so few pairs, for several true drifts."""
    for up, down in product((0.02, 0.1, 0.3), repeat=2):
        covered = 0.0
        for risen in range(pairs + 1):
            for fallen in range(pairs + 1 - risen):
                weight = comb(pairs, risen) * comb(pairs - risen, fallen)
                weight *= up**risen * down**fallen * (1 - up - down) ** (pairs - risen - fallen)
                low, high = paired_interval(risen, fallen, pairs)
                covered += weight * (low <= up - down <= high)
        assert covered > 0.93, (up, down, covered)


def test_two_labs_are_bridged_on_the_same_answers_alone(tmp_path: Path) -> None:
    labs = {}
    for name, items, changes in (
        ("north", "a", {}),
        ("south", "a", {(0, "Harm"): 0.0, (2, "Harm"): 0.0}),
        ("west", "b", {}),
    ):
        (tmp_path / name).mkdir()
        grades(changes).to_parquet(tmp_path / name / "scores.parquet")
        facts = {"role": {"judge": f"judge of {name}", "items": items}}
        labs[name] = {"canary": canary_rows(facts, {"role": tmp_path / name})}
    labs["east"] = {}
    (bridge,) = bridge_rows(labs)
    assert bridge["labs"] == ["north", "south"]
    assert bridge["judges"] == ["judge of north", "judge of south"]
    overall, harm, _ = bridge["drift"]
    assert overall["estimate"] == pytest.approx(-1 / 6)
    assert harm["estimate"] == pytest.approx(-1 / 3)
    ((_, same, _),) = [
        row["drift"] for row in bridge_rows({"a": labs["south"], "b": labs["south"]})
    ]
    assert same["estimate"] == 0  # both drift alike from the published grades


def with_canary(context: StageContext, changes: dict[tuple[int, str], float]) -> StageContext:
    folder = context.folder.parent / "canary"
    folder.mkdir()
    grades(changes, 12).to_parquet(folder / "scores.parquet")
    context.inputs["canary-1"] = folder
    context.settings["canary"] = {"canary-1": {"judge": "a <judge>", "items": "a"}}
    return context


@pytest.mark.usefixtures("undrawn")
def test_the_report_has_the_drift_of_a_study_that_asks_for_it(tmp_path: Path) -> None:
    context = with_canary(study(tmp_path), {(n, "Harm"): 0.0 for n in range(0, 12, 2)})
    results = results_of(context)
    (row,) = results["canary"]
    assert row["judge"] == "a <judge>" and len(row["grades"]) == 24
    page = (context.folder / "report.html").read_text()
    assert page.count('<h2 id="canary">') == 1
    assert "Drift of a &lt;judge&gt;" in page and "a <judge>" not in page
    section = page.partition('<h2 id="canary">')[2].partition('<h2 id="missing">')[0]
    assert ">Harm</th>" in section and ">−50.0<" in section and "all dimensions" in section
    assert (context.folder / "tables/canary.csv").read_text().count("Harm") == 1
    assert any(note.startswith("the judge a <judge> grades the canary -25.0 points")
               for note in results["notes"])  # fmt: skip
    assert drift_notes(results["canary"]) != []


@pytest.mark.usefixtures("undrawn")
def test_without_a_canary_there_is_none(tmp_path: Path) -> None:
    context = study(tmp_path)
    results = results_of(context)
    assert "canary" not in results
    assert "canary" not in (context.folder / "report.html").read_text()
    assert not (context.folder / "tables/canary.csv").exists()


def test_a_drift_within_chance_is_no_note() -> None:
    table = grades({(0, "Harm"): 0.0})
    row = {"judge": "j", "drift": drift_rows(table, "published", "score")}
    assert drift_notes([row]) == []
