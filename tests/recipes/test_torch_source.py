"""torch's own code behaves as the settings of a training on GPUs assume.

A new release of torch that reads a setting no more fails one of these. `make test-locks INSTALL=all`
runs them with the GPU builds of torch.
"""

import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch._inductor import async_compile, config
from torch._inductor.runtime import cache_dir_utils

from recipes import distributed

HEADERS = Path(torch.__file__).parent / "include/c10"
ALLOCATOR = HEADERS / "cuda/CUDAAllocatorConfig.h"


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    """Without variables of a shell; what a test makes of them is undone."""
    for name in ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF", "TORCHINDUCTOR_COMPILE_THREADS"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    with config.patch(compile_threads=config.compile_threads):
        yield monkeypatch


def allocators_text() -> str:
    text = ALLOCATOR.read_text()
    return text[text.index("static CUDAAllocatorConfig& instance()") :].partition("return *s_")[0]


def test_the_allocator_reads_the_variable_that_a_training_sets(
    environment: pytest.MonkeyPatch,
) -> None:
    """c10/cuda/CUDAAllocatorConfig.h: segments that grow, by PYTORCH_ALLOC_CONF."""
    distributed._device()
    ours = {name: value for name, value in os.environ.items() if name.endswith("ALLOC_CONF")}
    (name,) = ours
    assert f'get_env("{name}")' in allocators_text()
    option, value = ours[name].split(":")
    assert value == "True"
    text = (HEADERS / "core/AllocatorConfig.h").read_text() + ALLOCATOR.read_text()
    assert f"use_{option}" in text and f"{option}:" in text.lower()


def test_the_older_name_comes_first_in_the_allocator(environment: pytest.MonkeyPatch) -> None:
    """Where somebody has set it, a second variable would change nothing, and none is set."""
    order = re.findall(r'get_env\("(\w+)"\)', allocators_text())
    names = ("PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_ALLOC_CONF")
    assert [name for name in order if name in names] == list(names)
    environment.setenv("PYTORCH_CUDA_ALLOC_CONF", "backend:native")
    distributed._device()
    assert "PYTORCH_ALLOC_CONF" not in os.environ


def test_inductor_starts_as_many_workers_as_the_variable_says(
    environment: pytest.MonkeyPatch,
) -> None:
    """torch/_inductor/config.py: up to 32 where nobody says otherwise, on a rank of a full node."""
    environment.setattr(torch._utils, "cpu_count", lambda: 128, raising=False)
    environment.setattr(os, "cpu_count", lambda: 128)
    environment.setattr(os, "sched_getaffinity", lambda pid: set(range(128)))
    assert config.decide_compile_threads() == 32
    environment.setattr(distributed, "usable_cpus", lambda: 12)
    environment.setenv("SLURM_CPUS_PER_TASK", "12")
    distributed._limit_compile_threads()
    assert config.decide_compile_threads() == 12
    assert async_compile.get_compile_threads() == 12


def test_inductors_own_cache_lies_in_tmpdir(
    environment: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """torch/_inductor/runtime/cache_dir_utils.py. A job's TMPDIR is new and removed at its end."""
    environment.setattr("tempfile.tempdir", str(tmp_path))
    environment.delenv("TORCHINDUCTOR_CACHE_DIR", raising=False)
    assert cache_dir_utils.default_cache_dir().startswith(f"{tmp_path}/")
    environment.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "stable"))
    assert cache_dir_utils.cache_dir() == str(tmp_path / "stable")
