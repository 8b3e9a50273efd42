"""Whether a model and a recipe fit a number of GPUs, computed without GPUs (`plan --layout`).

Builds the model on the meta device from its config.json alone, shards it as the training would
(with torch's fake process group), and assigns a step's rows to all ranks.
"""

import os
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from tabulate import tabulate
from torch.distributed.tensor import DTensor
from torch.testing._internal.distributed.fake_pg import FakeStore

from core.errors import UserError
from core.model_folder.config import read_config
from core.model_size import ModelShape, memory
from core.recipe import Training
from recipes.distributed import Ranks
from recipes.model import build, shard
from recipes.schedule import micro_batches

HEADERS = [
    "GPUs",
    "weights, GB",
    "state",
    "gathered",
    "activations",
    "total GB a GPU",
    "micro-batches",
    "idle in the last",
]


def shard_bytes(config: dict[str, Any], recipe: Training, world_size: int, within: int) -> int:
    """Bytes of the weights that rank 0 of `world_size` holds, `within` of them on a node.

    No rank holds more.
    """
    os.environ["LOCAL_WORLD_SIZE"] = str(within)
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=world_size)
    try:
        dtype = torch.bfloat16 if recipe.dtype == "bf16" else torch.float32
        with torch.device("meta"):
            model = build(config, recipe.lora).to(dtype)
        shard(model, recipe, Ranks(0, world_size))
        local = [p.to_local() if isinstance(p, DTensor) else p for p in model.parameters()]
        return sum(weight.nbytes for weight in local)
    finally:
        dist.destroy_process_group()


def assign_rows(recipe: Training, world_size: int) -> tuple[int, int]:
    """Micro-batches of a step, and the number of ranks that are idle in the last one.

    Checks that every row of a step is run by exactly one rank. Raises UserError where a step has
    fewer rows than there are ranks.
    """
    rows = recipe.rows_per_step
    if world_size > rows:
        raise UserError(
            where=f"{world_size} GPUs",
            what=f"an optimizer step has {rows} rows, too few for {world_size} ranks",
            fix=f"run it on {rows} ranks or fewer",
        )
    all_rows = np.arange(rows)
    shares = [
        micro_batches(all_rows, rank, world_size, recipe.micro_batch_size)
        for rank in range(world_size)
    ]
    runs = Counter(row for share in shares for part in share for row in part.tolist())
    assert runs == Counter(range(rows)), "rows lost or run twice"
    return len(shares[0]), sum(len(share[-1]) == 0 for share in shares)


def table(
    model: Path,
    settings: dict[str, Any],
    resources: dict[str, Any],
    world_sizes: list[int],
    gpus_per_node: int,
) -> str:
    """A table with a line for each number of GPUs.

    Args:
        model: its folder, of which config.json alone is read.
        settings: the recipe of the training's cell, without RUNTIME_KEYS.
        resources: the cell's resources, with RUNTIME_KEYS.
        world_sizes: numbers of GPUs, `gpus_per_node` of them on a node.
    """
    recipe = Training.from_settings(settings, resources)
    config = read_config(model)
    lines: list[list[Any]] = []
    refusals = ""
    for world_size in world_sizes:
        within = min(world_size, gpus_per_node)
        try:
            passes, idle = assign_rows(recipe, world_size)
        except UserError as error:
            refusals += f"\n{error}"
            continue
        weights_gb = shard_bytes(config, recipe, world_size, within) / 1e9
        gb = memory(ModelShape.from_config(config), recipe, world_size, within)
        amounts = [f"{amount:.1f}" for amount in gb.values()]
        lines.append([world_size, f"{weights_gb:.2f}", *amounts, passes, idle])
    return tabulate(lines, headers=HEADERS, disable_numparse=True) + refusals
