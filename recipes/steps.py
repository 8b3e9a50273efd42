"""Step checkpoints: all that a training needs to go on from an update, on any number of ranks.

`steps/N` holds the state after update N. It gets its name when it is whole and on the disk; what a disk loses later
shows when it is read. The data's position needs no saving, because the order of rows follows from the seed.
"""

import os
import shutil
import warnings
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint import CheckpointException
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_state_dict, set_state_dict
from torchao.optim import AdamW8bit

from core.errors import UserError
from recipes.distributed import Ranks

KEPT = 2


def complete(folder: Path) -> list[int]:
    """Updates of the step checkpoints in `folder` that were written to their end, the newest last."""
    return sorted(int(p.name) for p in folder.iterdir() if p.name.isdigit()) if folder.is_dir() else []


class Saver:
    """Writes step checkpoints to `folder` while the training goes on: it waits for the copy, not for the disk.

    Every method is a collective: all ranks must call it alike. One checkpoint is under way at a time.
    """

    def __init__(self, folder: Path, ranks: Ranks) -> None:
        self.folder, self.ranks = folder, ranks
        # Of its own: the thread that writes must not meet the training's own collectives.
        self.group = dist.new_group(backend="gloo") if dist.is_initialized() else None
        self.running: tuple[int, Future[Any]] | None = None

    def start(self, update: int, model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> None:
        """Copy the state after `update`, each rank its own part, and begin to write it."""
        self.finish()
        temporary = self.folder / ".tmp"
        if self.ranks.rank == 0:
            shutil.rmtree(temporary, ignore_errors=True)
            temporary.mkdir(parents=True)
        self.ranks.wait()
        state = _state(model, optimizer)
        where: dict[str, Any] = {
            "checkpoint_id": temporary,
            "process_group": self.group,
            "no_dist": self.ranks.world == 1,
        }
        with _quiet():
            if isinstance(optimizer, AdamW8bit):  # torch can't copy its kind of tensors
                written: Any = Future()
                try:
                    written.set_result(dcp.save(state, **where))
                except CheckpointException as error:
                    written.set_exception(error)
            else:
                written = dcp.async_save(state, **where)
        assert isinstance(written, Future)
        self.running = (update, written)

    def ready(self) -> bool:
        """Whether this rank's part is written, and waits for `finish`. Not a collective: it asks no other rank."""
        return self.running is not None and self.running[1].done()

    def finish(self) -> int | None:
        """Wait for the checkpoint under way, name it, drop all but it and the one before; its update, or None.

        Raises UserError where it can't be written.
        """
        if self.running is None:
            return None
        (update, written), self.running = self.running, None
        try:
            written.result()
        except CheckpointException as error:
            raise UserError(
                f"{self.folder}/{update}: can't be written: {_reason(error)}; is no space left on device, or no quota? "
                "make room and run it again: it goes on from the checkpoint before"
            ) from None
        if self.ranks.rank == 0:
            publish(self.folder / ".tmp", self.folder / str(update))
            # One of a later update could not be read, or this training would not be here again.
            keep = [done for done in complete(self.folder) if done <= update][-KEPT:]
            for done in set(complete(self.folder)).difference(keep):
                drop(self.folder / str(done))
        self.ranks.wait()
        return update


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
    whole = StateDictOptions(strict=not _frozen(model))
    set_state_dict(
        model, optimizer, model_state_dict=state["model"], optim_state_dict=state["optimizer"], options=whole
    )
    return None


def publish(temporary: Path, final: Path) -> None:
    """Give a folder its final name once its content is on the disk; a former one of that name goes."""
    for path in [*temporary.rglob("*"), temporary]:
        _to_disk(path)
    drop(final)
    temporary.rename(final)
    _to_disk(final.parent)


def drop(folder: Path) -> None:
    """Delete `folder`, if there, without its name first: killed half-way, this leaves nothing that looks whole."""
    nameless = folder.with_name(".dropped")
    shutil.rmtree(nameless, ignore_errors=True)
    if folder.exists():
        folder.rename(nameless)
        shutil.rmtree(nameless)


def _to_disk(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _state(model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    # What LoRA leaves as it was is in the start model.
    weights, moments = get_state_dict(model, optimizer, options=StateDictOptions(ignore_frozen_params=True))
    return {"model": weights, "optimizer": moments}


def _frozen(model: torch.nn.Module) -> bool:
    return not all(weight.requires_grad for weight in model.parameters())


def _reason(error: CheckpointException) -> str:
    rank, (cause, _) = next(iter(error.failures.items()))
    while cause.__context__:  # torch's own complaint hides the disk's
        cause = cause.__context__
    return f"{type(cause).__name__}: {cause} (rank {rank})".replace("\n", " ")


def _quiet() -> warnings.catch_warnings:
    return warnings.catch_warnings(action="ignore")
