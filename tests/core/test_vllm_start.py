"""How an engine starts, fails and ends, with a class in place of vLLM's and a GPU that is played.

What only a GPU can show is not shown here: that memory is freed, that nvcc is not needed.
"""

import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from core.errors import UserError
from core.inference import vllm_engine as engine
from core.inference import vllm_server

WORKER_FAILED = Exception(
    "WorkerProc initialization failed due to an exception in a background process. "
    "See stack trace for root cause."
)
TAKEN = ValueError(
    "Free memory on device cuda:0 (9/80 GiB) on startup is less than desired GPU memory "
    "utilization (0.92, 73.6 GiB). Decrease GPU memory utilization"
)
NO_CACHE = ValueError(
    "No available memory for the cache blocks. Try increasing `gpu_memory_utilization` when "
    "initializing the engine"
)
SHORT_CACHE = ValueError(
    "To serve at least one request with the model's max seq len (4096), (2.0 GiB KV cache is "
    "needed, which is larger than the available KV cache memory (1.0 GiB)."
)


class SafetensorError(Exception):
    """As safetensors raises it for a file that was cut short: no OSError, no ValueError."""


def module(name: str, **contents: Any) -> ModuleType:
    made = ModuleType(name)
    vars(made).update(contents)
    return made


@pytest.fixture
def starts(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """The arguments, folder and environment of each start; vLLM's CUDA build is played."""
    started: list[dict[str, Any]] = []
    failures: list[Exception] = []

    class Fake:
        def __init__(self, **arguments: Any) -> None:
            started.append(arguments | {"folder": os.getcwd(), "environment": dict(os.environ)})
            shutdown = SimpleNamespace(shutdown=lambda: None)
            self.model = SimpleNamespace(llm_engine=SimpleNamespace(engine_core=shutdown))
            if failures:
                raise failures.pop(0)

    def failing(*errors: Exception) -> None:
        failures.extend(errors)

    cuda = SimpleNamespace(
        memory_reserved=lambda: 300 << 20, is_initialized=lambda: True, empty_cache=lambda: None
    )
    for made in (
        module("lm_eval"),
        module("lm_eval.models"),
        module("lm_eval.models.vllm_causallms", VLLM=Fake, failing=failing),
        module("torch", cuda=cuda),
    ):
        monkeypatch.setitem(sys.modules, made.__name__, made)
    monkeypatch.setattr(engine, "on_cpu", lambda: False)
    monkeypatch.setattr(engine, "_open", None)
    monkeypatch.setattr(engine, "_batch_invariant", None)
    monkeypatch.delenv("VLLM_USE_FLASHINFER_SAMPLER", raising=False)
    monkeypatch.delenv("VLLM_WORKER_MULTIPROC_METHOD", raising=False)
    return started


def fail(*errors: Exception) -> None:
    """Make the next starts raise these."""
    sys.modules["lm_eval.models.vllm_causallms"].failing(*errors)


def checkpoint(folder: Path) -> Path:
    """A checkpoint cell's model, as far as the engine looks at it."""
    (folder / "model").mkdir(parents=True)
    (folder / "model/config.json").write_text("{}")
    return folder / "model"


def open_engine(path: Path, **settings: Any) -> Any:
    return engine.open_engine(path, {"dtype": "bfloat16", **settings}, {"max_model_len": 4096})


def test_checkpoints_have_one_path_to_the_weights_and_their_own_to_the_rest(
    starts: list[dict[str, Any]], tmp_path: Path
) -> None:
    """The key of vLLM's compiled code holds the model's path, and tokenizers are remembered by
    theirs."""
    before = os.getcwd()
    for name in ("one", "two"):
        open_engine(checkpoint(tmp_path / name))
    assert [start["pretrained"] for start in starts] == ["model", "model"]
    assert [start["folder"] for start in starts] == [str(tmp_path / "one"), str(tmp_path / "two")]
    for start, name in zip(starts, ("one", "two"), strict=True):
        assert start["tokenizer"] == start["hf_config_path"] == str(tmp_path / name / "model")
    fail(ValueError("no"))
    with pytest.raises(UserError):
        open_engine(checkpoint(tmp_path / "three"))
    assert os.getcwd() == before


def test_vllm_samples_without_a_compiler_and_spawns_its_workers(
    starts: list[dict[str, Any]], tmp_path: Path
) -> None:
    open_engine(checkpoint(tmp_path))
    environment = starts[0]["environment"]
    assert environment["VLLM_USE_FLASHINFER_SAMPLER"] == "0"
    assert environment["VLLM_WORKER_MULTIPROC_METHOD"] == "spawn"


def test_a_server_samples_without_a_compiler_and_starts_as_long_as_the_kit_waits(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    environments = []
    commands: list[list[str]] = []

    class Ended:
        pid = 0

        def __init__(self, words: list[str], *_: Any, env: dict[str, str], stdout: Any, **__: Any):
            commands.append(words)
            environments.append(env)
            stdout.write(b"exit status 1\n")

        def poll(self) -> int:
            return 1

        def terminate(self) -> None: ...

        def wait(self, *_: Any) -> int:
            return 1

    monkeypatch.setattr(vllm_server.subprocess, "Popen", Ended)
    monkeypatch.setattr(vllm_server.os, "killpg", lambda *_: None)
    for name in ("VLLM_USE_FLASHINFER_SAMPLER", "VLLM_ENGINE_READY_TIMEOUT_S"):
        monkeypatch.delenv(name, raising=False)  # an engine that ran before has set it
    monkeypatch.setenv("VLLM_BATCH_INVARIANT", "1")  # of somebody's shell
    with (
        pytest.raises(UserError, match="vLLM ended"),
        vllm_server.serve({"model": "m"}, {"path": "/m", "options": {}}, tmp_path / "log"),
    ):
        pass
    (environment,) = environments
    assert environment["VLLM_USE_FLASHINFER_SAMPLER"] == "0"
    assert environment["VLLM_ENGINE_READY_TIMEOUT_S"] == str(vllm_server.START_SECONDS)
    assert environment["VLLM_BATCH_INVARIANT"] == "0"
    assert "--middleware=require_key.RequireKey" in commands[0]
    folder = Path(environment["PYTHONPATH"].split(os.pathsep)[0])
    assert (folder / "require_key.py").is_file()


def test_a_start_is_tried_with_less_where_the_memory_is_taken(
    starts: list[dict[str, Any]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fail(TAKEN, RuntimeError("CUDA out of memory. Tried to allocate 2 GiB"))
    open_engine(checkpoint(tmp_path / "a"))
    assert [start["gpu_memory_utilization"] for start in starts] == [0.92, 0.736, 0.552]
    assert capsys.readouterr().out.count("finds too little memory with gpu_memory_util") == 2
    with pytest.raises(UserError, match="no model in this folder"):
        open_engine(tmp_path)
    fail(TAKEN)
    engine.open_engine(tmp_path / "a/model", {"dtype": "float32"}, {"kv_cache_memory_bytes": 100})
    assert [start["kv_cache_memory_bytes"] for start in starts[3:]] == [100, 80]
    fail(TAKEN, TAKEN, TAKEN)
    with pytest.raises(UserError, match=r"also with .* 0.552.*see that nothing else uses the GPU"):
        open_engine(checkpoint(tmp_path / "b"))


@pytest.mark.parametrize("error", [NO_CACHE, SHORT_CACHE])
def test_a_cache_that_is_too_small_is_no_reason_to_take_less(
    starts: list[dict[str, Any]], tmp_path: Path, error: Exception
) -> None:
    fail(error)
    fix = r"raise gpu_memory_utilization in engine.options \(now .* 0.92\), lower engine.max_model"
    with pytest.raises(UserError, match=fix):
        open_engine(checkpoint(tmp_path / "a"))
    assert len(starts) == 1
    fail(TAKEN, error)  # of the smaller share: then another process is the cause
    with pytest.raises(UserError, match="see that nothing else uses the GPU"):
        open_engine(checkpoint(tmp_path / "b"))


def test_whatever_vllm_raises_is_a_mistake_of_the_users(
    starts: list[dict[str, Any]], tmp_path: Path
) -> None:
    fail(SafetensorError("Error while deserializing header: invalid header length"))
    with pytest.raises(UserError, match="vLLM can't load it: SafetensorError: Error while des"):
        open_engine(checkpoint(tmp_path / "a"))
    few = "World size (2) is larger than the number of available GPUs (1) in this node."
    fail(ValueError(few))
    with pytest.raises(UserError, match="raise gpus_per_node of this stage"):
        open_engine(checkpoint(tmp_path / "b"))


WORKER_LINES = """\
(Worker_TP1 pid=77) INFO 11-29 21:30:01 [gpu_worker.py:1] no error: 0
(Worker_TP1 pid=77) ERROR 11-29 21:30:01 [multiproc_executor.py:880] WorkerProc failed to start.
(Worker_TP1 pid=77) ERROR 11-29 21:30:01 [multiproc_executor.py:880] Traceback (most recent call last):
(Worker_TP1 pid=77) ERROR 11-29 21:30:01 [multiproc_executor.py:880] {error}
"""


def test_a_failed_worker_is_known_by_its_lines(
    starts: list[dict[str, Any]],
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    os.write(1, b"ValueError: of an earlier cell\n")
    lines = iter(
        [
            WORKER_LINES.format(error=f"ValueError: {TAKEN}"),
            WORKER_LINES.format(error="safetensors_rust.SafetensorError: header too short"),
        ]
    )
    fake = sys.modules["lm_eval.models.vllm_causallms"].VLLM
    init = fake.__init__

    def print_and_start(self: Any, **arguments: Any) -> None:
        os.write(1, next(lines).encode())
        init(self, **arguments)

    monkeypatch.setattr(fake, "__init__", print_and_start)
    fail(WORKER_FAILED, WORKER_FAILED)
    with pytest.raises(UserError, match=r"load it: safetensors_rust.SafetensorError: header"):
        open_engine(checkpoint(tmp_path))
    assert [start["gpu_memory_utilization"] for start in starts] == [0.92, 0.736]


def test_an_engine_that_leaves_memory_behind_stops_the_next(
    starts: list[dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    open_engine(checkpoint(tmp_path / "a"))
    second = checkpoint(tmp_path / "b")
    monkeypatch.setattr(sys.modules["torch"].cuda, "memory_reserved", lambda: 30 << 30)
    with pytest.raises(UserError, match=r"still holds 30.0 GiB of GPU memory and 0 worker"):
        open_engine(second)
    worker = SimpleNamespace(name="VllmWorker-1", join=lambda _: None, is_alive=lambda: True)
    monkeypatch.setattr(engine.multiprocessing, "active_children", lambda: [worker])
    monkeypatch.setattr(sys.modules["torch"].cuda, "memory_reserved", lambda: 0)
    with pytest.raises(UserError, match="and 1 worker processes"):
        open_engine(second)
    assert len(starts) == 1


@pytest.fixture
def capability(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Play a GPU of this compute capability."""

    def play(number: int) -> None:
        platform = SimpleNamespace(has_device_capability=lambda least: number >= least)
        monkeypatch.setitem(sys.modules, "vllm", module("vllm"))
        platforms = module("vllm.platforms", current_platform=platform)
        monkeypatch.setitem(sys.modules, "vllm.platforms", platforms)

    return play


def test_batch_invariance_is_told_to_vllm_before_its_first_start(
    starts: list[dict[str, Any]],
    tmp_path: Path,
    capability: Callable[[int], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("VLLM_BATCH_INVARIANT", "1")
    open_engine(checkpoint(tmp_path / "a"))
    assert starts[0]["environment"]["VLLM_BATCH_INVARIANT"] == "0", "a shell's is overridden"
    asked = checkpoint(tmp_path / "b")
    capability(90)
    with pytest.raises(UserError, match=r"another value ran in this.*python -m study cell"):
        open_engine(asked, batch_invariant=True)
    monkeypatch.setattr(engine, "_batch_invariant", None)  # as in another process
    open_engine(asked, batch_invariant=True)
    assert "batch_invariant" not in starts[1], "no argument of vllm.LLM"
    assert starts[1]["environment"]["VLLM_BATCH_INVARIANT"] == "1"
    capability(75)
    with pytest.raises(UserError, match=r"capability 8\.0 or higher"):
        open_engine(checkpoint(tmp_path / "c"), batch_invariant=True)


def test_batch_invariance_is_refused_on_the_cpu_build(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "on_cpu", lambda: True)
    with pytest.raises(UserError, match=r"engine.batch_invariant: is not for vLLM's CPU build"):
        open_engine(checkpoint(tmp_path), dtype="float32", batch_invariant=True)


def test_sockets_are_in_a_short_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of Linux's 108 bytes for a socket's path vLLM takes 36 for the name."""
    monkeypatch.delenv("VLLM_RPC_BASE_PATH", raising=False)
    for length, folder in ((70, "x" * 70), (71, "/tmp"), (105, "/tmp")):
        with monkeypatch.context() as patch:
            patch.setattr(tempfile, "tempdir", "x" * length)
            patch.setattr(os, "environ", {})
            engine.set_environment()
            assert os.environ["VLLM_RPC_BASE_PATH"] == folder
