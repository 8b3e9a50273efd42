"""AdamW with optimizer state of three sizes."""

from functools import cache
from typing import Any

import torch
from torch.distributed.tensor import DTensor
from torchao.optim import AdamW8bit, _AdamW
from torchao.optim.adam import _AdamBase, single_param_adam
from torchtune.modules import TransformerDecoder

from core.recipe import Training

_compiled = cache(torch.compile)  # once, not for every weight of every step


class _LocalStep(_AdamBase):
    """torchao's step, on each rank's own shards as plain tensors.

    As DTensors they can't be rounded stochastically, and ranks whose shards differ in size share
    compiled code. Not compiled on a CPU, where that takes a minute at each start and trainings are
    small.
    """

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        with torch._dynamo.utils.disable_cache_limit():
            for group in self.param_groups:
                for weight in group["params"]:
                    if weight.grad is not None:
                        self._step(weight, group)

    def _step(self, weight: torch.Tensor, group: dict[str, Any]) -> None:
        state = self.state[weight]
        if not state:
            state["step"] = torch.tensor(0.0)
            state["exp_avg"] = self._new_buffer(weight, True)
            state["exp_avg_sq"] = self._new_buffer(weight, False)
        state["step"] += 1
        adam = single_param_adam
        if weight.is_cuda:
            adam = _compiled(single_param_adam, fullgraph=True, dynamic=False)
        adam(
            _local(weight.detach()),
            _local(weight.grad),
            state["step"],
            _local(state["exp_avg"]),
            _local(state["exp_avg_sq"]),
            None,
            group["lr"],
            *group["betas"],
            group["weight_decay"],
            group["eps"],
            True,
            self.bf16_stochastic_round and weight.dtype is torch.bfloat16,
        )


class _StochasticRounding(_LocalStep, _AdamW):
    pass


class _EightBit(_LocalStep, AdamW8bit):
    pass


def _local(tensor: Any) -> torch.Tensor:
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def build_optimizer(model: TransformerDecoder, recipe: Training) -> torch.optim.Optimizer:
    """AdamW over all trainable weights.

    Its state takes 8 bytes a weight, 2 as `adamw_8bit`, 4 with dtype bf16. In bf16 weights are
    rounded stochastically, so that small changes count on average; the random numbers come from
    torch's generator, which the training loop seeds before every step, alike for all replicas of a
    shard.
    """
    weights = [p for p in model.parameters() if p.requires_grad]
    options: dict[str, Any] = {
        "lr": recipe.lr,
        "betas": tuple(recipe.betas),
        "weight_decay": recipe.weight_decay,
    }
    if recipe.optimizer == "adamw_8bit":
        return _EightBit(weights, **options)
    if recipe.dtype == "bf16":
        return _StochasticRounding(weights, bf16_stochastic_round=True, **options)
    return torch.optim.AdamW(weights, fused=True, **options)


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Set the learning rate of the next step.

    torchao's optimizers keep it in a tensor, so that a new value is not compiled anew.
    """
    for group in optimizer.param_groups:
        if isinstance(group["lr"], torch.Tensor):
            group["lr"].fill_(lr)
        else:
            group["lr"] = lr
