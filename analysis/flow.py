"""From planned to analysed: how many checkpoints and answers of each arm come as far as where."""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from analysis.exclusion import excluded_ids
from analysis.rows import Row
from analysis.settings import AnalysisSettings
from analysis.table import OVERALL, primary_judge_rows
from core.cell.lookup import RunsIndex

ARM = ("arm", "benchmark")
STAGES = ("planned", "trained", "evaluated", "graded")
ANSWERS = ("answers", "excluded", "ungraded", "analysed")


def flow_rows(
    table: pd.DataFrame, settings: AnalysisSettings, unfinished: Sequence[Row], base: Path
) -> list[Row]:
    """One row per arm and benchmark.

    `planned`, `trained`, `evaluated` and `graded` count checkpoints (seeds x doses) that have
    weights, answers and scores; a model that is not trained counts as trained once it is there.
    `answers` counts the answers of the graded ones. Of these `excluded` are to questions that the
    study file leaves out, `ungraded` have no grade, and `analysed` are the rest.

    Args:
        table: the long table before questions are left out.
        settings: of the analysis.
        unfinished: for each of `settings.missing` the cells of its `weights` and `answers`, each
            with `cell` and `identity`.
        base: the folder of the study that their paths are relative to.
    """
    counts: dict[tuple[str, str], Counter[str]] = {}
    files = [file for file in settings.score_files if file.other_judge is None]
    for file in files:
        counts.setdefault((file.arm, file.benchmark), Counter()).update(STAGES)
    for missing, cells in zip(settings.missing, unfinished, strict=True):
        if "judge" in missing:
            continue
        finished = [
            stage
            for stage, cell in (("trained", "weights"), ("evaluated", "answers"))
            if _is_finished(base, cells[cell])
        ]
        key = missing["arm"], missing["benchmark"]
        counts.setdefault(key, Counter()).update(["planned", *finished])
    _count_answers(table, settings, counts)
    return [
        dict(zip(ARM, key, strict=True)) | {name: count[name] for name in (*STAGES, *ANSWERS)}
        for key, count in counts.items()
    ]


def _count_answers(
    table: pd.DataFrame,
    settings: AnalysisSettings,
    counts: Mapping[tuple[str, str], Counter[str]],
) -> None:
    overall = primary_judge_rows(table[table["dimension"] == OVERALL], settings.other_judges)
    excluded = pd.Series(False, index=overall.index)
    for benchmark, patterns in settings.excluded.items():
        ids = excluded_ids(overall["question"].unique(), patterns)
        excluded |= (overall["benchmark"] == benchmark) & overall["question"].isin(ids)
    flags = overall[[*ARM]].assign(excluded=excluded, graded=overall["score"].notna())
    key: Any
    for key, part in flags.groupby([*ARM]):
        kept = part[~part["excluded"]]
        analysed = int(kept["graded"].sum())
        counts[key] += Counter(
            answers=len(part),
            excluded=len(part) - len(kept),
            ungraded=len(kept) - analysed,
            analysed=analysed,
        )


def _is_finished(base: Path, cell: Row) -> bool:
    stage = Path(cell["cell"]).parent.name
    return RunsIndex(base, [stage]).finished(stage, cell["identity"]) is not None
