"""AdamW in three sizes of memory."""

from functools import cache
from typing import Any

import torch
from torch.distributed.tensor import DTensor
from torchao.optim import AdamW8bit, _AdamW
from torchao.optim.adam import _AdamBase, single_param_adam
from torchtune.modules import TransformerDecoder

_compiled = cache(torch.compile)  # once, not for every weight of every update


class _OnShards(_AdamBase):
    """torchao's step, on each rank's own shards as plain tensors.

    As DTensors they can't be rounded by chance, and ranks whose shards differ in size take each other's compiled code.
    Not compiled on a CPU, where that takes a minute at each start and trainings are small.
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
            state["exp_avg"], state["exp_avg_sq"] = self._new_buffer(weight, True), self._new_buffer(weight, False)
        state["step"] += 1
        step = _compiled(single_param_adam, fullgraph=True, dynamic=False) if weight.is_cuda else single_param_adam
        step(
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


class _Rounded(_OnShards, _AdamW):
    pass


class _In8bit(_OnShards, AdamW8bit):
    pass


def _local(tensor: Any) -> torch.Tensor:
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def make(model: TransformerDecoder, recipe: dict[str, Any]) -> torch.optim.Optimizer:
    """AdamW over all trainable weights: 8 bytes of state a weight, 2 as `adamw_8bit`, 4 with dtype bf16.

    In bf16 a weight is rounded up or down by chance, so that small changes count on average; the chance comes from
    torch's generator, which the loop seeds before every step, alike for all copies of a shard.
    """
    weights = [p for p in model.parameters() if p.requires_grad]
    common: dict[str, Any] = {
        "lr": recipe["lr"],
        "betas": tuple(recipe["betas"]),
        "weight_decay": recipe["weight_decay"],
    }
    if recipe["optimizer"] == "adamw_8bit":
        return _In8bit(weights, **common)
    if recipe["dtype"] == "bf16":
        return _Rounded(weights, bf16_stochastic_round=True, **common)
    return torch.optim.AdamW(weights, fused=True, **common)


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """The learning rate of the next step. torchao's optimizers keep theirs in a tensor, so as not to compile anew."""
    for group in optimizer.param_groups:
        if isinstance(group["lr"], torch.Tensor):
            group["lr"].fill_(rate)
        else:
            group["lr"] = rate
