"""Which tokens see which: each the tokens before it in its own document, and none of another's."""

from typing import Any

import torch
from torch.nn.attention.flex_attention import BlockMask, create_block_mask
from torch.nn.functional import scaled_dot_product_attention
from torchtune.modules import TransformerDecoder
from torchtune.modules.attention_utils import _sdpa_or_flex_attention

from recipes.distributed import CPU


def mask(document: torch.Tensor, device: torch.device = CPU) -> torch.Tensor | BlockMask | None:
    """What the attention of a model of recipes.model takes for documents [b, s], numbered; padding, always last, is -1.

    None where no row has two documents: causal attention is enough. Else on a GPU flex attention's mask of blocks,
    which skips those in which nothing is seen; on a CPU the documents themselves, for `by_document`.
    """
    # Conversations have many lengths, and flex attention is compiled for each; after 8 of them torch no longer does.
    if ((document == document[:, :1]) | (document < 0)).all():
        return None
    rows, length = document.shape
    document = document.to(device)
    if device.type == "cuda":
        return create_block_mask(seen(document), rows, None, length, length, device=device)
    return document


def seen(document: torch.Tensor):  # type: ignore[no-untyped-def]
    """Which token sees which, as a function of batch, head, row and column, as flex attention asks for it.

    Padding is a document like any other: a token that saw nothing would be NaN.
    """

    def rule(b: torch.Tensor, h: torch.Tensor, i: torch.Tensor, j: torch.Tensor) -> torch.Tensor:
        return (i >= j) & (document[b, i] == document[b, j])

    return rule


def take_documents(model: TransformerDecoder) -> None:
    """Let torchtune's attention also take documents [b, s] for a mask, as `mask` gives them on a CPU."""
    for layer in model.layers:
        layer.attn._attention_call = _attention


_torchtunes = _sdpa_or_flex_attention()


def _attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: Any, dropout_p: float, **how: Any) -> Any:
    if isinstance(mask, torch.Tensor) and mask.dtype == torch.long:
        return by_document(q, k, v, mask, dropout_p)
    return _torchtunes(q, k, v, mask, dropout_p, **how)


@torch.compiler.disable  # else compiled anew for each batch's lengths
def by_document(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, document: torch.Tensor, dropout: float = 0.0
) -> torch.Tensor:
    """Causal attention [b, h, s, d] inside each document of [b, s], on its own: no score is made to be masked."""
    lengths = [n for row in document for n in row.unique_consecutive(return_counts=True)[1].tolist()]

    def split(states: torch.Tensor) -> list[torch.Tensor]:
        # Its gradient is one concatenation; a slice's would be a whole tensor for each document.
        parts = states.transpose(1, 2).flatten(0, 1).split(lengths)
        return [part.transpose(0, 1)[None] for part in parts]

    each = zip(split(q), split(k), split(v), strict=True)
    made = [scaled_dot_product_attention(*part, dropout_p=dropout, is_causal=True) for part in each]
    return torch.cat(made, 2)[0].transpose(0, 1).unflatten(0, document.shape).transpose(1, 2)
