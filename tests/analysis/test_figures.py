"""Which figures a study has and under which names.

The same bytes twice; one that fails costs no other.
"""

import itertools
import re
from pathlib import Path

import matplotlib
import pytest
from matplotlib.figure import Figure
from matplotlib.text import Text

from analysis import curves, figures, plots, profiles
from analysis.corpus_map import DocumentMap, document_map
from analysis.figure_files import apply_layout
from tests.analysis.sketches import NASTY, answers, contrast, corpora, drawn, study, trainings

pytestmark = pytest.mark.filterwarnings("error")
NOTHING = answers(arms=())


@pytest.mark.slow
def test_the_same_bytes_twice_and_every_figure_in_order(tmp_path):
    pages = []
    for name in ("first", "second"):
        result = figures.draw(
            study(gone=[("urban", 100)]), answers(), trainings(), document_map(corpora(), {})
        )
        pages.append(figures.save(result, tmp_path / name))
    names = [
        "scores-ahb",
        "contrasts-ahb",
        "erosion-ahb",
        "dimensions-ahb",
        "questions-animal-urban-ahb",
        "losses",
        "corpora",
    ]
    assert list(result) == names and pages[0] == pages[1] and list(pages[0].svgs) == names
    files = sorted(path.name for path in (tmp_path / "first").iterdir())
    kinds = (".pdf", ".png", "-column.pdf")
    assert files == sorted(f"{name}{kind}" for name in names for kind in kinds)
    for file in files:
        assert (tmp_path / "first" / file).read_bytes() == (
            tmp_path / "second" / file
        ).read_bytes(), file
    for figure in result.values():
        assert figure.error is None and figure.title and figure.text.endswith(".")
        # one sentence says what is seen; the numbers are in the words and in tables
        assert len(figure.alt) < 200 and re.fullmatch(r"[^.]+( SFT)?[^.]*\.", figure.alt), (
            figure.alt
        )
        assert smallest_letters(figure.column) >= 7 and figure.column.get_figwidth() == 3.4
        assert smallest_letters(figure.figure) >= 7
    dimensions = result["dimensions-ahb"]
    assert "before SFT" in dimensions.title and "Harm 81.2 %" in dimensions.text


def smallest_letters(figure: Figure) -> float:
    texts = [text for text in figure.findobj(Text) if text.get_text().strip()]
    return min(text.get_fontsize() for text in texts)


def test_letters_of_many_questions_are_no_smaller() -> None:
    for count in (85, 100, 131):
        figure = profiles.per_question(answers(seeds=1, questions=count), contrast(), 3.4)
        assert smallest_letters(figure) >= 7 and figure.get_figheight() < 11
        with matplotlib.rc_context(plots.STYLE):
            apply_layout(figure)
            boxes = [label.get_window_extent() for label in figure.axes[0].get_yticklabels()]
        assert all(above.y0 >= below.y1 for above, below in itertools.pairwise(boxes))


def test_a_figure_is_of_one_benchmark_and_fits_its_width(tmp_path: Path) -> None:
    results = study(arms=("a long name of an arm, written by two models", "urban"))
    for name in ("arms", "scores", "contrasts"):
        results[name] += [row | {"benchmark": "other"} for row in results[name]]
    results["benchmarks"]["other"] = {"direction": "lower"}
    result = figures.draw(results, NOTHING, [], DocumentMap())
    kinds = ("scores", "contrasts", "erosion")
    assert {f"{kind}-{name}" for kind in kinds for name in ("ahb", "other")} < set(result)
    for name, figure in result.items():
        assert ("other" in drawn(figure.figure)) == name.endswith("other"), name
        for form in (figure.figure, figure.column):
            with matplotlib.rc_context(plots.STYLE):
                apply_layout(form)
                extent = form.get_tightbbox()
            # what is drawn beyond the edge would be cut off
            assert extent.x0 > -0.02 and extent.x1 < form.get_figwidth() + 0.02, name


def test_no_axis_of_scores_shows_what_a_score_can_not_be() -> None:
    results = study()
    for row in results["arms"]:
        row |= {"low": row["mean"] - 0.9, "high": row["mean"] + 0.9}
    bars, curve = plots.bars(results, "ahb"), curves.erosion(results, "ahb")
    assert bars.axes[0].get_xlim()[0] == 0 and bars.axes[0].get_xlim()[1] <= 102
    assert curve.axes[0].get_ylim() == (-2, 102)


def test_letters_without_a_font_are_told_once_and_do_not_warn(tmp_path: Path) -> None:
    letter = "\U00010000"  # of Linear B
    result = figures.draw(study(arms=(f"a{letter}", "b"), doses=(0,)), NOTHING, [], DocumentMap())
    assert figures.save(result, tmp_path).unknown_letters == {letter}


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
    result = figures.draw(results, means, [], document_map({"animal": []}, {}))
    assert (
        list(result)
        == ["scores-ahb", "contrasts-ahb"][: bool(results["arms"]) + bool(results["contrasts"])]
    )
    assert not any(figure.error for figure in result.values())


def test_a_dose_that_is_only_planned_makes_an_erosion():
    assert "erosion-ahb" in figures.draw(
        study(gone=[("animal", 100), ("urban", 100)]), NOTHING, [], DocumentMap()
    )


def test_questions_are_those_of_primary_contrasts():
    results = study()
    results["contrasts"] = contrast(
        family="aside", estimate=None, low=None, high=None, verdict="none", reason="why"
    )
    assert not [
        name
        for name in figures.draw(results, answers(), [], DocumentMap())
        if name.startswith("questions")
    ]
    # ... and those that the paper draws question by question
    first = results["contrasts"][0]
    results["claims"] = [{"contrast": first["name"], "benchmark": "other", "figure": "questions"}]
    assert not [
        name for name in figures.draw(results, answers(), [], DocumentMap()) if "questions" in name
    ]
    results["claims"][0]["benchmark"] = first["benchmark"]
    assert [
        name for name in figures.draw(results, answers(), [], DocumentMap()) if "questions" in name
    ]
    results["claims"][0]["figure"] = None
    for row in results["contrasts"]:
        row["family"] = "primary"
    (figure,) = (
        figure
        for name, figure in figures.draw(results, answers(), [], DocumentMap()).items()
        if name.startswith("questions")
    )
    assert [axis.get_title("left") for axis in figure.figure.axes] == ["before SFT", "SFT dose 100"]


def test_names_suit_latex_and_file_systems_and_none_is_lost():
    results = study()
    results["benchmarks"] = {"a_b": {}, "A b": {}, NASTY: {}, "動物": {}, "été" * 90: {}}
    results["dimensions"] = [row | {"benchmark": name} for name in results["benchmarks"] for row in
                             results["dimensions"]]  # fmt: skip
    result = figures.draw(results, NOTHING, [], DocumentMap())
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
    monkeypatch.setattr(curves, "erosion", lambda *_, **__: 1 / 0)
    result = figures.draw(study(), NOTHING, [], DocumentMap())
    lost = result.pop("erosion-ahb")
    assert list(result) == ["scores-ahb", "contrasts-ahb", "dimensions-ahb"] and not any(
        figure.error for figure in result.values()
    )
    assert "ZeroDivisionError" in lost.error and lost.error in lost.text
    assert "could not be drawn" in drawn(lost.figure)
