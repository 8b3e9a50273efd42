"""Figures as files: PDF and PNG for papers, SVG for the page."""

import hashlib
import io
import re
from pathlib import Path

import matplotlib
from matplotlib.figure import Figure

from analysis.plots import HIGHER, INK, LOWER, STYLE, is_column

PAGE_COLORS = {
    INK: "currentColor",
    HIGHER: f"var(--higher, {HIGHER})",
    LOWER: f"var(--lower, {LOWER})",
}


def apply_layout(figure: Figure) -> None:
    """Lay the figure out once; otherwise it is laid out and drawn again before each file."""
    engine = figure.get_layout_engine()
    if engine and figure.axes:
        engine.execute(figure)
    figure.set_layout_engine(None)


def save(figure: Figure, folder: Path, name: str) -> str:
    """Write NAME.pdf, and NAME.png of a figure that is no column's.

    Returns its SVG text, which a page can hold beside those of other names.
    """
    # a salt and names of its own, so that several fit into one page
    with matplotlib.rc_context(STYLE | {"svg.hashsalt": name}):
        apply_layout(figure)
        figure.savefig(folder / f"{name}.pdf", metadata={"CreationDate": None})
        if not is_column(figure.get_figwidth()):
            figure.savefig(folder / f"{name}.png", dpi=150, metadata={"Software": None})
        page = io.StringIO()
        figure.savefig(page, format="svg", transparent=True, metadata={"Date": None})
    return _for_page(page.getvalue())


def _for_page(svg: str) -> str:
    """An SVG text with the page's colors, in a fifth of the letters.

    Names, groups without attributes and digits that nobody sees go; each style is written once.
    """
    for color, of_page in PAGE_COLORS.items():
        svg = svg.replace(color, of_page)
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>|<!--.*?-->", "", svg, flags=re.DOTALL)
    svg = re.sub('<g id="[^"]*">', "<g>", svg)
    svg = re.sub(r' transform="rotate\(-?0 [^"]*"', "", svg)
    svg = re.sub(r"(?<=\.\d\d)\d+", "", svg)  # of a point
    return re.sub(r"\s*\n\s*", "\n", _with_classes(_without_plain_groups(svg)))


def _without_plain_groups(svg: str) -> str:
    is_plain: list[bool] = []

    def shown(tag: re.Match[str]) -> str:
        if tag[0].endswith("/>"):  # of a point without a value: nothing is in it
            return ""
        if tag[0] != "</g>":
            is_plain.append(tag[0] == "<g>")
            return "" if is_plain[-1] else tag[0]
        return "" if is_plain.pop() else tag[0]

    return re.sub(r"<g\b[^>]*>|</g>", shown, svg)


def _with_classes(svg: str) -> str:
    """Styles as classes; a class has the same name wherever it has the same style."""
    styles: dict[str, str] = {}

    def named(style: re.Match[str]) -> str:
        name = "s" + hashlib.sha256(style[1].encode()).hexdigest()[:7]
        styles[name] = style[1]
        return f'class="{name}"'

    body = re.sub(r'style="([^"]*)"', named, re.sub(r"<style.*?</style>", "", svg, flags=re.DOTALL))
    rules = "".join(f".{name}{{{style}}}" for name, style in styles.items())
    # what matplotlib sets for all
    rules += "svg *{stroke-linejoin:round;stroke-linecap:butt}"
    start = body.index(">") + 1
    return f"{body[:start]}<style>{rules}</style>{body[start:]}"
