"""Tables of LaTeX, Markdown and Word read back, as cells of plain text."""

import re
import zipfile
from pathlib import Path
from xml.etree import ElementTree

TEX = {
    "$-$": "-", r"\_": "_", r"\allowbreak{}": "", r"\,": "", "~": " ", "--": "", r"\%": "%",
    r"\textless{}": "<", r"\textgreater{}": ">", "$\\times$": "x", "$\\geq$": "\u2265", r"\-": "",
    "$p$": "p", "$q$": "q", "$d$": "d", "$\\kappa$": "\u03ba", "$\\alpha$": "\u03b1", r"\&": "&",
}  # fmt: skip


def tabular_rows(text: str) -> list[list[str]]:
    """Heading and rows of the tabulars in a file, without the lines that name groups."""
    rows: list[list[str]] = []
    for tabular in re.findall(r"\\toprule\n(.*?)\\bottomrule", text, re.S):
        lines = re.findall(r"^(.*) \\\\$", tabular, re.M)
        cells = [line.split(" & ") for line in lines if not line.startswith(r"\multicolumn")]
        rows += [[_plain(cell) for cell in row] for row in cells[bool(rows) :]]
    return rows


def _plain(cell: str) -> str:
    for code, sign in TEX.items():
        cell = cell.replace(code, sign)
    return cell.removeprefix("{}").strip()


def markdown_rows(text: str) -> list[list[str]]:
    """Heading and rows of a pipe table."""
    rows = [
        [_typed(re.sub(r"\\(.)", r"\1", cell)) for cell in re.split(r" (?<!\\)\| ", line[2:-2])]
        for line in text.splitlines()
        if line.startswith("| ")
    ]
    return [rows[0], *rows[2:]]


def word_rows(file: Path) -> list[list[str]]:
    """Heading and rows of the one table in a .docx file."""
    w = "{http://schemas.openxmlformats.org/wordprocessingml/2006/main}"
    root = ElementTree.fromstring(zipfile.ZipFile(file).read("word/document.xml"))
    (table,) = root.iter(f"{w}tbl")
    return [
        [
            _typed("".join(text.text or "" for text in cell.iter(f"{w}t")))
            for cell in row.iter(f"{w}tc")
        ]
        for row in table.iter(f"{w}tr")
    ]


def _typed(cell: str) -> str:
    bare = cell.strip().replace("\u202f", "").replace("\u2212", "-").replace("\u00d7", "x")
    return "" if bare == "\u2013" else bare
