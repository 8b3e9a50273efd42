"""Decoders of torchtune's parts whose queries and keys are normalized, which its own builders lack.

`DocumentAttention` normalizes queries and keys before RoPE, as transformers does.
"""

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import nn
from torchtune.models.convert_weights import get_mapped_key
from torchtune.modules import (
    FeedForward,
    MultiHeadAttention,
    RMSNorm,
    TiedLinear,
    TransformerDecoder,
    TransformerSelfAttentionLayer,
)
from torchtune.modules.peft import LoRALinear

Weights = dict[str, torch.Tensor]


def decoder(
    *,
    positions: Sequence[nn.Module],
    head_norm: Callable[[int], nn.Module],
    norms_outputs: bool,
    vocab_size: int,
    num_heads: int,
    num_kv_heads: int,
    head_dim: int,
    embed_dim: int,
    intermediate_dim: int,
    max_seq_len: int,
    norm_eps: float,
    tie_word_embeddings: bool,
    lora_rank: int | None = None,
    lora_alpha: float = 0.0,
    lora_dropout: float = 0.0,
) -> TransformerDecoder:
    """A decoder; with `lora_rank` its seven linear layers a block have adapters.

    Args:
        positions: RoPE of each layer; their number is the number of layers.
        head_norm: makes the norm of so many heads' queries or keys, which are [b, s, heads,
            head_dim].
        norms_outputs: a block normalizes what attention and feed-forward give, not what they take.
        (others): sizes, by torchtune's names.
    """
    linear = partial(nn.Linear, bias=False)
    if lora_rank:
        linear = partial(LoRALinear, rank=lora_rank, alpha=lora_alpha, dropout=lora_dropout)
    q_dim, kv_dim = num_heads * head_dim, num_kv_heads * head_dim

    def layer(position: nn.Module) -> TransformerSelfAttentionLayer:
        attention = MultiHeadAttention(
            embed_dim=embed_dim,
            num_heads=num_heads,
            num_kv_heads=num_kv_heads,
            head_dim=head_dim,
            q_proj=linear(embed_dim, q_dim),
            k_proj=linear(embed_dim, kv_dim),
            v_proj=linear(embed_dim, kv_dim),
            output_proj=linear(q_dim, embed_dim),
            pos_embeddings=position,
            q_norm=head_norm(num_heads),
            k_norm=head_norm(num_kv_heads),
            max_seq_len=max_seq_len,
        )
        feed_forward = FeedForward(
            gate_proj=linear(embed_dim, intermediate_dim),
            down_proj=linear(intermediate_dim, embed_dim),
            up_proj=linear(embed_dim, intermediate_dim),
        )
        norms = [RMSNorm(embed_dim, eps=norm_eps) for _ in range(2)]
        names = ("sa_scale", "mlp_scale") if norms_outputs else ("sa_norm", "mlp_norm")
        return TransformerSelfAttentionLayer(
            attn=attention, mlp=feed_forward, **dict(zip(names, norms, strict=True))
        )

    embedding = nn.Embedding(vocab_size, embed_dim)
    return TransformerDecoder(
        tok_embeddings=embedding,
        layers=nn.ModuleList(layer(position) for position in positions),
        max_seq_len=max_seq_len,
        num_heads=num_heads,
        head_dim=head_dim,
        norm=RMSNorm(embed_dim, eps=norm_eps),
        output=(
            TiedLinear(embedding)
            if tie_word_embeddings
            else nn.Linear(embed_dim, vocab_size, bias=False)
        ),
    )


def rename(weights: Weights, names: dict[str, str], **sizes: int) -> Weights:
    """Weights by other names, of `names`; `sizes` of heads, which torchtune gives, change nothing.

    Tables of RoPE, which old files keep, are dropped.
    """
    return {
        get_mapped_key(name, names): weight
        for name, weight in weights.items()
        if "rotary_emb" not in name
    }
