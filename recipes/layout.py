"""Whether a model and a recipe fit a number of GPUs, checked in one process without any of them (`plan --layout`).

Builds the model on the meta device from its config.json alone, shards it as the training would (torch's fake process
group stands in for the others), and deals an update's rows to all ranks.
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
from core.model_size import memory, rows_per_update
from recipes.distributed import Ranks
from recipes.model import build, read_config, shard
from recipes.schedule import micro_batches


def shard_bytes(config: dict[str, Any], recipe: dict[str, Any], sharding: str, world: int, within: int) -> int:
    """Bytes of the weights that rank 0 of `world` holds; no rank holds more."""
    os.environ["LOCAL_WORLD_SIZE"] = str(within)
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=world)
    try:
        dtype = torch.bfloat16 if recipe["dtype"] == "bf16" else torch.float32
        with torch.device("meta"):
            model = build(config, recipe["lora"]).to(dtype)
        shard(model, recipe, sharding, Ranks(0, world))
        return sum(p.to_local().nbytes if isinstance(p, DTensor) else p.nbytes for p in model.parameters())
    finally:
        dist.destroy_process_group()


def deal(recipe: dict[str, Any], ways: dict[str, Any], world: int) -> tuple[int, int]:
    """Passes of an update, and ranks that are idle in its last one. Raises UserError where the rows are too few.

    Every row of an update must be run by exactly one rank.
    """
    rows = rows_per_update(recipe)
    if world > rows:
        raise UserError(f"an update has {rows} rows, too few for {world} ranks; run it on {rows} ranks or fewer")
    shares = [micro_batches(np.arange(rows), rank, world, ways["rows_per_rank"]) for rank in range(world)]
    times = Counter(row for share in shares for part in share for row in part.tolist())
    assert times == Counter(range(rows)), "rows lost or run twice"
    return len(shares[0]), sum(len(share[-1]) == 0 for share in shares)


def table(model: Path, recipe: dict[str, Any], ways: dict[str, Any], worlds: list[int], node: int) -> str:
    """A line for each number of GPUs of `worlds`, `node` of them on a node. `model`: its config.json alone is read."""
    config = read_config(model)
    lines: list[list[Any]] = []
    refused = ""
    for world in worlds:
        within = min(world, node)
        try:
            passes, idle = deal(recipe, ways, world)
        except UserError as error:
            refused += f"\n{world} GPUs: {error.lines[0]}"
            continue
        weights = shard_bytes(config, recipe, ways["sharding"], world, within) / 1e9
        gb = memory(config, recipe, ways, world, within)
        lines.append([world, f"{weights:.2f}", *(f"{gb[key]:.1f}" for key in gb), passes, idle])
    headers = [
        "GPUs",
        "weights, GB",
        "state",
        "gathered",
        "activations",
        "total GB a GPU",
        "passes",
        "idle in the last",
    ]
    return tabulate(lines, headers=headers, disable_numparse=True) + refused
