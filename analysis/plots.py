"""What all figures share, and two of them with their text alternatives: bars and forest.

`results` is the content of results.json. An arm or contrast without a number is marked × or says
why it has none; it is never drawn at 0.
"""

import functools
import io
import itertools
import math
import textwrap
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, ParamSpec

import matplotlib
import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from analysis.headline import interval, interval_header, missing_lines, percent
from analysis.rows import Results, Row
from analysis.verdicts import HANGS
from core.garbage import gc_disabled

P = ParamSpec("P")
ArmKey = tuple[str, int, str]  # benchmark, SFT dose, arm

COLORS = [
    "#7d868c",
    "#2f7fc1",
    "#e0862b",
    "#3a9a6a",
    "#a4508b",
    "#b8a11f",
    "#4fb3bf",
    "#c0504d",
]
GRID = "#8888884d"
MARKERS = "osD^vPX"
LINES = ["-", "--", "-."]
WIDTH = 6.9  # inches: a page's text
TOGETHER = 5  # arms in one panel; more get a panel each, with the others' means behind
# text and lines drawn in this color become `currentColor` on the page: they follow light and dark
INK = "#010203"
# no bold and no italics: embedding one more face takes a PDF as long as drawing all the rest
STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "pdf.fonttype": 42,
    "ps.fonttype": 42,  # PDFs go by it too: at 3, a minus sign has the font embedded twice
    "text.hinting": "none",  # letters as wide in one file as in another: hints depend on resolution
    "font.family": "DejaVu Sans",
    "font.size": 8,
    "axes.titlesize": 9,
    "axes.titley": 1.0,  # fixed, so that it is not searched for at each drawing
    "text.parse_math": False,  # names may hold a dollar sign, which is no formula
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": INK,
    "axes.xmargin": 0.08,
    "xtick.color": INK,
    "ytick.color": INK,
}
# blue and orange differ for every kind of color vision; shapes tell the same without any
VERDICTS: dict[str, dict[str, Any]] = {
    "higher": {"label": "higher", "marker": ">", "color": COLORS[1]},
    "lower": {"label": "lower", "marker": "<", "color": COLORS[2]},
    "inconclusive": {
        "label": "inconclusive",
        "marker": "o",
        "color": COLORS[0],
        "fillstyle": "none",
    },
    "interim": {"label": "interim", "marker": "s", "color": COLORS[0], "fillstyle": "none"},
    HANGS: {"label": HANGS, "marker": "^", "color": COLORS[0], "fillstyle": "none"},
    "none": {"label": "no verdict", "marker": "d", "color": INK, "fillstyle": "none"},
}


def styled(draw: Callable[P, Figure]) -> Callable[P, Figure]:
    """Run a drawing function with STYLE."""

    @functools.wraps(draw)
    def inside(*args: P.args, **kwargs: P.kwargs) -> Figure:
        with matplotlib.rc_context(STYLE):
            return draw(*args, **kwargs)

    return inside


def new_figure(height: float, width: float = WIDTH) -> Figure:
    """An empty figure; sizes in inches."""
    figure = Figure(figsize=(width, height), layout="constrained")
    engine = figure.get_layout_engine()
    engine.set(w_pad=0.06, h_pad=0.05, hspace=0.03)  # type: ignore[call-arg, union-attr]
    return figure


@styled
def placeholder(reason: str) -> Figure:
    """A figure that says why there is nothing to show."""
    figure = new_figure(0.8)
    text = wrapped(f"Nothing to show: {reason}", 90)
    figure.text(0.5, 0.5, text, ha="center", va="center")
    return figure


def strip_frame(axis: Axes, values: str, *hidden: str) -> None:
    """Remove the frame, except for the axes that carry numbers.

    `values` is the axis ("x", "y", "both") whose values get grid lines; `hidden` are more spines
    to remove.
    """
    axis.spines[["top", "right", *hidden]].set_visible(False)
    axis.grid(axis=values, color=GRID, linewidth=0.6)  # type: ignore[arg-type]
    axis.set_axisbelow(True)
    axis.tick_params(axis="y", left=values != "x")


