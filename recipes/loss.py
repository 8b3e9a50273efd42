"""Cross-entropy that never holds the logits of a whole batch."""

from functools import cache
from typing import Any

import torch
from torchtune.data import CROSS_ENTROPY_IGNORE_IDX as IGNORE
from torchtune.modules import TransformerDecoder

from core.model_size import CHUNK

_compiled = cache(torch.compile)  # when it is first asked for: the compiler takes seconds to import


def end_in_hidden_states(model: TransformerDecoder) -> None:
    """Leave the output layer to `summed_loss`: the model then gives normalised hidden states [b, s, d]."""
    model.unembed = model.norm.forward


def summed_loss(model: TransformerDecoder, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """Cross-entropy (nats, fp32) summed over the trained tokens of `batch`: tokens, labels, input_pos [b, s], mask.

    0, with gradients of 0, where no token is trained. The model ends in hidden states: the output layer is here, a
    chunk of tokens at a time, and its gradients are made with the loss.
    """
    hidden = model(batch["tokens"], mask=batch["mask"], input_pos=batch["input_pos"]).flatten(0, 1)
    # Tied or not; with FSDP2 it is whole here, because the root keeps its own parameters until the backward pass.
    layer = model.tok_embeddings if hasattr(model.output, "tied_module") else model.output
    wanted = [torch.is_grad_enabled() and tensor.requires_grad for tensor in (hidden, layer.weight)]
    nats: torch.Tensor = _InChunks.apply(hidden, layer.weight, batch["labels"].flatten(), *wanted)
    return nats


class _InChunks(torch.autograd.Function):
    """As torch.nn.functional.linear_cross_entropy, but the loss of bf16 states is fp32, and it is compiled on a GPU."""

    @staticmethod
    def forward(
        ctx: Any, hidden: torch.Tensor, weight: torch.Tensor, labels: torch.Tensor, to_hidden: bool, to_weight: bool
    ) -> torch.Tensor:
        total = torch.zeros((), device=hidden.device)
        ctx.hidden = torch.empty_like(hidden) if to_hidden else None
        ctx.weight = torch.zeros_like(weight) if to_weight else None
        # Eager, each step of it is a pass over the logits; compiled, they share a few.
        measure = _compiled(_nats_and_slope) if hidden.is_cuda else _nats_and_slope
        for begin in range(0, len(hidden), CHUNK):
            part = slice(begin, begin + CHUNK)
            nats, slope = measure(_logits(hidden[part], weight), labels[part], hidden.dtype)
            total += nats
            if to_hidden:
                torch.mm(slope, weight, out=ctx.hidden[part])
            if to_weight:
                ctx.weight.addmm_(slope.T, hidden[part])
        return total

    @staticmethod
    def backward(ctx: Any, slope: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        made = [None if grad is None else grad.mul_(slope) for grad in (ctx.hidden, ctx.weight)]
        ctx.hidden = ctx.weight = None
        return (*made, None, None, None)


def _logits(hidden: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """fp32 [n, v]: of bf16 products, the sums as they were added up."""
    if hidden.is_cuda and hidden.dtype != torch.float32:
        return torch.mm(hidden, weight.T, out_dtype=torch.float32)
    return (hidden @ weight.T).float()


def _nats_and_slope(
    logits: torch.Tensor, labels: torch.Tensor, dtype: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor]:
    """The summed cross-entropy of fp32 logits [n, v], and its derivative by them in `dtype`."""
    trained = (labels != IGNORE)[:, None]
    label = labels.clamp(min=0)[:, None]
    log_shares = logits.log_softmax(1)
    nats = -log_shares.gather(1, label) * trained
    slope = log_shares.exp_().mul_(trained).to(dtype)
    return nats.sum(), slope.scatter_(1, label, (-nats).expm1().to(dtype))  # 0 too where untrained
