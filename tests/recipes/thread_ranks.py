"""Ranks of a training as threads of one process, and the bytes that the tensors of each hold.

torch's own tests have such a process group. It costs no import of torch a rank.
"""

import threading
import traceback
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch.testing._internal.distributed import multi_threaded_pg as threads
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves

from recipes.distributed import CPU, Ranks


def on_threads(
    world_size: int, work: Callable[[Ranks], Any], monkeypatch: pytest.MonkeyPatch
) -> list[Any]:
    """What `work` returns on each rank. Fails with the traceback of a rank that raises."""
    broadcast = threads.Broadcast.work

    def uncounted(self: Any, data: Any) -> None:
        with _disable_current_modes():  # one thread makes the copies of all ranks
            broadcast(self, data)

    monkeypatch.setattr(threads.Broadcast, "work", uncounted)
    results: list[Any] = [None] * world_size
    failures: list[str] = []
    # State dicts are broadcast on the first device of the group.
    devices = property(lambda group: [CPU])
    monkeypatch.setattr(threads.ProcessLocalGroup, "_device_types", devices, raising=False)

    def start(rank: int) -> None:
        try:
            dist.init_process_group("threaded", rank=rank, world_size=world_size, store=store)
            results[rank] = work(Ranks(rank, world_size))
            dist.destroy_process_group()
        except BaseException as error:
            failures.append(traceback.format_exc())
            threads.ProcessLocalGroup.exception_handle(error)  # the others end

    torch._C._distributed_c10d._set_thread_isolation_mode(True)
    threads._install_threaded_pg()
    try:
        store = dist.HashStore()
        started = [threading.Thread(target=start, args=(rank,)) for rank in range(world_size)]
        for thread in started:
            thread.start()
        for thread in started:
            thread.join()
    finally:
        threads._uninstall_threaded_pg()
        threads.ProcessLocalGroup.reset()
        torch._C._distributed_c10d._set_thread_isolation_mode(False)
    assert not failures, failures[0]
    return results


class HeldBytes(TorchDispatchMode):
    """Counts what the tensors hold that a thread makes inside the `with` block.

    `most` is the largest sum, in bytes. A memory-mapped file counts like any other tensor.
    """

    def __init__(self) -> None:
        super().__init__()
        self.now = self.most = 0
        self._sizes: dict[int, int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        outputs = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(outputs):
            if type(tensor) is torch.Tensor and tensor.device == CPU:
                self._count(tensor.untyped_storage())
        return outputs

    def _count(self, storage: torch.UntypedStorage) -> None:
        key = storage._cdata
        if key in self._sizes:
            return
        self._sizes[key] = storage.nbytes()
        self.now += self._sizes[key]
        self.most = max(self.most, self.now)
        weakref.finalize(storage, self._free, key)

    def _free(self, key: int) -> None:
        self.now -= self._sizes.pop(key)
