"""Qwen3 (dense): Qwen2 without biases, with queries and keys normalized head by head."""

from functools import partial
from typing import Any

from torchtune.models.qwen2 import Qwen2RotaryPositionalEmbeddings
from torchtune.models.qwen2._convert_weights import _FROM_HF as QWEN2_FROM_HF
from torchtune.modules import RMSNorm, TransformerDecoder

from recipes.decoder import decoder, rename

FROM_HF = QWEN2_FROM_HF | {
    f"model.layers.{{}}.self_attn.{name}_norm.weight": f"layers.{{}}.attn.{name}_norm.scale"
    for name in "qk"
}
from_hf = partial(rename, names=FROM_HF)
to_hf = partial(rename, names={ours: theirs for theirs, ours in FROM_HF.items()})


def qwen3(*, num_layers: int, rope_base: float, **sizes: Any) -> TransformerDecoder:
    """The model as transformers' `Qwen3ForCausalLM` computes it; `sizes` as of `decoder`."""
    rope = Qwen2RotaryPositionalEmbeddings(sizes["head_dim"], sizes["max_seq_len"], rope_base)
    return decoder(
        positions=[rope] * num_layers,
        head_norm=lambda heads: RMSNorm(sizes["head_dim"], eps=sizes["norm_eps"]),
        norms_outputs=False,
        **sizes,
    )
