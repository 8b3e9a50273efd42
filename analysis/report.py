"""The report: one self-contained page, verdict first, readable without a network or its script."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from markupsafe import Markup

from analysis.declaration import declaration_lines
from analysis.figures import Drawn
from analysis.headline import (
    components_text,
    confidence,
    counted_names,
    crossing_text,
    detectable_text,
    doses,
    dummy_note,
    interval,
    interval_header,
    missing_lines,
    notes_of,
    of_total,
    opposite_text,
    p_value,
    percent,
    prediction,
    scope_note,
)
from analysis.made import Made
from analysis.report_tables import (
    GOOD,
    MARKS,
    by_checkpoint,
    dimension_tables,
    favour,
    matrix,
    runs_of_both,
    verdict_name,
    worth,
)
from analysis.rows import Results, Row, sides_of
from analysis.rungs import RUNGS, rung_lines, rung_text
from analysis.sections import with_sections
from analysis.tables import data_summary, in_study_order
from analysis.verdicts import HANGS
from core import html_page

# Figures on the page, the first kinds first, until they have so many letters: a page can be mailed.
KINDS = (
    "scores",
    "contrasts",
    "dimensions",
    "losses",
    "corpora",
    "intrusion",
    "preservation",
    "probe",
    "erosion",
    "questions",
)
LETTERS = 5_000_000
CARDS = 6  # results in whole sentences
ROWS = 500  # of a table that decides nothing


def when(row: Row) -> str:
    """The SFT doses of a contrast as part of a sentence."""
    if row["dose"] is None:
        return ""
    return "before SFT" if doses(row) == "0" else f"at SFT dose {doses(row)}"


def compared(row: Row) -> tuple[str, str, str]:
    """Treatment, control and scope of a contrast in words. Doses that differ go with the sides."""
    benchmark = f"on {row['benchmark']}"
    if row["dose"] == row["control_dose"]:
        return row["treatment"], row["control"], f"{benchmark} {when(row)}".strip()
    treatment, control = (
        f"{arm} at SFT dose {dose}" if dose else f"{arm} before SFT" for arm, dose in sides_of(row)
    )
    return treatment, control, benchmark


def sentence(row: Row, results: Results) -> str:
    """One contrast's result in plain words."""
    treatment, control, scope = compared(row)
    if row["verdict"] in ("higher", "lower"):
        good = GOOD[results["benchmarks"][row["benchmark"]]["direction"]]
        return f"{treatment} scores {row['verdict']} than {control} {scope} ({good})."
    if row["verdict"] == "interim":
        return f"Interim for {treatment} against {control} {scope}: {row['reason']}."
    if row["verdict"] in ("inconclusive", HANGS):
        return f"The data do not settle whether {treatment} differs from {control} {scope}."
    return f"No verdict for {treatment} against {control} {scope}: {row['reason']}."


def title(results: Results) -> str:
    """The page's first line: the first declared contrast's result over benchmarks and doses."""
    if not results["contrasts"]:
        return f"{len(results['scores'])} checkpoints scored; no contrast was declared"
    first = results["contrasts"][0]
    rows = [row for row in results["contrasts"] if row["name"] == first["name"]]
    if len(rows) == 1:
        return sentence(first, results).removesuffix(".")
    verdicts = [row["verdict"] for row in rows]
    decided = [
        f"{verdict} in {_of_all(verdicts.count(verdict), len(rows))}"
        for verdict in ("higher", "lower")
        if verdict in verdicts
    ]
    undecided = []
    undecided += [
        f"{verdicts.count(verdict)} {words}"
        for verdict, words in (
            ("inconclusive", "inconclusive"),
            (HANGS, HANGS),
            ("interim", "interim"),
        )
        if verdict in verdicts
    ]
    if "none" in verdicts:
        undecided.append(f"{verdicts.count('none')} without a verdict")
    treatment, control, _ = compared(first)
    if decided:
        comparisons = f"{' and '.join(decided)} comparisons with {control}"
        return "; ".join([f"{treatment} scores {comparisons}", *undecided])
    arms = f"{treatment} and {control}"
    return f"No difference established between {arms}: {', '.join(undecided)}"


def _of_all(count: int, total: int) -> str:
    return f"all {total}" if count == total else f"{count} of {total}"


def strips(rows: Sequence[Row]) -> list[dict[str, float] | None]:
    """The position of each interval on one common scale around zero.

    `low`, `high` and `estimate` are in percent of the strip's width (0..100); None where a row has
    no estimate.
    """
    keys = ("low", "high", "estimate")
    values = [{key: row[key] for key in keys if row[key] is not None} for row in rows]
    ends = [abs(value) for points in values for value in points.values()]
    reach = max(ends, default=0.0) * 1.05 or 1.0
    return [
        {key: round(50 + 50 * value / reach, 2) for key, value in points.items()}
        if "estimate" in points
        else None
        for points in values
    ]


