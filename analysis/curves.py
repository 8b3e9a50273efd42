"""Scores and advantages against SFT dose as figures, in the manner of analysis.plots."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.transforms import ScaledTranslation

from analysis import plots
from analysis.headline import missing_lines
from analysis.plots import INK, TOGETHER, arm_style, rows_at, to_percent, wrapped
from analysis.rows import Results, Row

OTHER = "#88888880"  # the color of other arms' means behind
TITLES = {"score": "score (%)", "advantage": "advantage over the control (points)"}


@dataclass(frozen=True)
class Panel:
    """One axis of a grid: which of the given panels it belongs to, and the arms it shows."""

    axis: Axes
    number: int
    arms: list[str]


@dataclass(frozen=True)
class Point:
    """A mean at one dose with its interval, and the values of seeds; percent, NaN where unknown."""

    mean: float
    low: float
    high: float
    seeds: dict[int, float]


Line = dict[int, Point]  # by dose


def panel_grid(
    panels: Sequence[tuple[str, list[str]]],
    order: Sequence[str],
    xlabel: str,
    width: float,
    *handles: Artist,
) -> list[Panel]:
    """Axes for panels (title, arms), with a legend.

    Where a panel has more than TOGETHER arms, each panel becomes rows of small ones, an arm each,
    on one scale.
    """
    small = any(len(arms) > TOGETHER for _, arms in panels)
    columns = 4 if small else min(2, len(panels))
    if plots.is_column(width):
        columns = 2 if small else 1
    rows: list[list[tuple[int, list[str]]]] = []
    for panel, (_, arms) in enumerate(panels):
        cells = [(panel, [arm]) for arm in arms] if small else [(panel, arms)]
        if not small and rows and len(rows[-1]) < columns:
            rows[-1] += cells
        else:
            rows += [cells[start : start + columns] for start in range(0, len(cells), columns)]
    lines = 1 + max(wrapped(arm, 24).count("\n") for _, arms in panels for arm in arms)
    height = 1.15 + 0.12 * lines if small else 2.2
    figure = plots.new_figure(len(rows) * height + 0.2, width)
    axes = figure.subplots(len(rows), columns, squeeze=False)
    placed: list[Panel] = []
    for line, cells in zip(axes, rows, strict=True):
        for axis in line[len(cells) :]:
            axis.remove()
        for axis, (panel, arms) in zip(line, cells, strict=False):
            title = panels[panel][0]
            plots.strip_frame(axis, "y")
            if small:
                axis.set_title(wrapped(arms[0], 24), loc="left", fontsize=plots.SMALL)
                axis.tick_params(labelsize=plots.SMALL)
                first = next((cell.axis for cell in placed if cell.number == panel), None)
                if first:
                    axis.sharey(first)
                axis.tick_params(labelleft=axis is line[0])
                if axis is line[0]:
                    axis.set_ylabel(wrapped(title, 20))
            else:
                axis.set_title(wrapped(title, 40), loc="left")
            placed.append(Panel(axis, panel, arms))
    for axis in axes[-1]:
        axis.set_xlabel(xlabel)
    named = [arm for arm in order if any(arm in arms for _, arms in panels)]
    no_number = plots.legend_entry("no number", marker="x")
    plots.add_legend(figure, [] if small else named, order, *handles, no_number)
    return placed


@plots.styled
def erosion(results: Results, benchmark: str, width: float = plots.WIDTH) -> Figure:
    """Scores on one benchmark against SFT dose, then contrasts with the control of the first.

    Thin lines: training seeds; thick lines: the mean, in the band of its 95 % interval.
    """
    lines = _lines(plots.of_benchmark(results, benchmark), control_of(results))
    if not lines:
        return plots.placeholder("no arm was planned", width)
    order = results["arm_order"]
    by_kind = {kind: [arm for of, arm in lines if of == kind] for kind in TITLES}
    panels = {kind: arms for kind, arms in by_kind.items() if arms}
    doses = sorted({dose for line in lines.values() for dose in line})
    handles: list[Artist] = []
    if any(len(arms) > TOGETHER for arms in panels.values()):
        handles.append(plots.legend_entry("mean of another arm", color=OTHER, linestyle="-"))
    handles += [
        plots.legend_entry("training seed", linestyle="-", linewidth=0.6, marker="."),
        Patch(color=INK, alpha=0.15, linewidth=0, label="95 % interval"),
        plots.legend_entry("no number of a seed", marker="x", markersize=2.5),
    ]
    titles = [(f"{benchmark}: {TITLES[kind]}", arms) for kind, arms in panels.items()]
    placed = panel_grid(titles, order, "SFT dose", width, *handles)
    kinds = list(panels)
    for panel in placed:
        kind = kinds[panel.number]
        for n, arm in enumerate(panel.arms):
            # in points; intervals at one dose stay apart
            offset = 4 * (n - (len(panel.arms) - 1) / 2)
            _draw_line(panel.axis, lines[kind, arm], arm_style(arm, order), doses, offset)
        others = [lines[kind, arm] for arm in panels[kind] if arm not in panel.arms]
        ordered = [_in_order(line, doses) for line in others]
        behind = joined([(list(line), [point.mean for point in line.values()]) for line in ordered])
        panel.axis.plot(*behind, color=OTHER, linewidth=0.7, zorder=1)
        if kind == "advantage":
            panel.axis.axhline(0, color=INK, linewidth=0.8)
        else:  # an interval of few seeds may reach beyond what a score can be
            low, high = panel.axis.get_ylim()
            panel.axis.set_ylim(max(low, -2), min(high, 102))
        _set_dose_ticks(panel.axis, doses)
    return cast(Figure, placed[0].axis.figure)


def _in_order(line: Line, doses: Sequence[int]) -> Line:
    return {dose: line[dose] for dose in doses if dose in line}


def _set_dose_ticks(axis: Axes, doses: Sequence[int]) -> None:
    """Ticks at the doses, on a log scale where the lower ones would crowd."""
    least = min((dose for dose in doses if dose), default=0)
    if doses[-1] > 10 * least > 0:
        axis.set_xscale("symlog", linthresh=least)
    scale = axis.xaxis.get_transform()
    low, high = scale.transform([doses[0], doses[-1]])
    margin = 0.08 * (high - low) or 1
    axis.set_xlim(*scale.inverted().transform([low - margin, high + margin]))
    axis.set_xticks(doses, [str(dose) for dose in doses])
    axis.minorticks_off()


def _draw_line(
    axis: Axes, line: Line, style: dict[str, Any], doses: Sequence[int], offset: float
) -> None:
    """One arm's line with seeds and interval, drawn `offset` points to the side."""
    points = _in_order(line, doses)
    x = list(points)
    mean, low, high = (
        np.array([getattr(point, key) for point in points.values()])
        for key in ("mean", "low", "high")
    )
    color = style["color"]
    shift = ScaledTranslation(offset / 72, 0, axis.figure.dpi_scale_trans)
    transform = axis.transData + shift
    axis.plot(x, mean, **style, linewidth=1.7, markersize=4.5, transform=transform)
    axis.fill_between(x, low, high, color=color, alpha=0.15, linewidth=0, transform=transform)
    seeds = dict.fromkeys(seed for point in points.values() for seed in point.seeds)
    dots = [[point.seeds.get(seed, math.nan) for point in points.values()] for seed in seeds]
    # what is drawn to the side doesn't widen the axis
    for values in [mean.tolist(), low.tolist(), high.tolist(), *dots]:
        limits = [(dose, y) for dose, y in zip(x, values, strict=True) if math.isfinite(y)]
        axis.update_datalim(limits)
    axis.autoscale_view()
    # a band has no width at a dose without neighbors
    has_interval = np.isfinite([math.nan, *low, math.nan])
    isolated = has_interval[1:-1] & ~has_interval[:-2] & ~has_interval[2:]
    ends = np.where(isolated, [low, high], math.nan)
    bar: dict[str, Any] = {"linewidth": 4, "alpha": 0.3, "solid_capstyle": "butt"}
    axis.plot([x, x], ends, color=color, **bar, transform=transform)
    thin: dict[str, Any] = {"linewidth": 0.6, "alpha": 0.6, "marker": ".", "markersize": 2}
    axis.plot(*joined([(x, values) for values in dots]), color=color, **thin, transform=transform)
    for values in dots:
        mark_missing(axis, zip(x, values, strict=True), color, offset, 2.5)
    mark_missing(axis, zip(x, mean, strict=True), color, offset)


