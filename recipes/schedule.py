"""Which rows and which learning rate each update takes: pure functions of the recipe, the seed and the ranks."""

import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from study.errors import UserError


def rows_per_update(recipe: dict[str, Any]) -> int:
    """Rows of one update over all ranks. Raises UserError where its tokens don't fill whole rows."""
    if recipe["rows_per_update"]:
        return recipe["rows_per_update"]
    rows, rest = divmod(recipe["tokens_per_update"], recipe["seq_len"])
    if rest or not rows:
        raise UserError(
            f"tokens_per_update {recipe['tokens_per_update']} is not a multiple of seq_len {recipe['seq_len']}"
        )
    return rows


def updates_planned(rows: int, recipe: dict[str, Any]) -> int:
    """Optimizer updates of a training; the last one may be smaller than the others, so that no row is left out."""
    return -(-rows * recipe["epochs"] // rows_per_update(recipe))


def order(rows: int, recipe: dict[str, Any], seed: int) -> Iterator[np.ndarray]:
    """Row numbers of each update. Every epoch is a permutation of its own, made from (seed, epoch) alone."""
    size, epochs = rows_per_update(recipe), range(recipe["epochs"])
    everything = np.concatenate([np.random.default_rng([seed, epoch]).permutation(rows) for epoch in epochs])
    yield from (everything[i : i + size] for i in range(0, len(everything), size))


def micro_batches(which: np.ndarray, rank: int, world: int, at_once: int | None) -> list[np.ndarray]:
    """A rank's share of an update's rows, `at_once` at a time: as many parts on every rank, so some may be empty."""
    most = -(-len(which) // world)
    size = at_once or most
    mine = which[rank::world]
    return [mine[i : i + size] for i in range(0, most, size)]


def learning_rate(update: int, total: int, recipe: dict[str, Any]) -> float:
    """Learning rate of an update (from 1): linear warm-up that never starts at 0, then constant or cosine to 0."""
    warmup = recipe["warmup_updates"]
    if update <= warmup:
        return recipe["lr"] * update / warmup
    if recipe["schedule"] == "constant":
        return recipe["lr"]
    return recipe["lr"] * 0.5 * (1 + math.cos(math.pi * (update - 1 - warmup) / max(1, total - warmup)))
