"""Attention masks: a token sees itself and the tokens before it in its own document."""

from functools import cache
from typing import Any

import torch
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention
from torch.nn.functional import scaled_dot_product_attention
from torchtune.modules import MultiHeadAttention, TransformerDecoder
from torchtune.modules.attention_utils import _sdpa_or_flex_attention

from recipes.distributed import CPU

_compiled = cache(torch.compile)


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
    if device.type == "cuda":
        return block_mask(document.to(device, non_blocking=True))
    return document


def block_mask(document: torch.Tensor) -> BlockMask:
    """Flex attention's mask of `document` [b, s]. Compiled on a GPU: eager, it is 96 operations."""
    rows, length = document.shape
    create: Any = _compiled(create_block_mask) if document.is_cuda else create_block_mask
    rule = document_causal_rule(document)
    created: BlockMask = create(rule, rows, None, length, length, device=document.device)
    return created


def document_causal_rule(document: torch.Tensor):  # type: ignore[no-untyped-def]
    """Which token sees which, as flex attention's function of batch, head, query and key index.

    Padding counts as a document: the output of a token that sees nothing would be NaN.
    """

    def rule(
        b: torch.Tensor, h: torch.Tensor, q_idx: torch.Tensor, kv_idx: torch.Tensor
    ) -> torch.Tensor:
        return (q_idx >= kv_idx) & (document[b, q_idx] == document[b, kv_idx])

    return rule


class DocumentAttention(MultiHeadAttention):
    """torchtune's self-attention, which also takes what `mask` gives.

    Where a model normalizes queries and keys (Qwen3), it does so before RoPE; torchtune would
    after it. With a block mask keys and values are not repeated for the query heads that share
    them, and flex attention is compiled as a part of its block.
    """

    def forward(
        self,
        x: torch.Tensor,
        y: torch.Tensor | None = None,
        *,
        mask: Any = None,
        input_pos: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Attention output [b, s, d] of x [b, s, d]; y is x."""
        # [b, s, h, d]
        q, k, v = (
            projection(x).unflatten(-1, (-1, self.head_dim))
            for projection in (self.q_proj, self.k_proj, self.v_proj)
        )
        if self.q_norm is not None:
            q, k = self.q_norm(q), self.k_norm(k)
        q = self.pos_embeddings(q, input_pos=input_pos)
        k = self.pos_embeddings(k, input_pos=input_pos)
        q, k, v = (states.transpose(1, 2) for states in (q, k, v))
        shares = self.num_heads // self.num_kv_heads
        if isinstance(mask, BlockMask):
            compiling = torch.compiler.is_compiling() or not x.is_cuda
            flex: Any = flex_attention if compiling else _compiled(flex_attention)
            states = flex(q, k, v, block_mask=mask, enable_gqa=shares > 1)
        else:
            if shares > 1:
                k, v = (
                    states[:, :, None].expand(-1, -1, shares, -1, -1).flatten(1, 2)
                    for states in (k, v)
                )
            dropout = self.attn_dropout if self.training else 0.0
            states = self._attention_call(
                q, k, v, mask=mask, dropout_p=dropout, is_causal=mask is None
            )
        output: torch.Tensor = self.output_proj(states.transpose(1, 2).flatten(2))
        return output


def patch_attention(model: TransformerDecoder) -> None:
    """Make a model's attention DocumentAttention.

    By its class, as FSDP2 does: a function of each layer's own would be compiled for each layer.
    """
    for layer in model.layers:
        layer.attn.__class__ = DocumentAttention
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
