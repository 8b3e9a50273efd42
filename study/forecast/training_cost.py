"""What a study's trainings take (steps, memory, disk, GPU-hours), and whether they can run."""

import json
import math
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tabulate import tabulate

from core.cell.identity import Cell
from core.cell.manifest import read_manifest
from core.model_size import (
    ModelShape,
    host_memory,
    memory,
    parameters,
    shape,
    start_model,
    trained,
)
from core.recipe import FEW_UPDATES, Training
from study.forecast.gpu_rates import rates_of
from study.forecast.training_size import (
    count_evaluations,
    count_steps,
    is_training,
    padding,
    recipe_of,
    sampled_tokens,
)
from study.forecast.training_time import (
    Layout,
    Seconds,
    eval_seconds,
    gathered_bytes,
    step_seconds,
)


@dataclass(frozen=True)
class _Measured:
    """Of a finished training."""

    tokens_per_second: float
    """Of one rank."""
    eval_seconds: float | None
    """Of one evaluation. None: it made none, or is of a version that did not record them."""


def forecast(cells: list[Cell], base: Path, layouts: dict[str, Layout]) -> list[dict[str, Any]]:
    """A row for each kind of training: its cells differ in seeds alone. `layouts` is by stage.

    memory_gb: of one rank. host_memory_gb: of a node. checkpoint_gb, step_checkpoints_gb: of one
        training on disk.
    hours: of one training, of GRPO its sampling too; of these, eval_hours are of evaluations of the
        held-out loss.
    gpu_hours, eval_gpu_hours: of all that are not finished. waiting_gpu_hours: of these, those of
        communication between ranks that no arithmetic hides.
    gathered_gb: that a rank receives in an optimizer step.
    speed: where the tokens per second come from: a finished training of the same recipe and model
        (measured), the layout (stated), or the rates of its GPUs (guessed).
    refused: why it can't run so and how it could, or None.
    warnings: what else its user should know.
    """
    return [*by_kind(cells, base, layouts).values()]


def by_kind(cells: list[Cell], base: Path, layouts: dict[str, Layout]) -> dict[str, dict[str, Any]]:
    """The rows of `forecast` by the `kind` of training."""
    kinds: dict[str, list[Cell]] = {}
    for cell in cells:
        if is_training(cell):
            kinds.setdefault(kind(cell), []).append(cell)
    measured = _measured(cells, base)
    labels = Counter(map(_label, (alike[0] for alike in kinds.values())))
    rows = {}
    for key, alike in kinds.items():
        label = _label(alike[0])
        if labels[label] > 1:
            label = f"{alike[0].stage} {alike[0].label}"
        rows[key] = {"training": label, **_row(alike, base, layouts, measured)}
    return rows


def kind(cell: Cell) -> str:
    """What trainings have in common that differ in seeds alone."""
    settings = {key: value for key, value in cell.settings.items() if key != "seed"}
    inputs = [start_model(cell), *filter(None, [cell.inputs.get("documents")])]
    identities = [source.identity for source in inputs]
    return json.dumps([_label(cell), settings, identities], sort_keys=True)


def grouped(rows: list[dict[str, Any]], key: str) -> list[str]:
    """The texts under `key` (refused or warnings), each once, with its trainings."""
    rows_by_text: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        for text in [row[key]] if isinstance(row[key], str) else row[key] or []:
            rows_by_text.setdefault(text, []).append(row)
    lines = []
    for text, with_text in rows_by_text.items():
        others = sum(row["left"] or 1 for row in with_text) - 1
        and_more = f" and {others} more" if others else ""
        lines.append(f"{with_text[0]['training']}{and_more}: {text}")
    return lines


def step_checkpoint_bytes(cell: Cell) -> int:
    """Size of one step checkpoint of a training: what it trains and the optimizer's moments."""
    recipe = recipe_of(cell)
    weight_bytes = 2 if recipe.dtype == "bf16" else 4
    tensors = 2 if recipe.optimizer == "adamw_8bit" else 3  # the weight and its moments
    return trained(shape(cell), recipe) * weight_bytes * tensors


