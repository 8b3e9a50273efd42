"""Several processes as one training: ranks, their rendezvous, and what they exchange.

The environment gives each process its place (RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR,
MASTER_PORT), by whatever launcher. Without WORLD_SIZE there is one process, and no process group is
made.
"""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch._inductor.config
import torch.distributed as dist

from core.cores import usable_cpus
from core.errors import UserError
from core.gpu import check_capability, gpu_available

CPU = torch.device("cpu")
# The others wait while rank 0 writes the final model, which takes minutes on a slow disk.
GROUP_TIMEOUT = timedelta(hours=1)
RENDEZVOUS_TIMEOUT = timedelta(minutes=10)  # between the starts of the first rank and the last

_store: dist.TCPStore | None = None
_num_syncs = 0
_num_groups = 0


@dataclass(frozen=True)
class Ranks:
    """The processes of one training, seen from one of them. Every method is a collective."""

    rank: int = 0
    world_size: int = 1
    device: torch.device = CPU

    def sum(self, value: torch.Tensor) -> torch.Tensor:
        """The sum of a tensor over all ranks, in place."""
        if self.world_size > 1:
            dist.all_reduce(value)
        return value

    def max(self, *values: int) -> list[int]:
        """The maximum over all ranks, of each of the numbers."""
        if self.world_size > 1:
            # On the host (by gloo): a tensor of the GPU would wait for all that it still computes.
            largest = torch.tensor([int(value) for value in values])
            dist.all_reduce(largest, op=dist.ReduceOp.MAX)
            return [int(value) for value in largest.tolist()]
        return [int(value) for value in values]

    def broadcast(self, value: Any) -> Any:
        """Rank 0's value. What a rank reads from a shared disk may differ between machines."""
        if self.world_size > 1:
            objects = [value]
            dist.broadcast_object_list(objects, src=0, device=self.device)
            value = objects[0]
        return value

    def barrier(self) -> None:
        """Block until all ranks have called this."""
        self.max(0)


SINGLE_PROCESS = Ranks()


@contextmanager
def process_group(force: bool = False) -> Iterator[Ranks]:
    """Join all ranks in a process group: NCCL between GPUs, gloo between hosts.

    A single process gets a group only where `force` asks for one (FSDP2 needs it).
    """
    global _num_groups
    rank = int(os.environ.get("RANK", 0))
    world_size = int(os.environ.get("WORLD_SIZE", 1))
    device = _device()
    if world_size == 1 and not force:
        yield Ranks(device=device)
        return
    _num_groups += 1
    if world_size == 1:
        store: dist.Store = dist.HashStore()
    else:
        store = dist.PrefixStore(f"group {_num_groups}", rendezvous_store())
    dist.init_process_group(
        "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo",
        store=store,
        rank=rank,
        world_size=world_size,
        timeout=GROUP_TIMEOUT,
    )
    ranks = Ranks(rank, world_size, device)
    yield ranks
    # Only after success: after a failure other ranks may be gone, and waiting would hide the cause.
    ranks.barrier()
    dist.destroy_process_group()


def rendezvous_store() -> dist.TCPStore:
    """The store through which the ranks find each other. It lives in rank 0 and ends with it."""
    global _store
    if _store is None:
        names = ("RANK", "MASTER_ADDR", "MASTER_PORT")
        missing = [name for name in names if name not in os.environ]
        if missing:
            raise UserError(
                where="environment",
                what=f"WORLD_SIZE is {os.environ['WORLD_SIZE']}, but {', '.join(missing)} is not "
                "set",
                fix="set it, or unset WORLD_SIZE",
            )
        _store = dist.TCPStore(
            os.environ["MASTER_ADDR"],
            int(os.environ["MASTER_PORT"]),
            int(os.environ["WORLD_SIZE"]),
            is_master=os.environ["RANK"] == "0",
            timeout=RENDEZVOUS_TIMEOUT,
            wait_for_workers=False,
        )
    return _store


def sync_with_rank0(message: str | None = None) -> str:
    """Broadcast a string from rank 0 before there is a process group. All ranks must call it.

    Rank 0 gives `message` and blocks until all ranks have received it; the others give None and
    wait without a time limit. Returns the message. Raises UserError where rank 0 ended before it
    sent one, or not all ranks received it within RENDEZVOUS_TIMEOUT.
    """
    global _num_syncs
    store = rendezvous_store()
    _num_syncs += 1
    key = f"word {_num_syncs}"
    if message is not None:
        store.set(key, message)
        others = int(os.environ["WORLD_SIZE"]) - 1
        started = time.monotonic()
        while (received := store.add(f"heard {key}", 0)) < others:
            if time.monotonic() - started > RENDEZVOUS_TIMEOUT.total_seconds():
                raise UserError(
                    what=f"only {1 + received} of {1 + others} ranks came within "
                    f"{RENDEZVOUS_TIMEOUT}",
                    fix="see the others' logs",
                )
            time.sleep(0.01)
        return message
    try:
        while not store.check([key]):
            time.sleep(0.05)
        message = store.get(key).decode()
        store.add(f"heard {key}", 1)
        return message
    except dist.DistError:
        raise UserError(what="rank 0 ended before this cell began", fix="see its log") from None


def _device() -> torch.device:
    # Before the first use of CUDA. Conversations have many shapes, and would fragment its memory.
    # The name before torch 2.9 comes first where both are set (c10/cuda/CUDAAllocatorConfig.h).
    if "PYTORCH_CUDA_ALLOC_CONF" not in os.environ:
        os.environ.setdefault("PYTORCH_ALLOC_CONF", "expandable_segments:True")
    _limit_compile_threads()
    if not gpu_available():
        return CPU
    # Deterministic cuBLAS needs its workspace fixed before its first call.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    # A task may see all of the node's GPUs or only its own.
    index = int(os.environ.get("LOCAL_RANK", 0)) % torch.cuda.device_count()
    check_capability(index)
    device = torch.device("cuda", index)
    torch.cuda.set_device(device)
    return device


def _limit_compile_threads() -> None:
    """Let Inductor start no more compile workers than this rank has cores; it takes up to 32."""
    cores = usable_cpus()
    if "SLURM_CPUS_PER_TASK" not in os.environ:  # the cores are those of all ranks of the node
        cores = max(1, cores // int(os.environ.get("LOCAL_WORLD_SIZE", 1)))
    os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", str(cores))
    # The variable is read at the import of this module (torch/_inductor/config.py), which torchtune
    # imports.
    torch._inductor.config.compile_threads = int(os.environ["TORCHINDUCTOR_COMPILE_THREADS"])
