"""The layout of a table in print: size of letters, widths of columns, and rows per float.

LaTeX cannot be asked while the file is written, and the class of the paper is unknown. Widths are
therefore counted in em with the letters of Computer Modern, which are wide, and for the narrowest
line of the supported classes. In LaTeX they are shares of the line, so that a table fits every
line.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from analysis.table_text import NONE, Table

GAP = 0.6  # em between two columns
INDENT = 0.5  # em more between a column of numbers and one of text to its right
NAMED = {"SFT dose": "SFT dose ", "Family": "family "}  # headings that a group's title has
LONGEST_PIECE = 16  # letters; longer ones may be broken anywhere
# Behind these a line may end.
_ENDS = re.compile(r"(?<=[ _/\u00ad])|(?<=\w-)(?=\w)|(?<=\.)(?=[A-Za-z])")
_INTERVAL = re.compile(r"\[[^\[\]]*\]|< \S+|\d{1,3}(?: \d{3})+")
# Widths of the letters of Computer Modern Roman (cmr10) in em, rounded up; others count as 1.
_WIDTHS = {
    letter: width
    for letters, width in (
        ("ijlI.,:;!'|()[] \u00a0\u00ad\u202f", 0.31),
        ("frst/\u2013", 0.4),
        ("cez`", 0.45),
        ("ao0123456789*", 0.5),
        ('bdghknpquvxyJS?_~^"', 0.56),
        ("ZLF", 0.66),
        ("ABCDEGHKNOPQRTUVXY&+-=<>#$", 0.78),
        ("mMw%", 0.92),
    )
    for letter in letters
}


@dataclass(frozen=True)
class Paper:
    """The lines of the classes that one value of `tables: {column: ...}` is for."""

    # Command of the size of letters, em of a line in it; larger letters first.
    line: tuple[tuple[str, float], ...]
    # The same for the whole page where that has two columns; tables wider than a column use it.
    page: tuple[tuple[str, float], ...]
    lines: int  # of the rows of a float
    height: int  # lines of a float with its notes, the caption aside
    is_slide: bool = False


# Narrowest lines: article of 10 pt (345 pt, \scriptsize is 7 pt) and of 11 pt (360 pt, 8 pt); in
# two columns ACL (219 pt of 455 pt, 8 pt); beamer 4:3 (307 pt, \tiny is 6 pt). Small letters of
# Computer Modern are wider for their size: those of 7 pt by 14 %, of 8 pt by 6 %.
PAPERS = {
    "single": Paper(
        ((r"\small", 35.0), (r"\footnotesize", 38.5), (r"\scriptsize", 42.0)), (), 42, 50
    ),
    "double": Paper(
        ((r"\footnotesize", 24.0), (r"\scriptsize", 27.0)),
        ((r"\footnotesize", 50.0), (r"\scriptsize", 56.0)),
        42,
        50,
    ),
    "slide": Paper(((r"\scriptsize", 36.0), (r"\tiny", 48.0)), (), 16, 20, is_slide=True),
}


@dataclass(frozen=True)
class Layout:
    """How a table is set."""

    size: str  # command of the size of letters
    line: float  # em in that size
    widths: tuple[float, ...]  # of the columns that are printed, em
    is_page_wide: bool = False

    def share(self, width: float) -> str:
        r"""A width in em as a share of the line, such as `0.1234\linewidth`."""
        return f"{width / self.line:.4f}\\linewidth"


@dataclass(frozen=True)
class Part:
    """What one float shows of a table."""

    rows: list[tuple[str, ...]]
    notes: list[str]


def em(text: str) -> float:
    """The width of text in Computer Modern, rather too large."""
    return sum(_WIDTHS.get(letter, 1.0) for letter in text)


def pieces(text: str) -> list[str]:
    """The parts of a text between which a line may end."""
    kept = _INTERVAL.sub(lambda match: match[0].replace(" ", "\u00a0"), text)
    parts = [part for part in _ENDS.split(kept) if part]
    return [
        part[start : start + LONGEST_PIECE]
        for part in parts
        for start in range(0, len(part), LONGEST_PIECE)
    ]


def is_indented(table: Table, n: int) -> bool:
    """Whether column n is of text and stands to the right of numbers."""
    columns = table.columns
    return n > table.group_by and columns[n - 1].is_number and not columns[n].is_number


def layout(table: Table, paper: Paper) -> Layout:
    """The largest letters in which every column holds its longest piece, and the widths."""
    columns = range(table.group_by, len(table.columns))
    texts = [[table.columns[n].heading, *(row[n] for row in table.rows)] for n in columns]
    indents = [INDENT * is_indented(table, n) for n in columns]
    least = [max(em(piece) for text in column for piece in pieces(text)) for column in texts]
    least = [width + indent for width, indent in zip(least, indents, strict=True)]
    natural = [max(em(text) for text in column) for column in texts]
    natural = [width + indent for width, indent in zip(natural, indents, strict=True)]
    gaps = GAP * (len(least) - 1)
    for sizes, is_page_wide in ((paper.line, False), (paper.page, True)):
        for size, line in sizes:
            if sum(least) + gaps <= line:
                widths = _shared_out(least, natural, line - gaps)
                return Layout(size, line, tuple(widths), is_page_wide)
    size, line = (paper.page or paper.line)[-1]
    shrunk = (line - gaps) / sum(least)
    return Layout(size, line, tuple(width * shrunk for width in least), bool(paper.page))


def _shared_out(least: Sequence[float], natural: Sequence[float], line: float) -> list[float]:
    """Widths between `least` and `natural` that fill the line where the natural ones do not fit."""
    free = line - sum(least)
    wanted = [wide - narrow for narrow, wide in zip(least, natural, strict=True)]
    part = min(1.0, free / sum(wanted)) if sum(wanted) else 0.0
    return [narrow + part * more for narrow, more in zip(least, wanted, strict=True)]


def num_lines(text: str, width: float) -> int:
    """How many lines a text takes in a column, rather too many."""
    lines = 1
    filled = 0.0
    for piece in pieces(text):
        size = em(piece)
        if filled and filled + size > width:
            lines += 1
            filled = 0.0
        filled += size
    return lines


def row_lines(row: Sequence[str], table: Table, design: Layout) -> int:
    """The lines of one row of a table."""
    cells = row[table.group_by :]
    return max(num_lines(cell, width) for cell, width in zip(cells, design.widths, strict=True))


def group_title(row: Sequence[str], table: Table) -> str:
    """What is printed above the rows of a group: the first columns of its rows."""
    named = zip(table.headings, row[: table.group_by], strict=False)
    return ", ".join(NAMED.get(heading, "") + cell for heading, cell in named if cell != NONE)


def floats(table: Table, design: Layout, paper: Paper) -> list[Part]:
    """The table cut to parts that fit a page each, the lines of groups' titles counted.

    The notes are below the last rows, or in parts of their own where they do not fit there.
    """
    parts: list[Part] = []
    used = 0.0
    group = None
    for row in table.rows:
        title = group_title(row, table)
        needed = float(row_lines(row, table, design))
        above = num_lines(title, design.line) + 0.5 if title else 0.0
        if not parts or used + needed + above * (title != group) > paper.lines:
            parts.append(Part([], []))
            used, group = 0.0, None
        parts[-1].rows.append(row)
        used += needed + above * (title != group)
        group = title
    for note in table.notes:
        needed = float(num_lines(note, design.line))
        if not parts or used + needed > paper.height:
            parts.append(Part([], []))
            used = 0.0
        parts[-1].notes.append(note)
        used += needed
    return parts
