"""What one more seed, question and answer take by the forecast: the study file's `costs:`."""

from pathlib import Path
from statistics import mean
from typing import Any

from core.cell.identity import Cell
from core.stages import CHECKPOINT_STAGES
from study.forecast.cell_cost import Amounts, Layouts, estimates, num_questions
from study.spec.schema import Costs

NOTHING_RUN = Path("/nonexistent/runs")  # the costs don't depend on what has run here


def costs(analysis: Cell, cells: list[Cell], layouts: Layouts, profile: Any = None) -> Costs:
    """GPU-hours of one more of each, to two digits; None where it takes none.

    seed: the trainings of an arm and the evaluations of their checkpoints, the mean over arms.
    question, epoch: the time in which all checkpoints answer the questions of a judged benchmark,
        for each of its questions, and for each answer to all of them; the mean over the benchmarks
        of primary contrasts (without such, all). Starts of jobs are not counted: they start anyway.

    Args:
        analysis: the study's last cell.
        cells: all cells, inputs before their users.
    """
    planned = estimates(cells, NOTHING_RUN, layouts, profile)
    trained: set[str] = set()
    for cell in cells:
        inputs = {used.identity for used in cell.inputs.values()}
        if cell.stage in CHECKPOINT_STAGES or (inputs & trained and cell is not analysis):
            trained.add(cell.identity)
    rows = [row for row in analysis.settings["rows"] if row["seed"] is not None]
    runs = {(row["arm"], row["seed"]) for row in rows}
    seed = sum(planned[identity]["gpu_hours"] for identity in trained) / max(1, len(runs))
    questions, epochs = [], []
    for asked in _answers(analysis).values():
        hours = sum(_without_start(planned[cell.identity]) for cell in asked)
        questions.append(hours / num_questions(asked[0]))
        epochs.append(hours / asked[0].settings["sampling"]["epochs"])
    amounts = [seed, *(mean(hours) if hours else 0.0 for hours in (questions, epochs))]
    return Costs("GPU-hours", *(float(f"{amount:.2g}") or None for amount in amounts))


def show(costs: Costs) -> str:
    """The line of the study file."""
    amounts = {"seed": costs.seed, "question": costs.question, "epoch": costs.epoch}
    given = "".join(f", {key}: {hours:g}" for key, hours in amounts.items() if hours)
    return f"costs: {{unit: {costs.unit}{given}}}"


def _answers(analysis: Cell) -> dict[str, list[Cell]]:
    """The generate cells of the judged benchmarks of primary contrasts, by benchmark."""
    contrasts = analysis.settings["contrasts"]
    primary = {
        name for row in contrasts if row["family"] == "primary" for name in row["benchmarks"]
    }
    by_benchmark: dict[str, dict[str, Cell]] = {}
    for row in analysis.settings["rows"]:
        samples = analysis.inputs[row["role"]].inputs.get("samples")
        if samples and (not primary or row["benchmark"] in primary):
            by_benchmark.setdefault(row["benchmark"], {})[samples.identity] = samples
    return {name: [*asked.values()] for name, asked in by_benchmark.items()}


def _without_start(amounts: Amounts) -> float:
    """GPU-hours of a cell less those of its job's start."""
    if not amounts["hours"]:
        return 0.0
    return amounts["gpu_hours"] * (1 - amounts["start_hours"] / amounts["hours"])
