"""What is kept and what is paid: by hand, the front, and where there is nothing to say."""

from pathlib import Path
from typing import Any

import matplotlib
import pytest

from analysis import plots
from analysis.figure_files import apply_layout
from analysis.preservation import preservation_rows
from analysis.preservation_figure import describe_preservation, preservation_figure
from tests.analysis.small_study import results_of, study

Results = dict[str, Any]
BENCHMARKS = {
    "ahb": {"task": "anima", "judge": "gemini"},
    "ifeval": {"task": "ifeval", "judge": "lm-eval"},
    "hellaswag": {"task": "hellaswag", "judge": "lm-eval"},
    "mmlu": {"task": "mmlu", "judge": "lm-eval"},
    "off": {"task": "topic_intrusion", "judge": "gemini"},
    "inside": {"task": "probe", "judge": "probe"},
}
# (arm, dose) -> ahb, ifeval, hellaswag, mmlu, off
MEANS = {
    ("base", 0): (0.1, 0.1, 0.7, 0.6, 0.0),
    ("base", 80): (0.2, 0.5, 0.7, 0.6, 0.0),
    ("plain", 0): (0.8, 0.1, 0.7, 0.6, 0.3),
    ("plain", 80): (0.4, 0.5, 0.7, 0.6, 0.1),
    ("replay", 80): (0.6, 0.48, 0.7, 0.6, 0.15),
    ("merged", 80): (0.7, 0.3, 0.6, 0.6, 0.2),
    ("bad", 80): (0.5, 0.3, 0.6, 0.4, 0.1),
}


def results() -> Results:
    names = [*BENCHMARKS][:5]
    return {
        "benchmarks": BENCHMARKS,
        "arm_order": ["base", "plain", "replay", "merged", "bad"],
        "arms": [
            {"benchmark": name, "arm": arm, "dose": dose, "mean": mean}
            for (arm, dose), means in MEANS.items()
            for name, mean in zip(names, means, strict=True)
        ],
        "contrasts": [
            {
                "family": "preservation", "benchmark": bench, "treatment": arm, "control": "plain",
                "dose": 80, "control_dose": 80, "estimate": 0.1, "low": 0.0, "high": 0.2,
                "verdict": "higher",
            }
            for arm in ("replay", "merged", "bad")
            for bench in ("ahb", "ifeval")
        ],
    }  # fmt: skip


def rows_of(made: Results) -> dict[str, Any]:
    return {row["arm"]: row for row in preservation_rows(made, {"plain": "base"})}


def test_kept_and_paid_are_shares_and_differences_from_the_control() -> None:
    rows = rows_of(results())
    assert [*rows] == ["plain", "replay", "merged", "bad"]
    plain, replay, merged = rows["plain"], rows["replay"], rows["merged"]
    # The untrained model has .2 after the same SFT; .8 is before it.
    assert plain["retained"] == pytest.approx(0.2 / 0.6)
    assert replay["retained"] == pytest.approx(0.4 / 0.6)
    assert merged["retained"] == pytest.approx(0.5 / 0.6)
    assert plain["paid"] == 0 and plain["added_intrusion"] == 0 and plain["verdict"] is None
    assert replay["instruction_paid"] == pytest.approx(0.02)
    assert replay["capability_paid"] == 0 and replay["paid"] == pytest.approx(0.01)
    assert merged["instruction_paid"] == pytest.approx(0.2)
    assert merged["capability_paid"] == pytest.approx(0.05), "mean over two tasks"
    assert merged["added_intrusion"] == pytest.approx(0.1)
    assert (replay["estimate"], replay["verdict"]) == (0.1, "higher")


def test_the_front_leaves_out_what_another_arm_does_better() -> None:
    rows = rows_of(results())
    assert {arm for arm, row in rows.items() if row["pareto"]} == {"plain", "replay", "merged"}
    made = results() | {"preservation": [*rows.values()]}
    for width in (plots.WIDTH, plots.COLUMN):
        figure = preservation_figure(made, "ahb", "plain", width)
        with matplotlib.rc_context(plots.STYLE):
            apply_layout(figure)
            extent = figure.get_tightbbox()
        assert extent.x0 > -0.02 and extent.x1 < figure.get_figwidth() + 0.02
        front, *points = figure.axes[0].lines[1:]
        assert [*front.get_xdata()] == pytest.approx([0, 1, 12.5])
        assert len(points) == 4
        assert points[-1].get_fillstyle() == "none", "bad is not on the front"
    text = describe_preservation(made, "ahb", "plain")
    assert "replay: 66.7 % kept, +1.0 points paid, on the front" in text


def test_what_can_not_be_computed_has_a_reason() -> None:
    made = results()
    made["arms"] = [row for row in made["arms"] if row["arm"] != "base"]
    rows = rows_of(made)
    assert rows["replay"]["retained"] is None
    assert rows["replay"]["reason"] == "no score of its untrained"
    assert rows["replay"]["pareto"] is None
    made = results()
    for row in made["arms"]:
        row["mean"] = 0.1 if (row["arm"], row["dose"]) == ("plain", 0) else row["mean"]
    assert rows_of(made)["replay"]["reason"] == "midtraining raised no score"
    made["contrasts"] = [row | {"family": "primary"} for row in made["contrasts"]]
    assert rows_of(made) == {}
    made = results()
    made["arms"] = [row for row in made["arms"] if (row["arm"], row["dose"]) != ("plain", 0)]
    assert rows_of(made)["plain"]["retained"] is None, "its lowest dose is no score before SFT"
    assert rows_of(made)["replay"]["reason"] == "no score of the control before SFT"


def test_report_and_tables_show_them(tmp_path: Path) -> None:
    context = study(tmp_path)
    context.settings["contrasts"][0]["family"] = "preservation"
    context.settings["untrained"] = {"animal": "untrained", "urban": "untrained"}
    made = results_of(context)
    shown = {(row["benchmark"], row["arm"], row["dose"]) for row in made["preservation"]}
    assert ("ahb", "animal", 200) in shown and ("ahb", "urban", 200) in shown
    page = (context.folder / "report.html").read_text()
    assert '<h2 id="preservation">What keeps the value, and what it costs</h2>' in page
    assert '<li><a href="#preservation">' in page
    assert (context.folder / "tables/preservation.tex").exists()
    assert (context.folder / "figures/preservation-ahb-urban.pdf").exists()
