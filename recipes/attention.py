"""Which tokens see which: each the tokens before it in its own document, and none of another's."""

import torch
from torch.nn.attention.flex_attention import BlockMask, create_block_mask

from recipes.distributed import CPU


def mask(document: torch.Tensor, device: torch.device = CPU) -> torch.Tensor | BlockMask | None:
    """What torchtune's attention takes for documents [b, s], numbered; padding, always last in a row, is -1.

    None where no row has two documents: causal attention is enough. Else on a CPU bool [b, s, s], true where row i may
    see column j; on a GPU flex attention's mask of blocks, which skips those in which nothing is seen.
    """
    # Conversations have many lengths, and flex attention is compiled for each; after 8 of them torch no longer does.
    if ((document == document[:, :1]) | (document < 0)).all():
        return None
    rows, length = document.shape
    document = document.to(device)
    if device.type == "cuda":
        return create_block_mask(seen(document), rows, None, length, length, device=device)
    same = document[:, :, None] == document[:, None, :]
    return same & torch.ones(same.shape[1:], dtype=torch.bool, device=device).tril()


def seen(document: torch.Tensor):  # type: ignore[no-untyped-def]
    """The same as a function of batch, head, row and column, as flex attention asks for it.

    Padding is a document like any other: a token that saw nothing would be NaN.
    """

    def rule(b: torch.Tensor, h: torch.Tensor, i: torch.Tensor, j: torch.Tensor) -> torch.Tensor:
        return (i >= j) & (document[b, i] == document[b, j])

    return rule
