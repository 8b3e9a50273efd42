"""vLLM's own code behaves as the kit's settings for GPUs assume, on a GPU that is played.

No kernel runs here. A new release of vLLM that reads a setting no more, or says an error in other
words, fails one of these. `make test-locks INSTALL=all` runs them with the GPU builds of vLLM.
"""

import ast
import inspect
import os
import sys
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any
from unittest import mock

import pytest

from core.inference import vllm_engine as engine
from core.inference import vllm_server
from tests.eval import tiny_checkpoint

pytestmark = [pytest.mark.slow, pytest.mark.multiprocess]  # the import of vLLM


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    """vLLM reads every variable anew. An engine that ran in this process has it remember them."""
    engine.preload()
    from vllm import envs

    remembered = envs._is_envs_cache_enabled()
    envs.disable_envs_cache()
    yield monkeypatch
    if remembered:
        monkeypatch.undo()
        envs.enable_envs_cache()


def set_as_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    """The environment that an engine of the kit has on a GPU, and nothing of a shell's."""
    for name in [name for name in os.environ if name.startswith("VLLM_")]:
        monkeypatch.delenv(name)
    monkeypatch.setattr(engine, "on_cpu", lambda: False)
    values = dict(os.environ)
    with monkeypatch.context() as patch:
        patch.setattr(os, "environ", values)
        engine.set_environment()
    for name, value in values.items():
        monkeypatch.setenv(name, value)


def set_as_server(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("VLLM_")]:
        monkeypatch.delenv(name)
    for name, value in vllm_server.ENVIRONMENT.items():
        monkeypatch.setenv(name, value)


def read(name: str) -> Any:
    """A variable as vLLM reads it."""
    from vllm import envs

    return envs.environment_variables[name]()


# Sampling without a compiler (vllm/v1/sample/ops/topk_topp_sampler.py)


@pytest.fixture
def sampler_on_h100(environment: pytest.MonkeyPatch) -> Callable[[], str]:
    """How vLLM's sampler goes to work on a card of sm_90 that FlashInfer supports."""
    from vllm.platforms.interface import DeviceCapability
    from vllm.v1.sample.ops import topk_topp_sampler as module

    card = SimpleNamespace(
        is_cuda=lambda: True,
        is_cuda_alike=lambda: True,
        is_cpu=lambda: False,
        get_device_capability=lambda: DeviceCapability(9, 0),
        num_compute_units=lambda index: 132,
    )
    backend = SimpleNamespace(supports_compute_capability=lambda capability: True)
    flashinfer = ModuleType("vllm.v1.attention.backends.flashinfer")
    vars(flashinfer)["FlashInferBackend"] = backend
    environment.setitem(sys.modules, flashinfer.__name__, flashinfer)
    environment.setattr(module, "current_platform", card)
    environment.setattr("torch.accelerator.current_device_index", lambda: 0)
    # Whether it knows the card. For a compiler it does not look.
    name = "_flashinfer_jit_unsupported_reason"
    environment.setattr(module, name, lambda capability: None, raising=False)
    return lambda: module.TopKTopPSampler().forward.__name__


@pytest.mark.parametrize("set_kits", [set_as_engine, set_as_server])
def test_the_kits_variable_keeps_flashinfers_sampler_from_being_compiled(
    environment: pytest.MonkeyPatch,
    sampler_on_h100: Callable[[], str],
    set_kits: Callable[[pytest.MonkeyPatch], None],
) -> None:
    set_kits(environment)
    assert sampler_on_h100() == "forward_native"


def test_without_it_vllm_takes_the_sampler_that_needs_nvcc(
    environment: pytest.MonkeyPatch, sampler_on_h100: Callable[[], str]
) -> None:
    environment.delenv("VLLM_USE_FLASHINFER_SAMPLER", raising=False)
    if read("VLLM_USE_FLASHINFER_SAMPLER") is None:  # the CUDA 12 set's release
        pytest.skip(f"off by default in vLLM {version('vllm')}")
    assert sampler_on_h100() == "forward_cuda"


