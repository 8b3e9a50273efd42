"""What all figures share, and two of arms and contrasts with their text alternatives: bars and forest.

`results` is what results.json holds. What has no number is marked ×, or says why it has none; it is never drawn at 0.
"""

import functools
import io
import itertools
import math
import textwrap
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, ParamSpec

import matplotlib
import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from analysis.headline import interval, missing_lines, percent
from core.garbage import gc_disabled

P = ParamSpec("P")
COLORS = ["#7d868c", "#2f7fc1", "#e0862b", "#3a9a6a", "#a4508b", "#b8a11f", "#4fb3bf", "#c0504d"]
# text and lines drawn in this color become `currentColor` on the page, so the figure follows light and dark
INK = "#010203"
# no bold and no italics: embedding one more face takes a PDF as long as drawing all the rest
STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "pdf.fonttype": 42,
    "ps.fonttype": 42,  # PDFs go by it too: at 3, a minus sign has the font embedded twice
    "text.hinting": "none",  # letters as wide in one file as in another: hints widen them by the resolution
    "font.family": "DejaVu Sans",
    "font.size": 8,
    "axes.titlesize": 9,
    "axes.titley": 1.0,  # said once, not searched for at each drawing
    "text.parse_math": False,  # names may hold a dollar sign, which is no formula
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": INK,
    "axes.xmargin": 0.08,
    "xtick.color": INK,
    "ytick.color": INK,
}
MARKERS, LINES = "osD^vPX", ["-", "--", "-."]
WIDTH = 6.9  # inches: a page's text
TOGETHER = 5  # arms in one panel; more of them get a panel each, with the others' means behind
# blue and orange tell apart for every kind of color vision; shapes say the same without any
VERDICTS: dict[str, dict[str, Any]] = {
    "higher": {"label": "higher", "marker": ">", "color": COLORS[1]},
    "lower": {"label": "lower", "marker": "<", "color": COLORS[2]},
    "inconclusive": {"label": "inconclusive", "marker": "o", "color": COLORS[0], "fillstyle": "none"},
    "none": {"label": "no verdict", "marker": "d", "color": INK, "fillstyle": "none"},
}


def styled(draw: Callable[P, Figure]) -> Callable[P, Figure]:
    @functools.wraps(draw)
    def inside(*args: P.args, **kwargs: P.kwargs) -> Figure:
        with matplotlib.rc_context(STYLE):
            return draw(*args, **kwargs)

    return inside


def new(height: float, width: float = WIDTH) -> Figure:
    figure = Figure(figsize=(width, height), layout="constrained")
    figure.get_layout_engine().set(w_pad=0.06, h_pad=0.05, hspace=0.03)  # type: ignore[call-arg, union-attr]
    return figure


@styled
def nothing(why: str) -> Figure:
    figure = new(0.8)
    figure.text(0.5, 0.5, wrapped(f"Nothing to show: {why}", 90), ha="center", va="center")
    return figure


def bare(axis: Axes, lines: str, *hidden: str) -> None:
    """Take the frame away, but for the axes that carry numbers; `lines` is the way the grid's values run."""
    axis.spines[["top", "right", *hidden]].set_visible(False)
    axis.grid(axis=lines, color="#8888884d", linewidth=0.6)  # type: ignore[arg-type]
    axis.set_axisbelow(True)
    axis.tick_params(axis="y", left=lines != "x")


def known(value: Any) -> float | None:
    """None for what is no number: null in results.json, NaN before that."""
    return None if value is None or not math.isfinite(value) else value


def number(value: Any) -> float:
    """A score in percent; NaN, which is not drawn, where there is none."""
    return math.nan if known(value) is None else 100 * value


def said(row: dict[str, Any], key: str, sign: str = "") -> str:
    """`45.2 % [40.1, 50.3]`, of a difference `+4.3 points`, or why there is no number."""
    if known(row[key]) is None:
        return f"no number ({row.get('reason') or 'not scored'})"
    ends = {end: known(row[end]) for end in ("low", "high")}
    text = percent(row[key], sign) + (" points" if sign else " %")
    return text if None in ends.values() else f"{text} {interval(ends, sign)}"


def when(dose: int | None) -> str:
    return "no common SFT dose" if dose is None else "before SFT" if dose == 0 else f"SFT dose {dose}"


def wrapped(text: str, width: int) -> str:
    """A name over several lines; of a very long one the middle is left out, since ends tell names apart."""
    text = text if len(text) <= 120 else f"{text[:59]}…{text[-60:]}"
    return "\n".join(textwrap.wrap(text, width)) or text


def at(rows: list[dict[str, Any]], benchmark: str, dose: int, arm: str) -> list[dict[str, Any]]:
    return [row for row in rows if (row["benchmark"], row["dose"], row["arm"]) == (benchmark, dose, arm)]


