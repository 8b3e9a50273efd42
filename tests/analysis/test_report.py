"""The report: names of every kind, which way is good, how it was made, size, access."""

import copy
import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from analysis import sensitivity
from analysis.headline import headline
from analysis.made import Made, made
from analysis.report import LETTERS, counted, report
from analysis.report_tables import favour
from core.cell.identity import Cell, create_cell_dir
from tests.analysis.enlarged_study import enlarged
from tests.analysis.pages import Page, read_page
from tests.analysis.small_study import results_of, study

NAMES = ["675", "items", "keys", "a_b", "a-b", "A_B", "動物", "urban"]
MADE = Made("0" * 64, None)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("analysis.figures.draw", lambda *_: {})
        patch.setattr(sensitivity, "RESAMPLES", 50)
        results: dict[str, Any] = results_of(study(tmp_path_factory.mktemp("study")))
    return results


def page_of(results: dict[str, Any], how: Made = MADE) -> Page:
    return read_page(report(results, {}, {}, "Dates: none", how))


def test_arms_of_any_name_are_in_every_table(small: dict[str, Any]) -> None:
    results = enlarged(small, NAMES, [0, 200], ["keys", "values"])
    tables = page_of(results).tables
    dimensions = tables["Dimensions of values at SFT dose 200"]
    assert dimensions[0] == ["Dimension", "Questions", *NAMES]
    scores = {
        (row["dimension"], row["arm"]): f"{100 * row['score']:.1f}"
        for row in results["dimensions"]
        if (row["benchmark"], row["dose"]) == ("values", 200)
    }
    for dimension, _, *cells in dimensions[1:]:
        assert cells == [scores[dimension, arm] for arm in NAMES]
    assert [row[2] for row in tables["Scores seed by seed"][1:]] == NAMES * 4
    matrix = tables["Contrasts by benchmark"]
    assert [row[0] for row in matrix[2:9]] == [f"{name} - urban" for name in NAMES[:-1]]
    assert [row[0] for row in tables["From planned to analysed"]][1:] == ["keys"] * 8 + [
        "values"
    ] * 8


def test_higher_is_good_bad_or_neither_by_benchmark(small: dict[str, Any]) -> None:
    results = copy.deepcopy(small)
    results["benchmarks"]["concern"]["direction"] = "lower"
    for row in results["contrasts"]:
        row["caution"] = None
    page = page_of(results)
    header = page.tables["Contrasts by benchmark"][0]
    assert header[1:] == ["ahb higher is better", "concern lower is better"]
    rows = [(row[1].split()[0], row[6]) for row in page.tables["Contrasts"][1:]]
    assert rows == [("ahb", "higher (better)")] * 2 + [("concern", "higher (worse)")] * 2
    assert "on concern before SFT (lower is better)." in " ".join(p.text for p in page.all("p"))
    results["benchmarks"]["concern"]["direction"] = "neither"
    assert page_of(results).tables["Contrasts"][3][6] == "higher"


def test_an_arm_without_a_grade_is_no_fixed_checkpoint(small: dict[str, Any]) -> None:
    results = copy.deepcopy(small)
    for row in results["contrasts"]:
        row["control_seeds"] = 0
    results["contrasts"][0]["control"] = "untrained"
    shown = [row[4] for row in page_of(results).tables["Contrasts"][1:3]]
    assert [text.split(" seeds")[0] for text in shown] == ["3 / fixed", "3 / 0"]


def test_a_judge_favours_the_arm_on_its_side() -> None:
    row = {"treatment": "animal", "control": "urban", "estimate": -0.208, "low": -0.3, "high": 0.1}
    assert favour(row) == "it favours urban by 20.8 [-10.0, +30.0]"
    assert favour(row | {"estimate": 0.05}) == "it favours animal by 5.0 [-30.0, +10.0]"
    assert favour(row | {"low": None}) == "it favours urban by 20.8"
    assert favour(row | {"estimate": None}) == "no number"


def test_what_nobody_wrote_has_no_writer_and_no_calls(small: dict[str, Any]) -> None:
    results = copy.deepcopy(small)
    corpus = {
        "name": "animal", "documents": 9, "held_out": 0, "tokens": 1234, "median_words": 7.0,
        "type_token": 0.1, "distinct_2": 0.2, "distinct_3": 0.3, "mean_similarity": 0.4, "similarity_sd": None, "similarity_by": "TF-IDF",
        "vendi": 5.0, "calls": None, "cost": None, "rejected": {}, "reference_corpus": None,
        "balance": None, "compared": 0, "example": "text",
    }  # fmt: skip
    results["corpora"] = [corpus]
    texts = {}
    for model in (None, "gemini"):
        writer = {"corpus": "animal", "model": model, "dummy": False, "matched_to": None}
        results["writers"] = [writer]
        page = page_of(results)
        texts[model] = " ".join(element.text for element in page.all("main"))
        header = page.tables["Corpora"][0]
        assert (header[-1] == "Cost") == (model is not None)
    assert "not written by this study" in texts[None] and "were written again" not in texts[None]
    assert "written by gemini" in texts["gemini"] and "were written again" in texts["gemini"]
    assert "None" not in texts[None] and "1 epochs" not in texts[None]
    assert "1 epoch," in texts[None]
    counts = [counted(n, names) for n in (1, 2) for names in ("epochs", "corpora")]
    assert counts == ["1 epoch", "1 corpus", "2 epochs", "2 corpora"]


