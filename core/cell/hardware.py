"""On what a cell ran, for its manifest: processor, GPUs, driver, kernel, Slurm."""

import os
import platform
import re
import shutil
import subprocess
from functools import lru_cache
from pathlib import Path
from typing import Any

_TIMEOUT_SECONDS = 20.0
_QUERY = ("--query-gpu=name,driver_version,power.limit", "--format=csv,noheader,nounits")


@lru_cache
def hardware(root: Path = Path("/")) -> dict[str, Any]:
    """Facts of this machine and job; what is not known is left out.

    `processor`, `kernel`; `gpus` (the names of those that this process may use), their `driver` and
    their `power_limits_watts`; `slurm_cluster` and `slurm_partition` in a job.
    """
    gpus, driver, limits = _gpus(root)
    facts = {
        "processor": _processor(root),
        "kernel": platform.release(),
        "gpus": gpus,
        "driver": driver,
        "power_limits_watts": limits,
        "slurm_cluster": os.environ.get("SLURM_CLUSTER_NAME"),
        "slurm_partition": os.environ.get("SLURM_JOB_PARTITION"),
    }
    return {name: value for name, value in facts.items() if value}


def _processor(root: Path) -> str:
    try:
        lines = (root / "proc/cpuinfo").read_text(errors="replace").splitlines()
    except OSError:
        return platform.processor()
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor())


def _gpus(root: Path) -> tuple[list[str], str, list[float]]:
    """The names of the GPUs, their driver and their power limits (W), as nvidia-smi says.

    It starts no context on them. No limits where one of them has none on record, as a part of a GPU
    (MIG).
    """
    if not (root / "proc/driver/nvidia/version").exists() or not shutil.which("nvidia-smi"):
        return [], "", []
    try:
        answer = subprocess.run(
            ["nvidia-smi", *_QUERY],
            capture_output=True,
            text=True,
            check=True,
            timeout=_TIMEOUT_SECONDS,
        ).stdout
    except (OSError, subprocess.SubprocessError):
        return [], "", []
    rows = [line.rsplit(", ", 2) for line in answer.splitlines() if line.count(", ") >= 2]
    texts = [text.strip() for *_, text in rows]
    limits = [float(text) for text in texts if re.fullmatch(r"[0-9]+(\.[0-9]+)?", text)]
    driver = next((driver for _, driver, _ in rows), "")
    return [name for name, *_ in rows], driver, limits if len(limits) == len(rows) else []