def look(arm: str, order: list[str]) -> dict[str, Any]:
    """Color, marker and line of an arm, the same in all figures; no two of 56 arms look the same."""
    n = order.index(arm)
    return {"color": COLORS[n % len(COLORS)], "marker": MARKERS[n % len(MARKERS)], "linestyle": LINES[n % 3]}


def legend(figure: Figure, arms: list[str], order: list[str], *more: Artist) -> None:
    """A legend beneath the figure, which grows by its height."""
    shown: list[Artist] = [Line2D([], [], label=wrapped(arm, 34), **look(arm, order), markersize=4.5) for arm in arms]
    shown += more
    texts = [str(handle.get_label()).split("\n") for handle in shown]
    columns = min(len(shown), max(1, int(WIDTH / (0.062 * max(len(part) for text in texts for part in text) + 0.6))))
    figure.set_figheight(figure.get_figheight() + 0.17 + 0.13 * sum(map(len, texts)) / columns)
    figure.legend(handles=shown, loc="outside lower center", ncols=columns, frameon=False, fontsize=7, handlelength=2.6)


def key(label: str, **style: Any) -> Line2D:
    looks: dict[str, Any] = {"color": INK, "linestyle": "none", "markersize": 4.5} | style
    return Line2D([], [], **looks, label=label)


