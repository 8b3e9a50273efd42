"""The loss on held-out text, and what follows from it: when a training is over, and which weights it ends with."""

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torchtune.modules import TransformerDecoder

from core.model_size import rows_per_update
from recipes.batches import batches
from recipes.distributed import Ranks
from recipes.loss import summed_loss
from recipes.model import forget_copies
from recipes.rows import Rows


@torch.no_grad()
def held_out_loss(
    model: TransformerDecoder, rows: Rows, recipe: dict[str, Any], at_once: int | None, ranks: Ranks
) -> float:
    """Mean cross-entropy (nats) over the trained tokens of all `rows`. A collective: each rank does its share."""
    model.eval()
    total, size = torch.zeros((), device=ranks.device, dtype=torch.float64), rows_per_update(recipe)
    for begin in range(0, len(rows), size):
        for batch in batches(rows, np.arange(begin, min(begin + size, len(rows))), ranks, at_once):
            total += summed_loss(model, batch)
    forget_copies(model)
    model.train()
    return ranks.sum(total).item() / rows.trained(np.arange(len(rows)))


@dataclass
class Looks:
    """All looks of a training so far, as (update, loss), the oldest first; the first is of the start model."""

    patience: int | None
    past: list[tuple[int, float]] = field(default_factory=list)

    def add(self, update: int, loss: float) -> bool:
        """Whether this look is the best so far of a model that was trained."""
        better = update > 0 and loss < min((old for when, old in self.past if when > 0), default=math.inf)
        self.past.append((update, loss))
        return better

    def best(self) -> int | None:
        """The update after which the loss was lowest; the earliest of equals."""
        return min(((loss, update) for update, loss in self.past if update > 0), default=(0.0, None))[1]

    def over(self) -> bool:
        """Whether `patience` looks have gone by without a better one."""
        best = self.best()
        since = sum(update > best for update, _ in self.past) if best is not None else 0
        return self.patience is not None and since >= self.patience