def test_a_request_with_a_seed_never_takes_flashinfers_sampler(
    environment: pytest.MonkeyPatch, sampler_on_h100: Callable[[], str]
) -> None:
    """So the variable changes no answer of the kit, whose sampled requests all have one."""
    import torch
    from vllm.v1.sample.ops import topk_topp_sampler as module

    environment.setenv("VLLM_USE_FLASHINFER_SAMPLER", "1")
    assert sampler_on_h100() == "forward_cuda"
    environment.setattr(module, "flashinfer_sample", lambda *_: pytest.fail("is compiled"))
    sampler = module.TopKTopPSampler()
    environment.setattr(sampler, "forward_native", lambda *arguments: "native")
    logits, p = torch.zeros(1, 4), torch.tensor([0.9])
    assert sampler.forward_cuda(logits, {0: torch.Generator()}, None, p) == "native"


# One key of compiled code for all checkpoints (vllm/config/model.py, compute_hash)


def test_checkpoints_of_one_shape_share_the_key_of_compiled_code(
    environment: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from lm_eval.models import vllm_causallms
    from vllm.config import ModelConfig

    def key(**arguments: Any) -> str:
        return str(ModelConfig(max_model_len=256, **arguments).compute_hash())

    keys: dict[str, list[str]] = {"kit": [], "whole path": []}

    class Noted:
        def __init__(self, **arguments: Any) -> None:
            own = {name: arguments[name] for name in ("tokenizer", "hf_config_path", "dtype")}
            keys["kit"].append(key(model=arguments["pretrained"], **own))
            keys["whole path"].append(key(model=arguments["tokenizer"], dtype=own["dtype"]))

    environment.setattr(vllm_causallms, "VLLM", Noted)
    environment.setattr(engine, "_batch_invariant", None)
    for seed, name in enumerate(("one", "two")):
        checkpoint = tiny_checkpoint.make(tmp_path / name / "model", seed)
        engine._start(checkpoint, {"dtype": "float32"})
    assert len(set(keys["whole path"])) == 2, "vLLM's key holds the path no more: one rule less"
    assert len(set(keys["kit"])) == 1


# Variables that the kit sets


def test_vllm_reads_the_variables_that_the_kit_sets(environment: pytest.MonkeyPatch) -> None:
    """vllm/envs.py."""
    from vllm import envs

    set_as_engine(environment)
    ours = {name for name in os.environ if name.startswith("VLLM_")}
    assert {"VLLM_ENABLE_V1_MULTIPROCESSING", "VLLM_WORKER_MULTIPROC_METHOD"} <= ours
    ours |= {name for name in vllm_server.ENVIRONMENT if name.startswith("VLLM_")}
    ours |= {"VLLM_BATCH_INVARIANT", "VLLM_API_KEY", "VLLM_CACHE_ROOT"}
    assert ours <= envs.environment_variables.keys()
    assert read("VLLM_ENABLE_V1_MULTIPROCESSING") is False
    assert read("VLLM_WORKER_MULTIPROC_METHOD") == "spawn"
    assert read("VLLM_NO_USAGE_STATS") is True
    assert read("VLLM_RPC_BASE_PATH") == os.environ["VLLM_RPC_BASE_PATH"]
    environment.setenv("VLLM_CACHE_ROOT", "/shared/cache/vllm")  # of a job's script
    assert read("VLLM_CACHE_ROOT") == "/shared/cache/vllm"


def test_a_server_waits_for_its_engine_as_long_as_the_kit_waits_for_the_server(
    environment: pytest.MonkeyPatch,
) -> None:
    """vllm/v1/engine/core_client.py waits for VLLM_ENGINE_READY_TIMEOUT_S, 600 by default."""
    from vllm.v1.engine import core_client

    set_as_server(environment)
    assert read("VLLM_ENGINE_READY_TIMEOUT_S") == vllm_server.START_SECONDS
    environment.delenv("VLLM_ENGINE_READY_TIMEOUT_S")
    assert read("VLLM_ENGINE_READY_TIMEOUT_S") < vllm_server.START_SECONDS
    waits = [
        ast.unparse(keyword.value)
        for call in ast.walk(ast.parse(inspect.getsource(core_client)))
        if isinstance(call, ast.Call) and ast.unparse(call.func).endswith(".poll")
        for keyword in call.keywords
        if keyword.arg == "timeout"
    ]
    assert "VLLM_ENGINE_READY_TIMEOUT_S * 1000" in waits


def test_batch_invariance_is_switched_on_by_the_kits_variable(
    environment: pytest.MonkeyPatch,
) -> None:
    """vllm/v1/worker/gpu_worker.py calls init_batch_invariance at the start of each engine."""
    from vllm import envs, platforms

    if version("vllm").startswith("0.19."):
        pytest.skip("init_batch_invariance has another form there")
    from vllm.model_executor.determinism import batch_invariant
    from vllm.v1.worker import gpu_worker

    switched: list[bool] = []
    for name in ("resolve_tuned_matmul_configs", "override_envs_for_invariance"):
        environment.setattr(batch_invariant, name, lambda: None)
    environment.setattr(
        batch_invariant, "enable_batch_invariant_mode", lambda: switched.append(True)
    )
    card = SimpleNamespace(has_device_capability=lambda least: True)
    environment.setattr(platforms, "current_platform", card)
    environment.setattr(batch_invariant, "torch", mock.MagicMock())  # its settings of precision
    for wanted in (False, True):
        environment.setattr(engine, "_batch_invariant", None)
        environment.setenv("VLLM_BATCH_INVARIANT", str(int(not wanted)))
        engine._set_batch_invariance(wanted)
        assert envs.VLLM_BATCH_INVARIANT is wanted
        batch_invariant.init_batch_invariance()
        assert switched == [True] * wanted
    calls = ast.walk(ast.parse(inspect.getsource(gpu_worker)))
    assert any(
        isinstance(call, ast.Call) and ast.unparse(call.func) == "init_batch_invariance"
        for call in calls
    )


# What vLLM says where it can't start


def message(*calls: Callable[[], Any]) -> list[str]:
    """The error of each call, as the engine compares it."""
    texts = []
    for call in calls:
        with pytest.raises(ValueError) as caught:
            call()
        texts.append(f"{type(caught.value).__name__}: {caught.value}")
    return texts


def test_memory_that_is_taken_and_a_cache_that_is_small_are_told_apart() -> None:
    """vllm/v1/worker/utils.py and vllm/v1/core/kv_cache_utils.py: only the first is tried again."""
    from vllm.v1.core.kv_cache_utils import _check_enough_kv_cache_memory as check
    from vllm.v1.worker.utils import request_memory

    memory = SimpleNamespace(total_memory=80 << 30, free_memory=9 << 30, device_="cuda:0")
    cache: Any = SimpleNamespace(gpu_memory_utilization=0.92)
    (taken,) = message(lambda: request_memory(memory, cache))
    assert engine.NO_MEMORY.search(taken) and not engine.SMALL_CACHE.search(taken)
    small = message(
        lambda: check(0, lambda: 1, 4096, lambda memory: 0),
        lambda: check(1 << 30, lambda: 2 << 30, 4096, lambda memory: 100),
    )
    for text in small:
        assert engine.SMALL_CACHE.search(text) and not engine.NO_MEMORY.search(text)


def test_a_failed_worker_says_to_look_at_its_lines() -> None:
    """vllm/v1/executor/multiproc_executor.py and vllm/v1/engine/utils.py."""
    from vllm.v1.engine import utils
    from vllm.v1.executor import multiproc_executor

    for module in (multiproc_executor, utils):
        texts = [
            node.value
            for node in ast.walk(ast.parse(inspect.getsource(module)))
            if isinstance(node, ast.Constant) and isinstance(node.value, str)
        ]
        assert any(engine.IN_WORKER.search(text) for text in texts), module.__name__


def test_a_node_with_fewer_gpus_than_asked_for_says_so() -> None:
    """vllm/config/parallel.py."""
    from vllm.config import parallel

    texts = ast.unparse(ast.parse(inspect.getsource(parallel)))
    assert engine.FEW_GPUS.search(texts)


# Workers of tensor parallelism


def test_workers_are_spawned_and_named_as_the_engine_looks_for_them(
    environment: pytest.MonkeyPatch,
) -> None:
    """vllm/utils/system_utils.py and vllm/v1/executor/multiproc_executor.py."""
    from vllm.utils.system_utils import get_mp_context
    from vllm.v1.executor import multiproc_executor

    set_as_engine(environment)
    assert get_mp_context().get_start_method() == "spawn"
    assert f'"{engine.WORKER}-' in inspect.getsource(multiproc_executor).replace('f"', '"')
