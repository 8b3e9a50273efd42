"""The power of the deciding test in a study's declared contrasts, before it has run."""

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from math import isfinite
from pathlib import Path
from typing import Any

from tabulate import tabulate

from analysis.estimates import ALPHA
from analysis.next_data import NEEDED, variances_of
from analysis.planned_test import Design, Kind, Scenarios, Variances, planned_test
from analysis.rows import Results, Row
from core.errors import UserError

# Published differences: documents against QA pairs after 2,500 samples, two writers, animal
# against urban documents.
EFFECTS = (0.062, 0.083, 0.109)
CURVE = range(2, 11)  # training seeds
ASSUMED = "assumed"
# Kinds of contrasts whose components stand for another's, the best first. Those of a paired one
# lack what its sides share. A paired contrast is then planned as if its sides shared nothing.
STAND_INS: dict[Kind, tuple[Kind, ...]] = {
    "free": ("free", "fixed"),
    "fixed": ("fixed", "free"),
    "paired": ("paired", "free", "fixed"),
}


@dataclass(frozen=True)
class PlannedContrast:
    """A contrast on one judged benchmark, at the doses at which it is of one kind."""

    contrast: str
    family: str
    family_size: int  # declared tests: contrasts x benchmarks x doses
    benchmark: str
    task: str
    doses: tuple[tuple[int, int], ...]  # of treatment and control
    kind: Kind
    seeds: int  # per arm; of a corpus with replicates, those
    runs: float  # on each replicate of such a corpus, else 1
    sizes: tuple[int, ...]  # questions of each scenario
    is_fetched: bool  # else each question counts as a scenario of its own
    epochs: int  # answers per question
    level: float = ALPHA  # what the family may reject in error: at the last look, if there are any

    @property
    def design(self) -> Design:
        """What it is tested with. The runs on one replicate of a corpus are one of more answers."""
        scenarios = Scenarios.of_sizes(self.sizes)
        scenarios = replace(scenarios, per_scenario=scenarios.per_scenario * self.runs)
        return Design(self.seeds, scenarios, self.kind)


def read_pilot(path: Path) -> Results:
    """The results.json of a former study, for its variance components.

    Raises UserError where it is none, was written before components had upper limits, or has
    components that are none.
    """
    try:
        results = json.loads(path.read_text(encoding="utf-8"))
        parts = [part for row in results["variance"] for part in row["components"]]
        is_usable = all("upper" in part for part in parts) and results["study"]
    except FileNotFoundError:
        fix = "name the results.json of a finished study, such as results/pilot/results.json"
        raise UserError(where=str(path), what="no such file", fix=fix) from None
    except (OSError, ValueError, KeyError, TypeError):
        fix = "name the results.json of a finished study"
        raise UserError(where=str(path), what="no results of a study", fix=fix) from None
    if not is_usable:
        what = "its variance components have no upper limits: an older version wrote it"
        fix = "make its results again: python -m study run, with that study's file"
        raise UserError(where=str(path), what=what, fix=fix)
    if not all(_is_well_formed(row, results.get("benchmarks")) for row in results["variance"]):
        what = "its variance components are no such: the file was edited or cut"
        raise UserError(where=str(path), what=what, fix="bring it back from a copy")
    pilot: Results = results
    return pilot


def _is_well_formed(row: Row, benchmarks: Any) -> bool:
    """Whether a row of `variance` is of a benchmark of the study, with variances from 0 up."""
    try:
        task = benchmarks[row["benchmark"]]["task"]
        numbers = [part[key] for part in row["components"] for key in ("variance", "upper")]
        names = [part["component"] for part in row["components"]]
    except (KeyError, TypeError):
        return False
    return (
        row.get("kind") in STAND_INS
        and all(isinstance(name, str) for name in (task, *names))
        and all(
            number is None or (isinstance(number, int | float) and isfinite(number) and number >= 0)
            for number in numbers
        )
    )


