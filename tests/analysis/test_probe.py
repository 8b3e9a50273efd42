"""Directions of checkpoints against those of a reference: by hand, within seeds, with reasons."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pytest

from analysis import plots
from analysis.figure_files import apply_layout
from analysis.probe import describe_probe, probe_rows, probe_table
from analysis.probe_figure import probe_figure
from analysis.rows import to_jsonable
from analysis.settings import Benchmark, ScoreFile
from analysis.table_text import to_csv
from tests.analysis.small_study import results_of, study

INSIDE = Benchmark("probe", None, "higher", None, False, (), (), reference="animal")


def write(folder: Path, direction: Any, auroc: Any, shuffled: Any = (0.5, 0.5)) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    arrays = {"direction": direction, "auroc": auroc, "auroc_shuffled": shuffled}
    np.savez(folder / "directions.npz", **{k: np.array(v, float) for k, v in arrays.items()})
    return folder


def file(arm: str, seed: int | None, dose: int) -> ScoreFile:
    return ScoreFile(f"{arm}-{seed}-{dose}", arm, seed, dose, "inside", "sft/x")


@pytest.fixture
def cells(tmp_path: Path) -> dict[ScoreFile, Path]:
    """Two seeds of `animal` with directions along x and y, their SFT, and the untrained model."""
    of: dict[ScoreFile, tuple[Any, Any]] = {
        file("animal", 0, 0): ([[2, 0], [4, 0]], (0.7, 0.9)),
        file("animal", 1, 0): ([[0, 2], [0, 4]], (0.8, 0.9)),
        file("animal", 0, 80): ([[1, 0], [0, 3]], (0.6, 0.8)),
        file("animal", 1, 80): ([[0, 1], [0, 2]], (0.7, 0.6)),
        file("untrained", None, 0): ([[1, 1], [2, 2]], (0.5, 0.6)),
    }
    return {f: write(tmp_path / f.role, *numbers) for f, numbers in of.items()}


def rows_of(cells: dict[ScoreFile, Path], benchmark: Benchmark = INSIDE) -> dict[Any, Any]:
    inputs = {f.role: folder for f, folder in cells.items()}
    rows = probe_rows([*cells], {"inside": benchmark}, inputs)
    return {(row["arm"], row["dose"]): to_jsonable(row) for row in rows}


def test_projection_and_cosine_compare_checkpoints_of_one_seed(
    cells: dict[ScoreFile, Path],
) -> None:
    rows = rows_of(cells)
    assert rows["animal", 0]["at_layer"] == {
        "auroc": 0.9, "shuffled": 0.5, "projection": 1.0, "cosine": 1.0
    }  # fmt: skip
    after = rows["animal", 80]
    assert after["layer"] == 2, "where the reference's AUROC is highest"
    assert after["by_seed"] == [
        # layer 2 of seed 0 is along y, its reference along x
        {"seed": 0, "auroc": 0.8, "shuffled": 0.5, "projection": 0.0, "cosine": 0.0},
        {"seed": 1, "auroc": 0.6, "shuffled": 0.5, "projection": 0.5, "cosine": 1.0},
    ]
    assert after["layers"][0] == {
        "layer": 1, "auroc": 0.65, "shuffled": 0.5, "projection": 0.5, "cosine": 1.0
    }  # fmt: skip
    # Without a seed: the mean of the comparisons with both.
    untrained = rows["untrained", 0]["at_layer"]
    assert untrained["projection"] == 0.5 and untrained["cosine"] == pytest.approx(0.707107)
    assert {row["reference_dose"] for row in rows.values()} == {0}


def test_a_reference_that_is_missing_or_of_another_shape_is_said(
    cells: dict[ScoreFile, Path], tmp_path: Path
) -> None:
    other = file("other", 0, 0)
    cells[other] = write(tmp_path / other.role, [[1, 0, 0]], (0.9,), (0.5,))
    new = file("animal", 2, 80)
    cells[new] = write(tmp_path / new.role, [[1, 0], [1, 0]], (0.5, 0.5))
    rows = rows_of(cells)
    assert rows["other", 0]["at_layer"]["projection"] is None
    assert "another number of layers" in rows["other", 0]["reason"]
    assert rows["animal", 80]["reason"] == "the reference of its seed is missing"
    rows = rows_of(cells, replace(INSIDE, reference="gone"))
    assert {row["at_layer"]["cosine"] for row in rows.values()} == {None}
    assert rows["animal", 0]["at_layer"]["auroc"] == 0.9
    assert rows_of(cells, replace(INSIDE, reference=None)) == {}


def test_report_table_and_figure_show_them(tmp_path: Path) -> None:
    context = study(tmp_path)
    context.settings["benchmarks"]["concern"]["reference"] = "animal"
    rng = np.random.default_rng(2)
    for row in context.settings["rows"]:
        if row["benchmark"] == "concern":
            write(context.inputs[row["role"]], rng.normal(size=(2, 8)), rng.random(2))
    results = results_of(context)
    assert len(results["probe"]) == 5
    page = (context.folder / "report.html").read_text()
    assert "Does later training remove the direction, or only hide it?" in page
    assert 'id="figure-probe-concern"' in page
    lines = to_csv(probe_table(results)).splitlines()
    assert len(lines) == 6 and (context.folder / "tables/probe.tex").exists()
    assert "projection on animal +1.00, cosine +1.00" in describe_probe(results, "concern")
    for width in (plots.WIDTH, plots.COLUMN):
        figure = probe_figure(results, "concern", width)
        with matplotlib.rc_context(plots.STYLE):
            apply_layout(figure)
            extent = figure.get_tightbbox()
        assert extent.x0 > -0.02 and extent.x1 < figure.get_figwidth() + 0.02
        shown = [text.get_text() for text in figure.axes[0].get_yticklabels()]
        assert shown == ["untrained, 0", "animal, 0", "animal, 200", "urban, 0", "urban, 200"]
        values = figure.axes[1].images[0].get_array()
        assert values is not None and np.allclose(values[1], 1), "of the reference itself"


def test_a_study_without_a_probe_has_none(tmp_path: Path) -> None:
    context = study(tmp_path)
    assert results_of(context)["probe"] == []
    assert "Inside the model" not in (context.folder / "report.html").read_text()
    assert not (context.folder / "tables/probe.csv").exists()
