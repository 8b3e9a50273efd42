"""Bars and forest: numbers in words, marked gaps, odd studies; files that go onto one page."""

import gc
import math
import re

import pytest
from matplotlib.image import imread

from analysis import plots
from tests.analysis.sketches import NASTY, drawn, numbers, study, texts

pytestmark = pytest.mark.filterwarnings(
    "error"
)  # a figure that warns warns whoever runs an analysis
BOTH = [(plots.bars, plots.describe_bars), (plots.forest, plots.describe_forest)]


def test_the_words_hold_every_number():
    results = study()
    bars, forest = (describe(results) for _, describe in BOTH)
    for n in numbers(results, "arms", "mean", "low", "high") | numbers(results, "scores", "score"):
        assert n in bars
    assert all(n in forest for n in numbers(results, "contrasts", "estimate", "low", "high"))
    assert "animal - urban on ahb, before SFT: +10.0 points [+6.0, +14.0], higher" in forest
    assert "untrained on ahb, before SFT: 71.2 % [66.2, 76.2]." in plots.describe_bars(
        study(("a", "untrained"), (0,))
    )
    results["contrasts"][1]["control_dose"] = 0
    assert "dose 100 against before SFT" in plots.describe_forest(results)


def test_what_is_missing_is_marked_and_never_drawn_as_a_number():
    results = study(gone=[("urban", 100)])
    bars, forest = (draw(results) for draw, _ in BOTH)
    assert len(bars.axes[1].patches) == 1 and texts(bars).count("× no scores") == 1
    assert texts(forest).count("× no number") == 1 and texts(forest).count("[") == 1
    for _, describe in BOTH:
        assert "not finished" in describe(results)
    results = study()
    results["missing"] = [results["scores"].pop(0)]
    assert "× 1 missing" in texts(plots.bars(results))


@pytest.mark.parametrize(
    "results",
    [
        study(arms=()),
        study(arms=("animal",), doses=(0,), seeds=1),
        study(gone=[(arm, dose) for arm in ("animal", "urban") for dose in (0, 100)]),
        study(arms=(NASTY, "b"), doses=(0, 100, 5000)),
        study(
            tuple(f"a very long name of an arm, written by model {n}, revised" for n in range(12)),
            (0,),
            10,
        ),
    ],
)
def test_odd_studies_are_drawn(results):
    for draw, describe in BOTH:
        words, text = drawn(draw(results)), describe(results)
        assert text.endswith(".") and ("Nothing to show" in words) == ("Nothing to show" in text)
        if draw is plots.bars:
            assert all(part in words for arm in results["arm_order"] for part in arm.split())


@pytest.mark.parametrize("nan", [None, math.nan])
def test_numbers_that_are_none_are_drawn(nan):
    results = study()
    for row in [*results["scores"], *results["arms"], *results["contrasts"]]:
        row |= {key: nan for key in ("score", "mean", "estimate", "low", "high") if key in row}
    for draw, describe in BOTH:
        drawn(draw(results))
        text = describe(results)
        assert (
            "no number" in text
            and "nan" not in text
            and not re.search(r"\d %", text.replace("95 %", ""))
        )
    assert texts(plots.bars(results)).count("× no scores") == 4


def test_files_for_print_and_page(tmp_path):
    figures = {"a": plots.forest(study()), "b": plots.forest(study())}
    pages = plots.save_all(figures, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.pdf", "a.png", "b.pdf", "b.png"]
    ids = [set(re.findall(r' id="([^"]+)"', pages[name])) for name in "ab"]
    assert gc.isenabled() and ids[0] and not ids[0] & ids[1]
    for svg in pages.values():
        assert svg.startswith("<svg") and "currentColor" in svg and plots.INK not in svg
        assert not re.search(r"(fill|stroke): #(000000|010203|333333)", svg)
    # one face, embedded once though it shows a minus sign, in the form that journals take
    pdf = (tmp_path / "a.pdf").read_bytes()
    assert pdf.count(b"/FontFile2 ") == 1 and b"/CIDFontType2" in pdf and b"/Type3" not in pdf
    # letters are no wider in a PNG than laid out: none is cut off at its edge
    pixels = imread(tmp_path / "a.png")
    assert (pixels[:, [0, 1, -2, -1]] == 1).all() and (pixels < 1).any()
