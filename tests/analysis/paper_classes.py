"""The document classes that tables are put into, and what pdflatex says of them."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

needs_latex = pytest.mark.skipif(
    not shutil.which("pdflatex"), reason="no pdflatex: apt-get install texlive-latex-recommended"
)
# Without it LaTeX draws _ and the like, which are then no letters of the PDF's text.
needs_latin_modern = pytest.mark.skipif(
    not shutil.which("kpsewhich")
    or not subprocess.run(["kpsewhich", "lmodern.sty"], capture_output=True).stdout,
    reason="no Latin Modern: apt-get install lmodern",
)
NEURIPS = r"""\documentclass{article}
\usepackage{times}
\usepackage[paper=letterpaper,textwidth=5.5in,textheight=9in]{geometry}"""
ACL = r"""\documentclass[11pt,twocolumn]{article}
\usepackage{times}
\usepackage[paper=a4paper,textwidth=16cm,textheight=24.7cm,columnsep=0.6cm]{geometry}"""
# Class -> the `column` of the study file that is for it, and the preamble.
CLASSES = {
    "article": ("single", r"\documentclass{article}"),
    "article in two columns": ("double", r"\documentclass[twocolumn]{article}"),
    # Without Libertine acmart stays with OT1, whose dollar in italics is a bitmap that microtype refuses.
    "acmart": (
        "double",
        r"\documentclass[sigconf,nonacm]{acmart}\usepackage[T1]{fontenc}\usepackage{lmodern}",
    ),
    "IEEEtran": ("double", r"\documentclass{IEEEtran}"),
    "llncs": ("single", r"\documentclass{llncs}"),
    "elsarticle": ("single", r"\documentclass{elsarticle}"),
    "revtex": ("double", r"\documentclass[twocolumn,aps]{revtex4-2}"),
    "NeurIPS-like": ("single", NEURIPS),
    "ACL-like": ("double", ACL),
    "article in double spacing": ("single", r"\documentclass{article}\linespread{2}"),
    "mnras": ("double", r"\documentclass{mnras}"),
    "beamer": ("slide", r"\documentclass{beamer}"),
}
TOLERANCE = 2.0  # points of an overfull box


def document(preamble: str, inputs: list[str]) -> str:
    is_slide = "beamer" in preamble
    lines = [rf"\input{{{name}}}" + ("" if is_slide else r"\clearpage") for name in inputs]
    text = "" if is_slide else "Text.\n"
    if "acmart" in preamble:  # its headers have the title
        text = r"\title{Tables}\author{A}\affiliation{\country{X}}\maketitle" + "\n"
    body = "\n".join(lines)
    return (
        f"{preamble}\n\\usepackage{{array,booktabs}}\n\\begin{{document}}\n{text}{body}\n"
        "\\end{document}\n"
    )


def pdflatex(file: Path) -> str:
    """What pdflatex writes about a file, without its line breaks."""
    made = subprocess.run(
        ["pdflatex", "-interaction=nonstopmode", file.name],
        cwd=file.parent,
        capture_output=True,
        text=True,
        errors="replace",
        env={"PATH": "/usr/bin:/bin", "max_print_line": "2000", "HOME": str(file.parent)},
    )
    log = made.stdout
    assert "Output written" in log, log[-3000:]
    return log


def complaints(log: str) -> list[str]:
    """Errors, boxes that are too wide or too high, floats that are too large."""
    lines = []
    for line in log.splitlines():
        if over := re.search(r"Overfull \\[hv]box \(([\d.]+)pt", line):
            if float(over[1]) > TOLERANCE:
                lines.append(line)
        elif line.startswith("!") or "Float too large" in line or "multiply defined" in line:
            lines.append(line)
    return lines
