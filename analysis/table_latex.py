r"""A table in LaTeX: the tabular alone, and finished floats or slides.

Every width is a share of \linewidth, so that one file fits every class. Numbers are text in the
paper's own font: they have a fixed number of digits, and a column set to the right is aligned.
"""

import re
import unicodedata
from collections.abc import Sequence

from analysis.table_layout import (
    GAP,
    INDENT,
    PAPERS,
    Layout,
    Paper,
    Part,
    floats,
    group_title,
    is_indented,
    layout,
    pieces,
)
from analysis.table_text import NONE, SOFT_HYPHEN, THIN_SPACE, Table, grouped, with_signs

SAMPLE = "all.tex"  # a paper with every table
NEEDS = r"\usepackage{array,booktabs}"
SPECIAL = {
    "\\": r"\textbackslash{}",
    "&": r"\&",
    "%": r"\%",
    "$": r"\$",
    "#": r"\#",
    "_": r"\_",
    "{": r"\{",
    "}": r"\}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': "''",
    "\u201c": "``",
    "\u201d": "''",
    "\u2013": "--",
    "\u2212": "$-$",
    "\u00d7": r"$\times$",
    "\u00b1": r"$\pm$",
    "\u2265": r"$\geq$",
    "\u03b1": r"$\alpha$",
    "\u03ba": r"$\kappa$",
    "\u00a0": "~",
    SOFT_HYPHEN: r"\-",
    THIN_SPACE: r"\,",
    "`": r"\`{}",
}
# Between signs that a font would join to another: -- to a dash, '' to a quotation mark.
_JOINED = re.compile(r"(?<=-)(?=-)|(?<=')(?=')|(?<=,)(?=,)")
T1 = r"\usepackage[T1]{fontenc}"
# Letters of Latin that pdfLaTeX's default fonts (OT1) lack, and those that T1 lacks too.
_OF_T1 = (
    "\u00ab\u00bb\u00d0\u00de\u00f0\u00fe"
    "\u0104\u0105\u0110\u0111\u0118\u0119\u012e\u012f\u014a\u014b\u0172\u0173"
)
_BEYOND_T1 = "\u0126\u0127\u0138\u013f\u0140\u0149\u0166\u0167\u017f"
FLOATS_IN_A_ROW = 12  # LaTeX holds back a limited number of floats
_SYMBOL = re.compile(r"\b([pqd])\b")
_CONTINUED = "(continued)"


def tex(text: object) -> str:
    """Any text as it should print.

    LaTeX's special characters are escaped, letters of other alphabets are kept (UTF-8). Letters
    and their accents are composed (NFC), as pdfLaTeX takes no accent behind its letter.
    """
    parts = _JOINED.split(unicodedata.normalize("NFC", str(text)))
    return "{}".join("".join(SPECIAL.get(letter, letter) for letter in part) for part in parts)


def prose(text: str) -> str:
    r"""Text of the kit and names in it: minus and multiplication signs, quotation marks, `\,\%`."""
    text = unicodedata.normalize("NFC", text)
    text = re.sub(r'(^|(?<=[\s(]))"', "\u201c", text).replace('"', "\u201d")
    text = re.sub(r"(?<=\d) %", f"{THIN_SPACE}%", with_signs(text))
    return r"\allowbreak{}".join(tex(piece) for piece in _joined(pieces(text)))


def _joined(parts: Sequence[str]) -> list[str]:
    """Parts of a text joined where LaTeX itself may end a line: behind spaces and hyphens."""
    joined: list[str] = []
    for part in parts:
        if joined and joined[-1].endswith((" ", "-", SOFT_HYPHEN)):
            joined[-1] += part
        else:
            joined.append(part)
    return joined


def _cell(text: str, is_number: bool) -> str:
    if text == NONE:
        return "--"
    return prose(grouped(text, THIN_SPACE) if is_number else text)


def _heading(text: str) -> str:
    """A column's heading; a statistic of one letter is set as in formulas."""
    return _SYMBOL.sub(lambda match: f"${match[1]}$", prose(text))


def _alignment(table: Table, n: int) -> str:
    if table.columns[n].is_number:
        return r"\raggedleft"
    return r"\raggedright" + f"\\setlength{{\\leftskip}}{{{INDENT}em}}" * is_indented(table, n)


def tabular(table: Table, design: Layout, rows: Sequence[tuple[str, ...]]) -> str:
    """The rows in a tabular environment; groups have a line of their own above their rows."""
    columns = table.columns[table.group_by :]
    formats = [
        # {}: pandoc takes what follows \arraybackslash for its argument
        f">{{{_alignment(table, n)}\\arraybackslash{{}}}}p{{{design.share(width)}}}"
        for n, width in enumerate(design.widths, table.group_by)
    ]
    lines = [
        "\\begin{tabular}{@{}" + "\n".join(formats) + "@{}}",
        r"\toprule",
        " & ".join(_heading(column.heading) for column in columns) + r" \\",
        r"\midrule",
    ]
    group = None
    for row in rows:
        title = group_title(row, table)
        if title and title != group:
            if group is not None:
                lines.append(r"\addlinespace[0.5ex]")
            width = design.share(sum(design.widths) + GAP * (len(columns) - 1))
            span = f"\\multicolumn{{{len(columns)}}}{{@{{}}p{{{width}}}@{{}}}}"
            lines.append(f"{span}{{\\raggedright\\itshape {prose(title)}}} \\\\")
            group = title
        cells = zip(row[table.group_by :], columns, strict=True)
        line = " & ".join(_cell(cell, column.is_number) for cell, column in cells)
        # behind \\ and \midrule these begin an argument
        lines.append("{}" * line.startswith(("[", "*")) + line + r" \\")
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}"])


