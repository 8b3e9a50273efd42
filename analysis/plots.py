"""What all figures share, and two of them with their text alternatives: bars and forest.

`results` is the content of results.json. An arm or contrast without a number is marked × or says
why it has none; it is never drawn at 0.
"""

import functools
import itertools
import math
import textwrap
from collections.abc import Callable, Iterable, Sequence
from typing import Any, ParamSpec

import matplotlib
import numpy as np
from matplotlib import font_manager
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from analysis.headline import interval, interval_header, missing_lines, percent
from analysis.rows import Results, Row
from analysis.verdicts import HANGS

P = ParamSpec("P")
ArmKey = tuple[str, int, str]  # benchmark, SFT dose, arm

# of arms: at least 3:1 on white and on the page's dark card, and apart for red-green blindness
COLORS = [
    "#79848b",
    "#2f7fc1",
    "#d27800",
    "#694bff",
    "#a55a3c",
    "#5a87ff",
    "#879678",
    "#b45a1e",
]
# of signs: the page's `--higher` and `--lower`, which replace them there; blue and orange differ
# for every kind of color vision
HIGHER = "#0d6fc4"
LOWER = "#a35a00"
GRID = "#8888884d"
MARKERS = "osD^vPX"
LINES = ["-", "--", "-."]
WIDTH = 6.9  # inches: a page's text
COLUMN = 3.4  # inches: a column of a paper, and a phone
SMALL = 7  # points: no letter is smaller
TOGETHER = 5  # arms in one panel; more get a panel each, with the others' means behind
# text and lines drawn in this color become `currentColor` on the page: they follow light and dark
INK = "#010203"
# for letters that DejaVu Sans lacks, where one of them is installed
FALLBACKS = [
    name
    for name in ("Noto Sans CJK JP", "Noto Sans CJK SC", "IPAexGothic", "WenQuanYi Zen Hei")
    if name in font_manager.get_font_names()
]
# no bold and no italics: embedding one more face takes a PDF as long as drawing all the rest
STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "pdf.fonttype": 42,
    "ps.fonttype": 42,  # PDFs go by it too: at 3, a minus sign has the font embedded twice
    "text.hinting": "none",  # letters as wide in one file as in another: hints depend on resolution
    "font.family": ["DejaVu Sans", *FALLBACKS],
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
# shapes tell the same as the colors
VERDICTS: dict[str, dict[str, Any]] = {
    "higher": {"label": "higher", "marker": ">", "color": HIGHER},
    "lower": {"label": "lower", "marker": "<", "color": LOWER},
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


def is_column(width: float) -> bool:
    """Whether a figure of `width` inches is the narrow form of another."""
    return width < WIDTH


def new_figure(height: float, width: float = WIDTH) -> Figure:
    """An empty figure; sizes in inches."""
    figure = Figure(figsize=(width, height), layout="constrained")
    engine = figure.get_layout_engine()
    engine.set(w_pad=0.06, h_pad=0.05, hspace=0.03)  # type: ignore[call-arg, union-attr]
    return figure


@styled
def placeholder(reason: str, width: float = WIDTH) -> Figure:
    """A figure that says why there is nothing to show."""
    figure = new_figure(0.8, width)
    text = wrapped(f"Nothing to show: {reason}", int(13 * width))
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
    columns = min(len(handles), max(1, int(figure.get_figwidth() / (0.062 * longest + 0.6))))
    lines = sum(map(len, labels)) / columns + (columns > 1)
    figure.set_figheight(figure.get_figheight() + 0.17 + 0.13 * lines)
    figure.legend(
        handles=handles,
        loc="outside lower center",
        ncols=columns,
        frameon=False,
        fontsize=SMALL,
        handlelength=2.6,
    )


def legend_entry(label: str, **style: Any) -> Line2D:
    """A handle for the legend."""
    looks: dict[str, Any] = {"color": INK, "linestyle": "none", "markersize": 4.5} | style
    return Line2D([], [], **looks, label=label)


@styled
def bars(results: Results, benchmark: str, width: float = WIDTH) -> Figure:
    """Arms on one benchmark as bars with their 95 % interval and a dot per seed.

    A panel per SFT dose; in a column's width one above the other.
    """
    planned = _planned(results, benchmark)
    order = results["arm_order"]
    doses = sorted({dose for dose, _ in planned})
    arms = [arm for arm in order if any((dose, arm) in planned for dose in doses)]
    if not arms:
        return placeholder("no arm was planned", width)
    # panels in a row: the doses in as few rows of at most four as possible
    columns = 1 if is_column(width) else math.ceil(len(doses) / math.ceil(len(doses) / 4))
    letters = 18 if is_column(width) else 44 - 5 * columns
    breaks = max(wrapped(arm, letters).count("\n") for arm in arms)
    line = max(0.23, 0.05 + 0.135 * (1 + breaks))
    rows = math.ceil(len(doses) / columns)
    figure = new_figure(rows * (0.6 + line * len(arms)), width)
    axes = figure.subplots(rows, columns, squeeze=False, sharey=True, sharex=True)
    for axis in axes.flat[len(doses) :]:
        axis.set_visible(False)
    for axis, dose in zip(axes.flat, doses, strict=False):
        title = f"{benchmark}, {dose_label(dose)}"
        axis.set_title(wrapped(title, int(9.5 * width) // columns - 4), loc="left")
        axis.set(xlabel="score (%)", ylim=(len(arms) - 0.4, -0.6))
        axis.tick_params(labelbottom=True)
        strip_frame(axis, "x")
        for y, arm in enumerate(arms):
            color = arm_style(arm, order)["color"]
            _bar(axis, y, results, (benchmark, dose, arm), color)
    axes[0, 0].set_yticks(range(len(arms)), [wrapped(arm, letters) for arm in arms])
    ends = [axis.dataLim.x1 for axis in axes.flat if math.isfinite(axis.dataLim.x1)]
    axes[0, 0].set_xlim(0, min(102, 1.05 * max(ends, default=0)) or 100)
    return figure


def _planned(results: Results, benchmark: str) -> set[tuple[int, str]]:
    """(SFT dose, arm) of the checkpoints of a benchmark, scored or not."""
    rows = [*results["arms"], *results["missing"]]
    return {(row["dose"], row["arm"]) for row in rows if row["benchmark"] == benchmark}


def _bar(axis: Axes, y: int, results: Results, key: ArmKey, color: str) -> None:
    rows = rows_at(results["arms"], *key)
    lost = len(rows_at(results["missing"], *key))
    if not rows or finite_or_none(rows[0]["mean"]) is None:
        text = " × no scores" if rows or lost else " not planned"
        axis.text(0, y, text, va="center", fontsize=SMALL, in_layout=False)
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
        fontsize=SMALL,
        linespacing=0.9,
    )


def seed_scores(results: Results, key: ArmKey) -> list[float]:
    """The scores of an arm's training seeds in percent; none for a fixed checkpoint."""
    rows = rows_at(results["scores"], *key)
    scores = [row["score"] for row in rows if row["seed"] is not None]
    return [to_percent(score) for score in scores if finite_or_none(score) is not None]


def alt_bars(results: Results, benchmark: str) -> str:
    planned = _planned(results, benchmark)
    counts = [len({key[n] for key in planned}) for n in (1, 0)]
    of = f"{counted(counts[0], 'arm')} at {counted(counts[1], 'SFT dose')}"
    return f"Bars of the mean scores of {of} on {benchmark}, with intervals and a dot a seed."


def describe_bars(results: Results, benchmark: str) -> str:
    parts = []
    for row in results["arms"]:
        if row["benchmark"] != benchmark:
            continue
        scores = seed_scores(results, (row["benchmark"], row["dose"], row["arm"]))
        checkpoints = f"{row['arm']} on {row['benchmark']}, {dose_label(row['dose'])}"
        text = f"{checkpoints}: {number_text(row, 'mean')}"
        if scores:
            text += f", seeds {', '.join(f'{score:.1f}' for score in scores)}"
        parts.append(text)
    missing = missing_lines(of_benchmark(results, benchmark))
    return description("Mean scores with 95 % intervals", [*parts, *missing])


def of_benchmark(results: Results, benchmark: str) -> Results:
    """The results with the checkpoints of one benchmark alone."""
    tables = {
        name: [row for row in results[name] if row["benchmark"] == benchmark]
        for name in ("arms", "scores", "missing", "contrasts")
    }
    benchmarks = {name: row for name, row in results["benchmarks"].items() if name == benchmark}
    return results | tables | {"benchmarks": benchmarks}


@styled
def forest(results: Results, benchmark: str, width: float = WIDTH) -> Figure:
    """Every contrast on one benchmark with its interval in percentage points, by dose.

    The shape of a point is the verdict.
    """
    rows = _contrasts(results, benchmark)
    if not rows:
        return placeholder("no contrast was declared", width)
    lines: list[tuple[str, Row | None]] = []
    for heading in dict.fromkeys(contrast_doses(row) for row in rows):
        lines.append((heading, None))
        lines += [(row["name"], row) for row in rows if contrast_doses(row) == heading]
    letters = 15 if is_column(width) else 42
    labels = [wrapped(text, letters) for text, _ in lines]
    steps = [
        0.5 + 0.33 * (_breaks(above, width) + _breaks(below, width) + 1)
        for above, below in itertools.pairwise(labels)
    ]
    spots = np.cumsum([0.0, *steps])
    figure = new_figure(0.7 + 0.21 * (spots[-1] + 1), width)
    axis = figure.subplots()
    axis.set(yticks=spots, yticklabels=labels, ylim=(spots[-1] + 0.8, -0.8))
    strip_frame(axis, "x", "left")
    axis.axvline(0, color=INK, linewidth=0.9)
    for y, label, (_, row) in zip(spots, axis.get_yticklabels(), lines, strict=True):
        if row is None:
            label.set_fontsize(9)
        else:
            _forest_line(axis, y, row, "\n" if is_column(width) else " ")
    ends = [abs(end) for end in axis.dataLim.intervalx if math.isfinite(end)]
    reach = max(ends, default=0) * 1.06 or 1
    scale = f"percentage points, with {interval_header(rows)}"
    axis.set(xlim=(-reach, reach), xlabel=wrapped(scale, int(9 * width)))
    axis.set_title(wrapped(benchmark, int(9 * width)), loc="left")
    shown = {row["verdict"] for row in rows}
    handles = [
        legend_entry(**style, markersize=6) for name, style in VERDICTS.items() if name in shown
    ]
    add_legend(figure, [], [], *handles)
    return figure


def _forest_line(axis: Axes, y: float, row: Row, gap: str) -> None:
    """`gap`: between the estimate and its interval."""
    style = VERDICTS[row["verdict"]]
    ends = [to_percent(row["low"]), to_percent(row["high"])]
    axis.plot(ends, [y, y], color=style["color"], linewidth=1.6)
    axis.plot(to_percent(row["estimate"]), y, **style, markersize=6)
    text = "× no number"
    if finite_or_none(row["estimate"]) is not None:
        text = number_text(row, "estimate", "+").replace(" points", "").replace(" [", f"{gap}[")
    text = text.replace("-", "−")
    spot: dict[str, Any] = {"xycoords": ("axes fraction", "data"), "va": "center"}
    axis.annotate(text, (1.02, y), **spot, fontsize=SMALL, linespacing=1.0)


def _breaks(label: str, width: float) -> int:
    """Line breaks of a label, or of the number beside it, which has two lines in a column."""
    return max(label.count("\n"), int(is_column(width)))


def contrast_doses(row: Row) -> str:
    """`before SFT`; with the control's dose where a contrast compares two doses."""
    labels = [dose_label(row[key]) for key in ("dose", "control_dose")]
    return " against ".join(dict.fromkeys(labels))


def _panel_label(row: Row) -> str:
    return f"{row['benchmark']}, {contrast_doses(row)}"


def _contrasts(results: Results, benchmark: str) -> list[Row]:
    return [row for row in results["contrasts"] if row["benchmark"] == benchmark]


def alt_forest(results: Results, benchmark: str) -> str:
    verdicts = [VERDICTS[row["verdict"]]["label"] for row in _contrasts(results, benchmark)]
    counts = [f"{verdicts.count(verdict)} {verdict}" for verdict in dict.fromkeys(verdicts)]
    differences = counted(len(verdicts), "difference")
    return f"Intervals of {differences} of arms on {benchmark}: {', '.join(counts)}."


def describe_forest(results: Results, benchmark: str) -> str:
    parts = []
    rows = _contrasts(results, benchmark)
    for row in rows:
        verdict = VERDICTS[row["verdict"]]["label"]
        number = number_text(row, "estimate", "+")
        parts.append(f"{row['name']} on {_panel_label(row)}: {number}, {verdict}")
    intervals = interval_header(rows) if parts else "interval"
    return description(f"Contrasts in percentage points with {intervals}s", parts)


def counted(count: int, name: str) -> str:
    """`1 arm`, `2 arms`."""
    return f"{count} {name}{'' if count == 1 else 's'}"


def description(title: str, parts: Iterable[str]) -> str:
    """A figure in words, with its numbers."""
    return f"{title}. {'; '.join(parts) or 'Nothing to show'}."
