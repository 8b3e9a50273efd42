"""Which GPU a name means: torch's, Slurm's, and a profile's."""

import pytest

from core.gpu_specs import GPUS, find_gpu


@pytest.mark.parametrize(
    "name, expected",
    [
        ("NVIDIA H100 80GB HBM3", "h100"),
        ("NVIDIA H100 PCIe", "h100 pcie"),
        ("NVIDIA H100 NVL", "h100 nvl"),
        ("NVIDIA H200", "h200"),
        ("NVIDIA GH200 480GB", "gh200"),
        ("NVIDIA A100-SXM4-80GB", "a100"),
        ("NVIDIA A100-PCIE-40GB", "a100 pcie"),
        ("NVIDIA A100 80GB PCIe", "a100 pcie"),
        ("NVIDIA RTX 6000 Ada Generation", "rtx 6000 ada"),
        ("NVIDIA RTX A6000", "rtx a6000"),
        ("NVIDIA L40S", "l40s"),
        ("nvidia_h100_80gb_hbm3", "h100"),
        ("h100", "h100"),
        ("h100_pcie", "h100 pcie"),
        ("NVIDIA H100 80GB HBM3 MIG 3g.40gb", None),
        ("a100_3g.20gb", None),
        ("Tesla V100-SXM2-32GB", None),
        ("gpu", None),
        ("", None),
    ],
)
def test_a_name_means_one_gpu(name: str, expected: str | None) -> None:
    gpu = find_gpu(name)
    assert (gpu.name if gpu else None) == expected


def test_each_gpu_is_found_by_its_own_name() -> None:
    assert all(find_gpu(gpu.name) is gpu for gpu in GPUS)