def finite_or_none(value: Any) -> float | None:
    """None for null of results.json and for NaN."""
    return None if value is None or not math.isfinite(value) else value


def to_percent(value: Any) -> float:
    """A score in percent; NaN, which is not drawn, where there is none."""
    return math.nan if finite_or_none(value) is None else 100 * value


def number_text(row: Row, key: str, sign: str = "") -> str:
    """`45.2 % [40.1, 50.3]`, of a difference `+4.3 points`, or why there is no number."""
    if finite_or_none(row[key]) is None:
        return f"no number ({row.get('reason') or 'not scored'})"
    ends = {end: finite_or_none(row[end]) for end in ("low", "high")}
    text = percent(row[key], sign) + (" points" if sign else " %")
    return text if None in ends.values() else f"{text} {interval(ends, sign)}"


def dose_label(dose: int | None) -> str:
    """`before SFT`, `SFT dose 200`, or that there is no common dose."""
    if dose is None:
        return "no common SFT dose"
    return "before SFT" if dose == 0 else f"SFT dose {dose}"


def wrapped(text: str, width: int) -> str:
    """A name over several lines of at most `width` letters.

    The middle of a very long one is left out, since ends tell names apart.
    """
    text = text if len(text) <= 120 else f"{text[:59]}…{text[-60:]}"
    return "\n".join(textwrap.wrap(text, width)) or text


def rows_at(rows: Iterable[Row], benchmark: str, dose: int, arm: str) -> list[Row]:
    """The rows of one benchmark, dose and arm."""
    key = (benchmark, dose, arm)
    return [row for row in rows if (row["benchmark"], row["dose"], row["arm"]) == key]


def arm_style(arm: str, order: Sequence[str]) -> dict[str, Any]:
    """Color, marker and line of an arm, the same in all figures; no two of 56 arms look alike."""
    n = order.index(arm)
    return {
        "color": COLORS[n % len(COLORS)],
        "marker": MARKERS[n % len(MARKERS)],
        "linestyle": LINES[n % 3],
    }


def add_legend(figure: Figure, arms: Sequence[str], order: Sequence[str], *extra: Artist) -> None:
    """A legend beneath the figure, which grows by its height."""
    handles: list[Artist] = [
        Line2D([], [], label=wrapped(arm, 34), **arm_style(arm, order), markersize=4.5)
        for arm in arms
    ]
    handles += extra
    labels = [str(handle.get_label()).split("\n") for handle in handles]
    longest = max(len(line) for label in labels for line in label)
    columns = min(len(handles), max(1, int(WIDTH / (0.062 * longest + 0.6))))
    lines = sum(map(len, labels)) / columns
    figure.set_figheight(figure.get_figheight() + 0.17 + 0.13 * lines)
    figure.legend(
        handles=handles,
        loc="outside lower center",
        ncols=columns,
        frameon=False,
        fontsize=7,
        handlelength=2.6,
    )


def legend_entry(label: str, **style: Any) -> Line2D:
    """A handle for the legend."""
    looks: dict[str, Any] = {"color": INK, "linestyle": "none", "markersize": 4.5} | style
    return Line2D([], [], **looks, label=label)


