"""Curves in the manner of analysis.plots: scores and advantages against SFT dose, losses against updates."""

import itertools
import json
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.transforms import ScaledTranslation

from analysis import plots
from analysis.headline import missing_lines
from analysis.plots import INK, TOGETHER, at, known, look, number, wrapped

Results = dict[str, Any]
Cell = tuple[Axes, int, list[str]]
OTHER = "#88888880"  # the color of what stands behind


def sheet(panels: list[tuple[str, list[str]]], order: list[str], xlabel: str, *more: Artist) -> list[Cell]:
    """Axes for panels (title, arms), with a legend: (axis, number of the panel, arms to show on it).

    Where a panel has more than TOGETHER arms, each becomes rows of small ones, an arm each, on one scale.
    """
    many = any(len(arms) > TOGETHER for _, arms in panels)
    wide = 4 if many else min(2, len(panels))
    rows: list[list[tuple[int, list[str]]]] = []
    for panel, (_, arms) in enumerate(panels):
        cells = [(panel, [arm]) for arm in arms] if many else [(panel, arms)]
        if not many and rows and len(rows[-1]) < wide:
            rows[-1] += cells
        else:
            rows += [cells[start : start + wide] for start in range(0, len(cells), wide)]
    lines = 1 + max(wrapped(arm, 24).count("\n") for _, arms in panels for arm in arms)
    figure = plots.new(len(rows) * (1.15 + 0.11 * lines if many else 2.2) + 0.2)
    axes = figure.subplots(len(rows), wide, squeeze=False)
    placed: list[Cell] = []
    for line, cells in zip(axes, rows, strict=True):
        for axis in line[len(cells) :]:
            axis.remove()
        for axis, (panel, shown) in zip(line, cells, strict=False):
            plots.bare(axis, "y")
            if many:
                axis.set_title(wrapped(shown[0], 24), loc="left", fontsize=6.5)
                axis.tick_params(labelsize=7)
                first = next((cell[0] for cell in placed if cell[1] == panel), None)
                if first:
                    axis.sharey(first)
                if axis is line[0]:
                    axis.set_ylabel(wrapped(panels[panel][0], 20))
            else:
                axis.set_title(wrapped(panels[panel][0], 40), loc="left")
            placed.append((axis, panel, shown))
    for axis in axes[-1]:
        axis.set_xlabel(xlabel)
    shown = [] if many else [arm for arm in order if any(arm in arms for _, arms in panels)]
    plots.legend(figure, shown, order, *more, plots.key("no number", marker="x"))
    return placed


@plots.styled
def erosion(results: Results) -> Figure:
    """Scores against SFT dose, then the declared contrasts with the control: what the first is against.

    Thin: training seeds; thick: the mean, in the band of its 95 % interval.
    """
    lines = _lines(results)
    if not lines:
        return plots.nothing("no arm was planned")
    order = results["arm_order"]
    benchmarks = dict.fromkeys([*results["benchmarks"], *(benchmark for _, benchmark, _ in lines)])
    arms = {(b, kind): [arm for k, c, arm in lines if (c, k) == (b, kind)] for b in benchmarks for kind in TITLES}
    panels = [place for place, found in arms.items() if found]
    doses = sorted({dose for line in lines.values() for dose in line})
    others = any(len(found) > TOGETHER for found in arms.values())
    more: list[Artist] = [plots.key("mean of another arm", color=OTHER, linestyle="-")] if others else []
    more += [plots.key("training seed", linestyle="-", linewidth=0.6, marker="."),
             Patch(color=INK, alpha=0.15, linewidth=0, label="95 % interval"),
             plots.key("no number of a seed", marker="x", markersize=2.5)]  # fmt: skip
    placed = sheet([(f"{b}: {TITLES[kind]}", arms[b, kind]) for b, kind in panels], order, "SFT dose", *more)
    for axis, panel, shown in placed:
        benchmark, kind = panels[panel]
        for arm in arms[panels[panel]]:
            aside = 4 * (shown.index(arm) - (len(shown) - 1) / 2) if arm in shown else 0
            _line(axis, lines[kind, benchmark, arm], look(arm, order), doses, arm in shown, aside)
        if kind == "advantage":
            axis.axhline(0, color=INK, linewidth=0.8)
        _doses(axis, doses)
    return cast(Figure, placed[0][0].figure)


TITLES = {"score": "score (%)", "advantage": "advantage over the control (points)"}


def _doses(axis: Axes, doses: list[int]) -> None:
    """Ticks at the doses; the lower ones drawn apart where they would crowd."""
    least = min((dose for dose in doses if dose), default=0)
    if doses[-1] > 10 * least > 0:
        axis.set_xscale("symlog", linthresh=least)
    scale = axis.xaxis.get_transform()
    low, high = scale.transform([doses[0], doses[-1]])
    margin = 0.08 * (high - low) or 1
    axis.set_xlim(*scale.inverted().transform([low - margin, high + margin]))
    axis.set_xticks(doses, [str(dose) for dose in doses])
    axis.minorticks_off()


