"""Several processes as one training: their places, how they meet, how they agree.

The environment tells each process its place (RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR, MASTER_PORT), whoever launched
it. Without WORLD_SIZE there is one process, and no process group is made.
"""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from core.errors import UserError

CPU = torch.device("cpu")
# The others wait while rank 0 writes the final model, which takes minutes on a slow disk.
PATIENCE = timedelta(hours=1)
MEETING = timedelta(minutes=10)  # between the starts of the first rank and the last

_store: dist.TCPStore | None = None
_words = 0
_groups = 0


@dataclass(frozen=True)
class Ranks:
    """The processes of one training as one of them sees them. Every method is a collective: all ranks must call it."""

    rank: int = 0
    world: int = 1
    device: torch.device = CPU

    def sum(self, value: torch.Tensor) -> torch.Tensor:
        """The sum of a tensor over all ranks."""
        if self.world > 1:
            dist.all_reduce(value)
        return value

    def max(self, *values: int) -> list[int]:
        """The largest of all ranks' numbers, of each of them."""
        if self.world > 1:
            largest = torch.tensor([int(value) for value in values], device=self.device)
            dist.all_reduce(largest, op=dist.ReduceOp.MAX)
            return [int(value) for value in largest.tolist()]
        return [int(value) for value in values]

    def from_first(self, value: Any) -> Any:
        """What rank 0 gave: disks of several machines need not look alike at one moment."""
        if self.world > 1:
            given = [value]
            dist.broadcast_object_list(given, src=0, device=self.device)
            value = given[0]
        return value

    def wait(self) -> None:
        """Go on when all ranks are here."""
        self.max(0)


ALONE = Ranks()


@contextmanager
def together(group: bool = False) -> Iterator[Ranks]:
    """Join all ranks in a process group: NCCL where there are GPUs, else gloo. A process alone has one if `group`."""
    global _groups
    rank, world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    device = _device()
    if world == 1 and not group:
        yield Ranks(device=device)
        return
    _groups += 1
    dist.init_process_group(
        "nccl" if device.type == "cuda" else "gloo",
        store=dist.HashStore() if world == 1 else dist.PrefixStore(f"group {_groups}", meet()),
        rank=rank,
        world_size=world,
        timeout=PATIENCE,
    )
    ranks = Ranks(rank, world, device)
    yield ranks
    # Only after success: after a failure the others may be gone, and waiting for them would hide why.
    ranks.wait()
    dist.destroy_process_group()


def meet() -> dist.TCPStore:
    """The store through which the ranks find each other; it lives in rank 0 and ends with it."""
    global _store
    if _store is None:
        missing = [name for name in ("RANK", "MASTER_ADDR", "MASTER_PORT") if name not in os.environ]
        if missing:
            raise UserError(f"WORLD_SIZE is {os.environ['WORLD_SIZE']}, but {', '.join(missing)} is not set; set it")
        _store = dist.TCPStore(
            os.environ["MASTER_ADDR"],
            int(os.environ["MASTER_PORT"]),
            int(os.environ["WORLD_SIZE"]),
            is_master=os.environ["RANK"] == "0",
            timeout=MEETING,
            wait_for_workers=False,
        )
    return _store


def word_of_first(word: str | None = None) -> str:
    """Rank 0 gives a word and goes on when all have it; the others wait for it, however long. All must call it alike.

    Raises UserError where rank 0 has ended without a word, or not all ranks came to hear it.
    """
    global _words
    store = meet()
    _words += 1
    key = f"word {_words}"
    if word is not None:
        store.set(key, word)
        others, began = int(os.environ["WORLD_SIZE"]) - 1, time.monotonic()
        while (heard := store.add(f"heard {key}", 0)) < others:
            if time.monotonic() - began > MEETING.total_seconds():
                raise UserError(f"only {1 + heard} of {1 + others} ranks came within {MEETING}; see the others' logs")
            time.sleep(0.01)
        return word
    try:
        while not store.check([key]):
            time.sleep(0.05)
        word = store.get(key).decode()
        store.add(f"heard {key}", 1)
        return word
    except dist.DistError:
        raise UserError("rank 0 ended before this cell began; its log says why") from None


def _device() -> torch.device:
    if not torch.cuda.is_available():
        return CPU
    # Deterministic cuBLAS wants its workspace fixed before its first call.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    # A task may see the node's GPUs or just its own.
    device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)) % torch.cuda.device_count())
    torch.cuda.set_device(device)
    return device
