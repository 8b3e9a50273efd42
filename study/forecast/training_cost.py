"""What a study's trainings take (steps, memory, disk, GPU-hours), and whether they can run."""

import itertools
import json
from collections import Counter
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from tabulate import tabulate

from core.cell.identity import Cell
from core.cell.manifest import read_manifest
from core.endpoints.ledger import CHARACTERS_PER_TOKEN
from core.model_size import (
    ModelShape,
    flops_per_token,
    memory,
    parameters,
    rows_at_once,
    shape,
    start_model,
    trained,
)
from core.recipe import FEW_UPDATES, MULTIPLE, Training

# FLOP/s of one GPU where nothing is known: 40 % of an H100's peak in bf16.
FLOPS = 400e12
# Tokens of a document until a manifest has counts, by the writer's `served_by`. The paper's
# documents have 1,000 to 1,200; the dummy writer's are shorter, and a toy tokenizer splits them
# finely.
TOKENS_PER_DOCUMENT = {"dummy": 333, "url": 1100, "vllm": 1100}
SAMPLED_ROWS = 1000  # conversations of a file that are read to estimate the others
TOKENS_PER_ROW = 180  # of instruction data that has not been fetched yet: about Alpaca's
# Tokens of a question in its forms, and of an answer, as the paper reports them.
ASKED = 60
ANSWERED = 74


@dataclass(frozen=True)
class Layout:
    """Where the trainings of a stage run: one process, or what a cluster profile gives."""

    ranks: int = 1
    per_node: int = 1
    """Ranks on a node."""
    minutes: int | None = None
    """Time limit of a job; a longer training continues in further jobs."""
    requeue: int = 0
    """Number of these further jobs, at most."""
    gpu_memory_gb: float | None = None
    tokens_per_second: float | None = None
    """Of one GPU."""


def recipe_of(cell: Cell) -> Training:
    """The recipe of a midtrain or sft cell, as its stage will build it."""
    return Training.from_settings(cell.settings["recipe"], cell.resources)


def is_training(cell: Cell) -> bool:
    """Whether the cell trains from a recipe (a dose on the way of a longer run does not)."""
    return cell.stage in ("midtrain", "sft") and "recipe" in cell.settings


