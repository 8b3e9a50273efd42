"""The held-out loss, and what follows from it: when a training stops, and its final weights."""

import math
from dataclasses import dataclass, field

import numpy as np
import torch
from torchtune.modules import TransformerDecoder

from core.recipe import Training
from recipes.batches import ahead, host_batches, to_device
from recipes.distributed import Ranks
from recipes.loss import chunked_cross_entropy
from recipes.model import reshard
from recipes.rows import Rows


@torch.no_grad()
def held_out_loss(model: TransformerDecoder, rows: Rows, recipe: Training, ranks: Ranks) -> float:
    """Mean cross-entropy (nats a token) over the trained tokens of all `rows`.

    A collective: each rank evaluates its share.
    """
    model.eval()
    total = torch.zeros((), device=ranks.device, dtype=torch.float64)
    size = recipe.rows_per_step
    host = (
        batch
        for start in range(0, len(rows), size)
        for batch in host_batches(
            rows, np.arange(start, min(start + size, len(rows))), ranks, recipe
        )
    )
    for batch in ahead(host):
        total += chunked_cross_entropy(model, to_device(batch, ranks))
    reshard(model)
    model.train()
    return ranks.sum(total).item() / max(1, rows.num_trained(np.arange(len(rows))))


@dataclass
class EvalHistory:
    """The held-out losses of a training so far.

    `losses` has (optimizer step, loss), the oldest first; step 0 is the start model.
    """

    patience: int | None
    losses: list[tuple[int, float]] = field(default_factory=list)

    def add(self, step: int, loss: float) -> bool:
        """Record a loss. Returns whether it is the lowest so far of a trained model."""
        earlier = [old_loss for old_step, old_loss in self.losses if old_step > 0]
        is_best = step > 0 and loss < min(earlier, default=math.inf)
        self.losses.append((step, loss))
        return is_best

    def best(self) -> int | None:
        """The step after which the loss was lowest; the earliest of equals. None before step 1."""
        trained = [(loss, step) for step, loss in self.losses if step > 0]
        return min(trained)[1] if trained else None

    def should_stop(self) -> bool:
        """Whether `patience` evaluations have gone by without a lower loss."""
        if self.patience is None:
            return False
        best = self.best()
        since_best = 0 if best is None else sum(step > best for step, _ in self.losses)
        return since_best >= self.patience
