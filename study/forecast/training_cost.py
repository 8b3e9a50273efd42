"""What a study's trainings will take and whether they can run: updates, padding, memory, disk, GPU-hours."""

import itertools
import json
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from tabulate import tabulate

from core.cell.identity import Cell
from core.cell.manifest import read_manifest
from core.endpoints.ledger import CHARACTERS_PER_TOKEN
from core.model_size import (
    Shape,
    flops_per_token,
    memory,
    parameters,
    rows_at_once,
    rows_per_update,
    shape,
    start_model,
    trained,
)
from core.recipe import FEW_UPDATES, MULTIPLE

FLOPS = 400e12  # of one GPU a second where nothing is known: 40 % of what an H100 does at most in bf16
# Until the counts are in a manifest: the paper's documents have 1,000-1,200 tokens; the stand-in's are shorter, and a
# toy tokenizer cuts them finely.
TOKENS_PER_DOCUMENT = {"kit": 333, "url": 1100, "vllm": 1100}
LOOKED_AT = 1000  # conversations of a file, to estimate the others
TOKENS_PER_ROW = 180  # of instruction data that isn't here yet: about Alpaca's
ASKED, ANSWERED = 60, 74  # tokens of a question in its forms, and of an answer, as the paper reports them


@dataclass(frozen=True)
class Layout:
    """Where the trainings of a stage run, as a cluster profile has it; else as one process."""

    ranks: int = 1
    per_node: int = 1  # of the ranks
    minutes: int | None = None  # time limit of a job, which then goes on in another ...
    requeue: int = 0  # ... so many times
    gpu_memory_gb: float | None = None
    tokens_per_second: float | None = None  # of one GPU


