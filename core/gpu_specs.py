"""What the makers state of GPUs: the peak of products in bf16, memory and links."""

import re
from dataclasses import dataclass

NVLINK_4 = 450e9  # bytes a second in one direction, half of what the datasheets add up
PCIE_5 = 64e9
PCIE_4 = 32e9


@dataclass(frozen=True)
class Gpu:
    """A type of GPU."""

    name: str
    """Its words in the name that torch reports or a Slurm type has, such as `h100 pcie`."""
    peak_flops: float
    """Peak of dense matrix products in bf16, FLOP/s."""
    memory_bandwidth: float
    """Bytes a second of its memory."""
    link: float
    """Bytes a second that it receives from the GPUs of its node: NVLink, else PCI Express."""
    source: str


_HOPPER = "NVIDIA's datasheets of H100, H200 and GH200"
_AMPERE = "NVIDIA's datasheets of A100, A30, A40 and A10"
_BLACKWELL = "NVIDIA's datasheet of HGX B200 and B300: 36 PFLOP/s with sparsity by 8 GPUs"
_EXPORT = "as the H100 or A100, with fewer links"
_ADA = "NVIDIA's datasheets of L40S, L40 and L4"
_RTX = "NVIDIA's white papers of GA102 and AD102, with sums in fp32"

GPUS = (
    Gpu("gb200", 2500e12, 8.0e12, 900e9, "NVIDIA's datasheet of GB200"),
    Gpu("b300", 2250e12, 8.0e12, 900e9, _BLACKWELL),
    Gpu("b200", 2250e12, 8.0e12, 900e9, _BLACKWELL),
    Gpu("gh200", 989e12, 4.0e12, NVLINK_4, _HOPPER),
    Gpu("h200", 989e12, 4.8e12, NVLINK_4, _HOPPER),
    Gpu("h200 nvl", 835e12, 4.8e12, NVLINK_4, _HOPPER),
    Gpu("h100", 989e12, 3.35e12, NVLINK_4, _HOPPER),
    Gpu("h100 nvl", 835e12, 3.9e12, PCIE_5, _HOPPER),
    Gpu("h100 pcie", 756e12, 2.0e12, PCIE_5, _HOPPER),
    Gpu("h800", 989e12, 3.35e12, 200e9, _EXPORT),
    Gpu("h20", 148e12, 4.0e12, NVLINK_4, _EXPORT),
    Gpu("a100", 312e12, 2.0e12, 300e9, _AMPERE),
    Gpu("a100 pcie", 312e12, 1.9e12, PCIE_4, _AMPERE),
    Gpu("a800", 312e12, 2.0e12, 200e9, _EXPORT),
    Gpu("a40", 150e12, 0.70e12, PCIE_4, _AMPERE),
    Gpu("a30", 165e12, 0.93e12, PCIE_4, _AMPERE),
    Gpu("a10", 125e12, 0.60e12, PCIE_4, _AMPERE),
    Gpu("l40s", 362e12, 0.86e12, PCIE_4, _ADA),
    Gpu("l40", 181e12, 0.86e12, PCIE_4, _ADA),
    Gpu("l4", 121e12, 0.30e12, PCIE_4, _ADA),
    Gpu("rtx 6000 ada", 364e12, 0.96e12, PCIE_4, _RTX),
    Gpu("rtx a6000", 155e12, 0.77e12, PCIE_4, _RTX),
    Gpu("rtx 4090", 165e12, 1.01e12, PCIE_4, _RTX),
    Gpu("rtx 3090", 71e12, 0.94e12, PCIE_4, _RTX),
)


def find_gpu(name: str) -> Gpu | None:
    """The GPU whose words are all in `name`, of several the one with most words.

    Args:
        name: as torch or Slurm has it, such as "NVIDIA H100 80GB HBM3", "a100_80gb", "h100".

    Returns None for one that is not listed, and for a part of a GPU (MIG).
    """
    words = set(re.split(r"[^a-z0-9]+", name.lower()))
    if any(re.fullmatch(r"\d+g", word) for word in words):
        return None
    matches = [gpu for gpu in GPUS if set(gpu.name.split()) <= words]
    return max(matches, key=lambda gpu: len(gpu.name.split()), default=None)
