"""Cross-entropy that never holds the logits of a whole batch."""

from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch.utils.checkpoint import checkpoint
from torchtune.data import CROSS_ENTROPY_IGNORE_IDX as IGNORE
from torchtune.modules import TransformerDecoder

from core.model_size import CHUNK
from recipes.token_rows import with_rows

_compiled = cache(torch.compile)  # at its first use: importing the compiler takes seconds


def skip_output_layer(model: TransformerDecoder) -> None:
    """Let the model return normalised hidden states [b, s, d].

    The output layer is left to `chunked_cross_entropy`.
    """
    model.unembed = model.norm.forward


@dataclass(frozen=True)
class Reference:
    """What another model makes of a batch, without gradients (`recipes.preservation`)."""

    hidden: torch.Tensor
    """Its normalised hidden states [b, s, d]."""
    weight: torch.Tensor
    """Its output layer's weight [v, d]."""
    factor: float
    """Of the KL divergence in the loss."""


def output_weight(model: TransformerDecoder) -> torch.Tensor:
    """The output layer's weight [v, d], tied or not.

    With FSDP2 it is unsharded after a forward pass, because the root keeps its own parameters until
    the backward pass.
    """
    return with_rows(model.tok_embeddings if hasattr(model.output, "tied_module") else model.output)


def chunked_cross_entropy(
    model: TransformerDecoder, batch: dict[str, torch.Tensor]
) -> torch.Tensor:
    """Cross-entropy (nats, fp32) summed over the trained tokens of a batch.

    `Trainer.train_step` divides the step's sum by its trained tokens.

    Args:
        model: one that has been through `skip_output_layer`.
        batch: tokens, labels, input_pos [b, s] and mask, as recipes.batches makes them.

    The output layer is applied here, to CHUNK tokens at a time, and its gradients are computed
    with the loss. Where no token is trained the loss is 0 and its gradients are 0.
    """
    return chunked_loss(model, batch)[0]


