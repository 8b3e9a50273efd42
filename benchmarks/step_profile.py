"""What one optimizer step spends its time on, by torch.profiler, as numbers."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import groupby
from time import perf_counter
from typing import Any
from unittest import mock

KERNELS = 40  # of the table, those that take the most time


@contextmanager
def profiled_step(step: int) -> Iterator[dict[str, Any]]:
    """Profile optimizer step `step` of the training in the `with` block. See `summary`.

    What is given is filled once the step has run.
    """
    import torch
    from torch.profiler import profile

    from recipes.finetune import Trainer

    result: dict[str, Any] = {}
    train_step = Trainer.train_step

    def wait() -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()

    def profiled(trainer: Trainer, given: Any) -> Any:
        if given.step != step:
            return train_step(trainer, given)
        wait()
        with profile() as profiler:
            began = perf_counter()
            done = train_step(trainer, given)
            wait()
            seconds = perf_counter() - began
        result.update(summary(profiler.events() or [], seconds))
        return done

    with mock.patch.object(Trainer, "train_step", profiled):
        yield result


def summary(events: Iterable[Any], seconds: float) -> dict[str, Any]:
    """The kernels of a step of `seconds` and the share of it in which none runs.

    events: torch.profiler's. Without a GPU operators count as kernels, each for the time in which
        it calls no other.
    """
    from torch.autograd import DeviceType

    events = [event for event in events if not event.is_user_annotation]
    kernels = [event for event in events if event.device_type == DeviceType.CUDA]
    device = "cuda" if kernels else "cpu"
    kernels = kernels or events
    busy = union([(event.time_range.start, event.time_range.end) for event in kernels]) / 1e6
    table = []
    for name, group in groupby(sorted(kernels, key=_name), _name):
        times = [
            (event.time_range.elapsed_us() if device == "cuda" else event.self_cpu_time_total) / 1e3
            for event in group
        ]
        share = sum(times) / 1e3 / seconds
        row = {"kernel": name, "calls": len(times), "ms": sum(times), "share_of_step": share}
        table.append(row)
    table.sort(key=lambda row: -row["ms"])
    return {
        "device": device,
        "step_seconds": seconds,
        "busy_seconds": busy,
        "idle_share": max(0.0, 1 - busy / seconds),
        "kernels": table[:KERNELS],
    }


def _name(event: Any) -> str:
    return str(event.name)


def union(intervals: list[tuple[float, float]]) -> float:
    """The length that intervals (begin, end) cover together."""
    covered = 0.0
    last = float("-inf")
    for begin, end in sorted(intervals):
        covered += max(0.0, end - max(begin, last))
        last = max(last, end)
    return covered
