"""The report: one self-contained page, verdict first, that reads without a network or scripts."""

from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from analysis.figures import Drawn
from analysis.headline import interval, missing_lines, p_value, percent, stand_in_note
from analysis.tables import in_order, made_of


def when(dose: int | None) -> str:
    """How a sentence names an SFT dose."""
    return "" if dose is None else "before SFT" if dose == 0 else f"at SFT dose {dose}"


def sentence(row: dict[str, Any]) -> str:
    """One contrast's result in plain words."""
    place = f"on {row['benchmark']} {when(row['dose'])}".strip()
    if row["verdict"] in ("higher", "lower"):
        return f"{row['of']} scores {row['verdict']} than {row['against']} {place}."
    if row["verdict"] == "inconclusive":
        return f"The data do not settle whether {row['of']} differs from {row['against']} {place}."
    return f"No verdict for {row['of']} against {row['against']} {place}: {row['reason']}."


def title(results: dict[str, Any]) -> str:
    """The page's first line: what the first declared contrast came to, over its benchmarks and doses."""
    if not results["contrasts"]:
        return f"{len(results['scores'])} checkpoints scored; no contrast was declared"
    first = results["contrasts"][0]
    rows = [row for row in results["contrasts"] if row["name"] == first["name"]]
    if len(rows) == 1:
        return sentence(first).removesuffix(".")
    counts = {v: sum(row["verdict"] == v for row in rows) for v in ("higher", "lower", "inconclusive", "none")}
    said = [f"{verdict} in {_of_all(counts[verdict], len(rows))}" for verdict in ("higher", "lower") if counts[verdict]]
    rest = [f"{counts['inconclusive']} inconclusive"] if counts["inconclusive"] else []
    rest += [f"{counts['none']} without a verdict"] if counts["none"] else []
    if said:
        text = f"{first['of']} scores {' and '.join(said)} comparisons with {first['against']}"
        return "; ".join([text, *rest])
    return f"No difference established between {first['of']} and {first['against']}: {', '.join(rest)}"


def _of_all(count: int, total: int) -> str:
    return f"all {total}" if count == total else f"{count} of {total}"


def strips(rows: list[dict[str, Any]]) -> list[dict[str, float] | None]:
    """Where each interval lies on one common scale around zero, in percent of the strip's width (0..100)."""
    ends = [abs(row[key]) for row in rows for key in ("low", "high", "estimate") if row[key] is not None]
    reach = max(ends, default=0.0) * 1.05 or 1.0
    found: list[dict[str, float] | None] = []
    for row in rows:
        points = {key: row[key] for key in ("low", "high", "estimate") if row[key] is not None}
        place = {key: round(50 + 50 * value / reach, 2) for key, value in points.items()}
        found.append(place if "estimate" in place else None)
    return found


def typeset(number: str) -> str:
    """A number as print has it: a real minus sign, an en dash for none."""
    return "–" if number == "-" else number.replace("-", "−")


def report(results: dict[str, Any], drawn: dict[str, Drawn], svgs: dict[str, str]) -> str:
    """The page as HTML. `drawn` and `svgs` are from figures.draw and figures.save; all other text is escaped."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True, keep_trailing_newline=True,
    )  # fmt: skip
    seeds: dict[tuple[str, int, str], list[dict[str, Any]]] = {}
    for score in results["scores"]:
        seeds.setdefault((score["benchmark"], score["dose"], score["arm"]), []).append(score)
    dimensions: dict[tuple[str, int], dict[str, dict[str, Any]]] = {}
    for row in results["dimensions"]:
        dimensions.setdefault((row["benchmark"], row["dose"]), {}).setdefault(row["dimension"], {})[row["arm"]] = row
    return environment.get_template("report.html.j2").render(
        results=results,
        title=title(results),
        stand_in=stand_in_note(results),
        made_of=made_of(results),
        missing=missing_lines(results),
        arms=in_order(results, results["arms"]),
        seeds=seeds,
        dimensions=dimensions,
        strips=strips(results["contrasts"]),
        figures={
            name: {"svg": Markup(svgs[name]), "title": one.title, "text": one.text} for name, one in drawn.items()
        },
        sentence=sentence,
        when=when,
        percent=lambda value, sign="": typeset(percent(value, sign)),
        interval=lambda row, sign="": typeset(interval(row, sign).replace(", ", " to ")),
        p_value=lambda p: typeset(p_value(p)),
    )