def _row(
    alike: list[Cell],
    base: Path,
    layouts: dict[str, Layout],
    measured: dict[str, _Measured],
) -> dict[str, Any]:
    cell = alike[0]
    layout = layouts.get(cell.stage) or default_layout(cell)
    model = shape(cell)
    recipe = recipe_of(cell)
    steps, tokens = count_steps(cell) or (0, 0)
    if manifest := read_manifest(base / cell.relpath):
        steps = manifest["counts"]["steps"]
        tokens = manifest["counts"]["tokens"]
    remaining = sum(read_manifest(base / other.relpath) is None for other in alike)
    share_padding = padding(cell, layout.ranks)
    # Hours of the optimizer steps, of the evaluations, and of both those that only wait.
    step, evaluation, evaluations = times(cell, recipe, layout, steps, tokens, share_padding)
    positions_per_row = positions_of_row(recipe, steps, tokens, share_padding)
    hours = steps * step.total / 3600
    eval_hours = evaluations * evaluation.total / 3600
    waiting_hours = (steps * step.waiting + evaluations * evaluation.waiting) / 3600
    speed = "guessed"
    finished = measured.get(_speed_key(cell))
    rate = finished.tokens_per_second if finished else layout.tokens_per_second
    if rate:
        speed = "measured" if finished else "stated"
        correction = tokens / rate / layout.ranks / 3600 / hours if hours else 1
        hours, eval_hours = correction * hours, correction * eval_hours
        waiting_hours *= correction
    if finished and finished.eval_seconds is not None:
        eval_hours = evaluations * finished.eval_seconds / 3600
    # Both 2 operations a parameter and token.
    read, write = sampled_tokens(cell, steps)
    rates = layout.rates
    sampling = (
        2 * parameters(model).total * (read / rates.prefill_flops + write / rates.decode_flops)
    )
    hours += sampling / 3600
    gb = memory(model, recipe, layout.ranks, layout.per_node)
    if cell.stage == "rl":  # vLLM's share of the GPU, or at least its copy of the weights
        share = cell.resources["engine_memory"] * (layout.gpu_memory_gb or 0)
        held = max(exported_gb(model), share)
        gb |= {"state": gb["state"] + held, "total": gb["total"] + held}
    host_gb = host_memory(
        model, recipe, layout.ranks, layout.per_node, on_gpu=layout.gpu is not None
    )
    hours += eval_hours
    gpus = layout.ranks * remaining if layout.gpu else 0
    step_bytes = step_checkpoint_bytes(cell)
    return {
        "cells": len(alike),
        "left": remaining,
        "steps": steps,
        "tokens_per_step": round(tokens / steps) if steps else 0,
        "epochs": recipe.epochs,
        "padding": share_padding,
        "ranks": layout.ranks,
        "memory_gb": gb,
        "host_memory_gb": host_gb,
        "checkpoint_gb": exported_gb(model),
        "step_checkpoints_gb": 2 * step_bytes / 1e9,  # two are kept
        "gathered_gb": gathered_bytes(model, recipe, layout, positions_per_row) / 1e9,
        "hours": hours,
        "eval_hours": eval_hours,
        "gpu_hours": hours * gpus,
        "eval_gpu_hours": eval_hours * gpus,
        "waiting_gpu_hours": waiting_hours * gpus,
        "speed": speed,
        "refused": _refused_stage(cell, layout)
        or _refused(model, recipe, layout, gb["total"], host_gb["total"], steps, hours)
        if remaining
        else None,
        "warnings": _warnings(recipe, layout, gb["total"], steps, hours, step_bytes)
        if remaining
        else [],
    }


def exported_gb(model: ModelShape) -> float:
    """Of the weights that a training reads and writes."""
    return parameters(model).total * (2 if model.dtype == "bfloat16" else 4) / 1e9