def chunked_loss(
    model: TransformerDecoder, batch: dict[str, torch.Tensor], reference: Reference | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """As `chunked_cross_entropy`, with a reference plus its factor times the KL divergence.

    Returns the sum of both over the trained tokens, and the KL divergence alone (no gradient): of
    each token sum(q log(q / p)), q the reference's predictions, p the model's.
    """
    hidden = model(batch["tokens"], mask=batch["mask"], input_pos=batch["input_pos"])
    hidden = hidden.flatten(0, 1)
    weight = output_weight(model)
    needs_grad = [torch.is_grad_enabled() and t.requires_grad for t in (hidden, weight)]
    summed: tuple[torch.Tensor, torch.Tensor] = ChunkedLinearCrossEntropy.apply(
        hidden, weight, batch["labels"].flatten(), *needs_grad, reference
    )
    return summed


class ChunkedLinearCrossEntropy(torch.autograd.Function):
    """As torch's linear_cross_entropy, but fp32 for bf16 states, and compiled on a GPU."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: torch.Tensor,
        weight: torch.Tensor,
        labels: torch.Tensor,
        hidden_needs_grad: bool,
        weight_needs_grad: bool,
        reference: Reference | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """hidden [n, d], weight [v, d], labels [n] -> the summed loss and KL, scalars."""
        total = torch.zeros((), device=hidden.device)
        total_kl = torch.zeros((), device=hidden.device)
        ctx.hidden_grad = torch.empty_like(hidden) if hidden_needs_grad else None
        ctx.weight_grad = torch.zeros_like(weight) if weight_needs_grad else None
        # Eager, each operation is a pass over the logits; compiled, they share a few passes.
        fused = hidden.is_cuda
        loss_and_grad = _compiled(cross_entropy_and_grad) if fused else cross_entropy_and_grad
        for start in range(0, len(hidden), CHUNK):
            chunk = slice(start, start + CHUNK)
            logits = _logits(hidden[chunk], weight)
            nats, logits_grad = loss_and_grad(logits, labels[chunk], hidden.dtype, fused)
            total += nats
            if reference:
                theirs = _logits(reference.hidden.flatten(0, 1)[chunk], reference.weight)
                kl, kl_grad = kl_of(logits, theirs, labels[chunk])
                total += reference.factor * kl
                total_kl += kl
                logits_grad += (reference.factor * kl_grad).to(logits_grad.dtype)
            if hidden_needs_grad:
                torch.mm(logits_grad, weight, out=ctx.hidden_grad[chunk])
            if weight_needs_grad:
                ctx.weight_grad.addmm_(logits_grad.T, hidden[chunk])
        ctx.mark_non_differentiable(total_kl)
        return total, total_kl

    @staticmethod
    def backward(
        ctx: Any, grad_output: torch.Tensor, _: torch.Tensor
    ) -> tuple[torch.Tensor | None, ...]:
        """The gradients that `forward` computed, scaled."""
        grads = [
            None if grad is None else grad.mul_(grad_output)
            for grad in (ctx.hidden_grad, ctx.weight_grad)
        ]
        ctx.hidden_grad = None
        ctx.weight_grad = None
        return (*grads, None, None, None, None)


def token_log_probs(
    hidden: torch.Tensor, weight: torch.Tensor, labels: torch.Tensor
) -> torch.Tensor:
    """The log-probability (nats, fp32) of each of `labels` [b, s]; 0 where a label is IGNORE.

    hidden: normalised hidden states [b, s, d]. weight: the output layer's [v, d]. Of logits only
    CHUNK tokens' are held at a time: the backward pass computes them again.
    """
    is_trained = labels != IGNORE
    rows, targets = hidden[is_trained], labels[is_trained]
    parts = [
        checkpoint(
            _log_probs, rows[i : i + CHUNK], weight, targets[i : i + CHUNK], use_reentrant=False
        )
        for i in range(0, len(rows), CHUNK)
    ]
    zeros = torch.zeros(labels.shape, device=labels.device)
    return zeros.masked_scatter(is_trained, torch.cat(parts)) if parts else zeros


def _log_probs(hidden: torch.Tensor, weight: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    # Not `_logits`: torch.mm with out_dtype has no gradient.
    logits = (hidden @ weight.T).float()
    return logits.log_softmax(1).gather(1, labels[:, None])[:, 0]


def _logits(hidden: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Logits [n, v] in fp32; of bf16 products the sums are not rounded to bf16 first."""
    if hidden.is_cuda and hidden.dtype != torch.float32:
        return torch.mm(hidden, weight.T, out_dtype=torch.float32)
    return (hidden @ weight.T).float()


def cross_entropy_and_grad(
    logits: torch.Tensor, labels: torch.Tensor, dtype: torch.dtype, fused: bool = False
) -> tuple[torch.Tensor, torch.Tensor]:
    """The summed cross-entropy (nats) of fp32 logits [n, v], and its gradient in `dtype`.

    `fused`: in operations that share one pass where this is compiled; the results are the same.
    """
    trained = (labels != IGNORE)[:, None]
    label = labels.clamp(min=0)[:, None]
    log_probs = logits.log_softmax(1)
    nats = -log_probs.gather(1, label) * trained
    grad = log_probs.exp_().mul_(trained).to(dtype)
    # At the label p - 1, computed without cancellation; 0 where the token is not trained.
    at_label = (-nats).expm1().to(dtype)
    if fused:  # deterministic, unlike a scatter; eager, it would be two more passes
        is_label = torch.arange(logits.shape[1], device=logits.device) == label
        return nats.sum(), torch.where(is_label, at_label, grad)
    return nats.sum(), grad.scatter_(1, label, at_label)


def kl_of(
    logits: torch.Tensor, reference: torch.Tensor, labels: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """The KL divergence of fp32 logits [n, v] from a reference's, summed over the trained tokens.

    Returns it (nats) and its gradient, which is the difference of the predictions, in fp32.
    """
    trained = (labels != IGNORE)[:, None]
    log_probs = logits.log_softmax(1)
    reference_log_probs = reference.log_softmax(1)
    reference_probs = reference_log_probs.exp()
    nats = reference_probs * (reference_log_probs - log_probs) * trained
    return nats.sum(), (log_probs.exp() - reference_probs) * trained
