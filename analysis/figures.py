"""The figures of a study, each with a caption and a text alternative.

analysis.plots, curves, losses, profiles and corpus_map draw them.
"""

import math
import re
import unicodedata
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure

from analysis import (
    corpus_map,
    curves,
    figure_files,
    intrusion,
    losses,
    plots,
    preservation_figure,
    probe_figure,
    profiles,
)
from analysis.losses import LossHistory
from analysis.rows import Results, Row
from core.garbage import gc_disabled

WIDTHS = (plots.WIDTH, plots.COLUMN)


@dataclass(frozen=True)
class Drawn:
    """A figure that was drawn.

    `column`: its form for a column or a phone; `title`: a caption; `alt`: what it shows, in one
    sentence; `text`: the figure in words, with its numbers; `error`: why the figure could not be
    drawn and a placeholder is shown, else None.
    """

    figure: Figure
    column: Figure
    title: str
    alt: str
    text: str
    error: str | None = None


@dataclass(frozen=True)
class Saved:
    """What was written of the figures."""

    svgs: dict[str, tuple[str, str]]  # name -> SVG texts of the wide and the narrow form
    unknown_letters: set[str]  # that no font here has; a page's reader may have one


@dataclass(frozen=True)
class Planned:
    """A figure of the study, not drawn yet."""

    name: str  # of its file
    title: str
    draw: Callable[..., Figure]  # in a given width
    alt: Callable[[], str]
    describe: Callable[[], str]

    def drawn(self) -> Drawn:
        try:
            wide, column = (self.draw(width=width) for width in WIDTHS)
            return Drawn(wide, column, self.title, self.alt(), self.describe())
        except Exception as error:
            reason = f"it could not be drawn ({type(error).__name__}: {error})"
            wide, column = (plots.placeholder(reason, width) for width in WIDTHS)
            text = plots.description(self.title, [reason])
            return Drawn(wide, column, self.title, text, text, reason)


@gc_disabled()
def draw(
    results: Results,
    means: pd.DataFrame,
    runs: Sequence[LossHistory],
    documents: corpus_map.DocumentMap,
) -> dict[str, Drawn]:
    """File name -> figure, in the order of a page.

    Each benchmark has its own, where the study has data for them. A figure that can't be
    drawn is replaced by its error and doesn't affect the others.

    Args:
        results: results.json.
        means: analysis.table.question_means of the deciding judges' scores.
        runs: the losses of the trainings.
        documents: the map of the corpora's documents.
    """
    drawn: dict[str, Drawn] = {}
    for figure in _planned(results, means, runs, documents):
        name = figure.name
        n = 1
        while name in drawn:
            n += 1
            name = f"{figure.name}-{n}"
        drawn[name] = figure.drawn()
    return drawn


def _planned(
    results: Results,
    means: pd.DataFrame,
    runs: Sequence[LossHistory],
    documents: corpus_map.DocumentMap,
) -> Iterator[Planned]:
    control = curves.control_of(results)
    for benchmark in _benchmarks(results):
        scope = (results, benchmark)
        scores = "mean scores by arm and SFT dose, with 95 % intervals and a dot for each seed"
        yield Planned(
            _file_name("scores", benchmark),
            f"{benchmark}: {scores}",
            partial(plots.bars, *scope),
            partial(plots.alt_bars, *scope),
            partial(plots.describe_bars, *scope),
        )
        if any(row["benchmark"] == benchmark for row in results["contrasts"]):
            yield Planned(
                _file_name("contrasts", benchmark),
                f"{benchmark}: declared contrasts in percentage points, with interval and verdict",
                partial(plots.forest, *scope),
                partial(plots.alt_forest, *scope),
                partial(plots.describe_forest, *scope),
            )
        if _num_doses(results, benchmark) > 1:
            advantage = f", and the advantage over {control}," if control else ""
            yield Planned(
                _file_name("erosion", benchmark),
                f"{benchmark}: scores{advantage} by SFT dose",
                partial(curves.erosion, *scope),
                partial(curves.alt_erosion, *scope),
                partial(curves.describe_erosion, *scope),
            )
    yield from _planned_radars(results)
    yield from _planned_differences(results, means)
    if results.get("intrusion"):
        yield Planned(
            "intrusion",
            "Effect of each arm against the answers that bring animals up off topic, both less its "
            "untrained start model; numbers are SFT doses",
            partial(intrusion.intrusion_figure, results),
            partial(intrusion.alt_intrusion, results),
            partial(intrusion.describe_intrusion, results),
        )
    groups = [(row["benchmark"], row["control"]) for row in results.get("preservation", [])]
    for benchmark, of in dict.fromkeys(groups):
        yield Planned(
            _file_name("preservation", benchmark, of),
            f"{benchmark}: what arms keep against what they pay, both against {of}; the line is "
            "the Pareto front",
            partial(preservation_figure.preservation_figure, results, benchmark, of),
            partial(preservation_figure.alt_preservation, results, benchmark, of),
            partial(preservation_figure.describe_preservation, results, benchmark, of),
        )
    for benchmark in dict.fromkeys(row["benchmark"] for row in results.get("probe", [])):
        yield Planned(
            _file_name("probe", benchmark),
            f"{benchmark}: the direction in hidden states by layer, a line for each arm and SFT "
            "dose, means over seeds",
            partial(probe_figure.probe_figure, results, benchmark),
            partial(probe_figure.alt_probe, results, benchmark),
            partial(probe_figure.describe_probe_figure, results, benchmark),
        )
    if runs:
        yield Planned(
            "losses",
            "Training and held-out loss, a thin line for each training seed",
            partial(losses.losses, runs, arm_order=results["arm_order"]),
            partial(losses.alt_losses, runs),
            partial(losses.describe_losses, runs),
        )
    if any(documents.sizes.values()):
        yield Planned(
            "corpora",
            f"Documents of each corpus in the two main directions of their {documents.basis}",
            partial(corpus_map.corpus_map, documents, arm_order=results["arm_order"]),
            partial(corpus_map.alt_corpus_map, documents),
            partial(corpus_map.describe_corpus_map, documents),
        )