def default_layout(cell: Cell) -> Layout:
    """Of a training without a cluster profile: one GPU, or one core where the model is a toy."""
    if "recipe" in start_model(cell).settings:
        return Layout(gpu=None, rates=rates_of(None))
    return Layout()


def positions_of_row(recipe: Training, steps: int, tokens: int, share_padding: float) -> float:
    """Positions of a row, padding included; packed conversations: of one of them."""
    rows = steps * recipe.rows_per_step
    return tokens / (1 - share_padding) / rows if rows else 0.0


def times(
    cell: Cell, recipe: Training, layout: Layout, steps: int, tokens: int, share_padding: float
) -> tuple[Seconds, Seconds, int]:
    """Of an optimizer step and of an evaluation, by the rates of the layout; evaluations."""
    model = shape(cell)
    positions_per_row = positions_of_row(recipe, steps, tokens, share_padding)
    evaluations, eval_rows = count_evaluations(cell, steps)
    return (
        step_seconds(model, recipe, layout, positions_per_row),
        eval_seconds(model, recipe, layout, positions_per_row, eval_rows),
        evaluations,
    )


# The texts of `refused` and `warnings` are part of `plan --json`.
def _refused_stage(cell: Cell, layout: Layout) -> str | None:
    if cell.stage == "rl" and layout.ranks > 1:
        fix = "tasks_per_node: 1 and gpus_per_node: 1 for the stage rl in the profile"
        return f"runs as one process, and the profile gives {layout.ranks}; {fix}"
    return None


def _refused(
    model: ModelShape,
    recipe: Training,
    layout: Layout,
    gb: float,
    host_gb: float,
    steps: int,
    hours: float,
) -> str | None:
    rows = recipe.rows_per_step
    available_gb = layout.gpu_memory_gb
    if not steps:
        return "its data gives no update at all; give more rows, epochs or a smaller batch"
    if layout.ranks > rows:
        return (
            f"an update has {rows} rows, too few for {layout.ranks} ranks; {rows} ranks or fewer "
            "would do"
        )
    if available_gb and gb > available_gb:
        fix = (
            "more would not do; activation_checkpointing, micro_batch_size: 1 or dtype: bf16 "
            "take less"
        )
        for gpus in range(layout.per_node, rows + 1, layout.per_node):
            if memory(model, recipe, gpus, layout.per_node)["total"] <= available_gb:
                fix = f"{gpus} GPUs would do"
                break
        return (
            f"needs about {gb:.0f} GB on each of {layout.ranks} GPUs, which have "
            f"{available_gb:g}; {fix}"
        )
    if layout.mem_gb and host_gb > layout.mem_gb:
        return (
            f"needs about {host_gb:.0f} GB of a node's memory, and mem_gb in the profile gives "
            f"{layout.mem_gb:.0f}; set mem_gb: {math.ceil(host_gb * 1e9 / 2**30)} (GiB) for it"
        )
    if layout.minutes and hours * 60 / steps > layout.minutes:
        return (
            f"one update takes about {hours * 60 / steps:,.0f} minutes, longer than a job may "
            f"({layout.minutes}), so it would never get on"
        )
    return None


