"""Tables of the canary: a judge's drift from the published grades, and between two labs' judges."""

from pathlib import Path

from tabulate import tabulate

from analysis.headline import interval, percent
from analysis.rows import Results, Row
from analysis.table_files import write_table
from analysis.table_text import NONE, Column, Table
from analysis.tables import number_columns, table, text_columns

NOTES = (
    "The mean difference of grades of the same answers, the second lab minus the first, in points.",
    "It is the judges' and no training's: scores of the two labs differ by it.",
)


def canary_table(results: Results) -> Table:
    """The drift of each judge against the published grades of the canary."""
    rows = [
        [
            *(row["judge"], line["dimension"], str(line["answers"])),
            *(percent(line[key]) for key in ("before", "after")),
            percent(line["estimate"], "+"),
            interval(line, "+"),
        ]
        for row in results["canary"]
        for line in row["drift"]
    ]
    columns = text_columns("Judge", "Dimension")
    columns += number_columns("Answers", "Published", "Graded", "Drift", "95 % interval")
    return table(
        results,
        "canary",
        "Drift of the judges",
        "Grades of fixed answers by the study's judges against the published grades, in points",
        columns,
        rows,
        [],
        group_by=1,
    )


def bridge_table(bridges: list[Row]) -> Table:
    """The drift over all dimensions and of each, of `analysis.canary.bridge_rows`."""
    columns = [Column(heading) for heading in ("Labs", "Judges", "Dimension")]
    headings = ("Answers", "First", "Second", "Drift", "95 % interval")
    columns += [Column(heading, is_number=True) for heading in headings]
    rows = [
        (
            " v ".join(bridge["labs"]),
            " v ".join(dict.fromkeys(bridge["judges"])),
            line["dimension"],
            str(line["answers"]),
            *(_points(line[key], "{:.1f}") for key in ("before", "after")),
            _points(line["estimate"], "{:+.1f}"),
            f"[{100 * line['low']:+.1f}, {100 * line['high']:+.1f}]"
            if line["low"] is not None
            else NONE,
        )
        for bridge in bridges
        for line in bridge["drift"]
    ]
    return Table(
        name="canary",
        study="pooled",
        title="Drift between the labs' judges",
        caption="Grades of the same fixed answers by the judges of two labs",
        columns=tuple(columns),
        rows=tuple(rows),
        notes=NOTES,
        group_by=1,
    )


def _points(value: float | None, form: str) -> str:
    return NONE if value is None else form.format(100 * value)


def describe_canary(bridges: list[Row]) -> str:
    """What the command prints of it."""
    shown = bridge_table(bridges)
    text = tabulate(shown.rows, shown.headings, disable_numparse=True)
    return f"The judges' canary\n\n{text}\n\n{' '.join(NOTES)}"


def write_canary(bridges: list[Row], folder: Path) -> None:
    """Write the table as LaTeX (float and tabular), CSV and Markdown."""
    write_table(bridge_table(bridges), folder, "single")