def updates(cell: Cell) -> tuple[int, int] | None:
    """Optimizer updates and tokens trained on in a training cell; None for any other.

    A midtraining is estimated from its number of documents, an SFT's tokens from the first rows of its data.
    """
    recipe = cell.settings.get("recipe")
    if recipe is None:
        return None
    if cell.stage == "model":
        pretrain = recipe["pretrain"]
        return -(-recipe["tokens"] // pretrain["tokens_per_update"]), recipe["tokens"]
    if cell.stage == "sft":
        rows = round(cell.settings["dose"] * (1 + cell.settings.get("replay", 0))) * recipe["epochs"]
        lengths = _lengths(cell.resources["data"])
        tokens = rows * sum(lengths) // max(1, len(lengths))
    elif "form" in cell.settings:
        settings = cell.inputs["documents"].settings
        rows = settings["documents"] * recipe["epochs"]
        tokens = rows * (ASKED + ANSWERED)
    else:
        once = corpus_tokens(cell.inputs["documents"].settings)
        rows, tokens = -(-once // recipe["seq_len"]) * recipe["epochs"], once * recipe["epochs"]
    all_updates = -(-rows // rows_per_update(recipe))
    count = min(all_updates, recipe["max_updates"] or all_updates)
    return count, tokens if count == all_updates else tokens * count // all_updates


def corpus_tokens(settings: dict[str, Any]) -> int:
    """Tokens of a corpus that is trained on: as the study file says, or estimated from its number of documents."""
    trained = settings["documents"] - round(settings["held_out"] * settings["documents"])
    by = settings.get("writer", {}).get("served_by", "url")
    return settings["tokens"] or trained * TOKENS_PER_DOCUMENT[by]


@lru_cache
def _lengths(path: str) -> list[int]:
    # JSON's own letters are about as many as a chat template's tokens take.
    if not Path(path).exists():  # not fetched yet
        return [TOKENS_PER_ROW]
    if not path.endswith(".jsonl"):
        return [TOKENS_PER_ROW] if path.endswith(".gz") else _of_a_list(path)
    with open(path, "rb") as file:
        return [len(line) // CHARACTERS_PER_TOKEN for line in itertools.islice(file, LOOKED_AT)]


def _of_a_list(path: str) -> list[int]:
    rows = json.loads(Path(path).read_text(encoding="utf-8"))
    return [len(json.dumps(row)) // CHARACTERS_PER_TOKEN for row in rows[:LOOKED_AT]]


def padding(cell: Cell, ranks: int) -> float:
    """Share of a training's places that no token fills, about: behind the last document, or behind conversations that
    are shorter than the longest of those that a rank runs at once."""
    recipe = cell.settings["recipe"]
    if "form" in cell.settings:
        return 0.0  # not known before they are written
    if cell.stage == "midtrain":
        tokens = corpus_tokens(cell.inputs["documents"].settings)
        places = -(-tokens // recipe["seq_len"]) * recipe["seq_len"]
    else:
        lengths, at_once = _lengths(cell.resources["data"]), rows_at_once(recipe, cell.resources, ranks)
        batches = [lengths[i : i + at_once] for i in range(0, len(lengths), at_once)]
        places = sum(len(batch) * -(-max(batch) // MULTIPLE) * MULTIPLE for batch in batches)
        tokens = sum(lengths)
    return 1 - tokens / places if places else 0.0


def forecast(cells: list[Cell], base: Path, layouts: dict[str, Layout]) -> list[dict[str, Any]]:
    """A row for each kind of training: its cells differ in seeds alone. `layouts`: by stage.

    GB are of one rank (`memory_gb`) and of one training on disk. `hours` are one training's, `gpu_hours` those of all
    that are not finished: by the tokens per second of a finished training of the same recipe and model (`speed`
    measured), by the layout's (stated), or by FLOPS (guessed). `refused`: why it can't run so, and how it could, or
    None. `warnings`: what else its user should know.
    """
    kinds: dict[str, list[Cell]] = {}
    for cell in cells:
        if cell.stage in ("midtrain", "sft") and "recipe" in cell.settings:
            kinds.setdefault(f"{cell.stage} {_without_seed(cell)}", []).append(cell)
    measured = _measured(cells, base)
    return [{"training": name, **_row(some, base, layouts, measured)} for name, some in kinds.items()]


def grouped(rows: list[dict[str, Any]], key: str) -> list[str]:
    """What `key` (refused or warnings) says of trainings, a line for each different text: first and how many more."""
    found: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        for text in [row[key]] if isinstance(row[key], str) else row[key] or []:
            found.setdefault(text, []).append(row)
    counts = {text: sum(row["left"] or 1 for row in those) - 1 for text, those in found.items()}
    return [f"{found[text][0]['training']}{f' and {n} more' * bool(n)}: {text}" for text, n in counts.items()]


def _row(some: list[Cell], base: Path, layouts: dict[str, Layout], measured: dict[str, float]) -> dict[str, Any]:
    cell, layout = some[0], layouts.get(some[0].stage, Layout())
    model, recipe, ways = shape(cell), cell.settings["recipe"], cell.resources
    (count, tokens), manifest = updates(cell) or (0, 0), read_manifest(base / cell.relpath)
    if manifest:
        count, tokens = manifest["counts"]["updates"], manifest["counts"]["tokens"]
    left = sum(read_manifest(base / each.relpath) is None for each in some)
    empty, rows = padding(cell, layout.ranks), rows_per_update(recipe)
    if rate := measured.get(_speed_key(cell)):
        speed = "measured"
    elif rate := layout.tokens_per_second:
        speed = "stated"
    else:
        speed, busy = "guessed", rows / (-(-rows // layout.ranks) * layout.ranks)
        rate = FLOPS / flops_per_token(model, recipe) * (1 - empty) * busy
    hours = tokens / rate / layout.ranks / 3600
    weight = 2 if recipe["dtype"] == "bf16" else 4
    step = trained(model, recipe) * weight * (2 if recipe["optimizer"] == "adamw_8bit" else 3)
    exported = 2 if model.get("dtype", model.get("torch_dtype")) == "bfloat16" else 4
    gb = memory(model, recipe, ways, layout.ranks, layout.per_node)
    return {
        "cells": len(some),
        "left": left,
        "updates": count,
        "tokens_per_update": round(tokens / count) if count else 0,
        "epochs": recipe["epochs"],
        "padding": empty,
        "ranks": layout.ranks,
        "memory_gb": gb,
        "checkpoint_gb": parameters(model)["total"] * exported / 1e9,
        "step_checkpoints_gb": 2 * step / 1e9,  # two are kept
        "hours": hours,
        "gpu_hours": hours * layout.ranks * left,
        "speed": speed,
        "refused": _refused(model, recipe, ways, layout, gb["total"], count, hours) if left else None,
        "warnings": _warnings(recipe, layout, gb["total"], count, hours) if left else [],
    }


def _refused(
    model: Shape, recipe: dict[str, Any], ways: dict[str, Any], layout: Layout, gb: float, count: int, hours: float
) -> str | None:
    rows, there = rows_per_update(recipe), layout.gpu_memory_gb
    if not count:
        return "its data gives no update at all; give more rows, epochs or a smaller batch"
    if layout.ranks > rows:
        return f"an update has {rows} rows, too few for {layout.ranks} ranks; {rows} ranks or fewer would do"
    if there and gb > there:
        nodes = range(layout.per_node, rows + 1, layout.per_node)
        enough = (n for n in nodes if memory(model, recipe, ways, n, layout.per_node)["total"] <= there)
        if fits := next(enough, None):
            cure = f"{fits} GPUs would do"
        else:
            cure = "more would not do; activation_checkpointing, rows_per_rank: 1 or dtype: bf16 take less"
        return f"needs about {gb:.0f} GB on each of {layout.ranks} GPUs, which have {there:g}; {cure}"
    if layout.minutes and hours * 60 / count > layout.minutes:
        minutes = f"about {hours * 60 / count:,.0f} minutes"
        return f"one update takes {minutes}, longer than a job may ({layout.minutes}), so it would never get on"
    return None


def _warnings(recipe: dict[str, Any], layout: Layout, gb: float, count: int, hours: float) -> list[str]:
    rows, ranks, found = rows_per_update(recipe), layout.ranks, []
    if 0 < count < FEW_UPDATES:
        found.append(f"{count} updates; under {FEW_UPDATES} hardly moves a model")
    if ranks < rows and rows % ranks:
        even = [n for n in range(1, rows + 1) if rows % n == 0]
        near = f"{max(n for n in even if n < ranks)} or {min(n for n in even if n > ranks)}"
        found.append(f"{rows} rows an update leave some of {ranks} ranks idle; {near} would all be busy")
    if layout.gpu_memory_gb and 0.9 * layout.gpu_memory_gb < gb <= layout.gpu_memory_gb:
        found.append(f"needs about {gb:.0f} of a GPU's {layout.gpu_memory_gb:g} GB, and CUDA and NCCL some of the rest")
    if layout.minutes and (turns := hours * 60 / layout.minutes) > 1:
        text = f"about {hours * 60:,.0f} minutes, more than one job's {layout.minutes}: it goes on in others"
        if turns > layout.requeue + 1:
            text += f", but requeue allows {layout.requeue}; raise that or minutes"
        found.append(text)
    return found


def show(rows: list[dict[str, Any]]) -> str:
    """The rows of a forecast as a table."""
    headers = ["training", "cells", "~updates", "~tokens each", "epochs", "~padding", "ranks", "~GB a rank"]
    headers += ["checkpoint GB", "step GB", "GPU-hours left"]
    keys = ("training", "cells", "updates", "tokens_per_update", "epochs")
    lines = [
        (
            *(row[key] for key in keys),
            f"{row['padding']:.1%}",
            row["ranks"],
            *(f"{gb:.2f}" for gb in (row["memory_gb"]["total"], row["checkpoint_gb"], row["step_checkpoints_gb"])),
            f"{'' if row['speed'] == 'measured' else '~'}{row['gpu_hours']:,.2f}",
        )
        for row in rows
    ]
    return tabulate(lines, headers=headers, intfmt=",", colalign=("left",) + ("right",) * 10)


def _without_seed(cell: Cell) -> str:
    return cell.name.replace(f"-s{cell.settings['seed']}", "")


def _speed_key(cell: Cell) -> str:
    return json.dumps([cell.settings["recipe"], start_model(cell).identity], sort_keys=True)


def _measured(cells: list[Cell], base: Path) -> dict[str, float]:
    """Tokens per second of one rank of finished trainings, by recipe and start model; of several the last."""
    found = {}
    for cell in cells:
        if cell.stage in ("midtrain", "sft") and "recipe" in cell.settings:
            counts = (read_manifest(base / cell.relpath) or {}).get("counts", {})
            if "tokens_per_second" in counts:
                found[_speed_key(cell)] = counts["tokens_per_second"] / counts["ranks"]
    return found