def rows(planned: Sequence[PlannedContrast], pilot: Results | None = None) -> list[Row]:
    """The power of each contrast, by the assumed variances or by those of a pilot.

    Returns:
        Rows with the fields of the contrast; `questions` and `scenarios`; `variances`: what the
        numbers rest on (`assumed`, or the pilot's name, once at its estimates and once at their
        upper limits). `alone` is at .05 and `in_family` at the family's level over its tests,
        Holm's first step: `alpha`; `detectable`, the difference found in 80 % of studies; `power`
        for each of EFFECTS; `curve`: the detectable difference by training seeds (all in score
        units). None where no test is made, as with one seed.
    """
    result = []
    for contrast in planned:
        design = contrast.design
        row: Row = {
            "contrast": contrast.contrast,
            "family": contrast.family,
            "family_size": contrast.family_size,
            "benchmark": contrast.benchmark,
            "doses": [list(doses) for doses in contrast.doses],
            "kind": contrast.kind,
            "seeds": contrast.seeds,
            "runs": contrast.runs,
            "questions": sum(contrast.sizes),
            "scenarios": len(contrast.sizes),
            "is_fetched": contrast.is_fetched,
            "epochs": contrast.epochs,
        }
        alphas = {"alone": ALPHA, "in_family": contrast.level / contrast.family_size}
        for label, variances in _variances(contrast, pilot):
            at_levels = {
                name: _at_level(variances, design, alpha) for name, alpha in alphas.items()
            }
            result.append(row | {"variances": label} | at_levels)
    return result


def detectable(contrast: PlannedContrast, pilot: Results | None = None) -> float | None:
    """The difference (score units) found in 80 % of studies, at the family's level; None: none."""
    level = contrast.level / contrast.family_size
    test = planned_test(variances_for(contrast, pilot), contrast.design, level)
    return test.detectable() if test else None


def _at_level(variances: Variances, design: Design, alpha: float) -> Row:
    test = planned_test(variances, design, alpha)
    curve = {
        seeds: planned_test(variances, Design(seeds, design.scenarios, design.kind), alpha)
        for seeds in CURVE
    }
    return {
        "alpha": alpha,
        "detectable": test and test.detectable(),
        "power": {str(effect): test and test.power(effect) for effect in EFFECTS},
        "curve": {str(seeds): at and at.detectable() for seeds, at in curve.items()},
    }


def variances_for(contrast: PlannedContrast, pilot: Results | None = None) -> Variances:
    """The variances that a contrast is planned with: assumed, or a pilot's estimates."""
    return next(_variances(contrast, pilot))[1]


def _variances(contrast: PlannedContrast, pilot: Results | None) -> Iterator[tuple[str, Variances]]:
    row = pilot and pilot_row(contrast, pilot)
    if not pilot or not row:
        yield ASSUMED, Variances(epochs=contrast.epochs)
        return
    for key, label in (("variance", "{}"), ("upper", "{}, upper limits")):
        values = {part["component"]: part[key] for part in row["components"]}
        yield label.format(pilot["study"]), variances_of(values, contrast.epochs)


def pilot_row(contrast: PlannedContrast, pilot: Results) -> Row | None:
    """The components that fit a contrast: of the benchmark of its name, else of its task."""
    benchmarks = pilot["benchmarks"]
    usable = [row for row in pilot["variance"] if _is_complete(row)]
    for key, value in (("name", contrast.benchmark), ("task", contrast.task)):
        for kind in STAND_INS[contrast.kind]:
            for row in usable:
                name = row["benchmark"]
                pilot_value = name if key == "name" else benchmarks[name]["task"]
                if row["kind"] == kind and pilot_value == value:
                    return dict(row)
    return None


def _is_complete(row: Row) -> bool:
    """Whether every component that a test needs has a value and a limit.

    But for that of samples, which with one answer a question is part of seed x question.
    """
    parts = {part["component"]: part for part in row["components"]}
    needed = [parts.get(name) for name in NEEDED if name != "sample"]
    return all(part and None not in (part["variance"], part["upper"]) for part in needed)


