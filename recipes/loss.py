"""Cross-entropy that never holds the logits of a whole batch."""

import torch
from torch.nn import LinearCrossEntropyOptions
from torch.nn.functional import linear_cross_entropy
from torchtune.data import CROSS_ENTROPY_IGNORE_IDX as IGNORE
from torchtune.modules import TransformerDecoder

from study.memory import CHUNK


def end_in_hidden_states(model: TransformerDecoder) -> None:
    """Leave the output layer to `summed_loss`: the model then gives normalised hidden states [b, s, d]."""
    model.unembed = model.norm.forward


def summed_loss(model: TransformerDecoder, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """Cross-entropy (nats, fp32) summed over the trained tokens of `batch`: tokens, labels, input_pos [b, s], mask.

    0, with gradients of 0, where no token is trained. The model ends in hidden states: the output layer is here, a
    chunk of tokens at a time. Of fp32 states the gradients are made in the forward pass; of bf16 states the logits are
    made again in the backward pass, because torch's own sum over them would be bf16 too, wrong by a hundredth.
    """
    hidden = model(batch["tokens"], mask=batch["mask"], input_pos=batch["input_pos"])
    # Tied or not; with FSDP2 it is whole here, because the root keeps its own parameters until the backward pass.
    layer = model.tok_embeddings if hasattr(model.output, "tied_module") else model.output
    nats = linear_cross_entropy(
        hidden.flatten(0, 1),
        layer.weight,
        batch["labels"].flatten(),
        reduction="sum" if hidden.dtype == torch.float32 else "none",
        ignore_index=IGNORE,
        options=LinearCrossEntropyOptions(batch_chunk_size=CHUNK),
    )
    return nats.float().sum()