@styled
def bars(results: dict[str, Any]) -> Figure:
    """A row of panels per benchmark, a panel per SFT dose: arms as bars with 95 % interval and a dot per seed."""
    planned = {(row["benchmark"], row["dose"], row["arm"]) for row in [*results["arms"], *results["missing"]]}
    order, doses = results["arm_order"], sorted({dose for _, dose, _ in planned})
    wide = math.ceil(len(doses) / max(1, math.ceil(len(doses) / 4))) or 1
    rows = []
    for benchmark in dict.fromkeys([*results["benchmarks"], *sorted(benchmark for benchmark, _, _ in planned)]):
        arms = [arm for arm in order if any((benchmark, dose, arm) in planned for dose in doses)]
        rows += [(benchmark, arms, doses[at : at + wide]) for at in range(0, len(doses) if arms else 0, wide)]
    if not rows:
        return nothing("no arm was planned")
    width = 44 - 5 * wide
    line = max(0.21, 0.05 + 0.135 * (1 + max(wrapped(arm, width).count("\n") for _, arms, _ in rows for arm in arms)))
    heights = [0.6 + line * len(arms) for _, arms, _ in rows]
    figure = new(sum(heights))
    axes = figure.subplots(len(rows), wide, squeeze=False, sharey="row", sharex="row", height_ratios=heights)
    for panels, (benchmark, arms, shown) in zip(axes, rows, strict=True):
        for axis in panels[len(shown) :]:
            axis.set_visible(False)
        for axis, dose in zip(panels, shown, strict=False):
            axis.set_title(wrapped(f"{benchmark}, {when(dose)}", 66 // wide - 4), loc="left")
            axis.set(xlabel="score (%)", ylim=(len(arms) - 0.4, -0.6))
            bare(axis, "x")
            for y, arm in enumerate(arms):
                _bar(axis, y, results, (benchmark, dose, arm), look(arm, order)["color"])
        panels[0].set_yticks(range(len(arms)), [wrapped(arm, width) for arm in arms])
        if panels[0].dataLim.x1 <= 0:
            panels[0].set_xlim(0, 100)
    return figure


def _bar(axis: Axes, y: int, results: dict[str, Any], place: tuple[str, int, str], color: str) -> None:
    found, lost = at(results["arms"], *place), len(at(results["missing"], *place))
    if not found or known(found[0]["mean"]) is None:
        text = " × no scores" if found or lost else " not planned"
        axis.text(0, y, text, va="center", fontsize=6.5, in_layout=False)
        return
    mean, low, high = (number(found[0][end]) for end in ("mean", "low", "high"))
    axis.barh(y, mean, 0.72, color=color, alpha=0.4, linewidth=0)
    axis.plot([low, high], [y, y], color=INK, linewidth=1.3, solid_capstyle="butt", zorder=3)
    dots = seeds(results, place)
    spots = y + np.linspace(-0.32, 0.32, len(dots) + 2)[1:-1]
    axis.plot(dots, spots, "o", color=color, markersize=2.8, markeredgecolor=INK, markeredgewidth=0.35)
    text = f"{mean:.1f}" + (f"\n× {lost} missing" if lost else "")
    axis.annotate(text, (1.02, y), xycoords=("axes fraction", "data"), va="center", fontsize=6.5, linespacing=0.95)


def seeds(results: dict[str, Any], key: tuple[str, int, str]) -> list[float]:
    """The scores of an arm's training seeds in percent, where there are any; a fixed checkpoint has none."""
    scores = [row["score"] for row in at(results["scores"], *key) if row["seed"] is not None]
    return [number(score) for score in scores if known(score) is not None]


def describe_bars(results: dict[str, Any]) -> str:
    parts = []
    for row in results["arms"]:
        dots = seeds(results, (row["benchmark"], row["dose"], row["arm"]))
        text = f"{row['arm']} on {row['benchmark']}, {when(row['dose'])}: {said(row, 'mean')}"
        parts.append(text + (f", seeds {', '.join(f'{dot:.1f}' for dot in dots)}" if dots else ""))
    return told("Mean scores with 95 % intervals", [*parts, *missing_lines(results)])


@styled
def forest(results: dict[str, Any]) -> Figure:
    """Every contrast with its 95 % interval in percentage points, by benchmark and dose; the shape is the verdict."""
    rows = results["contrasts"]
    if not rows:
        return nothing("no contrast was declared")
    lines: list[tuple[str, dict[str, Any] | None]] = []
    for place in dict.fromkeys(_place(row) for row in rows):
        lines += [(place, None)] + [(row["name"], row) for row in rows if _place(row) == place]
    labels = [wrapped(text, 60 if row is None else 42) for text, row in lines]
    spots = np.cumsum([0.0] + [0.5 + 0.33 * (a.count("\n") + b.count("\n") + 1) for a, b in itertools.pairwise(labels)])
    figure = new(0.7 + 0.21 * (spots[-1] + 1))
    axis = figure.subplots()
    axis.set(yticks=spots, yticklabels=labels, ylim=(spots[-1] + 0.8, -0.8))
    bare(axis, "x", "left")
    axis.axvline(0, color=INK, linewidth=0.9)
    for y, label, (_, row) in zip(spots, axis.get_yticklabels(), lines, strict=True):
        if row is None:
            label.set_fontsize(9)
            continue
        style = VERDICTS[row["verdict"]]
        axis.plot([number(row["low"]), number(row["high"])], [y, y], color=style["color"], linewidth=1.6)
        axis.plot(number(row["estimate"]), y, **style, markersize=6)
        text = "× no number" if known(row["estimate"]) is None else said(row, "estimate", "+").replace(" points", "")
        axis.annotate(" " + text.replace("-", "−"), (1, y), xycoords=("axes fraction", "data"), va="center", fontsize=7)
    reach = max([abs(end) for end in axis.dataLim.intervalx if math.isfinite(end)], default=0) * 1.06 or 1
    axis.set(xlim=(-reach, reach), xlabel="percentage points, with 95 % interval")
    legend(figure, [], [], *(key(**style, markersize=6) for style in VERDICTS.values()))
    return figure


def compared(row: dict[str, Any]) -> str:
    """`before SFT`; with the second arm's dose where a contrast compares two doses."""
    return " against ".join(dict.fromkeys(when(row[side]) for side in ("dose", "against_dose")))


def _place(row: dict[str, Any]) -> str:
    return f"{row['benchmark']}, {compared(row)}"


def describe_forest(results: dict[str, Any]) -> str:
    parts = []
    for row in results["contrasts"]:
        number_said, verdict = said(row, "estimate", "+"), VERDICTS[row["verdict"]]["label"]
        parts.append(f"{row['name']} on {_place(row)}: {number_said}, {verdict}")
    return told("Contrasts in percentage points with 95 % intervals", parts)


def told(title: str, parts: Iterable[str]) -> str:
    return f"{title}. {'; '.join(parts) or 'Nothing to show'}."


def lay_out(figure: Figure) -> None:
    """Once: left to itself, a figure is laid out and drawn again before each file."""
    engine = figure.get_layout_engine()
    if engine and figure.axes:
        engine.execute(figure)
    figure.set_layout_engine(None)


# Embedding fonts makes so much garbage that looking for it takes a fifth of the time.
@gc_disabled()
def save_all(figures: dict[str, Figure], folder: Path) -> dict[str, str]:
    """Write NAME.pdf and NAME.png of each figure; returns their SVG texts, which one page can hold together."""
    folder.mkdir(parents=True, exist_ok=True)
    pages = {}
    for name, figure in figures.items():
        # a salt and names of its own, so that several fit into one page
        with matplotlib.rc_context(STYLE | {"svg.hashsalt": name}):
            lay_out(figure)
            figure.savefig(folder / f"{name}.pdf", metadata={"CreationDate": None})
            figure.savefig(folder / f"{name}.png", dpi=150, metadata={"Software": None})
            page = io.StringIO()
            figure.savefig(page, format="svg", transparent=True, metadata={"Date": None})
        svg = page.getvalue().replace(INK, "currentColor").replace('<g id="', f'<g id="{name}-')
        pages[name] = svg[svg.index("<svg") :]
    return pages
