"""The reviewer's page: one self-contained HTML file without a script."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from markupsafe import Markup

from core import html_page
from core.paths import ROOT
from study.review import data, design
from study.review.answers import WORDS, Answer
from study.review.evidence import Evidence

QUESTIONS = (
    design.seeds,
    design.confounds,
    design.contamination,
    design.judge,
    data.people,
    data.missing,
    data.malformed,
    data.steps,
    data.negative_control,
    design.declaration,
    data.hashes,
    data.overturn,
)


def answers(evidence: Evidence) -> list[Answer]:
    """The answers to the twelve questions, in their order."""
    return [ask(evidence) for ask in QUESTIONS]


def counts_text(rows: Sequence[Answer]) -> str:
    """How many lights there are of each kind: `1 fault, 2 weak or not shown, 9 shown`."""
    counts = Counter(row.light for row in rows)
    return ", ".join(f"{counts[light]} {word}" for light, word in reversed(WORDS.items()))


def page(evidence: Evidence, rows: Sequence[Answer], source: str) -> str:
    """The page as HTML; `source`: the study file or archive, as it was named."""
    style = (ROOT / "analysis/report.css").read_text(encoding="utf-8")
    return html_page.render(
        Path(__file__).with_name("page.html.j2"),
        study=evidence.study,
        source=source,
        answers=rows,
        counts=Counter(row.light for row in rows),
        words=WORDS,
        locate=evidence.locate,
        identity=evidence.results["declaration"] and evidence.results["declaration"]["sha256"],
        style=Markup(style),
    )
