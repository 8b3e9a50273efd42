"""The micro-batches that one rank runs for an optimizer step."""

from collections.abc import Iterator
from typing import Any

import numpy as np
from torchtune.data import CROSS_ENTROPY_IGNORE_IDX as IGNORE

from recipes.attention import mask
from recipes.distributed import Ranks
from recipes.rows import Rows
from recipes.schedule import micro_batches


def batches(
    rows: Rows, indices: np.ndarray, ranks: Ranks, micro_batch_size: int | None
) -> Iterator[dict[str, Any]]:
    """This rank's share of the rows `indices`, `micro_batch_size` at a time (None: all at once).

    Yields tokens, labels, input_pos and document [b, s], and their attention `mask`. All ranks get
    the same number of micro-batches, because each needs the others' shards of the model. A rank
    that has no rows left gets another rank's row, with no token trained.
    """
    for part in micro_batches(indices, ranks.rank, ranks.world_size, micro_batch_size):
        batch = rows.batch(part if len(part) else indices[:1])
        if not len(part):
            batch["labels"].fill_(IGNORE)
            batch["document"].fill_(-1)
        tensors = {
            name: tensor.to(ranks.device, non_blocking=True) for name, tensor in batch.items()
        }
        yield {**tensors, "mask": mask(batch["document"], ranks.device)}
