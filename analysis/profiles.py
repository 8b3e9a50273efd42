"""What a benchmark's total hides, in the manner of analysis.plots: differences question by question, and dimensions."""

import itertools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from scipy.special import stdtrit

from analysis import plots
from analysis.plots import COLORS, INK, TOGETHER, look, number, wrapped

Row = dict[str, Any]
Difference = tuple[float, float, float]  # and the ends of its interval
UNKNOWN = (math.nan,) * 3
FEW = 5  # dimensions that make a radar
LISTED, LABELED = 60, 130  # questions that the text lists, that the axis names


@plots.styled
def per_question(means: pd.DataFrame, rows: Sequence[Row]) -> Figure:
    """Differences question by question, a panel per SFT dose, in the order of the first: see `differences`."""
    found = differences(means, rows)
    questions = _by_size(found)
    if not questions:
        return plots.nothing("no question was asked of both arms")
    space = min(0.16, 9 / len(questions))
    figure = plots.new(0.8 + space * len(questions), max(plots.WIDTH, 1.2 * len(found)))
    axes = figure.subplots(1, len(found), squeeze=False)[0]
    spots, size = np.arange(len(questions)), min(4, 40 * space)
    reach = 0.0
    for axis, (place, values) in zip(axes, found.items(), strict=True):
        axis.set_title(wrapped(place, 62 // len(found)), loc="left")
        axis.set(ylim=(len(questions) - 0.3, -0.7), yticks=[])
        plots.bare(axis, "x", "left")
        axis.axvline(0, color=INK, linewidth=0.8)
        points = np.array([values.get(question, UNKNOWN) for question in questions])
        value, low, high = points.T
        for sign, color in ((1, COLORS[1]), (-1, COLORS[2]), (0, COLORS[0])):
            some = np.sign(value) == sign
            axis.hlines(spots[some], 0, value[some], color=color, linewidth=min(2.5, 30 * space), alpha=0.6)
            axis.plot(value[some], spots[some], "o", color=color, markersize=size)
        some = ~np.isnan(low)
        axis.hlines(spots[some], low[some], high[some], color=INK, linewidth=0.7, zorder=3)
        lost = spots[np.isnan(value)]
        axis.plot([0.03] * len(lost), lost, "x", color=INK, transform=axis.get_yaxis_transform(), markersize=size)
        reach = max(reach, np.abs(points[~np.isnan(points)]).max(initial=0))
    reach = min(105, 1.05 * reach) or 100
    for axis in axes:
        axis.set_xlim(-reach, reach)
    named = questions if len(questions) <= LABELED else []
    axes[0].set_yticks(range(len(named)), [wrapped(text, 40) for text in named], fontsize=min(7, 62 * space))
    figure.suptitle(wrapped(f"{_title(rows)}, percentage points", 90), fontsize=9)
    interval = plots.key("95 % interval for new training seeds", linestyle="-", linewidth=0.8)
    plots.legend(figure, [], [], interval, plots.key("not graded in both arms", marker="x"))
    return figure


def _title(rows: Sequence[Row]) -> str:
    return f"{rows[0]['benchmark']}: {rows[0]['of']} minus {rows[0]['against']}"


def differences(means: pd.DataFrame, rows: Sequence[Row]) -> dict[str, dict[str, Difference]]:
    """Place -> question -> difference in percentage points with the ends of its interval; NaN for what is unknown.

    `rows` of results.json: one contrast on one benchmark, at all its doses; `means` as question_means gives them.
    The interval is Welch's over training seeds, the question given: none where an arm has a single seed, or where
    seeds do not differ. In a `paired` contrast it is Student's, over differences within seeds.
    """
    found = {}
    for row in rows:
        if row["dose"] is not None:
            part = means[means["benchmark"] == row["benchmark"]]
            of = _seeds(part[(part["arm"] == row["of"]) & (part["dose"] == row["dose"])])
            against = _seeds(part[(part["arm"] == row["against"]) & (part["dose"] == row["against_dose"])])
            both = {question: (of.get(question, {}), against.get(question, {})) for question in {**of, **against}}
            found[plots.compared(row)] = {key: _difference(*sides, row["paired"]) for key, sides in both.items()}
    return found


def _seeds(means: pd.DataFrame) -> dict[str, dict[int | None, float]]:
    """Question -> seed (None for a fixed checkpoint) -> score in percent, of the seeds that have one."""
    scores: dict[str, dict[int | None, float]] = {}
    for question, seed, score in zip(means["question"], means["seed"], means["score"], strict=True):
        values = scores.setdefault(question, {})
        if not pd.isna(score):
            values[None if pd.isna(seed) else int(seed)] = number(score)
    return scores


def _difference(of: dict[int | None, float], against: dict[int | None, float], paired: bool) -> Difference:
    if paired and None not in {**of, **against}:
        of, against = {seed: of[seed] - against[seed] for seed in of if seed in against}, {None: 0.0}
    if not of or not against:
        return UNKNOWN
    means = [sum(side.values()) / len(side) for side in (of, against)]
    estimate = means[0] - means[1]
    sides = zip((of, against), means, strict=True)
    trained = [[(value - mean) ** 2 for value in side.values()] for side, mean in sides if None not in side]
    parts = [(sum(squares) / (len(squares) - 1) / len(squares), len(squares) - 1) for squares in trained if squares[1:]]
    variance = sum(part for part, _ in parts)
    if len(parts) < len(trained) or variance < 1e-12:
        return estimate, math.nan, math.nan
    df = variance**2 / sum(part**2 / df for part, df in parts)
    half = float(stdtrit(df, 0.975)) * variance**0.5
    return estimate, estimate - half, estimate + half


def _by_size(found: dict[str, dict[str, Difference]]) -> list[str]:
    """Questions by the first difference they have, largest first; those without one at the end."""
    questions = dict.fromkeys(question for values in found.values() for question in values)
    first = {q: [v[q][0] for v in found.values() if q in v and not math.isnan(v[q][0])][:1] for q in questions}
    return sorted(questions, key=lambda q: (not first[q], -first[q][0] if first[q] else 0, q))


def describe_per_question(means: pd.DataFrame, rows: Sequence[Row]) -> str:
    found = differences(means, rows)
    questions = _by_size(found)
    parts = []
    for place, values in found.items():
        graded = {q: values[q] for q in questions if q in values and not math.isnan(values[q][0])}
        mean = f"{np.mean([value for value, _, _ in graded.values()]):+.1f}" if graded else "unknown"
        above, below = (sum(sign * value > 0 for value, _, _ in graded.values()) for sign in (1, -1))
        parts.append(f"{place}: mean {mean}, {above} questions above 0, {below} below, {len(questions) - len(graded)} "
                     "without a difference")  # fmt: skip
        shown = list(graded)
        if len(shown) > LISTED:
            shown = [*shown[: LISTED // 2], *shown[-LISTED // 2 :]]
        for q in shown:
            value, low, high = graded[q]
            parts.append(f"{q} {value:+.1f}" + ("" if math.isnan(low) else f" [{low:+.1f}, {high:+.1f}]"))
    return plots.told(f"{_title(rows)}, question by question, percentage points", parts)


@plots.styled
def radar(results: dict[str, Any], benchmark: str, dose: int) -> Figure:
    """Every dimension of a benchmark per arm at one dose; fewer than FEW dimensions are drawn as dots."""
    title, table, asked = _dimensions(results, benchmark, dose)
    if not table:
        return plots.nothing(f"no dimensions of {title}")
    order, arms = results["arm_order"], list(table)
    labels = [f"{dimension} ({count})" for dimension, count in asked.items()]
    many = len(arms) > TOGETHER and len(labels) >= FEW
    names = {arm: arm if np.isfinite(table[arm]).any() else f"{arm} (× no scores)" for arm in arms}
    if len(labels) < FEW:
        figure = plots.new(0.8 + len(labels) * max(0.4, 0.13 * len(arms)))
        _dots(figure.subplots(), labels, table, order)
    else:
        wide = 4 if many else 1
        tall = math.ceil(len(arms) / wide) if many else 1
        lines = 1 + max(wrapped(names[arm], 26).count("\n") for arm in arms)
        gaps = any(0 < np.isnan(values).sum() < len(labels) for values in table.values())
        figure = plots.new(tall * (1.6 + 0.12 * lines) + 0.3 if many else 4.6)
        axes = figure.subplots(tall, wide, squeeze=False, subplot_kw={"projection": "polar"}).flat
        for axis, shown in itertools.zip_longest(axes, [[arm] for arm in arms] if many else [arms]):
            if shown is None:
                axis.remove()
                continue
            numbers = [str(n + 1) for n in range(len(labels))]
            _spokes(axis, numbers if many else [wrapped(label, 18) for label in labels])
            axis.set_ylim(0, 106 + 6 * len(shown) if gaps else 100)
            if many:
                axis.set_title(wrapped(names[shown[0]], 26), fontsize=6.5, y=1.12)
            for arm in arms:
                _web(axis, table[arm], look(arm, order), arm in shown, shown.index(arm) if arm in shown else 0)
    figure.suptitle(f"{title}: mean grade (outer ring: 100 %)" if len(labels) >= FEW else title, fontsize=9)
    line = {} if len(labels) >= FEW else {"linestyle": "none"}
    handles = [] if many else [plots.key(wrapped(names[arm], 34), **look(arm, order) | line) for arm in arms]
    handles += [plots.key(f"{n + 1} {label}", marker="none") for n, label in enumerate(labels if many else [])]
    plots.legend(figure, [], [], *handles, plots.key("no number", marker="x"))
    return figure


def _dots(axis: Axes, labels: list[str], table: dict[str, list[float]], order: list[str]) -> None:
    for at_arm, (arm, values) in enumerate(table.items()):
        spots = np.arange(len(labels)) + 0.8 * ((at_arm + 0.5) / len(table) - 0.5)
        axis.plot(values, spots, **look(arm, order) | {"linestyle": "none"}, markersize=4.5)
        lost = [y for y, value in zip(spots, values, strict=True) if math.isnan(value)]
        axis.plot([-4] * len(lost), lost, "x", color=look(arm, order)["color"], markersize=4.5)
    axis.set_yticks(range(len(labels)), [wrapped(label, 24) for label in labels])
    axis.set(xlim=(-6, 102), ylim=(len(labels) - 0.5, -0.5), xlabel="mean grade (%)")
    axis.hlines(np.arange(len(labels) - 1) + 0.5, -6, 102, color="#8888884d", linewidth=0.6)
    plots.bare(axis, "x")


def _dimensions(
    results: dict[str, Any], benchmark: str, dose: int
) -> tuple[str, dict[str, list[float]], dict[str, int]]:
    """Title; arm -> percent per dimension, NaN where unknown; questions of each dimension."""
    rows = [row for row in results["dimensions"] if row["benchmark"] == benchmark]
    asked: dict[str, int] = {}
    for row in rows:
        asked[row["dimension"]] = max(row["questions"], asked.get(row["dimension"], 0))
    scores = {(row["arm"], row["dimension"]): number(row["score"]) for row in rows if row["dose"] == dose}
    places = [(row["benchmark"], row["dose"], row["arm"]) for row in [*rows, *results["missing"]]]
    arms = [arm for arm in results["arm_order"] if (benchmark, dose, arm) in places] if asked else []
    return f"{benchmark}, {plots.when(dose)}", {a: [scores.get((a, d), math.nan) for d in asked] for a in arms}, asked


def _spokes(axis: Any, labels: list[str]) -> None:
    axis.set_theta_offset(math.pi / 2)
    axis.set_theta_direction(-1)
    axis.set_xticks(np.arange(len(labels)) * 2 * math.pi / len(labels), labels, fontsize=6.5)
    axis.set_yticks([25, 50, 75, 100], ["", "50", "", ""], fontsize=6)
    axis.set_rlabel_position(180 / len(labels))
    axis.tick_params(axis="x", pad=-2)
    axis.grid(color="#8888884d", linewidth=0.6)
    axis.spines["polar"].set_visible(False)


def _web(axis: Axes, values: list[float], style: dict[str, Any], shown: bool, at_arm: int) -> None:
    angles = np.arange(len(values)) * 2 * math.pi / len(values)
    closed = np.append(angles, angles[:1]), np.array([*values, *values[:1]])
    if not shown:
        axis.plot(*closed, color="#88888866", linewidth=0.6, zorder=1)
        return
    axis.plot(*closed, **style, linewidth=1.5, markersize=3.5)
    if np.isfinite(closed[1]).all():
        axis.fill(*closed, color=style["color"], alpha=0.08)
    # beyond the ring, where no grade can be
    lost = [angle for angle, value in zip(angles, values, strict=True) if math.isnan(value)]
    lost = lost if len(lost) < len(values) else []
    for angle in lost:
        axis.plot(angle, 105 + 6 * at_arm, "x", color=style["color"], markersize=4.5)


def describe_radar(results: dict[str, Any], benchmark: str, dose: int) -> str:
    title, table, asked = _dimensions(results, benchmark, dose)
    parts = []
    for arm, values in table.items():
        numbers = ("no number" if math.isnan(value) else f"{value:.1f} %" for value in values)
        parts.append(f"{arm}: " + ", ".join(f"{d} {value}" for d, value in zip(asked, numbers, strict=True)))
    return plots.told(f"Mean grades by dimension, {title}", parts)
