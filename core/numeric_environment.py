"""Variables of the environment that change numbers: thread counts, instruction sets, TF32, kernels.

A person's shell has them by chance, so the stages do not take them from there: results must not
depend on who started a cell. A cluster profile may set them in `setup`. Every manifest records
those of its process, and `verify` names cells of one study that differ.
"""

import os
from collections.abc import Mapping
from fnmatch import fnmatchcase

PATTERNS = (
    # threads and instructions on the CPU
    *("OMP_*", "GOMP_*", "KMP_*", "MKL_*", "OPENBLAS_*", "BLIS_*", "NUMEXPR_*"),
    *("DNNL_*", "ONEDNN_*", "ATEN_*"),
    # libraries and compilers of the GPU
    *("NVIDIA_TF32_OVERRIDE", "CUBLAS_*", "CUBLASLT_*", "CUDNN_*", "FLASHINFER_*", "TRITON_*"),
    *("NCCL_ALGO", "NCCL_PROTO", "NCCL_NVLS_ENABLE"),
    *("TORCH_*", "TORCHINDUCTOR_*", "TORCHDYNAMO_*", "PYTORCH_*", "VLLM_*"),
)
"""Such variables, in the patterns of a shell."""
OTHERS = (
    # Names with the same beginning that say where files are, how memory is kept, who may call.
    *("*_DIR", "*_ROOT", "*_HOME", "*_PATH", "*_BASE", "*_IP", "*_KEY", "*_TOKEN"),
    *("*_ALLOC_CONF", "*_COMPILE_THREADS", "PYTORCH_NVML_BASED_CUDA_CHECK", "KMP_DUPLICATE_LIB_OK"),
)
"""Those of them that change no numbers."""


def numeric(environment: Mapping[str, str]) -> dict[str, str]:
    """The variables that change numbers, by name."""
    return {
        name: value
        for name, value in sorted(environment.items())
        if _matches(name, PATTERNS) and not _matches(name, OTHERS)
    }


def clear() -> None:
    """Take those of a person's shell out of this process.

    To be called before a library reads them, which is at its import.
    """
    for name in numeric(os.environ):
        del os.environ[name]
    # Two busy processes on two cores slow torch down many times, and one thread sums in one order.
    os.environ["OMP_NUM_THREADS"] = "1"
    AT_START.clear()
    AT_START.update(numeric(os.environ))


def shell_line() -> str:
    """A line of bash that does the same but for OMP_NUM_THREADS, at the beginning of a job."""
    cases = f'{"|".join(OTHERS)}) ;; {"|".join(PATTERNS)}) unset "$name" ;;'
    return f"for name in $(compgen -e); do case $name in {cases} esac; done"


def _matches(name: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)


AT_START = numeric(os.environ)
"""Those of this process as it began, or after `clear`. What a stage sets later is the same for all
cells."""
