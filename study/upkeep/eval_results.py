"""Scores of a checkpoint as the Hub reads them: model-index of a card, and .eval_results/*.yaml.

https://huggingface.co/docs/hub/eval-results. An entry there needs the id of the task in the
eval.yaml of the benchmark's data set, so that only benchmarks with `hub_task` have one.
"""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from analysis.rows import scored_by
from core.cell.identity import read_config
from core.cell.lookup import RunsIndex
from core.cell.manifest import read_manifest
from core.yaml_text import to_yaml
from study.upkeep.card_cells import FinishedCell
from study.upkeep.card_facts import HubTask, StudyFacts

if TYPE_CHECKING:
    from huggingface_hub import EvalResult

FOLDER = ".eval_results"
SCORE_KEY = ("benchmark", "arm", "seed", "dose")
CONTRAST_KEYS = ("name", "benchmark", "dose", "estimate", "low", "high", "p_holm", "verdict")
CLAIM_KEYS = ("id", "statement", "contrast", "estimate", "verdict")
Row = dict[str, Any]


class Published:
    """What the study has published about one checkpoint; empty lists where nothing is at hand.

    Attributes:
        scores: benchmark, task, judge, score (0..1), answers, without a grade.
        contrasts: Those of its arm, with CONTRAST_KEYS.
        claims: Rows of the paper's claims that rest on its arm at its dose, with CLAIM_KEYS.
        is_by_dummy: Whether the dummy graded any of its answers.
        ended: When the results were computed (UTC).
    """

    def __init__(self, cell: FinishedCell, results: Path | None) -> None:
        self.scores: list[Row] = []
        self.contrasts: list[Row] = []
        self.claims: list[Row] = []
        self.is_by_dummy = False
        self.ended = ""
        manifest = read_manifest(results) if results else None
        if not results or not manifest:
            return
        self.ended = manifest["ended"]
        content = json.loads((results / "results.json").read_text(encoding="utf-8"))
        index = RunsIndex(cell.base, ["analysis"])
        folder = index.finished("analysis", manifest["identity"])
        settings = read_config(folder or cell.base / "analysis")["settings"]
        rows = [row for row in settings["rows"] if row["checkpoint"] == cell.identity]
        keys = {tuple(row[key] for key in SCORE_KEY) for row in rows}
        benchmarks = content["benchmarks"]
        for row in content["scores"]:
            if tuple(row[key] for key in SCORE_KEY) in keys:
                bench = benchmarks[row["benchmark"]]
                self.is_by_dummy |= bench["dummy"]
                self.scores.append(
                    {
                        "benchmark": row["benchmark"],
                        "task": bench["task"],
                        "judge": bench["judge"],
                        "score": row["score"],
                        "answers": row["n"],
                        "without a grade": row["missing"],
                    }
                )
        sides = {(benchmark, arm, dose) for benchmark, arm, _, dose in keys}
        self.contrasts = _resting_on(content["contrasts"], sides, CONTRAST_KEYS)
        self.claims = _resting_on(content["claims"], sides, CLAIM_KEYS)


def _resting_on(
    rows: list[Row], sides: set[tuple[str, str, int]], keys: tuple[str, ...]
) -> list[Row]:
    """The rows of contrasts or claims one side of which is in `sides`, with `keys`."""
    chosen = []
    for row in rows:
        control_dose = row.get("control_dose", row["dose"])
        of_row = {
            (row["benchmark"], row["treatment"], row["dose"]),
            (row["benchmark"], row["control"], control_dose),
        }
        if of_row & sides:
            chosen.append({key: row[key] for key in keys})
    return chosen


def model_index(scores: list[Row]) -> list["EvalResult"] | None:
    """The scores for `model-index` of a card, which needs a value of each; None without any."""
    from huggingface_hub import EvalResult

    return [
        EvalResult(
            task_type="text-generation",
            dataset_name=row["benchmark"],
            dataset_type=row["task"],
            metric_type="score",
            metric_value=row["score"],
            metric_name=f"mean over questions, 0 to 1, by {row['judge']}",
        )
        for row in scores
        if row["score"] is not None
    ] or None


def eval_results(cell: FinishedCell, results: Path | None, facts: StudyFacts) -> dict[str, str]:
    """Path -> content of the files .eval_results/BENCHMARK.yaml of a checkpoint."""
    published = Published(cell, results)
    files = {}
    for row in published.scores:
        task = facts.hub_tasks.get(row["benchmark"])
        if task and row["score"] is not None:
            files[f"{FOLDER}/{row['benchmark']}.yaml"] = _entry(row, task, published.ended)
    return files


def _entry(row: Row, task: HubTask, ended: str) -> str:
    from huggingface_hub import EvalResultEntry, eval_result_entries_to_yaml

    scale = f"mean of {row['answers']} answers from 0 to 1"
    notes = [scale, scored_by(row["judge"]), task.notes]
    entry = EvalResultEntry(
        dataset_id=task.dataset,
        task_id=task.task,
        value=row["score"],
        dataset_revision=task.revision,
        date=ended,
        notes=", ".join(filter(None, notes)),
    )
    return to_yaml(eval_result_entries_to_yaml([entry]))
