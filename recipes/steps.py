"""Step checkpoints: all that a training needs to go on from an update, on any number of ranks.

`steps/N` holds the state after update N. It gets its name when it is whole and on the disk, so that whatever has such
a name can be trusted; the data's position needs no saving, because the order of rows follows from the seed.
"""

import json
import os
import shutil
import warnings
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict

from recipes.distributed import Ranks

KEPT = 2


def complete(folder: Path) -> list[int]:
    """Updates of the whole step checkpoints in `folder`, the newest last."""
    if not folder.is_dir():
        return []
    return sorted(int(p.name) for p in folder.iterdir() if p.name.isdigit() and (p / "meta.json").is_file())


def save(folder: Path, update: int, model: torch.nn.Module, optimizer: torch.optim.Optimizer, ranks: Ranks) -> None:
    """Write `folder`/`update` and drop all but the newest; every rank writes its own part."""
    temporary = folder / f".tmp-{update}"
    if ranks.rank == 0:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
    ranks.wait()
    with _quiet():
        dcp.save(_state(model, optimizer), checkpoint_id=temporary, no_dist=ranks.world == 1)
    if ranks.rank == 0:
        (temporary / "meta.json").write_text(json.dumps({"update": update, "ranks": ranks.world}) + "\n")
        publish(temporary, folder / str(update))
        for old in complete(folder)[:-KEPT]:
            shutil.rmtree(folder / str(old))
    ranks.wait()


def load(folder: Path, update: int, model: torch.nn.Module, optimizer: torch.optim.Optimizer, ranks: Ranks) -> None:
    """Put the state of `folder`/`update` into `model` and `optimizer`, whatever number of ranks had saved it."""
    state = _state(model, optimizer)
    with _quiet():
        dcp.load(state, checkpoint_id=folder / str(update), no_dist=ranks.world == 1)
    set_state_dict(model, optimizer, model_state_dict=state["model"], optim_state_dict=state["optimizer"])


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


def _quiet() -> warnings.catch_warnings:
    return warnings.catch_warnings(action="ignore")
