"""Differences question by question, and grades by dimension, in the manner of analysis.plots."""

import itertools
import math
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from scipy.special import stdtrit

from analysis import plots
from analysis.plots import (
    COLORS,
    GRID,
    HIGHER,
    INK,
    LOWER,
    SMALL,
    TOGETHER,
    arm_style,
    is_column,
    to_percent,
    wrapped,
)
from analysis.rows import Results, Row
from analysis.table import REPLICATE

FEW = 5  # dimensions that make a radar
ROUNDING = 1e-9  # points: a difference this small is one of rounding
LISTED = 60  # questions that the text lists
LABELED = 85  # questions that the axis names: of more, letters would be too small
Seeds = dict[int | None, float]  # seed (None: a fixed checkpoint) -> score in percent
Replicates = Mapping[int | None, int]  # seed -> replicate of its corpus; empty: written once


@dataclass(frozen=True)
class Difference:
    """A difference in percentage points with its 95 % interval; NaN for an unknown number."""

    value: float = math.nan
    low: float = math.nan
    high: float = math.nan


Differences = dict[str, Difference]  # by question


@plots.styled
def per_question(means: pd.DataFrame, rows: Sequence[Row], width: float = plots.WIDTH) -> Figure:
    """Differences question by question, a panel per SFT dose, in the order of the first.

    See `differences`.
    """
    by_dose = differences(means, rows)
    questions = _by_size(by_dose)
    if not questions:
        return plots.placeholder("no question was asked of both arms", width)
    space = min(0.16, 9 / len(questions))
    columns = min(len(by_dose), 2 if is_column(width) else 5)
    lines = math.ceil(len(by_dose) / columns)
    figure = plots.new_figure(0.6 + lines * (0.3 + space * len(questions)), width)
    axes = figure.subplots(lines, columns, squeeze=False, sharey=True).flatten()
    for axis in axes[len(by_dose) :]:
        axis.set_visible(False)
    reach = 0.0
    for axis, (dose, values) in zip(axes, by_dose.items(), strict=False):
        axis.set_title(wrapped(dose, int(9 * width) // columns), loc="left")
        shown = [values.get(question, Difference()) for question in questions]
        reach = max(reach, _question_panel(axis, shown, space))
    reach = min(105, 1.05 * reach) or 100
    for axis in axes:
        axis.set_xlim(-reach, reach)
    names = questions if len(questions) <= LABELED else []
    letters = 12 if is_column(width) else 40
    labels = [textwrap.shorten(text, letters, placeholder="…") for text in names]
    axes[0].set_yticks(range(len(names)), labels, fontsize=SMALL)
    title = f"{_title(rows)}, percentage points"
    figure.suptitle(wrapped(title, int(13 * width)), fontsize=9)
    interval_label = "95 % interval for new training seeds"
    handles = [
        plots.legend_entry(interval_label, linestyle="-", linewidth=0.8),
        plots.legend_entry("not graded in both arms", marker="x"),
    ]
    plots.add_legend(figure, [], [], *handles)
    return figure


def _question_panel(axis: Axes, shown: Sequence[Difference], space: float) -> float:
    """Draw differences from top to bottom, `space` inches each; returns the largest number."""
    spots = np.arange(len(shown))
    size = min(4, 40 * space)
    axis.set(ylim=(len(shown) - 0.3, -0.7), yticks=[])
    plots.strip_frame(axis, "x", "left")
    axis.axvline(0, color=INK, linewidth=0.8)
    points = np.array([(point.value, point.low, point.high) for point in shown])
    value, low, high = points.T
    width = min(2.5, 30 * space)
    for sign, color in ((1, HIGHER), (-1, LOWER), (0, COLORS[0])):
        of_sign = np.sign(value) == sign
        axis.hlines(spots[of_sign], 0, value[of_sign], color=color, linewidth=width, alpha=0.6)
        axis.plot(value[of_sign], spots[of_sign], "o", color=color, markersize=size)
    tested = ~np.isnan(low)
    axis.hlines(spots[tested], low[tested], high[tested], color=INK, linewidth=0.7, zorder=3)
    lost = spots[np.isnan(value)]
    x = [0.03] * len(lost)
    foot = axis.get_yaxis_transform()
    axis.plot(x, lost, "x", color=INK, transform=foot, markersize=size)
    return float(np.abs(points[~np.isnan(points)]).max(initial=0))


def _title(rows: Sequence[Row]) -> str:
    return f"{rows[0]['benchmark']}: {rows[0]['treatment']} minus {rows[0]['control']}"


def differences(means: pd.DataFrame, rows: Sequence[Row]) -> dict[str, Differences]:
    """Dose -> question -> difference of the arms.

    Args:
        means: of analysis.table.question_means.
        rows: of results.json: one contrast on one benchmark, at all its doses.

    The interval is Welch's over training seeds, the question given: none where an arm has a single
    seed, or where seeds do not differ. In a `paired` contrast it is Student's, over differences
    within seeds. Replicates of a corpus stand for the seeds, with the means of their runs.
    """
    by_dose = {}
    for row in rows:
        if row["dose"] is None:
            continue
        part = means[means["benchmark"] == row["benchmark"]]
        treatment = _seed_scores(part, row["treatment"], row["dose"])
        control = _seed_scores(part, row["control"], row["control_dose"])
        replicates = tuple(_replicates(part, row[arm]) for arm in ("treatment", "control"))
        by_dose[plots.contrast_doses(row)] = {
            question: seed_difference(
                treatment.get(question, {}), control.get(question, {}), row["paired"], replicates
            )
            for question in {**treatment, **control}
        }
    return by_dose


def _seed_scores(means: pd.DataFrame, arm: str, dose: int) -> dict[str, Seeds]:
    """Question -> scores of the seeds that have one."""
    part = means[(means["arm"] == arm) & (means["dose"] == dose)]
    scores: dict[str, Seeds] = {}
    for question, seed, score in zip(part["question"], part["seed"], part["score"], strict=True):
        values = scores.setdefault(question, {})
        if not pd.isna(score):
            values[None if pd.isna(seed) else int(seed)] = to_percent(score)
    return scores


def _replicates(means: pd.DataFrame, arm: str) -> Replicates:
    """The replicate of its corpus that each seed of an arm was trained on."""
    if REPLICATE not in means:
        return {}
    part = means[(means["arm"] == arm) & means[REPLICATE].notna()].drop_duplicates("seed")
    return dict(zip(part["seed"].map(int), part[REPLICATE].map(int), strict=True))


def _of_corpora(scores: Seeds, replicates: Replicates) -> Seeds:
    """The means of the runs on each replicate."""
    runs: dict[int | None, list[float]] = {}
    for seed, score in scores.items():
        runs.setdefault(replicates.get(seed, seed), []).append(score)
    return {number: sum(of_runs) / len(of_runs) for number, of_runs in runs.items()}


def seed_difference(
    treatment: Seeds, control: Seeds, paired: bool, replicates: Sequence[Replicates] = ({}, {})
) -> Difference:
    """Treatment minus control on one question, with its interval over training seeds."""
    if paired and None not in {**treatment, **control}:
        common = [seed for seed in treatment if seed in control]
        treatment = {seed: treatment[seed] - control[seed] for seed in common}
        control = {None: 0.0}
    if not treatment or not control:
        return Difference()
    sides = [
        _of_corpora(side, numbers)
        for side, numbers in zip((treatment, control), replicates, strict=True)
    ]
    means = [sum(side.values()) / len(side) for side in sides]
    estimate = means[0] - means[1]
    estimate = estimate if abs(estimate) > ROUNDING else 0.0
    # variance of each trained side's mean, and its degrees of freedom
    parts: list[tuple[float, int]] = []
    for side, mean in zip(sides, means, strict=True):
        if None in side:
            continue
        if len(side) == 1:
            return Difference(estimate)
        squares = sum((value - mean) ** 2 for value in side.values())
        parts.append((squares / (len(side) - 1) / len(side), len(side) - 1))
    variance = sum(part for part, _ in parts)
    if variance < 1e-12:
        return Difference(estimate)
    df = variance**2 / sum(part**2 / part_df for part, part_df in parts)
    half = float(stdtrit(df, 0.975)) * variance**0.5
    return Difference(estimate, estimate - half, estimate + half)


def _by_size(by_dose: Mapping[str, Differences]) -> list[str]:
    """Questions by the first difference they have, largest first; those without one at the end."""
    first: dict[str, float] = {}
    for values in by_dose.values():
        for question, difference in values.items():
            if math.isnan(first.get(question, math.nan)):
                first[question] = difference.value

    def order(question: str) -> tuple[bool, float, str]:
        value = first[question]
        return math.isnan(value), 0 if math.isnan(value) else -value, question

    return sorted(first, key=order)


def alt_per_question(means: pd.DataFrame, rows: Sequence[Row]) -> str:
    by_dose = differences(means, rows)
    questions = plots.counted(len(_by_size(by_dose)), "question")
    return f"Differences in points on {questions} of {_title(rows)}: {', '.join(by_dose)}."


def describe_per_question(means: pd.DataFrame, rows: Sequence[Row]) -> str:
    by_dose = differences(means, rows)
    questions = _by_size(by_dose)
    parts = []
    for dose, values in by_dose.items():
        graded = {
            question: values[question]
            for question in questions
            if question in values and not math.isnan(values[question].value)
        }
        numbers = [difference.value for difference in graded.values()]
        mean = f"{np.mean(numbers):+.1f}" if numbers else "unknown"
        above = sum(value > 0 for value in numbers)
        below = sum(value < 0 for value in numbers)
        parts.append(
            f"{dose}: mean {mean}, {above} questions above 0, {below} below, "
            f"{len(numbers) - above - below} equal, "
            f"{len(questions) - len(graded)} not graded in both arms"
        )
        listed = list(graded)
        if len(listed) > LISTED:
            listed = [*listed[: LISTED // 2], *listed[-LISTED // 2 :]]
        parts += [f"{question} {_difference_text(graded[question])}" for question in listed]
    title = f"{_title(rows)}, question by question, percentage points"
    return plots.description(title, parts)


def _difference_text(difference: Difference) -> str:
    text = f"{difference.value:+.1f}"
    if math.isnan(difference.low):
        return text
    return f"{text} [{difference.low:+.1f}, {difference.high:+.1f}]"


@dataclass(frozen=True)
class Profile:
    """Mean grades by dimension on one benchmark at one dose."""

    title: str
    arms: dict[str, list[float]]  # percent per dimension, NaN where unknown
    questions: dict[str, int]  # by dimension


def _profile(results: Results, benchmark: str, dose: int) -> Profile:
    rows = [row for row in results["dimensions"] if row["benchmark"] == benchmark]
    questions: dict[str, int] = {}
    for row in rows:
        dimension = row["dimension"]
        questions[dimension] = max(row["questions"], questions.get(dimension, 0))
    scores = {
        (row["arm"], row["dimension"]): to_percent(row["score"])
        for row in rows
        if row["dose"] == dose
    }
    planned = {(row["benchmark"], row["dose"], row["arm"]) for row in [*rows, *results["missing"]]}
    arms = {
        arm: [scores.get((arm, dimension), math.nan) for dimension in questions]
        for arm in results["arm_order"]
        if questions and (benchmark, dose, arm) in planned
    }
    return Profile(f"{benchmark}, {plots.dose_label(dose)}", arms, questions)


@plots.styled
def radar(results: Results, benchmark: str, dose: int, width: float = plots.WIDTH) -> Figure:
    """Every dimension of a benchmark per arm at one dose; fewer than FEW are drawn as dots."""
    profile = _profile(results, benchmark, dose)
    if not profile.arms:
        return plots.placeholder(f"no dimensions of {profile.title}", width)
    order = results["arm_order"]
    labels = [f"{dimension} ({count})" for dimension, count in profile.questions.items()]
    names = {
        arm: arm if np.isfinite(values).any() else f"{arm} (× no scores)"
        for arm, values in profile.arms.items()
    }
    is_radar = len(labels) >= FEW
    small = is_radar and len(names) > TOGETHER
    if is_radar:
        figure = _radars(profile.arms, names, labels, order, small, width)
        title = f"{profile.title}: mean grade (outer ring: 100 %)"
    else:
        figure = plots.new_figure(0.8 + len(labels) * max(0.4, 0.13 * len(names)), width)
        letters = 14 if is_column(width) else 24
        _dots(figure.subplots(), [wrapped(label, letters) for label in labels], profile.arms, order)
        title = profile.title
    figure.suptitle(wrapped(title, int(13 * width)), fontsize=9)
    if small:
        handles = [
            plots.legend_entry(f"{n} {label}", marker="none") for n, label in enumerate(labels, 1)
        ]
    else:
        line = {} if is_radar else {"linestyle": "none"}
        handles = [
            plots.legend_entry(wrapped(name, 34), **arm_style(arm, order) | line)
            for arm, name in names.items()
        ]
    plots.add_legend(figure, [], [], *handles, plots.legend_entry("no number", marker="x"))
    return figure


def _radars(
    arms: Mapping[str, list[float]],
    names: Mapping[str, str],
    labels: Sequence[str],
    order: Sequence[str],
    small: bool,
    width: float,
) -> Figure:
    """All arms in one radar, or with `small` one radar for each, the others behind."""
    columns = (2 if is_column(width) else 4) if small else 1
    rows = math.ceil(len(arms) / columns) if small else 1
    lines = 1 + max(wrapped(name, 26).count("\n") for name in names.values())
    has_gaps = any(0 < np.isnan(values).sum() < len(labels) for values in arms.values())
    whole = 3.0 if is_column(width) else 4.6
    figure = plots.new_figure(rows * (1.6 + 0.13 * lines) + 0.3 if small else whole, width)
    polar = {"projection": "polar"}
    axes = figure.subplots(rows, columns, squeeze=False, subplot_kw=polar).flat
    groups = [[arm] for arm in arms] if small else [list(arms)]
    for axis, shown in itertools.zip_longest(axes, groups):
        if shown is None:
            axis.remove()
            continue
        numbers = [str(n + 1) for n in range(len(labels))]
        letters = 14 if is_column(width) else 18
        _spokes(axis, numbers if small else [wrapped(label, letters) for label in labels])
        axis.set_ylim(0, 106 + 6 * len(shown) if has_gaps else 100)
        if small:
            axis.set_title(wrapped(names[shown[0]], 24), fontsize=SMALL, y=1.12)
        for arm, values in arms.items():
            if arm in shown:
                _web(axis, values, arm_style(arm, order), shown.index(arm))
            else:
                axis.plot(*_closed(values), color="#88888866", linewidth=0.6, zorder=1)
    return figure


def _dots(
    axis: Axes, labels: Sequence[str], arms: Mapping[str, list[float]], order: Sequence[str]
) -> None:
    for n, (arm, values) in enumerate(arms.items()):
        style = arm_style(arm, order) | {"linestyle": "none"}
        spots = np.arange(len(labels)) + 0.8 * ((n + 0.5) / len(arms) - 0.5)
        axis.plot(values, spots, **style, markersize=4.5)
        lost = [y for y, value in zip(spots, values, strict=True) if math.isnan(value)]
        axis.plot([-4] * len(lost), lost, "x", color=style["color"], markersize=4.5)
    axis.set_yticks(range(len(labels)), labels)
    axis.set(xlim=(-6, 102), ylim=(len(labels) - 0.5, -0.5), xlabel="mean grade (%)")
    axis.hlines(np.arange(len(labels) - 1) + 0.5, -6, 102, color=GRID, linewidth=0.6)
    plots.strip_frame(axis, "x")


def _spokes(axis: Any, labels: Sequence[str]) -> None:
    axis.set_theta_offset(math.pi / 2)
    axis.set_theta_direction(-1)
    axis.set_xticks(_angles(len(labels)), labels, fontsize=SMALL)
    axis.set_yticks([25, 50, 75, 100], ["", "50", "", ""], fontsize=SMALL)
    axis.set_rlabel_position(180 / len(labels))
    axis.tick_params(axis="x", pad=-2)
    axis.grid(color=GRID, linewidth=0.6)
    axis.spines["polar"].set_visible(False)


def _angles(n: int) -> np.ndarray:
    return np.arange(n) * 2 * math.pi / n


def _closed(values: Sequence[float]) -> tuple[np.ndarray, np.ndarray]:
    """Angles and values of a closed line."""
    angles = _angles(len(values))
    return np.append(angles, angles[:1]), np.array([*values, *values[:1]])


def _web(axis: Axes, values: Sequence[float], style: dict[str, Any], ring: int) -> None:
    """One arm's line; × outside the circle, on the arm's own ring, for what has no number."""
    closed = _closed(values)
    axis.plot(*closed, **style, linewidth=1.5, markersize=3.5)
    if np.isfinite(closed[1]).all():
        axis.fill(*closed, color=style["color"], alpha=0.08)
    lost = np.isnan(values)
    if lost.all():
        return
    for angle in _angles(len(values))[lost]:
        axis.plot(angle, 105 + 6 * ring, "x", color=style["color"], markersize=4.5)


def alt_radar(results: Results, benchmark: str, dose: int) -> str:
    profile = _profile(results, benchmark, dose)
    dimensions = plots.counted(len(profile.questions), "dimension")
    arms = plots.counted(len(profile.arms), "arm")
    return f"Mean grades of {arms} on {dimensions} of {profile.title}."


def describe_radar(results: Results, benchmark: str, dose: int) -> str:
    profile = _profile(results, benchmark, dose)
    parts = []
    for arm, values in profile.arms.items():
        numbers = ["no number" if math.isnan(value) else f"{value:.1f} %" for value in values]
        grades = [f"{d} {value}" for d, value in zip(profile.questions, numbers, strict=True)]
        parts.append(f"{arm}: {', '.join(grades)}")
    return plots.description(f"Mean grades by dimension, {profile.title}", parts)
