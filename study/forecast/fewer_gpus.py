"""Trainings on fewer GPUs than the profile gives them, where that takes fewer GPU-hours."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from core.cell.identity import Cell
from core.cell.manifest import read_manifest
from core.model_size import memory, shape
from core.recipe import Training
from study.forecast.assumptions import SECONDS_PER_GB
from study.forecast.training_cost import exported_gb, kind, times
from study.forecast.training_size import count_steps, is_training, padding, recipe_of
from study.forecast.training_time import Layout

SAVED_SHARE = 0.2  # of the GPU-hours: what less would save is not proposed
# Settings of a recipe that let a model fit fewer GPUs. dtype changes results, and so the cells.
CHANGES: tuple[dict[str, Any], ...] = (
    {},
    {"activation_checkpointing": "selective"},
    {"activation_checkpointing": "full"},
    {"activation_checkpointing": "selective", "dtype": "bf16"},
    {"activation_checkpointing": "full", "dtype": "bf16"},
)


def fewer_gpus(cells: list[Cell], base: Path, layouts: dict[str, Layout]) -> list[dict[str, Any]]:
    """Rows for each stage of `layouts` whose trainings would take SAVED_SHARE fewer GPU-hours: one
    with the same cells, and one with another dtype where that saves as much again.

    stage, gpus. changes: of the recipes, first those that leave the cells the same. gpu_hours of
    all unfinished trainings with the starts of their jobs, gpu_hours_now; hours of the longest
    training, hours_now.
    """
    rows = []
    for stage, layout in layouts.items():
        kinds: dict[str, list[Cell]] = {}
        for cell in cells:
            unfinished = read_manifest(base / cell.relpath) is None
            if cell.stage == stage and is_training(cell) and unfinished:
                kinds.setdefault(kind(cell), []).append(cell)
        if not kinds or not layout.gpu or not layout.gpu_memory_gb:
            continue
        now = _amounts(kinds, layout, {})
        options: list[dict[str, Any]] = [
            {"stage": stage, "gpus": gpus, "changes": changes, **_amounts(kinds, fewer, changes)}
            for gpus in _divisors(layout.ranks)
            for fewer in [replace(layout, ranks=gpus, per_node=min(gpus, layout.per_node))]
            if (changes := _changes_that_fit(kinds, fewer)) is not None
        ]
        limit = (1 - SAVED_SHARE) * now["gpu_hours"]
        for is_other_training in (False, True):
            offered = [row for row in options if ("dtype" in row["changes"]) == is_other_training]
            if not offered:
                continue
            best = min(offered, key=lambda row: float(row["gpu_hours"]))
            if best["gpu_hours"] < limit:
                rows.append(best | {f"{key}_now": amount for key, amount in now.items()})
                limit = (1 - SAVED_SHARE) * best["gpu_hours"]
    return rows


def show(row: dict[str, Any]) -> str:
    """A row of `fewer_gpus` as a line."""
    changes = "".join(f", {key}: {str(value).lower()}" for key, value in row["changes"].items())
    text = (
        f"{row['stage']} on {row['gpus']} GPU{'s' if row['gpus'] > 1 else ''} a job{changes}: "
        f"about {row['gpu_hours']:,.1f} GPU-hours in place of {row['gpu_hours_now']:,.1f}; the "
        f"longest training takes {60 * row['hours']:,.0f} minutes in place of "
        f"{60 * row['hours_now']:,.0f}"
    )
    if "dtype" in row["changes"]:
        text += " (dtype is another training: new cells, rounded stochastically)"
    return text


def _divisors(ranks: int) -> list[int]:
    return [gpus for gpus in range(1, ranks) if ranks % gpus == 0]


def _changes_that_fit(kinds: dict[str, list[Cell]], layout: Layout) -> dict[str, Any] | None:
    """The first of CHANGES with which every training fits the layout's GPUs; None: none does."""
    assert layout.gpu_memory_gb
    for changes in CHANGES:
        needs = [
            memory(shape(cell), _changed(cell, changes), layout.ranks, layout.per_node)["total"]
            for cell, *_ in kinds.values()
        ]
        # CUDA and NCCL take some of the rest.
        if max(needs) <= 0.9 * layout.gpu_memory_gb:
            return changes
    return None


def _changed(cell: Cell, changes: dict[str, Any]) -> Training:
    recipe = recipe_of(cell)
    if recipe.dtype != "mixed" or recipe.optimizer == "adamw_8bit":
        changes = {key: value for key, value in changes.items() if key != "dtype"}
    return replace(recipe, **changes)


def _amounts(
    kinds: dict[str, list[Cell]], layout: Layout, changes: dict[str, Any]
) -> dict[str, float]:
    gpu_hours = longest = 0.0
    for alike in kinds.values():
        cell = alike[0]
        steps, tokens = count_steps(cell) or (0, 0)
        share_padding = padding(cell, layout.ranks)
        recipe = _changed(cell, changes)
        step, evaluation, evaluations = times(cell, recipe, layout, steps, tokens, share_padding)
        seconds = steps * step.total + evaluations * evaluation.total
        start = layout.rates.start_seconds + SECONDS_PER_GB * exported_gb(shape(cell))
        gpu_hours += len(alike) * layout.ranks * (start + seconds) / 3600
        longest = max(longest, (start + seconds) / 3600)
    return {"gpu_hours": gpu_hours, "hours": longest}
