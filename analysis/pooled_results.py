"""Tables, text and forest plot of contrasts that several labs estimated."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from tabulate import tabulate

from analysis import figure_files, plots
from analysis.rows import Results, Row
from analysis.table_files import write_table
from analysis.table_text import NONE, Column, Table
from core.files import write_atomically

POOLED, COMMON, FURTHER = "all labs like these", "these labs alone", "a further lab"
NOTES = (
    "Percentage points with 95 % intervals.",
    "All labs like these: random effects (REML), Hartung and Knapp's interval.",
    "These labs alone: common effect.",
    "Each lab's standard error counts as known, so with few seeds a lab the intervals are somewhat "
    "too narrow.",
)
TOO_WELL = "the labs agree better than their errors allow: read the interval of these labs alone"


def table(results: Results) -> pd.DataFrame:
    """One row a line of the forest plot, in percentage points: of each lab, then of all.

    Columns: contrast, benchmark, dose, control_dose, lab, estimate, low, high, p, seeds, judge,
    tau, i2 (a share), note.
    """
    lines = pd.DataFrame([line for row in results["contrasts"] for line in _lines(row)])
    return lines.fillna({"note": ""})


def _lines(row: Row) -> Iterator[Row]:
    key = {"contrast": row["name"]}
    key |= {name: row[name] for name in ("benchmark", "dose", "control_dose")}
    for lab in row["labs"]:
        seeds = f"{lab['treatment_seeds']}/{lab['control_seeds']}"
        yield {
            **key,
            "lab": f"{lab['lab']} ({lab['rung']})" if lab["rung"] else lab["lab"],
            **_points(lab, "estimate", "low", "high"),
            "seeds": seeds,
        } | {
            "judge": lab["judge"],
            "note": f"not pooled: {lab['reason']}" if lab["reason"] else "",
        }
    if pooled := row["pooled"]:
        heterogeneity = {"tau": 100 * pooled["tau"], "i2": pooled["i2"]}
        note = TOO_WELL if pooled["agrees_too_well"] else ""
        points = _points(pooled, "estimate", "low", "high")
        yield {**key, "lab": POOLED, **points, "p": pooled["p"], **heterogeneity, "note": note}
        points = _points(pooled, "common", "common_low", "common_high")
        yield {**key, "lab": COMMON, **points}
        if pooled["predicted"]:
            low, high = pooled["predicted"]
            yield {**key, "lab": FURTHER, "low": 100 * low, "high": 100 * high}


def _points(row: Row, *names: str) -> Row:
    values = zip(("estimate", "low", "high"), (row[name] for name in names), strict=True)
    return {name: None if value is None else 100 * value for name, value in values}


def pooled_table(results: Results) -> Table:
    """The lines of the forest plot as a reader sees them."""
    columns = [Column(heading) for heading in ("Contrast", "Benchmark", "SFT dose", "Lab")]
    headings = ("Points", "95 % interval", "Seeds", "p", "tau", "I2")
    columns += [Column(heading, is_number=True) for heading in headings]
    return Table(
        name="pooled",
        study="pooled",
        title="Contrasts of several labs",
        caption="Each lab's estimate of a contrast and the estimates of all labs together",
        columns=tuple(columns),
        rows=tuple(_cells(line) for line in table(results).to_dict("records")),
        notes=NOTES,
        group_by=1,
    )


def _cells(line: dict[Any, Any]) -> tuple[str, ...]:
    doses = dict.fromkeys(str(line[name]) for name in ("dose", "control_dose"))
    has_interval = not pd.isna(line["low"])
    return (
        line["contrast"],
        line["benchmark"],
        " v ".join(doses),
        line["lab"],
        _text(line, "estimate", "{:+.1f}"),
        f"[{line['low']:+.1f}, {line['high']:+.1f}]" if has_interval else NONE,
        _text(line, "seeds", "{}"),
        _text(line, "p", "{:.3g}"),
        _text(line, "tau", "{:.1f}"),
        _text(line, "i2", "{:.0%}"),
    )


def _text(line: dict[Any, Any], name: str, form: str) -> str:
    return NONE if pd.isna(line.get(name)) else form.format(line[name])


def describe(results: Results) -> str:
    """What the command prints: the table, its basis, in what the labs differ."""
    lines = table(results)
    shown = pooled_table(results)
    texts = [tabulate(shown.rows, shown.headings, disable_numparse=True), "", " ".join(NOTES)]
    noted = lines[lines["note"] != ""]
    texts += [
        f"{row.contrast} on {row.benchmark}, {row.lab}: {row.note}" for row in noted.itertuples()
    ]
    texts += [
        f"shared by {' and '.join(row['labs'])}: {row['cell']}, so they are less than independent"
        for row in results["shared"]
    ]
    texts += [
        "",
        "The labs differ in:" if results["differences"] else "The settings compared are alike.",
    ]
    for row in results["differences"]:
        values = "; ".join(f"{lab}: {value}" for lab, value in row["values"].items())
        texts.append(f"- {row['stage']} {row['key']} ({_first_three(row['cells'])}): {values}")
    for lab, cells in results["unmatched"].items():
        texts.append(f"- in no other lab, and not compared: {lab}'s {_first_three(cells)}")
    return "\n".join(texts)


def _first_three(names: list[str]) -> str:
    return ", ".join(names[:3]) + (", ..." if names[3:] else "")


def write_tables(results: Results, folder: Path) -> None:
    """Write the table as LaTeX (float and tabular), CSV and Markdown, and the forest plot."""
    write_table(pooled_table(results), folder, "single")
    svg = figure_files.save(forest(results), folder, "forest")
    write_atomically(folder / "forest.svg", svg)


@plots.styled
def forest(results: Results) -> Figure:
    """Each lab's estimate with its interval, and the pooled ones below, contrast by contrast."""
    lines = table(results)
    keys = ["contrast", "benchmark", "dose", "control_dose"]
    panels = [(key, part) for key, part in lines.groupby(keys, sort=False)]
    figure = plots.new_figure(0.6 + 0.26 * len(lines) + 0.6 * len(panels))
    heights = [len(part) + 1 for _, part in panels]
    axes = figure.subplots(len(panels), sharex=True, squeeze=False, height_ratios=heights)[:, 0]
    for axis, ((contrast, benchmark, *doses), part) in zip(axes, panels, strict=True):
        at = " v ".join(dict.fromkeys(map(str, doses)))
        axis.set_title(f"{contrast}, {benchmark}, dose {at}", loc="left", fontsize=9)
        _draw(axis, part)
    axes[-1].set_xlabel("percentage points, with 95 % intervals")
    return figure


def _draw(axis: Axes, part: pd.DataFrame) -> None:
    spots = range(len(part))
    axis.set(yticks=spots, yticklabels=part["lab"], ylim=(len(part) - 0.4, -0.6))
    plots.strip_frame(axis, "x", "left")
    axis.axvline(0, color=plots.INK, linewidth=0.9)
    for spot, line in zip(spots, part.to_dict("records"), strict=True):
        is_lab = line["lab"] not in (POOLED, COMMON, FURTHER)
        style = "--" if line["lab"] == FURTHER else "-"
        axis.plot([line["low"], line["high"]], [spot] * 2, style, color=plots.INK, linewidth=1.4)
        axis.plot(line["estimate"], spot, "s" if is_lab else "D", color=plots.INK, markersize=5)
