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
SPARE = 1.05  # of the width of a text that need not be broken: fonts differ
NAMED = {"SFT dose": "SFT dose ", "Family": "family "}  # headings that a group's title has
LONGEST_PIECE = 16  # letters; longer ones may be broken anywhere
# Behind these a line may end.
_ENDS = re.compile(r"(?<=[ _\u00ad])|(?<=/)(?!\d)|(?<=\w-)(?=\w)|(?<=\.)(?=[A-Za-z])")
_INTERVAL = re.compile(r"\[[^\[\]]*\]|< \S+|\d{1,3}(?: \d{3})+")
# Widths of the letters of Computer Modern Roman (cmr10) in em, rounded up; others count as 1.
_WIDTHS = {
    letter: width
    for letters, width in (
        ("ijlI.,:;!'|()[] \u00a0\u00ad\u202f", 0.31),
        ("frst", 0.4),
        ("cez`", 0.45),
        ("ao0123456789*/\u2013", 0.5),
        ('bdghknpquvxyJS?_~^"', 0.56),
        ("ZLF", 0.66),
        ("ABCDEGHKNOPQRTUVXY&+-=<>#$", 0.78),
        ("mMw%", 0.92),
    )
    for letter in letters
}


@dataclass(frozen=True)
class Letters:
    """A size of letters, and what a page holds in it."""

    command: str
    line: float  # em of a line
    lines: int  # of the rows of a float
    height: int  # lines of a float with its notes, the caption aside


@dataclass(frozen=True)
class Paper:
    """The classes that one value of `tables: {column: ...}` is for; larger letters come first."""

    line: tuple[Letters, ...]
    # Across both columns of a page, for tables that are wider than a column.
    page: tuple[Letters, ...] = ()
    is_slide: bool = False

    @property
    def smallest(self) -> Letters:
        return (self.page or self.line)[-1]


# Narrowest lines: article of 10 pt (345 pt, \scriptsize is 7 pt) and of 11 pt (360 pt, 8 pt),
# llncs (347 pt, \footnotesize is 9 pt); in
# two columns ACL (219 pt of 455 pt, \scriptsize is 8 pt) and article of 12 pt (\footnotesize is
# 10 pt); beamer 4:3 (307 pt, \tiny is 6 pt). Small letters of Computer Modern are wider for their
# size: those of 7 pt by 14 %, of 8 pt by 6 %. Lowest pages: article of 12 pt (541 pt), beamer (273
# pt with the frame's title).
PAPERS = {
    "single": Paper(
        (
            Letters(r"\small", 35.0, 31, 36),
            Letters(r"\footnotesize", 37.0, 36, 41),
            Letters(r"\scriptsize", 42.0, 42, 50),
        )
    ),
    "double": Paper(
        (Letters(r"\footnotesize", 22.5, 36, 41), Letters(r"\scriptsize", 26.5, 42, 50)),
        (Letters(r"\footnotesize", 46.0, 36, 41), Letters(r"\scriptsize", 54.0, 42, 50)),
    ),
    "slide": Paper(
        (Letters(r"\scriptsize", 35.0, 13, 16), Letters(r"\tiny", 47.0, 16, 20)), is_slide=True
    ),
}


@dataclass(frozen=True)
class Layout:
    """How a table is set."""

    letters: Letters
    widths: tuple[float, ...]  # of the columns that are printed, em
    is_page_wide: bool = False

    def share(self, width: float) -> str:
        r"""A width in em as a share of the line, such as `0.1234\linewidth`."""
        return f"{width / self.letters.line:.4f}\\linewidth"


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
    natural = [SPARE * max(em(text) for text in column) for column in texts]
    natural = [width + indent for width, indent in zip(natural, indents, strict=True)]
    gaps = GAP * (len(least) - 1)
    for sizes, is_page_wide in ((paper.line, False), (paper.page, True)):
        for letters in sizes:
            if sum(least) + gaps <= letters.line:
                widths = _shared_out(least, natural, letters.line - gaps)
                return Layout(letters, tuple(widths), is_page_wide)
    letters = paper.smallest
    shrunk = (letters.line - gaps) / sum(least)
    return Layout(letters, tuple(width * shrunk for width in least), bool(paper.page))


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


def floats(table: Table, design: Layout) -> list[Part]:
    """The table cut to parts that fit a page each, the lines of groups' titles counted.

    The notes are below the last rows, or in parts of their own where they do not fit there.
    """
    parts: list[Part] = []
    used = 0.0
    group = None
    for row in table.rows:
        title = group_title(row, table)
        needed = float(row_lines(row, table, design))
        above = num_lines(title, design.letters.line) + 0.5 if title else 0.0
        if not parts or used + needed + above * (title != group) > design.letters.lines:
            parts.append(Part([], []))
            used, group = 0.0, None
        parts[-1].rows.append(row)
        used += needed + above * (title != group)
        group = title
    for note in table.notes:
        needed = float(num_lines(note, design.letters.line))
        if not parts or used + needed > design.letters.height:
            parts.append(Part([], []))
            used = 0.0
        parts[-1].notes.append(note)
        used += needed
    return parts