def joined(lines: Iterable[tuple[Sequence[float], Sequence[float]]]) -> np.ndarray:
    """x and y of several lines as those of one with gaps, which is drawn much faster."""
    parts = [np.array([(*x, math.nan), (*y, math.nan)], float) for x, y in lines]
    return np.concatenate([np.empty((2, 0)), *parts], axis=1)


def mark_missing(
    axis: Axes,
    points: Iterable[tuple[float, float]],
    color: str,
    offset: float = 0,
    size: float = 4.5,
) -> None:
    """× on the x axis, where no value is drawn, wherever there is no number."""
    missing = [x for x, value in points if math.isnan(value)]
    shift = ScaledTranslation(offset / 72, 0, axis.figure.dpi_scale_trans)
    foot = axis.get_xaxis_transform() + shift
    if missing:
        style: dict[str, Any] = {"color": color, "markersize": size, "clip_on": False, "zorder": 3}
        axis.plot(missing, [0] * len(missing), "x", **style, transform=foot)
        axis.update_datalim([(x, 0) for x in missing], updatey=False)
        axis.autoscale_view()


def control_of(results: Results) -> str | None:
    """The arm that advantages are over: the control of the contrast declared first."""
    return results["contrasts"][0]["control"] if results["contrasts"] else None


def _lines(results: Results, control: str | None) -> dict[tuple[str, str], Line]:
    """(score or advantage, arm) -> the line of it, of results on one benchmark."""
    lines: dict[tuple[str, str], Line] = {}
    order = results["arm_order"]
    rows = [*results["arms"], *results["missing"]]
    for row in sorted(rows, key=lambda row: order.index(row["arm"])):
        key = (row["benchmark"], row["dose"], row["arm"])
        if "mean" not in row and rows_at(results["arms"], *key):
            continue  # the arm has scores of other seeds
        checkpoints = rows_at([*results["scores"], *results["missing"]], *key)
        seeds = {
            checkpoint["seed"]: to_percent(checkpoint.get("score"))
            for checkpoint in checkpoints
            if checkpoint["seed"] is not None
        }
        mean, low, high = (to_percent(row.get(key)) for key in ("mean", "low", "high"))
        line = lines.setdefault(("score", row["arm"]), {})
        line[row["dose"]] = Point(mean, low, high, seeds)
    for row in results["contrasts"]:
        if row["dose"] is None or row["dose"] != row["control_dose"]:
            continue
        if control == row["control"]:
            arm, sign = row["treatment"], 1
        elif control == row["treatment"]:
            arm, sign = row["control"], -1
        else:
            continue
        scores = lines.get(("score", arm), {}).get(row["dose"])
        line = lines.setdefault(("advantage", arm), {})
        line[row["dose"]] = _advantage(row, sign, scores)
    return lines