@styled
def bars(results: Results) -> Figure:
    """Arms as bars with their 95 % interval and a dot per seed.

    A row of panels per benchmark, a panel per SFT dose.
    """
    planned = {
        (row["benchmark"], row["dose"], row["arm"])
        for row in [*results["arms"], *results["missing"]]
    }
    order = results["arm_order"]
    doses = sorted({dose for _, dose, _ in planned})
    # panels in a row: the doses in as few rows of at most four as possible
    columns = math.ceil(len(doses) / max(1, math.ceil(len(doses) / 4))) or 1
    benchmarks = [*results["benchmarks"], *sorted(benchmark for benchmark, _, _ in planned)]
    rows = []
    for benchmark in dict.fromkeys(benchmarks):
        arms = [arm for arm in order if any((benchmark, dose, arm) in planned for dose in doses)]
        for start in range(0, len(doses) if arms else 0, columns):
            rows.append((benchmark, arms, doses[start : start + columns]))
    if not rows:
        return placeholder("no arm was planned")
    width = 44 - 5 * columns
    breaks = max(wrapped(arm, width).count("\n") for _, arms, _ in rows for arm in arms)
    line = max(0.21, 0.05 + 0.135 * (1 + breaks))
    heights = [0.6 + line * len(arms) for _, arms, _ in rows]
    figure = new_figure(sum(heights))
    axes = figure.subplots(
        len(rows), columns, squeeze=False, sharey="row", sharex="row", height_ratios=heights
    )
    for panels, (benchmark, arms, shown) in zip(axes, rows, strict=True):
        for axis in panels[len(shown) :]:
            axis.set_visible(False)
        for axis, dose in zip(panels, shown, strict=False):
            title = wrapped(f"{benchmark}, {dose_label(dose)}", 66 // columns - 4)
            axis.set_title(title, loc="left")
            axis.set(xlabel="score (%)", ylim=(len(arms) - 0.4, -0.6))
            strip_frame(axis, "x")
            for y, arm in enumerate(arms):
                color = arm_style(arm, order)["color"]
                _bar(axis, y, results, (benchmark, dose, arm), color)
        panels[0].set_yticks(range(len(arms)), [wrapped(arm, width) for arm in arms])
        if panels[0].dataLim.x1 <= 0:
            panels[0].set_xlim(0, 100)
    return figure


def _bar(axis: Axes, y: int, results: Results, key: ArmKey, color: str) -> None:
    rows = rows_at(results["arms"], *key)
    lost = len(rows_at(results["missing"], *key))
    if not rows or finite_or_none(rows[0]["mean"]) is None:
        text = " × no scores" if rows or lost else " not planned"
        axis.text(0, y, text, va="center", fontsize=6.5, in_layout=False)
        return
    mean, low, high = (to_percent(rows[0][key]) for key in ("mean", "low", "high"))
    axis.barh(y, mean, 0.72, color=color, alpha=0.4, linewidth=0)
    axis.plot([low, high], [y, y], color=INK, linewidth=1.3, solid_capstyle="butt", zorder=3)
    dots = seed_scores(results, key)
    spots = y + np.linspace(-0.32, 0.32, len(dots) + 2)[1:-1]
    edge: dict[str, Any] = {"markeredgecolor": INK, "markeredgewidth": 0.35}
    axis.plot(dots, spots, "o", color=color, markersize=2.8, **edge)
    text = f"{mean:.1f}" + (f"\n× {lost} missing" if lost else "")
    axis.annotate(
        text,
        (1.02, y),
        xycoords=("axes fraction", "data"),
        va="center",
        fontsize=6.5,
        linespacing=0.95,
    )


def seed_scores(results: Results, key: ArmKey) -> list[float]:
    """The scores of an arm's training seeds in percent; none for a fixed checkpoint."""
    rows = rows_at(results["scores"], *key)
    scores = [row["score"] for row in rows if row["seed"] is not None]
    return [to_percent(score) for score in scores if finite_or_none(score) is not None]


def describe_bars(results: Results) -> str:
    parts = []
    for row in results["arms"]:
        scores = seed_scores(results, (row["benchmark"], row["dose"], row["arm"]))
        checkpoints = f"{row['arm']} on {row['benchmark']}, {dose_label(row['dose'])}"
        text = f"{checkpoints}: {number_text(row, 'mean')}"
        if scores:
            text += f", seeds {', '.join(f'{score:.1f}' for score in scores)}"
        parts.append(text)
    return description("Mean scores with 95 % intervals", [*parts, *missing_lines(results)])


@styled
def forest(results: Results) -> Figure:
    """Every contrast with its interval in percentage points, by benchmark and dose.

    The shape of a point is the verdict.
    """
    rows = results["contrasts"]
    if not rows:
        return placeholder("no contrast was declared")
    lines: list[tuple[str, Row | None]] = []
    for heading in dict.fromkeys(_panel_label(row) for row in rows):
        lines.append((heading, None))
        lines += [(row["name"], row) for row in rows if _panel_label(row) == heading]
    labels = [wrapped(text, 60 if row is None else 42) for text, row in lines]
    steps = [
        0.5 + 0.33 * (above.count("\n") + below.count("\n") + 1)
        for above, below in itertools.pairwise(labels)
    ]
    spots = np.cumsum([0.0, *steps])
    figure = new_figure(0.7 + 0.21 * (spots[-1] + 1))
    axis = figure.subplots()
    axis.set(yticks=spots, yticklabels=labels, ylim=(spots[-1] + 0.8, -0.8))
    strip_frame(axis, "x", "left")
    axis.axvline(0, color=INK, linewidth=0.9)
    for y, label, (_, row) in zip(spots, axis.get_yticklabels(), lines, strict=True):
        if row is None:
            label.set_fontsize(9)
        else:
            _forest_line(axis, y, row)
    ends = [abs(end) for end in axis.dataLim.intervalx if math.isfinite(end)]
    reach = max(ends, default=0) * 1.06 or 1
    axis.set(xlim=(-reach, reach), xlabel=f"percentage points, with {interval_header(rows)}")
    handles = [legend_entry(**style, markersize=6) for style in VERDICTS.values()]
    add_legend(figure, [], [], *handles)
    return figure


def _forest_line(axis: Axes, y: float, row: Row) -> None:
    style = VERDICTS[row["verdict"]]
    ends = [to_percent(row["low"]), to_percent(row["high"])]
    axis.plot(ends, [y, y], color=style["color"], linewidth=1.6)
    axis.plot(to_percent(row["estimate"]), y, **style, markersize=6)
    text = "× no number"
    if finite_or_none(row["estimate"]) is not None:
        text = number_text(row, "estimate", "+").replace(" points", "")
    text = " " + text.replace("-", "−")
    axis.annotate(text, (1, y), xycoords=("axes fraction", "data"), va="center", fontsize=7)


def contrast_doses(row: Row) -> str:
    """`before SFT`; with the control's dose where a contrast compares two doses."""
    labels = [dose_label(row[key]) for key in ("dose", "control_dose")]
    return " against ".join(dict.fromkeys(labels))


def _panel_label(row: Row) -> str:
    return f"{row['benchmark']}, {contrast_doses(row)}"


def describe_forest(results: Results) -> str:
    parts = []
    for row in results["contrasts"]:
        verdict = VERDICTS[row["verdict"]]["label"]
        number = number_text(row, "estimate", "+")
        parts.append(f"{row['name']} on {_panel_label(row)}: {number}, {verdict}")
    intervals = interval_header(results["contrasts"]) if parts else "interval"
    return description(f"Contrasts in percentage points with {intervals}s", parts)


def description(title: str, parts: Iterable[str]) -> str:
    """A figure's text alternative."""
    return f"{title}. {'; '.join(parts) or 'Nothing to show'}."


def apply_layout(figure: Figure) -> None:
    """Lay the figure out once; otherwise it is laid out and drawn again before each file."""
    engine = figure.get_layout_engine()
    if engine and figure.axes:
        engine.execute(figure)
    figure.set_layout_engine(None)


# Embedding fonts makes so much garbage that looking for it takes a fifth of the time.
@gc_disabled()
def save_all(figures: dict[str, Figure], folder: Path) -> dict[str, str]:
    """Write NAME.pdf and NAME.png of each figure.

    Returns their SVG texts by name, which one page can hold together.
    """
    folder.mkdir(parents=True, exist_ok=True)
    pages = {}
    for name, figure in figures.items():
        # a salt and names of its own, so that several fit into one page
        with matplotlib.rc_context(STYLE | {"svg.hashsalt": name}):
            apply_layout(figure)
            figure.savefig(folder / f"{name}.pdf", metadata={"CreationDate": None})
            figure.savefig(folder / f"{name}.png", dpi=150, metadata={"Software": None})
            page = io.StringIO()
            figure.savefig(page, format="svg", transparent=True, metadata={"Date": None})
        svg = page.getvalue().replace(INK, "currentColor").replace('<g id="', f'<g id="{name}-')
        pages[name] = svg[svg.index("<svg") :]
    return pages
