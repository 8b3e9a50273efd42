"""A table of results as plain text, and its CSV and Markdown.

LaTeX, CSV and Markdown are written from one `Table`, so that all show the same digits.
"""

import csv
import io
import re
from collections.abc import Sequence
from dataclasses import dataclass

NONE = "-"  # a cell without a value
_THOUSANDS = re.compile(r"(?<![\d.])\d{4,}(?!\d|\.\d)")
_MINUS = re.compile(r"(?<![\w.])-(?=\.?\d)|(?<= )-(?= )")
_TIMES = re.compile(r"(?<=\w )x(?= \w)")
# What Markdown reads as more than a letter; pandoc makes dashes of --, and citations of @.
_MARKDOWN = re.compile(r"([\\`*_{}\[\]<>#|~^$@]|-(?=-)|(?<=-)-|\.(?=\.\.))")
SOFT_HYPHEN = "\u00ad"
THIN_SPACE = "\u202f"  # narrow and without a break


@dataclass(frozen=True)
class Column:
    """One column of a table."""

    heading: str  # with SOFT_HYPHEN where print may divide a word
    is_number: bool = False  # set to the right, thousands apart


@dataclass(frozen=True)
class Table:
    """One table of results.

    Cells are text as a person would type it: `+3.1`, `[-0.2, +4.0]`, `< .001`, `-` for none.
    """

    name: str  # of its files
    study: str
    title: str  # the short caption, for a list of tables
    caption: str  # one sentence
    columns: tuple[Column, ...]
    rows: tuple[tuple[str, ...], ...]
    notes: tuple[str, ...]  # sentences, printed below the rule
    # The first columns of a row that LaTeX prints as a line of their own above the rows they share.
    group_by: int = 0

    @property
    def headings(self) -> tuple[str, ...]:
        """The headings without marks for hyphens."""
        return tuple(column.heading.replace(SOFT_HYPHEN, "") for column in self.columns)

    def numbers(self, row: Sequence[str]) -> list[str]:
        """The cells of a row that stand in columns of numbers."""
        return [cell for cell, column in zip(row, self.columns, strict=True) if column.is_number]


def grouped(text: str, gap: str) -> str:
    """Text whose whole numbers of four digits and more have `gap` between the thousands."""
    return _THOUSANDS.sub(lambda match: f"{int(match[0]):,}".replace(",", gap), text)


def with_signs(text: str) -> str:
    """Text with signs as in print: a minus in `-3.1` and `animal - urban`, a times in `2 x 3`."""
    return _TIMES.sub("\u00d7", _MINUS.sub("\u2212", text))


def to_csv(table: Table) -> str:
    """The table as CSV (RFC 4180): digits without gaps, hyphens as minus signs, empty for none."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(table.headings)
    writer.writerows([["" if cell == NONE else cell for cell in row] for row in table.rows])
    return file.getvalue()


def to_markdown(table: Table) -> str:
    """The table as a Markdown pipe table under its caption, with the notes as a list below it."""
    rule = ["---:" if column.is_number else ":---" for column in table.columns]
    rows = [
        [_markdown_cell(cell, column) for cell, column in zip(row, table.columns, strict=True)]
        for row in table.rows
    ]
    lines = [[_escaped(heading) for heading in table.headings], rule, *rows]
    text = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    notes = "\n".join(f"- {_escaped(note)}" for note in table.notes)
    return f"**{_escaped(table.caption)}**\n\n{text}\n\n{notes}\n"


def _escaped(text: str) -> str:
    line = re.sub(r"[ \t\r\n]+", " ", text)
    return _MARKDOWN.sub(r"\\\1", with_signs(line))


def _markdown_cell(cell: str, column: Column) -> str:
    if cell == NONE:
        return "\u2013"
    return _escaped(grouped(cell, THIN_SPACE) if column.is_number else cell)