def _planned_radars(results: Results) -> Iterator[Planned]:
    """The dimensions of each benchmark at its lowest dose."""
    doses: dict[str, int] = {}
    for row in results["dimensions"]:
        doses[row["benchmark"]] = min(row["dose"], doses.get(row["benchmark"], row["dose"]))
    for benchmark, dose in doses.items():
        yield Planned(
            _file_name("dimensions", benchmark),
            f"Mean grades by dimension on {benchmark}, {plots.dose_label(dose)}",
            partial(profiles.radar, results, benchmark, dose),
            partial(profiles.alt_radar, results, benchmark, dose),
            partial(profiles.describe_radar, results, benchmark, dose),
        )


def _planned_differences(results: Results, means: pd.DataFrame) -> Iterator[Planned]:
    """Contrasts question by question: the primary ones, and those that the paper draws so."""
    contrasts: dict[tuple[str, str], list[Row]] = {}
    drawn_by_paper = {
        (claim["contrast"], claim["benchmark"])
        for claim in results.get("claims", [])
        if claim["figure"] == "questions"
    }
    for row in results["contrasts"]:
        if row["family"] == "primary" or (row["name"], row["benchmark"]) in drawn_by_paper:
            contrasts.setdefault((row["name"], row["benchmark"]), []).append(row)
    for (contrast, benchmark), rows in contrasts.items():
        by_dose = profiles.differences(means, rows).values()
        values = [
            difference.value for by_question in by_dose for difference in by_question.values()
        ]
        if not all(map(math.isnan, values)):
            yield Planned(
                _file_name("questions", contrast, benchmark),
                f"{contrast} on {benchmark}, question by question",
                partial(profiles.per_question, means, rows),
                partial(profiles.alt_per_question, means, rows),
                partial(profiles.describe_per_question, means, rows),
            )


def _benchmarks(results: Results) -> list[str]:
    """Those with a checkpoint that was scored or planned."""
    planned = [row["benchmark"] for row in [*results["arms"], *results["missing"]]]
    names = dict.fromkeys([*results["benchmarks"], *sorted(planned)])
    return [name for name in names if name in planned]


def _num_doses(results: Results, benchmark: str) -> int:
    """SFT doses of the arm that was scored or planned at most of them on a benchmark."""
    doses: dict[str, set[int]] = {}
    for row in [*results["arms"], *results["missing"]]:
        if row["benchmark"] == benchmark:
            doses.setdefault(row["arm"], set()).add(row["dose"])
    return max(map(len, doses.values()), default=0)


def _file_name(*parts: str) -> str:
    """Small letters, digits and - alone, which LaTeX and every file system take."""
    text = unicodedata.normalize("NFKD", " ".join(parts))
    text = text.encode("ascii", "ignore").decode().lower()
    return re.sub("[^a-z0-9]+", "-", text).strip("-")[:80].rstrip("-")


# Embedding fonts makes so much garbage that looking for it takes a fifth of the time.
@gc_disabled()
def save(drawn: Mapping[str, Drawn], folder: Path) -> Saved:
    """Write NAME.pdf, NAME.png and NAME-column.pdf of each."""
    folder.mkdir(parents=True, exist_ok=True)
    saved = Saved({}, set())
    for name, figure in drawn.items():
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            saved.svgs[name] = (
                figure_files.save(figure.figure, folder, name),
                figure_files.save(figure.column, folder, f"{name}-column"),
            )
        for warning in caught:
            if letter := re.match(r"Glyph (\d+) ", str(warning.message)):
                saved.unknown_letters.add(chr(int(letter[1])))
            else:
                warnings.warn_explicit(
                    warning.message, warning.category, warning.filename, warning.lineno
                )
    return saved
