"""Rows of the embedding and of the output layer that are trained beside LoRA's adapters.

A base model has never seen the tokens that open and end the turns of a chat, so their rows are as
they were drawn at the start. LoRA alone leaves them so.
"""

import torch
from torch import nn
from torchtune.modules import TransformerDecoder

ROWS = "lora_rows"  # a parameter's name; exports take what has lora_ in it for an adapter


class RowEmbedding(nn.Embedding):
    """An embedding with a trained difference for the tokens `row_ids`."""

    row_ids: torch.Tensor
    lora_rows: nn.Parameter
    disabled: bool  # as in torchtune's adapters (`disable_adapter`)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Embeddings [b, s, d] of token ids [b, s]."""
        if self.disabled:
            return super().forward(tokens)
        is_row = (tokens[..., None] == self.row_ids).to(self.lora_rows.dtype)
        return super().forward(tokens) + is_row @ self.lora_rows


def add_token_rows(model: TransformerDecoder, token_ids: list[int]) -> None:
    """Make the rows of these tokens trainable, in place; as adapters, which begin at 0.

    The output layer's are read by `recipes.loss`, which applies it.
    """
    tied = hasattr(model.output, "tied_module")
    model.tok_embeddings.__class__ = RowEmbedding
    for layer in [model.tok_embeddings] if tied else [model.tok_embeddings, model.output]:
        width = layer.weight.shape[1]
        layer.register_parameter(ROWS, nn.Parameter(torch.zeros(len(token_ids), width)))
        layer.register_buffer("row_ids", torch.tensor(token_ids), persistent=False)
        layer.adapter_params = lambda: [ROWS]
        layer.disabled = False


def fill_row_ids(model: TransformerDecoder, token_ids: list[int]) -> None:
    """Fill the buffers of a model that was made on the meta device: no checkpoint holds them."""
    for module in model.modules():
        if hasattr(module, "row_ids"):
            module.row_ids.copy_(torch.tensor(token_ids))


def with_rows(layer: nn.Module) -> torch.Tensor:
    """The weight [v, d] of an embedding or output layer, its trained rows added."""
    weight: torch.Tensor = layer.weight  # type: ignore[assignment]
    if hasattr(layer, ROWS) and not layer.disabled:
        return weight.index_add(0, layer.row_ids, layer.lora_rows.to(weight.dtype))  # type: ignore[arg-type]
    return weight
