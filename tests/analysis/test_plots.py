"""Bars and forest: numbers in words, marked gaps, odd studies; files that go onto one page."""

import gc
import itertools
import math
import re
from xml.etree import ElementTree

import numpy as np
import pytest
from matplotlib.colors import to_rgb
from matplotlib.image import imread

from analysis import figure_files, plots
from core.paths import ROOT
from tests.analysis.sketches import NASTY, drawn, numbers, study, texts

pytestmark = pytest.mark.filterwarnings(
    "error"
)  # a figure that warns warns whoever runs an analysis
BOTH = [(plots.bars, plots.describe_bars), (plots.forest, plots.describe_forest)]


def test_the_words_hold_every_number():
    results = study()
    bars, forest = (describe(results, "ahb") for _, describe in BOTH)
    for n in numbers(results, "arms", "mean", "low", "high") | numbers(results, "scores", "score"):
        assert n in bars
    assert all(n in forest for n in numbers(results, "contrasts", "estimate", "low", "high"))
    assert "animal - urban on ahb, before SFT: +10.0 points [+6.0, +14.0], higher" in forest
    assert "untrained on ahb, before SFT: 71.2 % [66.2, 76.2]." in plots.describe_bars(
        study(("a", "untrained"), (0,)), "ahb"
    )
    results["contrasts"][1]["control_dose"] = 0
    assert "dose 100 against before SFT" in plots.describe_forest(results, "ahb")


def test_what_is_missing_is_marked_and_never_drawn_as_a_number():
    results = study(gone=[("urban", 100)])
    bars, forest = (draw(results, "ahb") for draw, _ in BOTH)
    assert len(bars.axes[1].patches) == 1 and texts(bars).count("× no scores") == 1
    assert texts(forest).count("× no number") == 1 and texts(forest).count("[") == 1
    for _, describe in BOTH:
        assert "not finished" in describe(results, "ahb")
    results = study()
    results["missing"] = [results["scores"].pop(0)]
    assert "× 1 missing" in texts(plots.bars(results, "ahb"))


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
        words, text = drawn(draw(results, "ahb")), describe(results, "ahb")
        assert text.endswith(".") and ("Nothing to show" in words) == ("Nothing to show" in text)
        if draw is plots.bars:
            assert all(part in words for arm in results["arm_order"] for part in arm.split())


@pytest.mark.parametrize("nan", [None, math.nan])
def test_numbers_that_are_none_are_drawn(nan):
    results = study()
    for row in [*results["scores"], *results["arms"], *results["contrasts"]]:
        row |= {key: nan for key in ("score", "mean", "estimate", "low", "high") if key in row}
    for draw, describe in BOTH:
        drawn(draw(results, "ahb"))
        text = describe(results, "ahb")
        assert (
            "no number" in text
            and "nan" not in text
            and not re.search(r"\d %", text.replace("95 %", ""))
        )
    assert texts(plots.bars(results, "ahb")).count("× no scores") == 4


def test_files_for_print_and_page(tmp_path):
    pages = {name: figure_files.save(plots.forest(study(), "ahb"), tmp_path, name) for name in "ab"}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.pdf", "a.png", "b.pdf", "b.png"]
    ids = [set(re.findall(r' id="([^"]+)"', pages[name])) for name in "ab"]
    assert gc.isenabled() and ids[0] and not ids[0] & ids[1]
    for svg in pages.values():
        assert svg.startswith("<svg") and "currentColor" in svg and plots.INK not in svg
        assert "var(--higher, " in svg and "style=" not in svg
        assert not re.search(r"(fill|stroke): #(000000|010203|333333)", svg)
        assert all(f".{name}{{" in svg for name in re.findall('class="([^"]+)"', svg))
        ElementTree.fromstring(svg)
    # one face, embedded once though it shows a minus sign, in the form that journals take
    pdf = (tmp_path / "a.pdf").read_bytes()
    assert pdf.count(b"/FontFile2 ") == 1 and b"/CIDFontType2" in pdf and b"/Type3" not in pdf
    # letters are no wider in a PNG than laid out: none is cut off at its edge
    pixels = imread(tmp_path / "a.png")
    assert (pixels[:, [0, 1, -2, -1]] == 1).all() and (pixels < 1).any()


def brightness(color: str) -> np.ndarray:
    """Linear light of red, green and blue."""
    values = np.array(to_rgb(color))
    return np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)


def contrast(color: str, other: str) -> float:
    """Of WCAG 2."""
    light = sorted(float(brightness(of) @ [0.2126, 0.7152, 0.0722]) + 0.05 for of in (color, other))
    return light[1] / light[0]


def lab(light: np.ndarray) -> np.ndarray:
    xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
    x, y, z = np.cbrt(xyz @ np.clip(light, 0, 1) / [0.95047, 1, 1.08883])
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


# Machado, Oliveira and Fernandes (2009), full severity
DEUTERANOPIA = np.array(
    [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.01182, 0.04294, 0.968881]]
)


def test_colors_differ_for_red_green_blindness_and_stand_out_from_both_pages():
    seen = {color: lab(DEUTERANOPIA @ brightness(color)) for color in plots.COLORS}
    for a, b in itertools.combinations(plots.COLORS, 2):
        assert np.linalg.norm(seen[a] - seen[b]) > 15, (a, b)
    for color in plots.COLORS:
        assert contrast(color, "#ffffff") >= 3 and contrast(color, "#1c2225") >= 3, color
    for color in (plots.HIGHER, plots.LOWER):
        assert contrast(color, "#fbfaf7") >= 4.5, "it is the color of words too"
    looks = [str(plots.arm_style(str(n), [*map(str, range(20))])) for n in range(20)]
    assert len(set(looks)) == 20
    css = (ROOT / "analysis/report.css").read_text()
    assert f"--higher: {plots.HIGHER}; --lower: {plots.LOWER};" in css


def test_words_stand_out_from_the_page_in_light_and_dark():
    css = (ROOT / "analysis/report.css").read_text()
    for theme in (css, css[css.index("prefers-color-scheme: dark") :]):
        colors = dict(re.findall(r"--(\w+): (#\w{6})", theme[: theme.index("}")]))
        for words in ("ink", "soft", "accent", "higher", "lower", "unsure", "none", "yes", "no"):
            for behind in ("page", "card"):
                assert contrast(colors[words], colors[behind]) >= 4.5, (words, behind)
