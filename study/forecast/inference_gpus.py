"""Whether the cells that run vLLM hold as many GPUs as vLLM is told to use."""

import math
from typing import Any

from core.cell.identity import Cell
from study.spec.fingerprints import PARALLEL_OPTIONS


def compare(cells: list[Cell], profile: Any) -> dict[str, list[str]]:
    """`refused` and `warnings`: stages whose jobs have too few or idle GPUs by a cluster profile.

    Both are empty without a profile, and for jobs without GPUs, where vLLM's CPU build runs.
    """
    texts: dict[str, list[str]] = {"refused": [], "warnings": []}
    if profile is None:
        return texts
    from slurm.cluster_limits import gpus

    for stage, wanted in sorted(
        {(cell.stage, wanted) for cell in cells if (wanted := vllm_gpus(cell))}
    ):
        held = gpus(profile.resources(stage))
        text = f"{stage}: vLLM is told to use {wanted} GPUs of a node, the cluster profile gives "
        text += f"{held}; "
        if 0 < held < wanted:
            text += f"set gpus_per_node: {wanted} for {stage}, or lower tensor_parallel_size"
            texts["refused"].append(text)
        elif held > wanted:
            text += f"set gpus_per_node: {wanted} for {stage}, or raise tensor_parallel_size"
            texts["warnings"].append(text)
    return texts


def vllm_gpus(cell: Cell) -> int:
    """GPUs that vLLM takes in a job of the cell; 0 where the cell runs no vLLM."""
    options = cell.resources.get("engine")
    address = cell.resources.get("address", {})
    if options is None and "path" in address:
        options = address["options"]
    if options is None:
        return 0
    return math.prod(options.get(name, 1) for name in PARALLEL_OPTIONS)
