"""What the ranks of a job do together for `doctor`: a sum over all, and a gathering of weights."""

import os
import re
import socket
import statistics
import time
from datetime import timedelta
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

COLLECTIVE_SECONDS = 60
GATHER_BYTES = {"nccl": 256 * 2**20, "gloo": 8 * 2**20}  # that all ranks together hold
GATHERS = 3


def all_reduce(nccl: bool) -> dict[str, Any]:
    """All-reduce 16 MiB over the ranks, one a GPU, by the address and interface of trainings.

    Returns `backend`, `right` (whether the sum is), `seconds` of the second all-reduce and the
    rates of `gather_rates`; or `error`, with this node's network `interfaces`.
    """
    import torch
    import torch.distributed as dist

    cuda = nccl and torch.cuda.is_available()
    device = torch.device("cpu")
    if cuda:  # a task sees all GPUs of its node, or its own alone
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]) % torch.cuda.device_count())
        torch.cuda.set_device(device)
    backend = "nccl" if cuda else "gloo"
    try:
        dist.init_process_group(backend, timeout=timedelta(seconds=COLLECTIVE_SECONDS))
        numbers = torch.ones(4 * 2**20, device=device)
        for _ in range(2):  # the first also connects
            dist.barrier()
            started = time.monotonic()
            dist.all_reduce(numbers)
            total = numbers[0].item()
        seconds = time.monotonic() - started
        rates = gather_rates(device, GATHER_BYTES[backend])
        dist.destroy_process_group()
    except Exception as error:
        interfaces = [name for _, name in socket.if_nameindex()]
        reason = re.sub(r"^\[[^]]*\] ", "", str(error).splitlines()[0])
        return {
            "error": f"{reason} (interfaces here: {', '.join(interfaces)})",
            "interfaces": interfaces,
        }
    world = int(os.environ["WORLD_SIZE"])
    right = total == world * world
    return {"backend": backend, "ranks": world, "right": right, "seconds": seconds} | rates


def gather_rates(device: "torch.device", total: int) -> dict[str, float]:
    """Bytes that a rank receives in a second while ranks gather `total` bytes, as FSDP2 does.

    Returns `node_bytes_per_second`, of the ranks of a node, where it has several, and
    `network_bytes_per_second`, of the ranks of all nodes, where there are several. What a rank
    receives in the second case passes its node's network once, on a ring of ranks.
    """
    import torch
    import torch.distributed as dist

    world, of_node = int(os.environ["WORLD_SIZE"]), int(os.environ["LOCAL_WORLD_SIZE"])
    groups: dict[str, tuple[Any, int]] = {}
    if of_node > 1:
        groups["node_bytes_per_second"] = dist.new_subgroups(of_node)[0], of_node
    if world > of_node:
        groups["network_bytes_per_second"] = dist.group.WORLD, world
    rates = {}
    for name, (group, ranks) in groups.items():
        shard = torch.ones(total // ranks, dtype=torch.uint8, device=device)
        gathered = torch.empty(shard.numel() * ranks, dtype=torch.uint8, device=device)
        times = []
        for _ in range(1 + GATHERS):  # the first also connects
            dist.barrier()
            started = time.monotonic()
            dist.all_gather_into_tensor(gathered, shard, group=group)
            gathered[-1].item()  # a GPU has then done it
            times.append(time.monotonic() - started)
        rates[name] = shard.numel() * (ranks - 1) / statistics.median(times[1:])
    return rates