def _settings(design: Layout) -> str:
    return f"{design.letters.command}\\setlength{{\\tabcolsep}}{{{design.share(GAP / 2)}}}"


def label(table: Table) -> str:
    """The label of a table: two studies in one paper have different ones."""
    return f"tab:{table.study}:{table.name}"


def tabular_file(table: Table, column: str) -> str:
    """NAME.tabular.tex: the tabular with its letters' size, for a float of one's own."""
    design = layout(table, PAPERS[column])
    width = "the page (table*)" if design.is_page_wide else "the line (table)"
    head = [
        f"% {table.title}; study {table.study}. The tabular alone, for a float as wide as {width}.",
        f"% Needs {NEEDS}.",
        *_fonts_note([table]),
        *(f"% {' '.join(note.split())}" for note in table.notes),
    ]
    text = f"{{{_settings(design)}%\n{tabular(table, design, table.rows)}}}"
    return "\n".join([*head, text]) + "\n"


def float_file(table: Table, column: str) -> str:
    """NAME.tex: finished floats, as many as the rows need; slides for `column: slide`."""
    paper = PAPERS[column]
    design = layout(table, paper)
    parts = floats(table, design)
    head = [
        f"% {table.title}; study {table.study}. For \\input; label {label(table)}.",
        f"% Needs {NEEDS}; made for `tables: {{column: {column}}}` of the study file.",
        *_fonts_note([table]),
    ]
    texts = []
    for n, part in enumerate(parts):
        if n and n % FLOATS_IN_A_ROW == 0 and not paper.is_slide:
            texts.append(r"\clearpage")
        texts.append(_part(table, design, part, paper, is_first=n == 0))
    return "\n".join([*head, *texts]) + "\n"


def _part(table: Table, design: Layout, part: Part, paper: Paper, is_first: bool) -> str:
    environment = "table*" if design.is_page_wide else "table"
    position = "" if paper.is_slide else "[tbp]"
    # Rows are counted for lines of one height: a thesis may be set in double spacing.
    lines = [f"\\begin{{{environment}}}{position}", r"\centering\linespread{1}"]
    if is_first:
        # LaTeX leaves no distance below a caption, as it expects captions under their tables. Not
        # every class has the length: mnras has none.
        lines += [
            r"\ifdefined\belowcaptionskip\setlength{\belowcaptionskip}{0.5em}\fi",
            f"\\caption[{{{prose(table.title)}}}]{{{prose(table.caption)}.}}",
            f"\\label{{{label(table)}}}",
        ]
    else:
        lines.append(f"{{Table~\\ref{{{label(table)}}} {_CONTINUED}\\par\\vspace{{0.5em}}}}")
    lines.append(_settings(design))
    if part.rows:
        lines.append(tabular(table, design, part.rows))
    if part.notes:
        notes = " ".join(map(prose, part.notes))
        lines.append(f"\\par\\vspace{{0.5ex}}\\parbox{{\\linewidth}}{{\\raggedright {notes}}}")
    lines.append(f"\\end{{{environment}}}")
    if paper.is_slide:
        title = prose(table.title) + (f" {_CONTINUED}" if not is_first else "")
        lines = [f"\\begin{{frame}}{{{title}}}", *lines, r"\end{frame}"]
    return "\n".join(lines)


def _fonts_note(tables: Sequence[Table]) -> list[str]:
    """A comment where tables have letters that pdfLaTeX does not print as it is."""
    texts = [text for of in tables for text in (of.caption, *of.headings, *of.notes)]
    texts += [cell for of in tables for row in of.rows for cell in row]
    used = {letter for text in texts for letter in unicodedata.normalize("NFC", text)}
    beyond = "".join(sorted(letter for letter in used if not _is_latin(letter)))
    if beyond:
        return [
            f"% Letters beyond Latin ({beyond[:20]}): compile with lualatex or xelatex, and",
            r"% \usepackage{fontspec}\setmainfont{...} with a font that has them.",
        ]
    if of_t1 := "".join(sorted(used & set(_OF_T1))):
        return [f"% Letters {of_t1}: pdflatex also needs {T1}."]
    return []


def _is_latin(letter: str) -> bool:
    if letter in SPECIAL or (ord(letter) < 0x180 and letter not in _BEYOND_T1):
        return True
    return letter in "\u2018\u2019\u2026\u2014\u20ac"


def sample_file(tables: Sequence[Table], column: str) -> str:
    """SAMPLE: a paper with every table and the macros, that compiles as it is."""
    document = {"double": "[twocolumn]{article}", "slide": "{beamer}"}.get(column, "{article}")
    is_slide = PAPERS[column].is_slide
    inputs = [rf"\input{{{table.name}}}" + ("" if is_slide else r"\clearpage") for table in tables]
    lines = [
        "% All tables of the study in a sample paper: run pdflatex in this folder, twice.",
        *_fonts_note(tables),
        f"\\documentclass{document}",
        r"\usepackage{iftex}",
        r"\ifpdftex\IfFileExists{lmodern.sty}{\usepackage[T1]{fontenc}\usepackage{lmodern}}{}",
        r"\else\usepackage{fontspec}\fi",
        NEEDS,
        r"\begin{document}",
        r"\input{../macros}",
        *([] if is_slide else [r"\listoftables\clearpage"]),
        *inputs,
        r"\end{document}",
    ]
    return "\n".join(lines) + "\n"