def _line(axis: Axes, line: dict[int, Any], style: dict[str, Any], doses: list[int], shown: bool, aside: float) -> None:
    """One arm's line, drawn `aside` by so many points, so that intervals at one dose stay apart."""
    wanted = [dose for dose in doses if dose in line]
    mean, low, high = (np.array([line[dose][key] for dose in wanted]) for key in ("mean", "low", "high"))
    if not shown:
        axis.plot(wanted, mean, color=OTHER, linewidth=0.7, zorder=1)
        return
    color = style["color"]
    place = axis.transData + ScaledTranslation(aside / 72, 0, axis.figure.dpi_scale_trans)
    axis.plot(wanted, mean, **style, linewidth=1.7, markersize=4.5, transform=place)
    axis.fill_between(wanted, low, high, color=color, alpha=0.15, linewidth=0, transform=place)
    seeds = dict.fromkeys(seed for dose in wanted for seed in line[dose]["seeds"])
    dots = [[line[dose]["seeds"].get(seed, math.nan) for dose in wanted] for seed in seeds]
    # what is drawn aside doesn't widen the axis
    for values in [mean.tolist(), low.tolist(), high.tolist(), *dots]:
        axis.update_datalim([(x, y) for x, y in zip(wanted, values, strict=True) if math.isfinite(y)])
    axis.autoscale_view()
    # a band has no width at a dose without neighbors
    there = np.isfinite([math.nan, *low, math.nan])
    alone = there[1:-1] & ~there[:-2] & ~there[2:]
    ends = np.where(alone, [low, high], math.nan)
    axis.plot([wanted, wanted], ends, color=color, linewidth=4, alpha=0.3, solid_capstyle="butt", transform=place)
    for values in dots:
        axis.plot(wanted, values, color=color, linewidth=0.6, alpha=0.6, marker=".", markersize=2, transform=place)
        _mark(axis, zip(wanted, values, strict=True), color, aside, 2.5)
    _mark(axis, zip(wanted, mean, strict=True), color, aside)


def _mark(axis: Axes, points: Iterable[tuple[float, float]], color: str, aside: float = 0, size: float = 4.5) -> None:
    """× on the axis itself, where no value is drawn, wherever there is no number."""
    lost = [place for place, value in points if math.isnan(value)]
    foot = axis.get_xaxis_transform() + ScaledTranslation(aside / 72, 0, axis.figure.dpi_scale_trans)
    if lost:
        style: dict[str, Any] = {"color": color, "markersize": size, "clip_on": False, "zorder": 3}
        axis.plot(lost, [0] * len(lost), "x", **style, transform=foot)
        axis.update_datalim([(place, 0) for place in lost], updatey=False)
        axis.autoscale_view()


def _lines(results: Results) -> dict[tuple[str, str, str], dict[int, dict[str, Any]]]:
    """(score or advantage, benchmark, arm) -> dose -> mean, low, high and seeds, in percent, NaN where unknown."""
    control = results["contrasts"][0]["against"] if results["contrasts"] else None
    lines: dict[tuple[str, str, str], dict[int, dict[str, Any]]] = {}
    order = results["arm_order"]
    for row in sorted([*results["arms"], *results["missing"]], key=lambda row: order.index(row["arm"])):
        key = (row["benchmark"], row["dose"], row["arm"])
        point: dict[str, Any] = {end: number(row.get(end)) for end in ("mean", "low", "high")}
        trained = [s for s in at([*results["scores"], *results["missing"]], *key) if s["seed"] is not None]
        point["seeds"] = {s["seed"]: number(s.get("score")) for s in trained}
        if "mean" in row or not at(results["arms"], *key):
            lines.setdefault(("score", row["benchmark"], row["arm"]), {})[row["dose"]] = point
    for row in results["contrasts"]:
        if control not in (row["of"], row["against"]) or row["dose"] != row["against_dose"] or row["dose"] is None:
            continue
        arm, sign = (row["of"], 1) if row["against"] == control else (row["against"], -1)
        mean, *ends = (sign * number(row[key]) for key in ("estimate", "low", "high"))
        score = lines.get(("score", row["benchmark"], arm), {}).get(row["dose"], {"mean": math.nan, "seeds": {}})
        # a seed lies as far from its arm's advantage as from its arm's score: questions left out may shift the two
        found = {seed: mean + value - score["mean"] for seed, value in score["seeds"].items()}
        point = {"mean": mean, "low": min(ends), "high": max(ends), "seeds": found}
        lines.setdefault(("advantage", row["benchmark"], arm), {})[row["dose"]] = point
    return lines


def describe_erosion(results: Results) -> str:
    parts: list[str] = []
    for (kind, benchmark, arm), line in _lines(results).items():
        for dose, point in sorted(line.items()):
            row = {key: None if math.isnan(point[key]) else point[key] / 100 for key in ("mean", "low", "high")}
            value = plots.said(row, "mean", "+" if kind == "advantage" else "")
            dots = ", ".join(f"{seed}: {dot:.1f}" for seed, dot in point["seeds"].items() if not math.isnan(dot))
            text = f"{kind} of {arm} on {benchmark}, {plots.when(dose)}: {value}"
            parts.append(f"{text}, seeds {dots}" if dots else text)
    return plots.told("Scores and advantage over the control by SFT dose", [*parts, *missing_lines(results)])


