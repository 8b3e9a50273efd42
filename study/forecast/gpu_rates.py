"""What the GPUs of a stage do in a second: measured by the profile, else by their type."""

from dataclasses import dataclass
from typing import Any

from core.gpu_specs import Gpu, find_gpu
from core.stages import EVALUATION_STAGES, TRAINING_STAGES
from study.forecast.assumptions import (
    ASSUMED_GPU,
    CORE_FLOPS,
    DECODE_FLOPS_PER_BYTE,
    GLOO_BYTES,
    LINK_SHARE,
    NETWORK_BYTES,
    PREFILL_SHARE,
    START_SECONDS,
    TRAINING_SHARE,
)


@dataclass(frozen=True)
class Rates:
    """Of one rank of a job, which has a GPU or, without, a core."""

    training_flops: float
    """Packed rows, compiled, without activation checkpointing. FLOP/s."""
    prefill_flops: float
    decode_flops: float
    node_bytes: float
    """That a rank receives in a second from ranks of its node."""
    network_bytes: float
    """That a node receives in a second from the others."""
    start_seconds: float
    write_bytes: float | None = None
    """That a node writes in a second. None: not measured."""


def rates_of(gpu: Gpu | None = ASSUMED_GPU, measured: Any = None) -> Rates:
    """The rates of a job.

    Args:
        gpu: its ranks' GPUs. None: it has none.
        measured: `measured` of a profile (slurm.profile.Measured).
    """
    if gpu:
        training = TRAINING_SHARE * gpu.peak_flops
        prefill = PREFILL_SHARE * gpu.peak_flops
        decode = DECODE_FLOPS_PER_BYTE * gpu.memory_bandwidth
        node, network = LINK_SHARE * gpu.link, NETWORK_BYTES
    else:
        training = prefill = decode = CORE_FLOPS
        node = network = GLOO_BYTES
    return Rates(
        (measured and measured.training_flops) or training,
        (measured and measured.prefill_flops) or prefill,
        (measured and measured.decode_flops) or decode,
        (measured and measured.node_bytes_per_second) or node,
        (measured and measured.network_bytes_per_second) or network,
        (measured and measured.start_seconds) or START_SECONDS,
        measured and measured.write_bytes_per_second,
    )


def stage_gpu(profile: Any, stage: str) -> Gpu | None:
    """The GPU of a stage's jobs by a cluster profile (slurm.profile); None where they have none."""
    resources = profile.resources(stage)
    if not resources.gpus_per_node:
        return None
    return _named_gpu(resources) or ASSUMED_GPU


def stage_rates(profile: Any, stage: str, on_gpu: bool = True) -> Rates:
    """The rates of a stage's jobs. `on_gpu`: whether they have GPUs where there is no profile."""
    if profile is None:
        return rates_of(ASSUMED_GPU if on_gpu else None)
    return rates_of(stage_gpu(profile, stage), profile.measured)


def unnamed_gpus(profile: Any) -> list[str]:
    """The stages whose GPUs have no type of core.gpu_specs: they are taken for ASSUMED_GPU."""
    resources = {
        stage: profile.resources(stage) for stage in (*TRAINING_STAGES, *EVALUATION_STAGES)
    }
    return [
        stage
        for stage, requested in resources.items()
        if requested.gpus_per_node and not _named_gpu(requested)
    ]


def _named_gpu(resources: Any) -> Gpu | None:
    of_slurm = str(resources.gpus_per_node).rpartition(":")[0]
    return find_gpu(of_slurm) or find_gpu(resources.gpu_type or "")