def test_the_page_says_how_it_was_made(small: dict[str, Any], tmp_path: Path) -> None:
    recipe = {"lr": 2e-4, "epochs": 2, "weight_decay": 0.0, "lora": {"rank": 32}, "max_steps": None}
    rows = []
    for n, arm in enumerate(("animal", "urban", "gone")):
        cell = Cell("midtrain", arm, {"recipe": recipe, "seed": n})
        row = {"stage": "midtrain", "arm": arm, "seed": n, "cell": cell.relpath}
        rows.append(row | {"identity": cell.identity})
        if arm == "gone":
            continue
        folder = create_cell_dir(cell, tmp_path)
        manifest = {
            "identity": cell.identity,
            "counts": {"steps": 100 + n},
            "code": {"commit": "abcdef0123456789", "dirty": n == 1},
            "packages": {"torch": "2.13.0", "python": f"3.11.{n}"},
        }
        (folder / "manifest.json").write_text(json.dumps(manifest))
    text = "models:\n  base: {hub: meta-llama/Llama-3.1-8B, revision: d04e59}\n"
    how = made("1" * 64, text, rows, [], tmp_path)
    page = page_of(small, how)
    facts = [element.text for element in page.all("dd")]
    assert facts[0] == "meta-llama/Llama-3.1-8B at d04e59"
    assert facts[1] == (
        "arms animal, urban; 100 to 101 steps; lr 0.0002, epochs 2, weight_decay 0.0, lora rank 32"
    )
    (dates,) = (element.text for element in page.all("p") if element.text.startswith("Dates: "))
    assert "commit abcdef012345 (1 cell), abcdef012345 with changes (1 cell)" in dates
    assert any("python 3.11.0 or 3.11.1, torch 2.13.0" in fact for fact in facts)
    digest = hashlib.sha256(text.encode()).hexdigest()
    assert any(digest in fact for fact in facts)
    assert f"cell {'1' * 64}" in facts


@pytest.fixture(scope="module")
def large(small: dict[str, Any]) -> dict[str, Any]:
    arms = [f"arm_{n} of a kind" for n in range(20)]
    doses = [0, 800, 2250, 4000, 8000]
    return enlarged(small, arms, doses, [f"benchmark_{n}" for n in range(10)])


def test_a_large_study_has_one_matrix_before_all_and_a_row_behind_each_number(
    large: dict[str, Any],
) -> None:
    text = report(large, {}, {}, "Dates: none", MADE)
    assert len(text.encode()) + LETTERS < 8_000_000
    page = read_page(text)
    headings = [element.attributes["id"] for element in page.all("h2")]
    assert headings[0] == "matrix"
    links = [element.attributes["href"] for element in page.all("a")]
    assert links[: len(headings)] == [f"#{name}" for name in headings], "the contents list"
    ids = page.ids()
    cells = [e for e in page.all("a") if (e.attributes["href"] or "").startswith("#contrast-")]
    assert len(cells) == len(large["contrasts"]) == 950
    rows = page.tables["Contrasts"][1:]
    for cell in cells:
        name = (cell.attributes["href"] or "")[1:]
        assert name in ids
        row = rows[int(name.removeprefix("contrast-"))]
        assert cell.text.split()[1] == row[2] and row[6].split()[0] in cell.text
    # marks and words say what colors say
    marks = {(cell.text.split()[0], cell.attributes["class"]) for cell in cells}
    assert marks == {("▲", "higher"), ("▼", "lower"), ("○", "inconclusive")}
    left_out = [e.text for e in page.all("p") if "more rows are in" in e.text]
    assert any(f"{len(large['robustness']) - 500} more rows" in line for line in left_out)
    assert headline(large, "Dates: none").count("\n") < 39


def test_figures_beyond_the_size_are_named(small: dict[str, Any]) -> None:
    from analysis.figures import Drawn

    names = ["scores-a", "erosion-a", "questions-a", "contrasts-a"]
    drawn = {name: Drawn(None, None, f"title of {name}", "alt", "text") for name in names}
    svgs = {name: ("<svg></svg>" + " " * 1_900_000, "") for name in names}
    text = report(small, drawn, svgs, "Dates: none", MADE)
    page = read_page(text)
    assert [name for name in names if f"figure-{name}" in page.ids()] == ["scores-a", "contrasts-a"]
    left_out = " ".join(e.text for e in page.all("p") if "for their size" in e.text)
    assert "figures/erosion-a.pdf (title of erosion-a)" in left_out
    assert "figures/questions-a.pdf" in left_out


def test_regions_and_tables_have_names_and_are_reached_by_keyboard(small: dict[str, Any]) -> None:
    page = page_of(small)
    for element in page.elements:
        attributes = element.attributes
        if "scroll" in (attributes.get("class") or "").split():
            assert attributes["tabindex"] == "0" and attributes["aria-label"], attributes
        if element.tag == "th":
            assert attributes["scope"] in ("col", "row", "rowgroup"), element
    names = [element.attributes["aria-label"] for element in page.all("table")]
    assert all(names) and len(set(names)) == len(names)
    for name, (header, *rows) in page.tables.items():
        if name != "Contrasts by benchmark":
            assert rows and {len(row) for row in rows} == {len(header)}, name
    assert len(page.ids()) == sum("id" in element.attributes for element in page.elements)
    # no caption inside a region that scrolls: it would be cut
    assert not page.all("caption")


def test_what_is_folded_is_printed() -> None:
    css = (Path(__file__).parents[2] / "analysis/report.css").read_text()
    printed = css[css.index("@media print") :]
    assert "details::details-content { content-visibility: visible; display: block" in printed
    assert "th button { display: contents; }" in printed, "headers are repeated on each page"
