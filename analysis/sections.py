"""Sections of the report that only some studies have, placed on its page.

They are no part of report.html.j2, whose content is part of every analysis' identity.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from markupsafe import escape

from analysis.headline import interval, percent
from analysis.preservation import mark
from analysis.probe import seeds_text
from analysis.rows import Results, Row
from analysis.tables import in_study_order, number
from core import html_page

FILE = Path(__file__).parent / "sections.html.j2"
BEFORE = "missing"  # the heading that they stand before
HEADINGS = {
    "preservation": "What keeps the value, and what it costs",
    "probe": "Inside the model",
    "canary": "The judge’s canary",
}  # by the table of results.json


def with_sections(
    page: str, results: Results, figures: Mapping[str, Any], names: Mapping[str, Sequence[str]]
) -> str:
    """The page with a section for each of HEADINGS that has rows, and its line in the contents.

    `figures`: those of the page, by name. `names`: the names of figures by kind.
    """
    for section, heading in HEADINGS.items():
        if not results.get(section):
            continue
        body = html_page.render(
            FILE,
            section=section,
            rows=_rows(results, section),
            figures=figures,
            names_of=lambda kind: names.get(kind, ()),
            percent=lambda value, sign="": _typeset(percent(value, sign)),
            interval=lambda row: _typeset(interval(row, "+").replace(", ", " to ")),
            mark=mark,
            seeds_text=lambda row, key, form: _typeset(seeds_text(row, key, form)),
            number=lambda value, form: _typeset(number(value, form)),
        )
        title = str(escape(heading))
        page = _inserted(page, f'<h2 id="{BEFORE}">', f'<h2 id="{section}">{title}</h2>\n{body}\n')
        line = f'<li><a href="#{section}">{title}</a></li>\n'
        page = _inserted(page, f'<li><a href="#{BEFORE}">', line)
    return page


def _rows(results: Results, section: str) -> list[Row]:
    rows: list[Row] = results[section]
    return rows if section in ("preservation", "canary") else in_study_order(results, rows)


def _inserted(page: str, mark: str, text: str) -> str:
    """The page with `text` before the first `mark`, which it must have."""
    assert mark in page, f"the page has no {mark}"
    return page.replace(mark, text + mark, 1)


def _typeset(text: str) -> str:
    """With a real minus sign, an en dash for none."""
    return "–" if text == "-" else text.replace("-", "−")
