"""The GPUs that this process may use."""

import os
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import takewhile

COMMAND = ("nvidia-smi", "--query-gpu=index,memory.total", "--format=csv,noheader,nounits")


@dataclass(frozen=True)
class VisibleGpu:
    """A GPU: its name in CUDA_VISIBLE_DEVICES, and its memory (None: not known)."""

    id: str
    memory_gb: float | None


def visible_gpus(environment: Mapping[str, str] = os.environ) -> list[VisibleGpu]:
    """The GPUs of this machine that CUDA_VISIBLE_DEVICES leaves; none without a working driver."""
    try:
        answer = subprocess.run(COMMAND, capture_output=True, text=True)
    except OSError:
        return []
    if answer.returncode:
        return []
    rows = [line.split(", ") for line in answer.stdout.splitlines()]  # and warnings
    memory = {row[0]: _gb(row[1]) for row in rows if len(row) == 2 and row[0].isdecimal()}
    names = environment.get("CUDA_VISIBLE_DEVICES")
    if names is None:
        return [VisibleGpu(index, gb) for index, gb in memory.items()]
    given = names.replace(" ", "").split(",")
    # As CUDA does: a name of no GPU, such as -1, hides those after it. A name may also be a UUID,
    # also of a part of a GPU (MIG), whose memory is not listed.
    valid = takewhile(lambda name: name in memory or name.startswith(("GPU-", "MIG-")), given)
    return [VisibleGpu(name, memory.get(name)) for name in dict.fromkeys(valid)]


def _gb(mebibytes: str) -> float | None:
    """None where the driver answers "[N/A]", as for memory that CPU and GPU share."""
    return int(mebibytes) * 2**20 / 1e9 if mebibytes.isdecimal() else None
