"""Qwen3 of torchtune's parts, which lacks it: queries and keys are normalized head by head.

Sizes are those of torchtune's `qwen2`, but that heads have a size of their own. `DocumentAttention`
normalizes before RoPE, as the model does (transformers' `Qwen3Attention`).
"""

from functools import partial
from typing import Any

import torch
from torch import nn
from torchtune.models.convert_weights import get_mapped_key
from torchtune.models.qwen2 import Qwen2RotaryPositionalEmbeddings
from torchtune.models.qwen2._convert_weights import _FROM_HF as QWEN2_FROM_HF
from torchtune.modules import (
    FeedForward,
    MultiHeadAttention,
    RMSNorm,
    TiedLinear,
    TransformerDecoder,
    TransformerSelfAttentionLayer,
)
from torchtune.modules.peft import LoRALinear

FROM_HF = QWEN2_FROM_HF | {
    f"model.layers.{{}}.self_attn.{name}_norm.weight": f"layers.{{}}.attn.{name}_norm.scale"
    for name in "qk"
}
TO_HF = {ours: theirs for theirs, ours in FROM_HF.items()}


def qwen3(
    *,
    vocab_size: int,
    num_layers: int,
    num_heads: int,
    num_kv_heads: int,
    head_dim: int,
    embed_dim: int,
    intermediate_dim: int,
    max_seq_len: int,
    norm_eps: float,
    rope_base: float,
    tie_word_embeddings: bool,
    lora_rank: int | None = None,
    lora_alpha: float = 0.0,
    lora_dropout: float = 0.0,
) -> TransformerDecoder:
    """The decoder; with `lora_rank` its seven linear layers a block have adapters."""
    linear = partial(nn.Linear, bias=False)
    if lora_rank:
        linear = partial(LoRALinear, rank=lora_rank, alpha=lora_alpha, dropout=lora_dropout)
    q_dim, kv_dim = num_heads * head_dim, num_kv_heads * head_dim
    positions = Qwen2RotaryPositionalEmbeddings(head_dim, max_seq_len, base=rope_base)
    layers = nn.ModuleList(
        TransformerSelfAttentionLayer(
            attn=MultiHeadAttention(
                embed_dim=embed_dim,
                num_heads=num_heads,
                num_kv_heads=num_kv_heads,
                head_dim=head_dim,
                q_proj=linear(embed_dim, q_dim),
                k_proj=linear(embed_dim, kv_dim),
                v_proj=linear(embed_dim, kv_dim),
                output_proj=linear(q_dim, embed_dim),
                pos_embeddings=positions,
                q_norm=RMSNorm(head_dim, eps=norm_eps),
                k_norm=RMSNorm(head_dim, eps=norm_eps),
                max_seq_len=max_seq_len,
            ),
            mlp=FeedForward(
                gate_proj=linear(embed_dim, intermediate_dim),
                down_proj=linear(intermediate_dim, embed_dim),
                up_proj=linear(embed_dim, intermediate_dim),
            ),
            sa_norm=RMSNorm(embed_dim, eps=norm_eps),
            mlp_norm=RMSNorm(embed_dim, eps=norm_eps),
        )
        for _ in range(num_layers)
    )
    embedding = nn.Embedding(vocab_size, embed_dim)
    return TransformerDecoder(
        tok_embeddings=embedding,
        layers=layers,
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


def qwen3_hf_to_tune(weights: dict[str, torch.Tensor], **sizes: Any) -> dict[str, torch.Tensor]:
    """Hugging Face's names -> torchtune's; `sizes` of heads change nothing."""
    return {
        get_mapped_key(name, FROM_HF): weight
        for name, weight in weights.items()
        if "rotary_emb" not in name
    }


def qwen3_tune_to_hf(weights: dict[str, torch.Tensor], **sizes: Any) -> dict[str, torch.Tensor]:
    """torchtune's names -> Hugging Face's; `sizes` of heads change nothing."""
    return {get_mapped_key(name, TO_HF): weight for name, weight in weights.items()}
