"""Layer by checkpoint: held-out AUROC, projection and cosine of the probes' directions."""

import numpy as np
from matplotlib.figure import Figure

from analysis import plots
from analysis.plots import SMALL, is_column, wrapped
from analysis.probe import describe_probe
from analysis.rows import Results, Row
from analysis.tables import in_study_order

TITLES = {
    "auroc": "held-out AUROC",
    "projection": "projection on the reference",
    "cosine": "cosine with the reference",
}
LINE = 0.16  # inches of a checkpoint


def _rows(results: Results, benchmark: str) -> list[Row]:
    rows = [row for row in results["probe"] if row["benchmark"] == benchmark]
    return sorted(in_study_order(results, rows), key=lambda row: _order(results, row))


def _order(results: Results, row: Row) -> tuple[int, int]:
    return results["arm_order"].index(row["arm"]), row["dose"]


@plots.styled
def probe_figure(results: Results, benchmark: str, width: float = plots.WIDTH) -> Figure:
    """A heat map for each of TITLES: a line a checkpoint (mean over seeds), a column a layer."""
    rows = _rows(results, benchmark)
    most = max(len(row["layers"]) for row in rows)
    stacked = is_column(width)
    height = LINE * len(rows) + 0.75
    figure = plots.new_figure(height * (len(TITLES) if stacked else 1) + 0.3, width)
    shape = (len(TITLES), 1) if stacked else (1, len(TITLES))
    axes = figure.subplots(*shape, squeeze=False).flatten()
    names = [wrapped(f"{row['arm']}, {row['dose']}", 60) for row in rows]
    for axis, (key, title) in zip(axes, TITLES.items(), strict=True):
        values = np.full((len(rows), most), np.nan)
        for line, row in enumerate(rows):
            of_layers = [layer[key] for layer in row["layers"]]
            values[line, : len(of_layers)] = [np.nan if v is None else v for v in of_layers]
        lowest, highest = (0.5, 1.0) if key == "auroc" else (0.0, 1.0)
        image = axis.imshow(
            values,
            aspect="auto",
            cmap="cividis",
            vmin=lowest,
            vmax=highest,
            interpolation="nearest",
            extent=(0.5, most + 0.5, len(rows) - 0.5, -0.5),
        )
        axis.set_title(title, loc="left", fontsize=8)
        axis.set_xlabel("layer")
        axis.set_yticks(range(len(rows)), names if stacked or axis is axes[0] else [""] * len(rows))
        axis.tick_params(axis="y", labelsize=SMALL, length=0)
        axis.locator_params(axis="x", integer=True, nbins=4)
        bar = figure.colorbar(image, ax=axis, orientation="horizontal", extend="both")
        bar.ax.tick_params(labelsize=SMALL)
        bar.ax.locator_params(nbins=3)
    return figure


def alt_probe(results: Results, benchmark: str) -> str:
    rows = _rows(results, benchmark)
    points = plots.counted(len(rows), "checkpoint")
    return f"Held-out AUROC, projection and cosine by layer of {points} on {benchmark}."


def describe_probe_figure(results: Results, benchmark: str) -> str:
    text = describe_probe(results, benchmark)
    return plots.description("Directions in hidden states", [text])
