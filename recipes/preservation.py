"""What holds a training near its start: L2 to the start's weights, KL to the start's predictions.

L2: Li et al., "Explicit inductive bias for transfer learning" (L2-SP, arXiv 1802.01483). KL to the
predictions before a training: Li and Hoiem, "Learning without forgetting" (arXiv 1606.09282).
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.distributed.tensor import DTensor, distribute_tensor
from torchtune.modules import TransformerDecoder
from torchtune.modules.peft import LoRALinear, disable_adapter

from core.recipe import Training
from recipes.loss import Reference, output_weight, skip_output_layer
from recipes.model import reshard
from recipes.token_rows import ROWS


class Preservation:
    """The two terms of a recipe, for one training. Every method is a collective."""

    def __init__(
        self,
        recipe: Training,
        model: TransformerDecoder,
        load_start: Callable[[], TransformerDecoder],
    ) -> None:
        """`model` has the start's weights now; `load_start` loads them once more."""
        self.recipe = recipe
        self.start: list[torch.Tensor] = []
        """All weights: this rank's shards of those at the start, for L2."""
        self.frozen: TransformerDecoder | None = None
        """All weights: the start model, for KL."""
        if recipe.l2_to_start and not recipe.lora:
            self.start = [_local(weight.detach()).clone() for weight in model.parameters()]
        if recipe.kl_to_start and not recipe.lora:
            self.frozen = load_start()
            skip_output_layer(self.frozen)
            self.frozen.eval()

    @torch.no_grad()
    def reference(self, model: TransformerDecoder, batch: dict[str, Any]) -> Reference | None:
        """What the start model makes of a batch; None where the recipe has no KL.

        batch: as of `recipes.loss.chunked_loss`.
        """
        if not self.recipe.kl_to_start:
            return None
        inputs = {"mask": batch["mask"], "input_pos": batch["input_pos"]}
        if self.frozen:
            hidden = self.frozen(batch["tokens"], **inputs)
            return Reference(hidden, output_weight(self.frozen), self.recipe.kl_to_start)
        with disable_adapter(model):
            hidden = model(batch["tokens"], **inputs)
            return Reference(hidden, output_weight(model), self.recipe.kl_to_start)

    @torch.no_grad()
    def end_step(self, model: TransformerDecoder) -> None:
        """Add the gradients of L2 once the loss' own are complete, and free what KL gathered."""
        if self.frozen:
            reshard(self.frozen)
        factor = self.recipe.l2_to_start
        if not factor:
            return
        for start, weight in zip(self.start, model.parameters(), strict=False):
            _add(weight, (_local(weight.detach()) - start) * factor)
        for module in model.modules() if self.recipe.lora else ():
            if isinstance(module, LoRALinear):
                _add_of_product(module, factor)
            elif hasattr(module, ROWS):
                rows = module.get_parameter(ROWS)
                _add(rows, _local(rows.detach()) * factor)


def _add_of_product(layer: LoRALinear, factor: float) -> None:
    """Add the gradients of factor / 2 times the squared norm of scale * B A, which LoRA adds to a
    weight: of B they are factor * scale ** 2 * B A A^T, of A factor * scale ** 2 * B^T B A."""
    a, b = layer.lora_a.weight, layer.lora_b.weight
    whole_a, whole_b = (_whole(weight.detach()) for weight in (a, b))
    scaled = factor * (layer.alpha / layer.rank) ** 2
    for weight, gradient in (
        (a, whole_b.T @ whole_b @ whole_a),
        (b, whole_b @ (whole_a @ whole_a.T)),
    ):
        _add(weight, _shard_like(weight, gradient * scaled))


def _add(weight: nn.Parameter, gradient: torch.Tensor) -> None:
    """Add this rank's shard of a gradient to a weight's; one without a gradient was not used."""
    if weight.grad is not None:
        _local(weight.grad).add_(gradient)


def _local(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def _whole(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def _shard_like(weight: torch.Tensor, whole: torch.Tensor) -> torch.Tensor:
    """This rank's shard of a tensor that every rank has, as `weight` is sharded."""
    if not isinstance(weight, DTensor):
        return whole
    mesh, placements = weight.device_mesh, weight.placements
    return distribute_tensor(whole, mesh, placements, src_data_rank=None).to_local()
