"""What a training sets before its first use of a GPU, and what it refuses."""

import os
from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from core.errors import UserError
from recipes import distributed, metrics
from recipes.distributed import CPU, Ranks, process_group
from recipes.model import build
from recipes.step_checkpoint import AsyncSaver
from tests.recipes.toy import RECIPE, SHAPE_AS_CONFIG

VARIABLES = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF", "TORCHINDUCTOR_COMPILE_THREADS")


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    for name in (*VARIABLES, "SLURM_CPUS_PER_TASK", "LOCAL_WORLD_SIZE"):
        monkeypatch.setenv(name, "")  # so that it is restored
        monkeypatch.delenv(name)
    return monkeypatch


def test_a_training_that_holds_a_gpu_is_not_run_on_the_cpu(
    environment: pytest.MonkeyPatch,
) -> None:
    environment.delenv("CUDA_VISIBLE_DEVICES")
    environment.setenv("SLURM_JOB_GPUS", "0")
    environment.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match="this job holds a GPU"), process_group():
        pass


def test_a_training_on_an_old_gpu_is_refused(environment: pytest.MonkeyPatch) -> None:
    environment.setattr(torch.cuda, "is_available", lambda: True)
    environment.setattr(torch.cuda, "device_count", lambda: 1)
    environment.setattr(torch.cuda, "get_device_name", lambda index: "Tesla V100")
    environment.setattr(torch.cuda, "get_device_capability", lambda index: (7, 0))
    with pytest.raises(UserError, match=r"V100 has compute capability 7.0"), process_group():
        pass


@pytest.mark.parametrize(("local_rank", "visible", "index"), [(0, 2, 0), (1, 2, 1), (1, 1, 0)])
def test_a_rank_takes_a_gpu_of_its_own_among_those_that_it_sees(
    environment: pytest.MonkeyPatch, local_rank: int, visible: int, index: int
) -> None:
    """All of the node's, or the one that Slurm binds to the task."""
    environment.setenv("LOCAL_RANK", str(local_rank))
    environment.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    environment.setattr(torch.cuda, "is_available", lambda: True)
    environment.setattr(torch.cuda, "device_count", lambda: visible)
    environment.setattr(torch.cuda, "get_device_capability", lambda index: (9, 0))
    taken: list[torch.device] = []
    environment.setattr(torch.cuda, "set_device", taken.append)
    assert distributed._device() == torch.device("cuda", index)
    assert taken == [torch.device("cuda", index)]


def test_memory_is_kept_in_segments_that_grow(environment: pytest.MonkeyPatch) -> None:
    with process_group():
        assert os.environ["PYTORCH_ALLOC_CONF"] == "expandable_segments:True"
    environment.setenv("PYTORCH_ALLOC_CONF", "backend:native")
    with process_group():
        assert os.environ["PYTORCH_ALLOC_CONF"] == "backend:native", "a person's setting stays"


@pytest.mark.parametrize(("per_task", "threads"), [("", 3), ("12", 12)])
def test_inductor_compiles_with_the_cores_of_a_rank(
    environment: pytest.MonkeyPatch, per_task: str, threads: int
) -> None:
    environment.setattr(distributed, "usable_cpus", lambda: 12)
    environment.setenv("LOCAL_WORLD_SIZE", "4")
    if per_task:
        environment.setenv("SLURM_CPUS_PER_TASK", per_task)
    with torch._inductor.config.patch(compile_threads=32), process_group():
        assert torch._inductor.config.compile_threads == threads
        assert os.environ["TORCHINDUCTOR_COMPILE_THREADS"] == str(threads)


def test_ranks_wait_an_hour_for_one_that_prepares_or_writes(
    environment: pytest.MonkeyPatch,
) -> None:
    """torch's own patience is 30 minutes by gloo and 10 by NCCL."""
    with process_group(force=True):
        group = dist.distributed_c10d._get_default_group()
        assert group._get_backend(CPU).options._timeout == timedelta(hours=1)


def test_ranks_with_gpus_wait_as_long(environment: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, timedelta]] = []
    environment.setattr(distributed, "_device", lambda: torch.device("cuda", 0))
    environment.setattr(
        dist, "init_process_group", lambda backend, timeout, **_: asked.append((backend, timeout))
    )
    environment.setattr(dist, "destroy_process_group", lambda: None)
    with process_group(force=True):
        pass
    assert asked == [("cpu:gloo,cuda:nccl", timedelta(hours=1))]


def test_step_checkpoints_wait_as_long_as_the_rest(
    tmp_path: Path, environment: pytest.MonkeyPatch
) -> None:
    with process_group(force=True) as ranks:
        group = AsyncSaver(tmp_path, ranks).group
        assert group is not None
        assert group._get_backend(CPU).options._timeout == timedelta(hours=1)


def test_peak_memory_is_recorded_where_the_peak_flops_are_not_listed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA Unlisted")
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: 7e9)
    with torch.device("meta"):
        model = build(SHAPE_AS_CONFIG)
    speed = metrics.Speed(RECIPE, Ranks(device=torch.device("cuda", 0)), model)
    speed.end_step(1, 10, 12, speed.begin_step())
    assert speed.last["peak_gb"] == 7.0 and "mfu" not in speed.last
