"""Which cells hold GPUs when a study runs on one machine, and how many."""

from collections.abc import Sequence

from core.cell.identity import Cell
from core.cell.local_executor import Gpus
from core.errors import Problem, UserError
from core.model_size import memory, shape
from core.stages import STAGE_INFO
from core.visible_gpus import visible_gpus
from study.forecast.inference_gpus import vllm_gpus
from study.forecast.training_cost import is_training, recipe_of


def local_gpus(cells: Sequence[Cell], count: int | None, ranks: int | None) -> Gpus:
    """The GPUs that `run` gives to cells.

    A training holds `ranks` of them, one for each rank. vLLM, as the engine of an evaluation or as
    the server of an endpoint, holds as many as its options say. A probe holds one. All other cells
    hold none.

    Args:
        cells: Those that will run.
        count: Use so many. None: all that are visible.
        ranks: GPUs of a training. None: the fewest whose memory holds it, by the forecast.

    Where no GPU is visible and `count` asks for some, processes on the CPU take their place.

    Raises:
        UserError: A cell needs more than there are.
    """
    visible = visible_gpus()
    total = len(visible) if count is None else count
    if visible and total > len(visible):
        raise UserError(
            where=f"--gpus {count}",
            what=f"{len(visible)} are visible here",
            fix=f"--gpus {len(visible)}, or correct CUDA_VISIBLE_DEVICES",
        )
    if not total:
        if ranks:
            raise UserError(
                where=f"--ranks {ranks}",
                what="no GPU is visible here",
                fix=f"add --gpus {ranks} to run the ranks on the CPU",
            )
        return Gpus()
    used = visible[:total]
    sizes = [gpu.memory_gb for gpu in used if gpu.memory_gb]
    memory_gb = min(sizes) if sizes and len(sizes) == len(used) else None
    needed = {}
    ranked = set()
    problems = []
    for cell in cells:
        num_gpus = int(STAGE_INFO[cell.stage].needs_transformers) or vllm_gpus(cell)
        if is_training(cell):
            num_gpus = ranks or _fewest(cell, total, memory_gb)
            if num_gpus > 1:
                ranked.add(cell.identity)
        if num_gpus > total:
            what = f"needs {num_gpus} GPUs, there are {total}"
            problems.append(Problem(f"{cell.stage} {cell.name}", what, f"--gpus {num_gpus}"))
        needed[cell.identity] = num_gpus
    if problems:
        raise UserError.of(problems)
    ids = tuple(gpu.id for gpu in used) or ("",) * total
    return Gpus(ids, needed, frozenset(ranked))


def _fewest(cell: Cell, total: int, memory_gb: float | None) -> int:
    """The fewest GPUs whose memory (GB of each; None: not known) holds a training."""
    if memory_gb is None:
        return 1
    recipe = recipe_of(cell)
    model = shape(cell)
    most = min(total, recipe.rows_per_step)
    for ranks in range(1, most + 1):
        needed_gb = memory(model, recipe, ranks, ranks)["total"]
        if needed_gb <= memory_gb:
            return ranks
    raise UserError(
        where=f"{cell.stage} {cell.name}",
        what=f"needs about {needed_gb:.0f} GB on each of {most} GPUs, which have {memory_gb:.0f}",
        fix="activation_checkpointing, micro_batch_size: 1 or dtype: bf16 take less; "
        f"--ranks {most} runs it all the same",
    )
