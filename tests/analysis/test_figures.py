"""Which figures a study has and under which names.

The same bytes twice; one that fails costs no other.
"""

import re

import pytest

from analysis import curves, figures
from tests.analysis.sketches import NASTY, answers, contrast, corpora, drawn, study, trainings

pytestmark = pytest.mark.filterwarnings("error")
NOTHING = answers(arms=())


@pytest.mark.slow
def test_the_same_bytes_twice_and_every_figure_in_order(tmp_path):
    pages = []
    for name in ("first", "second"):
        result = figures.draw(study(gone=[("urban", 100)]), answers(), trainings(), corpora())
        pages.append(figures.save(result, tmp_path / name))
    names = [
        "scores",
        "contrasts",
        "erosion",
        "dimensions",
        "questions-animal-urban-ahb",
        "losses",
        "corpora",
    ]
    assert list(result) == names and pages[0] == pages[1] and list(pages[0]) == names
    files = sorted(path.name for path in (tmp_path / "first").iterdir())
    assert files == sorted(f"{name}.{kind}" for name in names for kind in ("pdf", "png"))
    for file in files:
        assert (tmp_path / "first" / file).read_bytes() == (
            tmp_path / "second" / file
        ).read_bytes(), file
    for figure in result.values():
        assert figure.error is None and figure.title and figure.text.endswith(".")
    assert "before SFT" in result["dimensions"].title and "Harm 81.2 %" in result["dimensions"].text


@pytest.mark.parametrize(
    "results",
    [
        study(arms=()),
        study(arms=("animal",), doses=(0,), seeds=1, dimensions=()),
        study(doses=(0,), dimensions=()),
    ],
)
def test_a_study_without_what_a_figure_shows_has_none(results):
    means = answers(arms=("animal",))  # no question in both arms
    result = figures.draw(results, means, [], {"animal": []})
    assert list(result) == ["scores", "contrasts"][: 1 + bool(results["contrasts"])]
    assert not any(figure.error for figure in result.values())


def test_a_dose_that_is_only_planned_makes_an_erosion():
    assert "erosion" in figures.draw(study(gone=[("animal", 100), ("urban", 100)]), NOTHING, [], {})


def test_questions_are_those_of_primary_contrasts():
    results = study()
    results["contrasts"] = contrast(
        family="aside", estimate=None, low=None, high=None, verdict="none", reason="why"
    )
    assert not [
        name for name in figures.draw(results, answers(), [], {}) if name.startswith("questions")
    ]
    # ... and those that the paper draws question by question
    first = results["contrasts"][0]
    results["claims"] = [{"contrast": first["name"], "benchmark": "other", "figure": "questions"}]
    assert not [name for name in figures.draw(results, answers(), [], {}) if "questions" in name]
    results["claims"][0]["benchmark"] = first["benchmark"]
    assert [name for name in figures.draw(results, answers(), [], {}) if "questions" in name]
    results["claims"][0]["figure"] = None
    for row in results["contrasts"]:
        row["family"] = "primary"
    (figure,) = (
        figure
        for name, figure in figures.draw(results, answers(), [], {}).items()
        if name.startswith("questions")
    )
    assert [axis.get_title("left") for axis in figure.figure.axes] == ["before SFT", "SFT dose 100"]


def test_names_suit_latex_and_file_systems_and_none_is_lost():
    results = study()
    results["benchmarks"] = {"a_b": {}, "A b": {}, NASTY: {}, "動物": {}, "été" * 90: {}}
    results["dimensions"] = [row | {"benchmark": name} for name in results["benchmarks"] for row in
                             results["dimensions"]]  # fmt: skip
    result = figures.draw(results, NOTHING, [], {})
    names = [name for name in result if name.startswith("dimensions")]
    assert (
        names[:2] == ["dimensions-a-b", "dimensions-a-b-2"]
        and names[3] == "dimensions"
        and len(names) == 5
    )
    assert all(re.fullmatch("[a-z0-9-]{1,90}", name) for name in names)
    titles = [result[name].title for name in names]
    assert all(
        benchmark in title for benchmark, title in zip(results["benchmarks"], titles, strict=True)
    )


def test_a_figure_that_fails_says_so_and_costs_no_other(monkeypatch):
    monkeypatch.setattr(curves, "erosion", lambda results: 1 / 0)
    result = figures.draw(study(), NOTHING, [], {})
    lost = result.pop("erosion")
    assert list(result) == ["scores", "contrasts", "dimensions"] and not any(
        figure.error for figure in result.values()
    )
    assert "ZeroDivisionError" in lost.error and lost.error in lost.text
    assert "could not be drawn" in drawn(lost.figure)