def _warnings(
    recipe: Training, layout: Layout, gb: float, steps: int, hours: float, step_bytes: int
) -> list[str]:
    rows = recipe.rows_per_step
    ranks = layout.ranks
    warnings = []
    if 0 < steps < FEW_UPDATES:
        warnings.append(f"{steps} updates; under {FEW_UPDATES} hardly moves a model")
    if ranks < rows and rows % ranks:
        divisors = [n for n in range(1, rows + 1) if rows % n == 0]
        below = max(n for n in divisors if n < ranks)
        above = min(n for n in divisors if n > ranks)
        warnings.append(
            f"{rows} rows an update leave some of {ranks} ranks idle; {below} or {above} would all "
            "be busy"
        )
    if layout.gpu_memory_gb and 0.9 * layout.gpu_memory_gb < gb <= layout.gpu_memory_gb:
        warnings.append(
            f"needs about {gb:.0f} of a GPU's {layout.gpu_memory_gb:g} GB, and CUDA and NCCL some "
            "of the rest"
        )
    if layout.rates.write_bytes and layout.signal_seconds:
        nodes = layout.ranks // layout.per_node
        seconds = step_bytes / nodes / layout.rates.write_bytes
        if seconds > layout.signal_seconds:
            warnings.append(
                f"told to stop, it writes {step_bytes / 1e9:.0f} GB in about {seconds:.0f} s at "
                "the measured rate, and signal_seconds in the profile gives "
                f"{layout.signal_seconds}; set signal_seconds: {math.ceil(seconds / 30) * 30}"
            )
    if layout.minutes and (num_jobs := hours * 60 / layout.minutes) > 1:
        text = (
            f"about {hours * 60:,.0f} minutes, more than one job's {layout.minutes}: it goes on in "
            "others"
        )
        if num_jobs > layout.requeue + 1:
            text += f", but requeue allows {layout.requeue}; raise that or minutes"
        warnings.append(text)
    return warnings


def show(rows: list[dict[str, Any]]) -> str:
    """The rows of a forecast as a table."""
    headers = [
        "training",
        "cells",
        "~steps",
        "~tokens a step",
        "epochs",
        "~padding",
        "ranks",
        "~GB a rank",
        "a node",
        "checkpoint GB",
        "step GB",
        "GPU-hours left",
        "held-out",
        "waiting",
    ]
    lines = []
    for row in rows:
        gb = (
            row["memory_gb"]["total"],
            row["host_memory_gb"]["total"],
            row["checkpoint_gb"],
            row["step_checkpoints_gb"],
        )
        about = "" if row["speed"] == "measured" else "~"
        lines.append(
            (
                row["training"],
                row["cells"],
                row["steps"],
                row["tokens_per_step"],
                row["epochs"],
                f"{row['padding']:.1%}",
                row["ranks"],
                *(f"{amount:.2f}" for amount in gb),
                *(
                    f"{about}{row[key]:,.2f}"
                    for key in ("gpu_hours", "eval_gpu_hours", "waiting_gpu_hours")
                ),
            )
        )
    colalign = ("left",) + ("right",) * (len(headers) - 1)
    return tabulate(lines, headers=headers, intfmt=",", colalign=colalign)


def summary(rows: list[dict[str, Any]]) -> str:
    """What stands below the table of `show`."""
    keys = ("gpu_hours", "eval_gpu_hours", "waiting_gpu_hours")
    total, held_out, waiting = (sum(row[key] for row in rows) for key in keys)
    return (
        f"{total:,.1f} GPU-hours left in trainings: {held_out:,.1f} of them evaluate the held-out "
        f"loss, {waiting:,.1f} wait for weights and gradients of other ranks.\n"
        "GPU-hours with ~ are by the profile's tokens_per_second or, without it, by the rates of "
        "its GPUs, else as measured."
    )


def _label(cell: Cell) -> str:
    return f"{cell.stage} {cell.name}".replace(f"-s{cell.settings['seed']}", "")


def _speed_key(cell: Cell) -> str:
    return json.dumps([cell.settings["recipe"], start_model(cell).identity], sort_keys=True)


def _measured(cells: list[Cell], base: Path) -> dict[str, _Measured]:
    """Rates of finished trainings, by recipe and start model.

    Of several the last.
    """
    rates = {}
    for cell in cells:
        if is_training(cell):
            counts = (read_manifest(base / cell.relpath) or {}).get("counts", {})
            if "tokens_per_second" in counts:
                rate = counts["tokens_per_second"] / counts["ranks"]
                seconds = None
                if "eval_seconds" in counts:
                    seconds = counts["eval_seconds"] / count_evaluations(cell, counts["steps"])[0]
                rates[_speed_key(cell)] = _Measured(rate, seconds)
    return rates
