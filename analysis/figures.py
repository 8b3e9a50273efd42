"""Which figures a study has, each with its caption and its numbers in words; the modules beside draw them."""

import math
import re
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from analysis import corpus_map, curves, plots, profiles

Results = dict[str, Any]


@dataclass(frozen=True)
class Drawn:
    """`title`: a caption; `text`: the figure's text alternative; `error`: why it could not be drawn, else None."""

    figure: Figure
    title: str
    text: str
    error: str | None = None


@plots.gc_disabled()
def draw(
    results: Results, means: pd.DataFrame, losses: Sequence[dict[str, Any]], corpora: Mapping[str, Sequence[str]]
) -> dict[str, Drawn]:
    """File name -> figure, in the order of a page: `scores` always, others where the study has what they show.

    `results`: results.json; `means`: analysis.table.question_means; `losses`: see curves.losses; `corpora`: name -> the
    texts of its documents. A figure that can't be drawn says why in its place and costs no other.
    """
    drawn: dict[str, Drawn] = {}

    def add(name: str, title: str, figure: Callable[..., Figure], words: Callable[..., str], *data: Any) -> None:
        file, n = name, 1
        while file in drawn:
            file, n = f"{name}-{n + 1}", n + 1
        drawn[file] = _drawn(title, partial(figure, *data), partial(words, *data))

    title = "Mean scores by arm and SFT dose, with 95 % intervals and a dot for each training seed"
    add("scores", title, plots.bars, plots.describe_bars, results)
    if results["contrasts"]:
        title = "Every declared contrast in percentage points, with its 95 % interval and its verdict"
        add("contrasts", title, plots.forest, plots.describe_forest, results)
    if _doses(results) > 1:
        control = results["contrasts"][0]["against"] if results["contrasts"] else None
        title = f"Scores{f', and the advantage over {control},' if control else ''} by SFT dose"
        add("erosion", title, curves.erosion, curves.describe_erosion, results)
    first: dict[str, int] = {}
    for row in results["dimensions"]:
        first[row["benchmark"]] = min(row["dose"], first.get(row["benchmark"], row["dose"]))
    for benchmark, dose in first.items():
        name = _file_name("dimensions", benchmark) if len(first) > 1 else "dimensions"
        title = f"Mean grades by dimension on {benchmark}, {plots.when(dose)}"
        add(name, title, profiles.radar, profiles.describe_radar, results, benchmark, dose)
    contrasts: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for row in results["contrasts"]:
        if row["family"] == "primary":
            contrasts.setdefault((row["name"], row["benchmark"]), []).append(row)
    for (contrast, benchmark), rows in contrasts.items():
        places = profiles.differences(means, rows).values()
        if not all(math.isnan(value) for questions in places for value, _, _ in questions.values()):
            title = f"{contrast} on {benchmark}, question by question"
            add(_file_name("questions", contrast, benchmark), title, profiles.per_question,
                profiles.describe_per_question, means, rows)  # fmt: skip
    if losses:
        title = "Training and held-out loss, a thin line for each training seed"
        figure = partial(curves.losses, arm_order=results["arm_order"])
        add("losses", title, figure, curves.describe_losses, losses)
    if any(map(len, corpora.values())):
        title = "Documents of each corpus in the two main directions of their words"
        figure = partial(corpus_map.corpus_map, arm_order=results["arm_order"])
        add("corpora", title, figure, corpus_map.describe_corpus_map, corpora)
    return drawn


def _drawn(title: str, figure: Callable[[], Figure], words: Callable[[], str]) -> Drawn:
    try:
        return Drawn(figure(), title, words())
    except Exception as error:
        why = f"it could not be drawn ({type(error).__name__}: {error})"
        return Drawn(plots.nothing(why), title, plots.told(title, [why]), why)


def _doses(results: Results) -> int:
    """SFT doses of the arm that was scored or planned at most of them on one benchmark."""
    doses: dict[tuple[str, str], set[int]] = {}
    for row in [*results["arms"], *results["missing"]]:
        doses.setdefault((row["benchmark"], row["arm"]), set()).add(row["dose"])
    return max(map(len, doses.values()), default=0)


def _file_name(*parts: str) -> str:
    """Small letters, digits and - alone: what LaTeX and every file system take."""
    plain = unicodedata.normalize("NFKD", " ".join(parts)).encode("ascii", "ignore").decode().lower()
    return re.sub("[^a-z0-9]+", "-", plain).strip("-")[:80].rstrip("-")


def save(drawn: Mapping[str, Drawn], folder: Path) -> dict[str, str]:
    """Write NAME.pdf and NAME.png of each; returns their SVG texts, which one page can hold together."""
    return plots.save_all({name: one.figure for name, one in drawn.items()}, folder)
