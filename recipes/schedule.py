"""Rows and learning rate of each optimizer step, as functions of recipe, seed and rank."""

import itertools
import math
from collections.abc import Iterator

import numpy as np

from core.recipe import Training


def num_steps(rows: int, recipe: Training) -> int:
    """Optimizer steps of a training. The last may have fewer rows, so that no row is left out."""
    steps = -(-rows * recipe.epochs // recipe.rows_per_step)
    return min(steps, recipe.max_steps or steps)


def batch_indices(rows: int, recipe: Training, seed: int) -> Iterator[np.ndarray]:
    """Row indices of each optimizer step, int64 [rows_per_step].

    Every epoch is a permutation that follows from (seed, epoch) alone.
    """
    epochs = (
        np.random.default_rng([seed, epoch]).permutation(rows) for epoch in range(recipe.epochs)
    )
    indices = itertools.chain.from_iterable(epochs)
    for _ in range(num_steps(rows, recipe)):
        yield np.fromiter(itertools.islice(indices, recipe.rows_per_step), np.int64)


def micro_batches(
    indices: np.ndarray, rank: int, world_size: int, micro_batch_size: int | None
) -> list[np.ndarray]:
    """A rank's share of a step's rows in micro-batches (None: in one).

    Every rank has the same number of micro-batches, so some may be empty.
    """
    largest_share = -(-len(indices) // world_size)
    size = micro_batch_size or largest_share
    share = indices[rank::world_size]
    return [share[i : i + size] for i in range(0, largest_share, size)]


def pack(lengths: np.ndarray, seq_len: int, world_size: int) -> list[np.ndarray]:
    """Which of the texts of these `lengths` share a row: their positions, for each packed row.

    The longest first, each into the row that has the fewest tokens: as few rows as hold at most
    `seq_len` tokens each, but as many for every rank, where there are texts enough. The same on all
    ranks.
    """
    rows = -(-int(lengths.sum()) // seq_len)
    while True:
        rows = min(-(-rows // world_size) * world_size, len(lengths))
        totals = np.zeros(rows, np.int64)
        groups: list[list[int]] = [[] for _ in range(rows)]
        for position in np.argsort(-lengths, kind="stable"):
            emptiest = int(totals.argmin())
            totals[emptiest] += lengths[position]
            groups[emptiest].append(int(position))
        if totals.max() <= seq_len:
            return [np.array(sorted(group)) for group in groups]
        rows += 1


def learning_rate(step: int, total_steps: int, recipe: Training) -> float:
    """Learning rate of a step (the first is 1).

    A linear warm-up that never starts at 0, then constant or cosine to 0.
    """
    warmup = recipe.warmup_steps
    if step <= warmup:
        return recipe.lr * step / warmup
    if recipe.schedule == "constant":
        return recipe.lr
    angle = math.pi * (step - 1 - warmup) / max(1, total_steps - warmup)
    return recipe.lr * 0.5 * (1 + math.cos(angle))
