"""The micro-batches that one rank runs for an optimizer step."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch
from torchtune.data import CROSS_ENTROPY_IGNORE_IDX as IGNORE

from core.recipe import Training
from recipes.attention import mask
from recipes.distributed import Ranks
from recipes.rows import Rows
from recipes.schedule import micro_batches, pack

T = TypeVar("T")
HostBatch = dict[str, torch.Tensor]  # as Rows.batch makes it


@dataclass(frozen=True)
class StepInput:
    """What one rank runs in an optimizer step."""

    step: int
    indices: np.ndarray
    """The rows of all ranks."""
    num_trained: int
    """Their trained tokens."""
    batches: list[HostBatch]
    """This rank's micro-batches."""

    def sizes(self) -> tuple[int, int]:
        """Tokens of this rank's micro-batches, and positions, which include padding."""
        tokens = sum(int((batch["document"] >= 0).sum()) for batch in self.batches)
        return tokens, sum(batch["tokens"].numel() for batch in self.batches)


def host_batches(
    rows: Rows, indices: np.ndarray, ranks: Ranks, recipe: Training
) -> list[HostBatch]:
    """This rank's share of the rows `indices`, `micro_batch_size` at a time (None: all at once).

    With `packed` several of them share a row, and `micro_batch_size` counts these. All ranks get
    the same number of micro-batches, because each needs the others' shards of the model. A rank
    that has no rows left gets another rank's row, with no token trained. The tensors lie in the
    host's memory, for a GPU in pinned memory.
    """
    groups: list[np.ndarray] = []
    if recipe.packed:
        packed = pack(rows.lengths(indices), recipe.seq_len, ranks.world_size)
        groups = [indices[group] for group in packed]
    units = np.arange(len(groups)) if groups else indices
    batches = []
    for part in micro_batches(units, ranks.rank, ranks.world_size, recipe.micro_batch_size):
        chosen = part if len(part) else units[:1]
        if groups:
            batch = rows.packed_batch([groups[unit] for unit in chosen], recipe.seq_len)
        else:
            batch = rows.batch(chosen)
        if not len(part):
            batch["labels"].fill_(IGNORE)
            batch["document"].fill_(-1)
        if ranks.device.type == "cuda":
            batch = {name: tensor.pin_memory() for name, tensor in batch.items()}
        batches.append(batch)
    return batches


def to_device(batch: HostBatch, ranks: Ranks) -> dict[str, Any]:
    """tokens, labels and input_pos [b, s] on this rank's device, and their attention `mask`."""
    names = ("tokens", "labels", "input_pos")
    tensors = {name: batch[name].to(ranks.device, non_blocking=True) for name in names}
    return {**tensors, "mask": mask(batch["document"], ranks.device)}


def ahead(items: Iterator[T]) -> Iterator[T]:
    """The items, each made by a thread while the one before it is used."""
    with ThreadPoolExecutor(1) as executor:
        end = object()
        pending = executor.submit(next, items, end)
        while (item := pending.result()) is not end:
            pending = executor.submit(next, items, end)
            yield item  # type: ignore[misc]