def _advantage(row: Row, sign: int, scores: Point | None) -> Point:
    """The point of a contrast's row; `scores` is the arm's own at the same dose."""
    mean, *ends = (sign * to_percent(row[key]) for key in ("estimate", "low", "high"))
    seeds = {}
    if scores:
        # a seed lies as far from its arm's advantage as from its arm's score: questions left out
        # may shift the two
        seeds = {seed: mean + value - scores.mean for seed, value in scores.seeds.items()}
    return Point(mean, min(ends), max(ends), seeds)


def alt_erosion(results: Results, benchmark: str) -> str:
    lines = _lines(plots.of_benchmark(results, benchmark), control_of(results))
    doses = {dose for line in lines.values() for dose in line}
    counts = [
        f"{plots.counted(sum(kind == of for of, _ in lines), 'line')} of {kind}"
        for kind in TITLES
        if any(kind == of for of, _ in lines)
    ]
    return f"{' and '.join(counts)} on {benchmark} over {plots.counted(len(doses), 'SFT dose')}."


def describe_erosion(results: Results, benchmark: str) -> str:
    parts: list[str] = []
    results, control = plots.of_benchmark(results, benchmark), control_of(results)
    for (kind, arm), line in _lines(results, control).items():
        for dose, point in sorted(line.items()):
            row = {
                key: None if math.isnan(getattr(point, key)) else getattr(point, key) / 100
                for key in ("mean", "low", "high")
            }
            number = plots.number_text(row, "mean", "+" if kind == "advantage" else "")
            text = f"{kind} of {arm} on {benchmark}, {plots.dose_label(dose)}: {number}"
            dots = [
                f"{seed}: {value:.1f}"
                for seed, value in point.seeds.items()
                if not math.isnan(value)
            ]
            parts.append(f"{text}, seeds {', '.join(dots)}" if dots else text)
    title = "Scores and advantage over the control by SFT dose"
    return plots.description(title, [*parts, *missing_lines(results)])
