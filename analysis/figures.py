"""Figures: means with intervals and one dot per seed, drawn without a display and byte for byte the same each time."""

import io
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from analysis.headline import missing_lines

COLORS = ["#7d868c", "#2f7fc1", "#e0862b", "#3a9a6a", "#a4508b", "#b8a11f", "#4fb3bf", "#c0504d"]
# text and lines drawn in this color become `currentColor` on the page, so the figure follows light and dark
INK = "#010203"
STYLE: dict[Any, Any] = {
    "svg.hashsalt": "study",
    "svg.fonttype": "none",
    "pdf.fonttype": 42,
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": INK,
    "axes.xmargin": 0.08,
    "xtick.color": INK,
    "ytick.color": INK,
}


def scores_figure(results: dict[str, Any]) -> Figure:
    """One panel per benchmark: a row per dose and arm with its mean, 95 % interval and one dot per training seed."""
    benchmarks = list(results["benchmarks"])
    planned = {(row["dose"], row["arm"]) for row in [*results["arms"], *results["missing"]]}
    lines: list[tuple[int, str | None]] = []
    for dose in sorted({dose for dose, _ in planned}):
        lines.append((dose, None))
        lines += [(dose, arm) for arm in results["arm_order"] if (dose, arm) in planned]
    figure = Figure(figsize=(1.6 + 3.4 * len(benchmarks), 1.1 + 0.3 * len(lines)), layout="constrained")
    figure.get_layout_engine().set(wspace=0.06)  # type: ignore[call-arg, union-attr]
    axes = figure.subplots(1, len(benchmarks), sharey=True, squeeze=False)[0]
    for axis, benchmark in zip(axes, benchmarks, strict=True):
        _panel(axis, results, benchmark, lines)
    labels = axes[0].get_yticklabels()
    for label, (_, arm) in zip(labels, lines, strict=True):
        label.set_fontweight("bold" if arm is None else "normal")
    if results["missing"]:
        figure.supxlabel(
            f"{len(results['missing'])} planned checkpoint(s) not finished", fontsize=7, ha="right", x=0.99
        )
    return figure


def _panel(axis: Axes, results: dict[str, Any], benchmark: str, lines: list[tuple[int, str | None]]) -> None:
    axis.set_title(benchmark, fontsize=10, fontweight="bold", loc="left")
    axis.set_yticks(range(len(lines)), [f"SFT dose {dose}" if arm is None else arm for dose, arm in lines])
    axis.set_ylim(len(lines) - 0.4, -0.6)
    axis.set_xlabel("score (%)")
    axis.spines[["top", "right", "left"]].set_visible(False)
    axis.tick_params(axis="y", length=0)
    axis.grid(axis="x", color="#8888884d", linewidth=0.6)
    axis.set_axisbelow(True)
    for y, (dose, arm) in enumerate(lines):
        if arm is None:
            continue
        color = COLORS[results["arm_order"].index(arm) % len(COLORS)]
        found = [
            row for row in results["arms"] if (row["benchmark"], row["dose"], row["arm"]) == (benchmark, dose, arm)
        ]
        if not found or found[0]["mean"] is None:
            axis.annotate(
                "no scores", (0.02, y), xycoords=("axes fraction", "data"), va="center", fontsize=7, style="italic"
            )
            continue
        row = found[0]
        if row["low"] is not None:
            axis.plot([100 * row["low"], 100 * row["high"]], [y, y], color=color, linewidth=2.2, solid_capstyle="round")
        axis.plot(100 * row["mean"], y, "D" if row["fixed"] else "o", color=color, markersize=7)
        key = (benchmark, dose, arm)
        seeds = [s for s in results["scores"] if (s["benchmark"], s["dose"], s["arm"]) == key and s["seed"] is not None]
        dots = [100 * s["score"] for s in seeds if s["score"] is not None]
        axis.plot(dots, [y + 0.3] * len(dots), "o", color=color, markersize=3.4, alpha=0.75, markeredgewidth=0)


def describe(results: dict[str, Any]) -> str:
    """The text alternative of the scores figure: every mean it shows."""
    parts = [
        f"{row['arm']} on {row['benchmark']} at dose {row['dose']}: {100 * row['mean']:.1f} %"
        for row in results["arms"]
        if row["mean"] is not None
    ]
    return "Mean scores by arm and SFT dose. " + "; ".join([*parts, *missing_lines(results)]) + "."


def save(results: dict[str, Any], folder: Path) -> str:
    """Write `scores.pdf` and `scores.png` into `folder`; returns the same figure as SVG text to put in a page."""
    folder.mkdir(parents=True, exist_ok=True)
    with matplotlib.rc_context(STYLE):
        figure = scores_figure(results)
        figure.savefig(folder / "scores.pdf", metadata={"CreationDate": None})
        figure.savefig(folder / "scores.png", dpi=200, metadata={"Software": None})
        page = io.StringIO()
        figure.savefig(page, format="svg", transparent=True, metadata={"Date": None})
    svg = page.getvalue()
    return svg[svg.index("<svg") :].replace(INK, "currentColor")