def typeset(number: str) -> str:
    """A number as in print: with a real minus sign, an en dash for none."""
    return "–" if number == "-" else number.replace("-", "−")


def counted(count: int, names: str) -> str:
    """`1 epoch`, `2 epochs`; of a plural, `corpora` among them."""
    one = {"corpora": "corpus", "seeds or corpora": "seed or corpus"}
    return f"{count} {one.get(names, names.removesuffix('s')) if count == 1 else names}"


def report(
    results: Results,
    drawn: Mapping[str, Drawn],
    svgs: Mapping[str, tuple[str, str]],
    dates: str,
    made: Made,
) -> str:
    """The page as HTML.

    `drawn` and `svgs` are from figures.draw and figures.save; all other text is escaped. `dates`:
    the line of `declaration.dates_line`.
    """
    here = Path(__file__).parent
    shown = _on_page(svgs)
    figures = {
        name: {
            "wide": Markup(svgs[name][0]),
            "narrow": Markup(svgs[name][1]),
            "title": figure.title,
            "alt": figure.alt,
            "text": figure.text,
        }
        for name, figure in drawn.items()
        if name in shown
    }
    benchmarks, parts = matrix(results)
    page = html_page.render(
        here / "report.html.j2",
        results=results | {"benchmarks": _without_programs(results)},
        style=Markup((here / "report.css").read_text("utf-8")),
        script=Markup((here / "report.js").read_text("utf-8")),
        title=title(results),
        declaration=declaration_lines(results),
        dates=dates,
        made=made,
        dummy=dummy_note(results),
        data_summary=data_summary(results),
        missing=missing_lines(results),
        arms=in_study_order(results, results["arms"]),
        in_study_order=in_study_order,
        malformed={
            (row["benchmark"], row["dose"], row["arm"]): row["malformed"]
            for row in results["malformed"]
        },
        rungs=RUNGS,
        rung_lines=rung_lines(results),
        rung_text=lambda arm: rung_text(results, arm),
        seeds=by_checkpoint(results),
        dimensions=dimension_tables(results),
        strips=strips(results["contrasts"]),
        benchmarks=benchmarks,
        matrix=parts,
        cards=cards(results),
        marks=[(mark, verdict) for verdict, mark in MARKS.items()],
        mark_of=MARKS,
        written=any(writer["model"] for writer in results["writers"]),
        figures=figures,
        names_of=lambda kind: [name for name in drawn if _kind(name) == kind],
        titles={name: figure.title for name, figure in drawn.items()},
        first_rows=lambda name: results[name][:ROWS],
        unshown_rows=lambda name: max(0, len(results[name]) - ROWS),
        good=lambda name: GOOD[results["benchmarks"][name]["direction"]],
        worth=lambda row: worth(results, row),
        sentence=lambda row: sentence(row, results),
        verdict_name=verdict_name,
        favour=favour,
        counted=counted,
        when=when,
        components_text=components_text,
        confidence=confidence,
        interval_header=interval_header,
        opposite_text=opposite_text,
        counted_names=counted_names,
        crossing_text=crossing_text,
        detectable_text=detectable_text,
        runs_of_both=lambda row: runs_of_both(results, row),
        scope_note=scope_note,
        notes_of=notes_of,
        percent=lambda value, sign="": typeset(percent(value, sign)),
        interval=lambda row, sign="": typeset(interval(row, sign).replace(", ", " to ")),
        prediction=lambda row: typeset(prediction(row).replace(", ", " to ")),
        of_total=of_total,
        typeset=typeset,
        p_value=lambda p: typeset(p_value(p)),
    )
    names: dict[str, list[str]] = {}
    for name in drawn:
        names.setdefault(_kind(name), []).append(name)
    return with_sections(page, results, figures, names)


def _without_programs(results: Results) -> dict[str, Row]:
    """The benchmarks, where probes and programs are no judges."""
    return {
        name: row | {"judge": None} if row["judge"] in ("probe", "program") else row
        for name, row in results["benchmarks"].items()
    }


def _kind(name: str) -> str:
    return name.partition("-")[0]


def _on_page(svgs: Mapping[str, tuple[str, str]]) -> set[str]:
    """The figures that the page holds."""
    shown: set[str] = set()
    letters = 0
    for name in sorted(svgs, key=lambda name: KINDS.index(_kind(name))):
        letters += sum(map(len, svgs[name]))
        if letters <= LETTERS:
            shown.add(name)
    return shown


def cards(results: Results) -> list[tuple[int, Row]]:
    """The rows of the contrast declared first, with their index; none where they are many."""
    rows = [
        (index, row)
        for index, row in enumerate(results["contrasts"])
        if row["name"] == results["contrasts"][0]["name"]
    ]
    return rows if len(rows) <= CARDS else []