def show(rows: Sequence[Row], pilot: Results | None = None) -> str:
    """The rows as tables, with their assumptions."""
    if not rows:
        return "No power: no contrast is on a benchmark that a judge grades."
    labels = [_labels(row) for row in rows]
    headers = ["family", "contrast", "on", "dose", "kind", "variances"]
    powers = [
        [
            *label,
            f"{row['seeds']}{'' if row['runs'] == 1 else ' corpora'}",
            f"{row['scenarios']}{'' if row['is_fetched'] else '?'}",
            row["epochs"],
            _pair(row, "detectable"),
            *(_pair(row, "power", str(effect)) for effect in EFFECTS),
        ]
        for row, label in zip(rows, labels, strict=True)
    ]
    sizes = ["seeds", "scenarios", "epochs", "detectable"]
    effects = [f"power for {100 * effect:.1f}, %" for effect in EFFECTS]
    curves = [
        [*label, *(_pair(row, "curve", str(seeds)) for seeds in CURVE)]
        for row, label in zip(rows, labels, strict=True)
    ]
    seeds = [f"{seeds} seeds" for seeds in CURVE]
    tables = [
        tabulate(powers, headers=[*headers, *sizes, *effects], disable_numparse=True),
        "Detectable difference by training seeds per arm\n"
        + tabulate(curves, headers=[*headers, *seeds], disable_numparse=True),
    ]
    if _uses_pilot(rows):
        assert pilot is not None
        tables.append(_components_table(pilot))
    return "\n\n".join([*tables, "\n".join(_notes(rows, pilot))])


def _uses_pilot(rows: Sequence[Row]) -> bool:
    return any(row["variances"] != ASSUMED for row in rows)


def _labels(row: Row) -> list[str]:
    doses = [str(a) if a == b else f"{a} v {b}" for a, b in row["doses"]]
    tests = "1 test" if row["family_size"] == 1 else f"{row['family_size']} tests"
    family = f"{row['family']}, {tests}"
    names = [family, row["contrast"], row["benchmark"], ", ".join(doses)]
    return [*names, row["kind"], row["variances"]]


def _pair(row: Row, *keys: str) -> str:
    """A number alone and in the family, in percent."""
    texts = []
    for level in ("alone", "in_family"):
        value = row[level]
        for key in keys:
            value = value[key]
        digits = 0 if keys[0] == "power" else 1
        text = "-" if value is None else f"{100 * value:.{digits}f}"
        texts.append(">100" if value is not None and value > 1 else text)
    return " / ".join(texts)


def _components_table(pilot: Results) -> str:
    lines = [
        [
            row["benchmark"],
            row["kind"],
            part["component"],
            *(
                "-" if part[key] is None else f"{100 * part[key] ** 0.5:.1f}"
                for key in ("variance", "upper")
            ),
            "-" if part["df"] is None else f"{part['df']:.0f}",
        ]
        for row in pilot["variance"]
        for part in row["components"]
        if part["component"] in NEEDED
    ]
    headers = [f"{pilot['study']}: on", "kind", "component", "sd, points", "upper limit", "df"]
    return tabulate(lines, headers=headers, disable_numparse=True)


def _notes(rows: Sequence[Row], pilot: Results | None) -> list[str]:
    notes = [
        "a / b: at .05 alone, and at the family's level over its tests (Holm's first step).",
        "Detectable: found in 80 % of studies, in points. free, fixed, paired: docs/statistics.md.",
    ]
    assumed = dict.fromkeys(row["benchmark"] for row in rows if row["variances"] == ASSUMED)
    if assumed:
        beside = "; name the results of a pilot by --variances (studies/pilot.yaml is one)"
        if pilot:
            beside = f". {pilot['study']} has no complete components for {', '.join(assumed)}"
        notes.append(f"assumed: the variances of analysis/planned_test.py{beside}.")
    if _uses_pilot(rows):
        notes.append("upper limits: one-sided, of 95 %, of all components at once.")
    listed = {(row["family"], row["contrast"], row["benchmark"], row["kind"]): row for row in rows}
    counts = Counter(row["family"] for row in listed.values() for _ in row["doses"])
    if any(row["family_size"] > counts[row["family"]] for row in rows):
        notes.append("Tests of a family that are not listed: on benchmarks that no judge grades.")
    if any(row["alone"]["detectable"] is None for row in rows):
        notes.append("-: no test, as with one seed or one scenario, or where nothing varies.")
    if any(row["runs"] > 1 for row in rows):
        notes.append("corpora: replicates of a corpus, which count in place of the seeds.")
    if not all(row["is_fetched"] for row in rows):
        notes.append("?: not fetched; each question counts as a scenario of its own.")
    return notes
