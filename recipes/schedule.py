"""Which rows and which learning rate each update takes: pure functions of the recipe, the seed and the ranks."""

import itertools
import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from core.model_size import rows_per_update


def updates_planned(rows: int, recipe: dict[str, Any]) -> int:
    """Optimizer updates of a training; the last one may be smaller than the others, so that no row is left out."""
    updates = -(-rows * recipe["epochs"] // rows_per_update(recipe))
    return min(updates, recipe["max_updates"] or updates)


def order(rows: int, recipe: dict[str, Any], seed: int) -> Iterator[np.ndarray]:
    """Row numbers of each update. Every epoch is a permutation of its own, made from (seed, epoch) alone."""
    epochs = (np.random.default_rng([seed, epoch]).permutation(rows) for epoch in range(recipe["epochs"]))
    everything = itertools.chain.from_iterable(epochs)
    for _ in range(updates_planned(rows, recipe)):
        yield np.fromiter(itertools.islice(everything, rows_per_update(recipe)), np.int64)


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
