"""Matrix products of the blocks in float8, by torchao: for pilots, on GPUs that have it."""

from dataclasses import replace

import torch
from torch import nn
from torchao.float8 import Float8LinearConfig, convert_to_float8_training
from torchtune.modules import TransformerDecoder

from core.gpu import check_capability

# Of the H100: torch's products with a scale for each row.
NEEDED = (9, 0)
MULTIPLE = 16  # of both sizes of a weight, for tensor cores


def convert(model: TransformerDecoder, device: torch.device) -> None:
    """Let the linear layers of all blocks multiply in float8, with a scale for each row.

    Weights, gradients and optimizer state keep their dtype, and weights their names. The output
    layer and the embedding stay as they are. A CPU rounds to float8 and multiplies in the dtype of
    the activations. Raises UserError where the GPU has no such products.
    """
    is_cpu = device.type == "cpu"
    if not is_cpu:
        check_capability(device.index, NEEDED, "float8", "an H100 or newer, or float8: false")
    config = replace(Float8LinearConfig.from_recipe_name("rowwise"), emulate=is_cpu)
    for layer in model.layers:
        convert_to_float8_training(layer, config=config, module_filter_fn=_fits)


def _fits(module: nn.Module, _: str) -> bool:
    return isinstance(module, nn.Linear) and not any(n % MULTIPLE for n in module.weight.shape)