def count_steps(cell: Cell) -> tuple[int, int] | None:
    """Optimizer steps of a training cell, and tokens trained on; None for any other cell.

    The tokens of a midtraining are estimated from its number of documents, those of an SFT from the
    first rows of its data.
    """
    if cell.stage == "model":
        toy = cell.settings.get("recipe")
        if toy is None:
            return None
        return -(-toy["tokens"] // toy["pretrain"]["tokens_per_step"]), toy["tokens"]
    if "recipe" not in cell.settings:
        return None
    recipe = recipe_of(cell)
    if cell.stage == "sft":
        rows = round(cell.settings["dose"] * (1 + cell.settings.get("replay", 0))) * recipe.epochs
        lengths = _lengths(cell.resources["files"]["data"])
        tokens = rows * sum(lengths) // max(1, len(lengths))
    elif "question_variant" in cell.settings:
        rows = cell.inputs["documents"].settings["documents"] * recipe.epochs
        tokens = rows * (ASKED + ANSWERED)
    else:
        corpus = corpus_tokens(cell.inputs["documents"].settings)
        rows = -(-corpus // recipe.seq_len) * recipe.epochs
        tokens = corpus * recipe.epochs
    full_steps = -(-rows // recipe.rows_per_step)
    steps = min(full_steps, recipe.max_steps or full_steps)
    return steps, tokens if steps == full_steps else tokens * steps // full_steps


def corpus_tokens(settings: dict[str, Any]) -> int:
    """Tokens of a corpus that are trained on, stated or by its number of documents."""
    trained_on = settings["documents"] - round(settings["held_out"] * settings["documents"])
    served_by = settings.get("writer", {}).get("served_by", "url")
    tokens: int = settings["tokens"] or trained_on * TOKENS_PER_DOCUMENT[served_by]
    return tokens


@lru_cache
def _lengths(path: str) -> list[int]:
    """Tokens of the first conversations of a data file.

    JSON's punctuation is about as many letters as a chat template's tokens stand for.
    """
    if not Path(path).exists():  # not fetched yet
        return [TOKENS_PER_ROW]
    if path.endswith(".gz"):
        return [TOKENS_PER_ROW]
    if path.endswith(".jsonl"):
        with open(path, "rb") as file:
            lines = itertools.islice(file, SAMPLED_ROWS)
            return [len(line) // CHARACTERS_PER_TOKEN for line in lines]
    rows = json.loads(Path(path).read_text(encoding="utf-8"))
    return [len(json.dumps(row)) // CHARACTERS_PER_TOKEN for row in rows[:SAMPLED_ROWS]]


def padding(cell: Cell, ranks: int) -> float:
    """Share of a training's positions that are padding, about.

    It is behind the last document, or behind conversations that are shorter than the longest of
    those that a rank runs at once.
    """
    recipe = recipe_of(cell)
    if "question_variant" in cell.settings:
        return 0.0  # not known before they are written
    if cell.stage == "midtrain":
        tokens = corpus_tokens(cell.inputs["documents"].settings)
        positions = -(-tokens // recipe.seq_len) * recipe.seq_len
    else:
        lengths = _lengths(cell.resources["files"]["data"])
        size = rows_at_once(recipe, ranks)
        batches = [lengths[i : i + size] for i in range(0, len(lengths), size)]
        positions = sum(len(batch) * -(-max(batch) // MULTIPLE) * MULTIPLE for batch in batches)
        tokens = sum(lengths)
    return 1 - tokens / positions if positions else 0.0


def forecast(cells: list[Cell], base: Path, layouts: dict[str, Layout]) -> list[dict[str, Any]]:
    """A row for each kind of training: its cells differ in seeds alone. `layouts` is by stage.

    memory_gb: of one rank. checkpoint_gb, step_checkpoints_gb: of one training on disk.
    hours: of one training. gpu_hours: of all that are not finished.
    speed: where the tokens per second come from: a finished training of the same recipe and model
        (measured), the layout (stated), or FLOPs (guessed).
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


def _row(
    alike: list[Cell], base: Path, layouts: dict[str, Layout], measured: dict[str, float]
) -> dict[str, Any]:
    cell = alike[0]
    layout = layouts.get(cell.stage, Layout())
    model = shape(cell)
    recipe = recipe_of(cell)
    steps, tokens = count_steps(cell) or (0, 0)
    if manifest := read_manifest(base / cell.relpath):
        steps = manifest["counts"]["steps"]
        tokens = manifest["counts"]["tokens"]
    remaining = sum(read_manifest(base / other.relpath) is None for other in alike)
    share_padding = padding(cell, layout.ranks)
    if rate := measured.get(_speed_key(cell)):
        speed = "measured"
    elif rate := layout.tokens_per_second:
        speed = "stated"
    else:
        speed = "guessed"
        rows = recipe.rows_per_step
        busy = rows / (-(-rows // layout.ranks) * layout.ranks)
        rate = FLOPS / flops_per_token(model, recipe) * (1 - share_padding) * busy
    hours = tokens / rate / layout.ranks / 3600
    weight_bytes = 2 if recipe.dtype == "bf16" else 4
    tensors = 2 if recipe.optimizer == "adamw_8bit" else 3  # the weight and its moments
    step_bytes = trained(model, recipe) * weight_bytes * tensors
    exported_bytes = 2 if model.dtype == "bfloat16" else 4
    gb = memory(model, recipe, layout.ranks, layout.per_node)
    return {
        "cells": len(alike),
        "left": remaining,
        "steps": steps,
        "tokens_per_step": round(tokens / steps) if steps else 0,
        "epochs": recipe.epochs,
        "padding": share_padding,
        "ranks": layout.ranks,
        "memory_gb": gb,
        "checkpoint_gb": parameters(model).total * exported_bytes / 1e9,
        "step_checkpoints_gb": 2 * step_bytes / 1e9,  # two are kept
        "hours": hours,
        "gpu_hours": hours * layout.ranks * remaining,
        "speed": speed,
        "refused": _refused(model, recipe, layout, gb["total"], steps, hours)
        if remaining
        else None,
        "warnings": _warnings(recipe, layout, gb["total"], steps, hours) if remaining else [],
    }


# The texts of `refused` and `warnings` are part of `plan --json`.
def _refused(
    model: ModelShape, recipe: Training, layout: Layout, gb: float, steps: int, hours: float
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
    if layout.minutes and hours * 60 / steps > layout.minutes:
        return (
            f"one update takes about {hours * 60 / steps:,.0f} minutes, longer than a job may "
            f"({layout.minutes}), so it would never get on"
        )
    return None


def _warnings(recipe: Training, layout: Layout, gb: float, steps: int, hours: float) -> list[str]:
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
        "checkpoint GB",
        "step GB",
        "GPU-hours left",
    ]
    lines = []
    for row in rows:
        gb = (row["memory_gb"]["total"], row["checkpoint_gb"], row["step_checkpoints_gb"])
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
                f"{about}{row['gpu_hours']:,.2f}",
            )
        )
    colalign = ("left",) + ("right",) * (len(headers) - 1)
    return tabulate(lines, headers=headers, intfmt=",", colalign=colalign)


def _label(cell: Cell) -> str:
    return f"{cell.stage} {cell.name}".replace(f"-s{cell.settings['seed']}", "")


def _speed_key(cell: Cell) -> str:
    return json.dumps([cell.settings["recipe"], start_model(cell).identity], sort_keys=True)


def _measured(cells: list[Cell], base: Path) -> dict[str, float]:
    """Tokens per second of one rank in finished trainings, by recipe and start model.

    Of several the last.
    """
    rates = {}
    for cell in cells:
        if is_training(cell):
            counts = (read_manifest(base / cell.relpath) or {}).get("counts", {})
            if "tokens_per_second" in counts:
                rates[_speed_key(cell)] = counts["tokens_per_second"] / counts["ranks"]
    return rates
