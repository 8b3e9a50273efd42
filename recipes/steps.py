"""Step checkpoints: all that a training needs to go on from an update, on any number of ranks.

`steps/N` holds the state after update N. It gets its name when it is whole and on the disk; what a disk loses later
shows when it is read. The data's position needs no saving, because the order of rows follows from the seed.
"""

import os
import shutil
import warnings
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint import CheckpointException
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict

from recipes.distributed import Ranks
from study.errors import UserError

KEPT = 2


def complete(folder: Path) -> list[int]:
    """Updates of the step checkpoints in `folder` that were written to their end, the newest last."""
    return sorted(int(p.name) for p in folder.iterdir() if p.name.isdigit()) if folder.is_dir() else []


def save(folder: Path, update: int, model: torch.nn.Module, optimizer: torch.optim.Optimizer, ranks: Ranks) -> None:
    """Write `folder`/`update`, every rank its own part, and drop all but it and the one before.

    Raises UserError where it can't be written.
    """
    temporary = folder / ".tmp"
    if ranks.rank == 0:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
    ranks.wait()
    try:
        with _quiet():
            dcp.save(_state(model, optimizer), checkpoint_id=temporary, no_dist=ranks.world == 1)
    except CheckpointException as error:
        raise UserError(
            f"{folder}/{update}: can't be written: {_reason(error)}; is no space left on device, or no quota? "
            "make room and run it again: it goes on from the checkpoint before"
        ) from None
    if ranks.rank == 0:
        publish(temporary, folder / str(update))
        # One of a later update could not be read, or this training would not be here again.
        keep = [done for done in complete(folder) if done <= update][-KEPT:]
        for done in set(complete(folder)).difference(keep):
            shutil.rmtree(folder / str(done))
    ranks.wait()


def load(
    folder: Path, update: int, model: torch.nn.Module, optimizer: torch.optim.Optimizer, ranks: Ranks
) -> str | None:
    """Put the state of `folder`/`update` into `model` and `optimizer`, whatever number of ranks had saved it.

    Returns None, or, on every rank alike, why it can't be read; `model` and `optimizer` then hold parts of it.
    """
    state = _state(model, optimizer)
    try:
        with _quiet():
            dcp.load(state, checkpoint_id=folder / str(update), no_dist=ranks.world == 1)
    except CheckpointException as error:  # torch gathers it from all ranks, and raises it on all
        return _reason(error)
    set_state_dict(model, optimizer, model_state_dict=state["model"], optim_state_dict=state["optimizer"])
    return None


def publish(temporary: Path, final: Path) -> None:
    """Give a folder its final name once its content is on the disk; a former one of that name goes."""
    for path in [*temporary.rglob("*"), temporary]:
        _to_disk(path)
    shutil.rmtree(final, ignore_errors=True)
    temporary.rename(final)
    _to_disk(final.parent)


def _to_disk(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _state(model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    weights, moments = get_state_dict(model, optimizer)
    return {"model": weights, "optimizer": moments}


def _reason(error: CheckpointException) -> str:
    rank, (cause, _) = next(iter(error.failures.items()))
    while cause.__context__:  # torch's own complaint hides the disk's
        cause = cause.__context__
    return f"{type(cause).__name__}: {cause} (rank {rank})".replace("\n", " ")


def _quiet() -> warnings.catch_warnings:
    return warnings.catch_warnings(action="ignore")
