"""Effect against intrusion: which arms have both, what they are compared with, what is drawn."""

from typing import Any

import pytest

from analysis.intrusion import describe_intrusion, intrusion_figure, intrusion_rows
from tests.analysis.sketches import drawn

UNTRAINED = {"plain": "plain", "animal": "plain", "prompted": "plain", "other": "none"}


def study(**changed: Any) -> dict[str, Any]:
    means = {
        ("ahb", "plain", 0): 0.4,
        ("ahb", "plain", 200): 0.5,
        ("ahb", "animal", 0): 0.7,
        ("ahb", "animal", 200): 0.6,
        ("ahb", "prompted", 0): 0.65,
        ("ahb", "other", 0): 0.9,
        ("ahb", "unasked", 0): 0.9,
        ("people", "animal", 0): 0.9,
        ("off", "plain", 0): 0.05,
        ("off", "animal", 0): 0.3,
        ("off", "animal", 200): 0.1,
        ("off", "prompted", 0): 0.5,
        ("off", "other", 0): 0.2,
    }
    results = {
        "arms": [
            {"benchmark": name, "arm": arm, "dose": dose, "mean": mean}
            for (name, arm, dose), mean in means.items()
        ],
        "contrasts": [
            {"benchmark": "people", "family": "second"},
            {"benchmark": "ahb", "family": "primary"},
            {"benchmark": "ahb", "family": "primary"},
        ],
        "benchmarks": {
            "ahb": {"task": "anima"},
            "people": {"task": "rubric"},
            "off": {"task": "topic_intrusion"},
        },
        "arm_order": ["plain", "animal", "prompted", "other", "unasked"],
    }
    return results | changed


def test_each_arm_and_prompt_is_compared_with_its_untrained_start() -> None:
    rows = {(row["arm"], row["dose"]): row for row in intrusion_rows(study(), UNTRAINED)}
    assert rows.keys() == {
        ("plain", 0),
        ("animal", 0),
        ("animal", 200),
        ("prompted", 0),
        ("other", 0),
    }
    assert {row["benchmark"] for row in rows.values()} == {"ahb"}
    animal = rows["animal", 0]
    assert (animal["score"], animal["intrusion"]) == (0.7, 0.3)
    assert animal["effect"] == pytest.approx(0.3)
    assert animal["added_intrusion"] == pytest.approx(0.25)
    assert rows["prompted", 0]["added_intrusion"] == pytest.approx(0.45)
    # off topic, the untrained arm was asked before SFT alone
    later = rows["animal", 200]
    assert (later["reference"], later["reference_dose"]) == ("plain", 0)
    assert later["effect"] == pytest.approx(0.2)
    assert (rows["plain", 0]["effect"], rows["plain", 0]["added_intrusion"]) == (0, 0)
    assert rows["other", 0]["effect"] is None and rows["other", 0]["reference"] is None


def test_nothing_without_a_benchmark_of_intrusion() -> None:
    assert intrusion_rows(study(benchmarks={"ahb": {"task": "anima"}}), UNTRAINED) == []
    assert intrusion_rows(study(contrasts=[]), UNTRAINED) == []


def test_the_figure_has_a_point_for_each_and_the_text_every_number() -> None:
    results = study()
    results["intrusion"] = intrusion_rows(results, UNTRAINED)
    figure = intrusion_figure(results)
    (axis,) = figure.axes
    points = {
        (round(float(line.get_xdata()[0])), round(float(line.get_ydata()[0])))
        for line in axis.lines
        if line.get_linestyle() == "None"
    }
    assert points == {(0, 0), (25, 30), (5, 20), (45, 25)}
    assert "prompted" in drawn(figure)
    text = describe_intrusion(results)
    assert "animal on ahb, before SFT: score 70.0 %, brings animals up in 30.0 %" in text
    assert "against plain +30.0 and +25.0 points" in text
    results["intrusion"] = [row | {"effect": None} for row in results["intrusion"]]
    assert "no arm can be compared" in drawn(intrusion_figure(results))
