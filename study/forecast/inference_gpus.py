"""Whether cells hold as many GPUs as vLLM, or the ranks of a training, are told to use."""

import math
from typing import Any

from core.cell.identity import Cell
from core.errors import UserError
from core.model_size import shape
from study.forecast.training_size import is_training
from study.spec.fingerprints import PARALLEL_OPTIONS


def compare(cells: list[Cell], profile: Any) -> dict[str, list[str]]:
    """`refused` and `warnings`: stages whose jobs have too few or idle GPUs by a cluster profile,
    and models that vLLM can't divide among its GPUs.

    Without a profile, and for jobs without GPUs, where vLLM's CPU build runs, only the latter.
    """
    undivided = sorted({text for cell in cells if (text := _undivided(cell))})
    texts: dict[str, list[str]] = {"refused": undivided, "warnings": []}
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
    for stage in sorted({cell.stage for cell in cells if is_training(cell)}):
        resources = profile.resources(stage)
        held, ranks = gpus(resources), resources.tasks_per_node
        if 0 < held < ranks:
            text = f"{stage}: {ranks} ranks of a node would share {held} GPUs; "
            texts["refused"].append(f"{text}set tasks_per_node: {held}, or gpus_per_node: {ranks}")
    return texts


def _undivided(cell: Cell) -> str | None:
    size = cell.resources.get("engine", {}).get("tensor_parallel_size", 1)
    if size == 1 or "checkpoint" not in cell.inputs:
        return None
    try:
        heads = shape(cell.inputs["checkpoint"]).num_attention_heads
    except UserError:  # its config is not here, or of a family that is only evaluated
        return None
    if heads % size == 0:
        return None
    divisors = ", ".join(str(n) for n in range(1, heads + 1) if heads % n == 0)
    return f"{cell.stage}: tensor_parallel_size {size} does not divide {heads} heads; {divisors} do"


def vllm_gpus(cell: Cell) -> int:
    """GPUs that vLLM takes in a job of the cell; 0 where the cell runs no vLLM."""
    options = cell.resources.get("engine")
    address = cell.resources.get("address", {})
    if options is None and "path" in address:
        options = address["options"]
    if options is None:
        return 0
    return math.prod(options.get(name, 1) for name in PARALLEL_OPTIONS)
