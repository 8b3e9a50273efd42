"""Step checkpoints: everything a training needs to resume after a step, on any number of ranks.

`steps/N` holds the state after step N. The folder gets this name when it is complete and on the
disk; damage that a disk does later shows when it is read. The position in the data is not saved,
because the order of rows follows from the seed.
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
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_state_dict,
    set_state_dict,
)
from torchao.optim import AdamW8bit

from core.errors import UserError
from core.private_folder import check_private, make_private
from recipes.checkpoint_metadata import MetadataReader
from recipes.distributed import GROUP_TIMEOUT, Ranks

KEEP = 2  # step checkpoints


def list_checkpoints(folder: Path) -> list[int]:
    """Steps of the complete step checkpoints in `folder`, the newest last."""
    if not folder.is_dir():
        return []
    return sorted(int(path.name) for path in folder.iterdir() if path.name.isdigit())


class AsyncSaver:
    """Writes step checkpoints while the training continues: it waits for the copy alone.

    `start` and `finish` are collectives. One checkpoint is written at a time.
    """

    def __init__(self, folder: Path, ranks: Ranks) -> None:
        self.folder = folder
        self.ranks = ranks
        # A group of its own: the writing thread must not interfere with the training's collectives.
        self.group = None
        if dist.is_initialized():
            self.group = dist.new_group(backend="gloo", timeout=GROUP_TIMEOUT)
        self.pending: tuple[int, Future[Any]] | None = None

    def start(self, step: int, model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> None:
        """Copy the state after `step`, each rank its own shards, and begin to write it."""
        self.finish()
        temporary = self.folder / ".tmp"
        if self.ranks.rank == 0:
            shutil.rmtree(temporary, ignore_errors=True)
            make_private(self.folder)
            temporary.mkdir()
        self.ranks.barrier()
        state = _state_dict(model, optimizer)
        options: dict[str, Any] = {
            "checkpoint_id": temporary,
            "process_group": self.group,
            "no_dist": self.ranks.world_size == 1,
        }
        with _no_warnings():
            if isinstance(optimizer, AdamW8bit):  # torch can't copy its kind of tensors
                future: Any = Future()
                try:
                    future.set_result(dcp.save(state, **options))
                except CheckpointException as error:
                    future.set_exception(error)
            else:
                future = dcp.async_save(state, **options)
        assert isinstance(future, Future)
        self.pending = (step, future)

    def ready(self) -> bool:
        """Whether this rank's shards are written and `finish` would not block. Not a collective."""
        return self.pending is not None and self.pending[1].done()

    def finish(self) -> int | None:
        """Wait for the pending checkpoint, name it, and remove all but it and the one before.

        Returns its step, or None where none is pending. Raises UserError where it can't be written.
        """
        if self.pending is None:
            return None
        step, future = self.pending
        self.pending = None
        try:
            future.result()
        except CheckpointException as error:
            raise UserError(
                where=f"{self.folder}/{step}",
                what=f"can't be written: {_reason(error)}; is no space left on device, or no "
                "quota?",
                fix="make room and run it again: it resumes from the checkpoint before",
            ) from None
        if self.ranks.rank == 0:
            commit(self.folder / ".tmp", self.folder / str(step))
            # A checkpoint of a later step could not be read, or this step would not run again.
            existing = list_checkpoints(self.folder)
            keep = [older for older in existing if older <= step][-KEEP:]
            for other in set(existing).difference(keep):
                remove(self.folder / str(other))
        self.ranks.barrier()
        return step


def load(
    folder: Path,
    step: int,
    model: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    ranks: Ranks,
) -> str | None:
    """Load `folder`/`step` into `model` and `optimizer`, whatever number of ranks has saved it.

    Raises UserError where others may write to `folder`. Returns None or, on all ranks, why it
    can't be read; `model` and `optimizer` then hold parts of it.
    """
    check_private(folder)
    state = _state_dict(model, optimizer)
    reader = MetadataReader(folder / str(step))
    try:
        with _no_warnings():
            dcp.load(state, storage_reader=reader, no_dist=ranks.world_size == 1)
    except CheckpointException as error:  # torch gathers it from all ranks, and raises it on all
        return _shown(reader.error, ranks.rank) if reader.error else _reason(error)
    set_state_dict(
        model,
        optimizer,
        model_state_dict=state["model"],
        optim_state_dict=state["optimizer"],
        options=StateDictOptions(strict=not _has_frozen_weights(model)),
    )
    return None


def commit(temporary: Path, final: Path) -> None:
    """Give a folder its final name once its content is on the disk; replaces an older one."""
    for path in [*temporary.rglob("*"), temporary]:
        _fsync(path)
    remove(final)
    temporary.rename(final)
    _fsync(final.parent)


def remove(folder: Path) -> None:
    """Delete `folder` where it exists; renamed first, so a kill leaves nothing that looks whole."""
    renamed = folder.with_name(".dropped")
    shutil.rmtree(renamed, ignore_errors=True)
    if folder.exists():
        folder.rename(renamed)
        shutil.rmtree(renamed)


def _fsync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _state_dict(model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    # The weights that LoRA freezes are in the start model.
    options = StateDictOptions(ignore_frozen_params=True)
    model_state, optimizer_state = get_state_dict(model, optimizer, options=options)
    return {"model": model_state, "optimizer": optimizer_state}


def _has_frozen_weights(model: torch.nn.Module) -> bool:
    return not all(weight.requires_grad for weight in model.parameters())


def _reason(error: CheckpointException) -> str:
    rank, (cause, _) = next(iter(error.failures.items()))
    while cause.__context__:  # torch's own exception hides the disk's
        cause = cause.__context__
    return _shown(cause, rank)


def _shown(cause: BaseException, rank: int) -> str:
    return f"{type(cause).__name__}: {cause} (rank {rank})".replace("\n", " ")


def _no_warnings() -> warnings.catch_warnings:
    return warnings.catch_warnings(action="ignore")
