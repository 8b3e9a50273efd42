"""Whether this process can use the GPUs that its job holds: for trainings, and for doctor."""

import os
import warnings
from collections.abc import Mapping
from pathlib import Path

from core.errors import UserError

# Compute capability of the A100. Older GPUs have no bf16, and torch and vLLM no kernels for them.
MIN_CAPABILITY = (8, 0)
NO_GPU = ("", "-1", "NoDevFiles")  # values of CUDA_VISIBLE_DEVICES that hide all GPUs


def holds_gpus(environment: Mapping[str, str] = os.environ, root: Path = Path("/")) -> bool:
    """Whether a GPU was given to this process.

    CUDA_VISIBLE_DEVICES that names no GPU asks for a run without. Outside a Slurm job it counts
    only where the machine has a GPU: a shell's setting must not refuse a run on a laptop.
    """
    visible = environment.get("CUDA_VISIBLE_DEVICES")
    if visible in NO_GPU:
        return False
    if any(environment.get(name) for name in ("SLURM_JOB_GPUS", "SLURM_STEP_GPUS")):
        return True
    if environment.get("SLURM_GPUS_ON_NODE", "0") not in ("", "0"):
        return True
    return visible is not None and any((root / "dev").glob("nvidia[0-9]*"))


def gpu_available(environment: Mapping[str, str] = os.environ, root: Path = Path("/")) -> bool:
    """Whether torch can use a GPU.

    Raises UserError where this process holds one and torch can't use it: a run on the CPU would
    take weeks without a word.
    """
    import torch

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        if torch.cuda.is_available():
            return True
    if not holds_gpus(environment, root):
        return False
    if torch.version.cuda is None:
        what = f"this job holds a GPU, and torch {torch.__version__} is a CPU build of torch"
        fix = "name an environment with the GPU packages as python: in the cluster profile"
    else:
        reasons = [str(warning.message).splitlines()[0] for warning in caught]
        reason = reasons[-1] if reasons else why_no_gpu()
        what = f"this job holds a GPU, and torch {torch.__version__} can't use it: {reason}"
        fix = "see nvidia-smi there"
    # In a job of Slurm srun sets CUDA_VISIBLE_DEVICES, whatever `setup` has set.
    fix += "; to run on the CPU request no GPU, and outside Slurm set CUDA_VISIBLE_DEVICES="
    raise UserError(what=what, fix=fix)


def why_no_gpu() -> str:
    """Why torch sees no GPU, in its own words.

    Without a driver it counts none and keeps silent until CUDA is initialized (device_count_impl in
    c10/cuda/CUDAFunctions.cpp).
    """
    import torch

    try:
        torch.cuda.init()
    except (RuntimeError, AssertionError) as error:
        return str(error).splitlines()[0]
    return "torch finds no CUDA device"


def check_capability(
    index: int = 0,
    needed: tuple[int, int] = MIN_CAPABILITY,
    feature: str = "bf16",
    use: str = "an A100 or newer",
) -> None:
    """Raises UserError where GPU `index` is older than compute capability `needed`.

    feature: what older GPUs don't have. use: what the error advises to use.
    """
    import torch

    capability = torch.cuda.get_device_capability(index)
    if capability < needed:
        raise UserError(
            what=f"{torch.cuda.get_device_name(index)} has compute capability "
            f"{'.'.join(map(str, capability))}, {'.'.join(map(str, needed))} is needed: it has no "
            f"{feature}",
            fix=f"use {use}",
        )
