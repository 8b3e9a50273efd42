"""OLMo 3: norms behind attention and feed-forward, queries and keys normalized over all heads.

Three of four layers attend to a window of the last tokens. The recipes train rows that fit into it
(`core.model_folder.config.longest_row`), where both kinds of layer attend to everything before.
Only layers with full attention scale RoPE.
"""

from functools import partial
from typing import Any

import torch
from torchtune.models.qwen2 import Qwen2RotaryPositionalEmbeddings
from torchtune.models.qwen2._convert_weights import _FROM_HF as QWEN2_FROM_HF
from torchtune.modules import RMSNorm, TransformerDecoder
from transformers import Olmo3Config
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from recipes.decoder import decoder, rename

FROM_HF = {
    theirs: ours for theirs, ours in QWEN2_FROM_HF.items() if "input_layernorm" not in theirs
} | {
    "model.layers.{}.post_attention_layernorm.weight": "layers.{}.sa_scale.scale",
    "model.layers.{}.post_feedforward_layernorm.weight": "layers.{}.mlp_scale.scale",
    "model.layers.{}.self_attn.q_norm.weight": "layers.{}.attn.q_norm.scale",
    "model.layers.{}.self_attn.k_norm.weight": "layers.{}.attn.k_norm.scale",
}
from_hf = partial(rename, names=FROM_HF)
to_hf = partial(rename, names={ours: theirs for theirs, ours in FROM_HF.items()})


class HeadsNorm(RMSNorm):
    """The RMSNorm of all heads together, of [b, s, heads, head_dim]."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x normalized over its last two dimensions."""
        normed: torch.Tensor = super().forward(x.flatten(-2)).unflatten(-1, x.shape[-2:])
        return normed


class YarnRope(Qwen2RotaryPositionalEmbeddings):
    """RoPE scaled by YaRN (arXiv 2309.00071), with the frequencies that transformers computes."""

    def __init__(self, config: Olmo3Config, dim: int, max_seq_len: int) -> None:
        self.config = config
        super().__init__(dim, max_seq_len)

    def rope_init(self) -> None:
        """Fill the table of sines and cosines, on the device at hand."""
        device = torch.get_default_device()
        frequencies, scale = ROPE_INIT_FUNCTIONS["yarn"](
            self.config, device, layer_type="full_attention"
        )
        self.register_buffer("theta", frequencies, persistent=False)
        self.build_rope_cache(self.max_seq_len)
        self.cache *= scale


def olmo3(*, rope: dict[str, Any], layer_types: list[str], **sizes: Any) -> TransformerDecoder:
    """The model as transformers' `Olmo3ForCausalLM` computes it.

    Args:
        rope: `rope_parameters` of the layers with full attention.
        layer_types: of each layer, "full_attention" or "sliding_attention".
        (others): as of `decoder`.
    """
    sizes["head_dim"] = head_dim = sizes["embed_dim"] // sizes["num_heads"]
    plain = Qwen2RotaryPositionalEmbeddings(head_dim, sizes["max_seq_len"], rope["rope_theta"])
    full = plain
    if rope["rope_type"] == "yarn":
        config = Olmo3Config(
            hidden_size=sizes["embed_dim"],
            num_attention_heads=sizes["num_heads"],
            num_hidden_layers=len(layer_types),
            max_position_embeddings=sizes["max_seq_len"],
            layer_types=layer_types,
            rope_parameters={"full_attention": rope},
        )
        full = YarnRope(config, head_dim, sizes["max_seq_len"])
    return decoder(
        positions=[full if kind == "full_attention" else plain for kind in layer_types],
        head_norm=lambda heads: HeadsNorm(heads * head_dim, eps=sizes["norm_eps"]),
        norms_outputs=True,
        **sizes,
    )
