"""The rows of an update as the batches that one rank runs."""

from collections.abc import Iterator
from typing import Any

import numpy as np
from torchtune.data import CROSS_ENTROPY_IGNORE_IDX as IGNORE

from recipes.attention import mask
from recipes.distributed import Ranks
from recipes.rows import Rows
from recipes.schedule import micro_batches


def batches(rows: Rows, which: np.ndarray, ranks: Ranks, at_once: int | None) -> Iterator[dict[str, Any]]:
    """This rank's share of the rows `which`, `at_once` at a time: tokens, labels, input_pos [b, s] and their mask.

    All ranks get as many batches, for they need each other's part of the model. A rank that has no rows left gets
    another's, untrained.
    """
    for mine in micro_batches(which, ranks.rank, ranks.world, at_once):
        batch = rows.batch(mine if len(mine) else which[:1])
        if not len(mine):
            batch["labels"].fill_(IGNORE)
            batch["document"].fill_(-1)
        there = {name: tensor.to(ranks.device, non_blocking=True) for name, tensor in batch.items()}
        yield {**there, "mask": mask(batch["document"], ranks.device)}
