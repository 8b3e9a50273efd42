"""Attention masks: a token sees itself and the tokens before it in its own document."""

from typing import Any

import torch
from torch.nn.attention.flex_attention import BlockMask, create_block_mask
from torch.nn.functional import scaled_dot_product_attention
from torchtune.modules import TransformerDecoder
from torchtune.modules.attention_utils import _sdpa_or_flex_attention

from recipes.distributed import CPU


def mask(document: torch.Tensor, device: torch.device = CPU) -> torch.Tensor | BlockMask | None:
    """The mask that a model of recipes.model takes for a batch.

    Args:
        document: [b, s], the number of each token's document; padding, always last, is -1.
        device: the model's.

    Returns None where no row has two documents: causal attention is enough. Otherwise on a GPU flex
    attention's block mask, which skips blocks in which nothing is visible; on a CPU `document`
    itself, for `by_document`.
    """
    # Conversations have many lengths. Flex attention is compiled for each length, and after 8 of
    # them torch no longer compiles.
    if ((document == document[:, :1]) | (document < 0)).all():
        return None
    rows, length = document.shape
    document = document.to(device)
    if device.type == "cuda":
        rule = document_causal_rule(document)
        return create_block_mask(rule, rows, None, length, length, device=device)
    return document


def document_causal_rule(document: torch.Tensor):  # type: ignore[no-untyped-def]
    """Which token sees which, as flex attention's function of batch, head, query and key index.

    Padding counts as a document: the output of a token that sees nothing would be NaN.
    """

    def rule(
        b: torch.Tensor, h: torch.Tensor, q_idx: torch.Tensor, kv_idx: torch.Tensor
    ) -> torch.Tensor:
        return (q_idx >= kv_idx) & (document[b, q_idx] == document[b, kv_idx])

    return rule


def patch_attention(model: TransformerDecoder) -> None:
    """Let torchtune's attention also take document numbers [b, s] as a mask (`mask` on a CPU)."""
    for layer in model.layers:
        layer.attn._attention_call = _attention


_torchtune_attention = _sdpa_or_flex_attention()


def _attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    mask: Any,
    dropout_p: float,
    **options: Any,
) -> Any:
    if isinstance(mask, torch.Tensor) and mask.dtype == torch.long:
        return by_document(q, k, v, mask, dropout_p)
    return _torchtune_attention(q, k, v, mask, dropout_p, **options)


@torch.compiler.disable  # otherwise compiled anew for each batch's lengths
def by_document(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    document: torch.Tensor,
    dropout: float = 0.0,
) -> torch.Tensor:
    """Causal attention [b, h, s, d] inside each document of [b, s], one document after another.

    No score is computed only to be masked.
    """
    lengths: list[int] = []
    for row in document:
        lengths += row.unique_consecutive(return_counts=True)[1].tolist()

    def split(states: torch.Tensor) -> list[torch.Tensor]:
        # The gradient of `split` is one concatenation; a slice's is a full tensor per document.
        parts = states.transpose(1, 2).flatten(0, 1).split(lengths)
        return [part.transpose(0, 1)[None] for part in parts]

    outputs = [
        scaled_dot_product_attention(*qkv, dropout_p=dropout, is_causal=True)
        for qkv in zip(split(q), split(k), split(v), strict=True)
    ]
    packed = torch.cat(outputs, 2)[0].transpose(0, 1)
    states: torch.Tensor = packed.unflatten(0, document.shape).transpose(1, 2)
    return states