@plots.styled
def losses(runs: Sequence[dict[str, Any]], arm_order: Sequence[str] = ()) -> Figure:
    """Loss of every training, a thin line per seed and a thick one for the mean where all seeds have a value."""
    if not runs:
        return plots.nothing("no training was given")
    order = list(dict.fromkeys([*arm_order, *(run["arm"] for run in runs)]))
    arms = [arm for arm in order if any(run["arm"] == arm for run in runs)]
    stages = list(dict.fromkeys(run["stage"] for run in runs))
    both = len(arms) > TOGETHER
    kinds: list[tuple[str, tuple[str, ...]]] = []
    for stage in stages:
        there = tuple(kind for kind in KINDS if any(run[kind] for run in runs if run["stage"] == stage))
        kinds += [(stage, there)] if both else [(stage, (kind,)) for kind in there]
    if not kinds:
        return plots.nothing("no training has a loss yet")
    titles = [f"{stage}: {' and '.join(KINDS[kind] for kind in some)} loss (nats per token)" for stage, some in kinds]
    long = any(len(run[kind]) > POINTS for run in runs for kind in KINDS)
    more = [plots.key("a seed" + (", means over some updates" if long else ""), linestyle="-", linewidth=0.6)]
    more += [plots.key("held-out: with marks", linestyle="-", marker="o")] if both else []
    placed = sheet([(title, arms) for title in titles], order, "update", *more)
    for axis, panel, shown in placed:
        stage, some = kinds[panel]
        lost = []
        for arm, kind in itertools.product(shown, some):
            curves = [run[kind] for run in runs if (run["stage"], run["arm"]) == (stage, arm)]
            _loss(axis, curves, look(arm, order), kind == "held_out")
            if not curves or not all(curves):
                lost.append(f"× no {KINDS[kind]} loss: {arm}, {curves.count([]) or 'all'} of {len(curves)} seeds")
        axis.text(1, 1, wrapped("; ".join(lost), 36), transform=axis.transAxes, ha="right", va="top", fontsize=6)
    return cast(Figure, placed[0][0].figure)


KINDS = {"points": "training", "held_out": "held-out"}
POINTS = 100  # of a curve; of more, means over as many equal stretches are drawn


def _loss(axis: Axes, curves: list[list[tuple[int, float]]], style: dict[str, Any], marked: bool) -> None:
    size = math.ceil(max(map(len, curves), default=0) / POINTS)
    curves = [_thinned(curve, size) for curve in curves if curve]
    for curve in curves:
        axis.plot(*zip(*curve, strict=True), color=style["color"], linewidth=0.6, alpha=0.55)
        _mark(axis, curve, style["color"])
    values = [dict(curve) for curve in curves]
    updates = [update for update in values[0] if all(update in other for other in values)] if values else []
    means = [sum(value[update] for value in values) / len(values) for update in updates]
    if updates:
        mark = {"marker": style["marker"] if marked else "none", "markevery": 1 + len(updates) // 15}
        axis.plot(updates, means, **style | mark, markersize=3.5, linewidth=1.4)


def _thinned(curve: list[tuple[int, float]], size: int) -> list[tuple[int, float]]:
    """Means over `size` points each, at the last of them; none where one of them is no number."""
    curve = [(update, math.nan if known(value) is None else value) for update, value in sorted(curve)]
    parts = [curve[start : start + size] for start in range(0, len(curve), size)]
    return [(part[-1][0], sum(value for _, value in part) / len(part)) for part in parts]


def describe_losses(runs: Sequence[dict[str, Any]]) -> str:
    parts = []
    for run in runs:
        for kind, meaning in KINDS.items():
            curve = [(update, value) for update, value in sorted(run[kind]) if known(value) is not None]
            text = f"{run['stage']} of {run['arm']}, seed {run['seed']}, {meaning} loss: "
            if curve:
                points = {"first": curve[0], "lowest": min(curve, key=lambda point: point[1]), "last": curve[-1]}
                text += ", ".join(f"{what} {value:.4f} at update {update}" for what, (update, value) in points.items())
            lost = len(run[kind]) - len(curve)
            parts.append(text + ("" if curve else "none") + (f", {lost} without a number" if lost else ""))
    return plots.told("Losses in nats per token", parts)


def read_losses(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """`points` and `held_out` of a training cell's folder; [] without the file. A last line cut short is left out."""
    found = {}
    for key, file in (("points", "metrics.jsonl"), ("held_out", "held_out.jsonl")):
        text = (folder / file).read_text(encoding="utf-8") if (folder / file).exists() else ""
        rows = [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]
        found[key] = [(row["update"], row["loss"]) for row in rows]
    return found
