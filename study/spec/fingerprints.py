"""What a study's files and endpoints are, as far as results depend on it.

Hashes of contents, names of models.
"""

import hashlib
import json
from functools import lru_cache
from pathlib import Path
from typing import Any

from core.cell.external_files import digests
from core.errors import Problem, UserError
from core.files import sha256
from core.grpo_recipe import Grpo, load_grpo
from core.paths import resolve
from core.recipe import load_recipe
from core.strict_yaml import read_yaml
from study.spec.schema import Endpoint, Engine, Request, Study

# Fields of an endpoint that are no part of any cell's identity.
LIMITS = (
    "requests_per_minute",
    "tokens_per_minute",
    "prompt_price",
    "completion_price",
    "timeout",
)
# Options of vLLM that multiply the GPUs it takes.
PARALLEL_OPTIONS = ("tensor_parallel_size", "pipeline_parallel_size", "data_parallel_size")
# Options of vLLM, as a server or in process, that are for its speed. On GPUs they change batches,
# and with them the last bits of answers: manifests record them, but they make no new cell.
SPEED_OPTIONS = (
    *PARALLEL_OPTIONS,
    "distributed_executor_backend",
    "gpu_memory_utilization",
    "kv_cache_memory_bytes",
    "max_num_seqs",
    "max_num_batched_tokens",
)


def endpoint_model(endpoint: Endpoint) -> dict[str, Any]:
    """What of an endpoint is identity: the model, not the address or the key.

    And what of the form of requests changes answers, where it is not the usual one.
    """
    form: dict[str, Any] = {}
    if endpoint.request.temperature is None:
        form["temperature"] = None
    if endpoint.request.extra_body:
        form["extra_body"] = endpoint.request.extra_body
    request = {"request": form} if form else {}
    if endpoint.served_by == "dummy":
        return {"served_by": "dummy", "model": "dummy"}
    if endpoint.served_by == "vllm":
        assert endpoint.path
        content: dict[str, Any] = {
            "files": fingerprint_once(endpoint.path),
            "options": split_options(endpoint.options)[0],
        }
        # In the name, by which ledgers know what answered.
        digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
        name = f"{Path(endpoint.path).name}-{digest[:8]}"
        return {"served_by": "vllm", "model": name, "options": content["options"], **request}
    return {"served_by": "url", "model": endpoint.model, **request}


def split_options(options: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Options of vLLM that are identity, and those that change its speed alone."""
    speed = {name: value for name, value in options.items() if name in SPEED_OPTIONS}
    return {name: value for name, value in options.items() if name not in speed}, speed


def engine_arguments(engine: Engine) -> tuple[dict[str, Any], dict[str, Any]]:
    """Arguments of `vllm.LLM` that are identity, and the others.

    max_model_len is a resource: what does not fit is refused, and nothing is cut.
    """
    identity, speed = split_options(engine.options)
    # Only where it is set: a study that does not ask for it keeps its cells.
    invariant = {"batch_invariant": True} if engine.batch_invariant else {}
    settings = {"dtype": engine.dtype, **invariant, **identity}
    return settings, {"max_model_len": engine.max_model_len, **speed}


def endpoint_files(endpoint: Endpoint, key: str) -> dict[str, dict[str, Any]]:
    """The source of the files that are an endpoint's model, under `key`; {} of a URL.

    The dummy's sentences and rules are its weights: other rules, another model.
    """
    path = {"dummy": "core/endpoints/dummy_endpoint.yaml", "vllm": endpoint.path}
    return {key: {"path": path[endpoint.served_by]}} if endpoint.served_by in path else {}


def endpoint_address(endpoint: Endpoint) -> dict[str, Any]:
    """How a job reaches an endpoint; no part of any cell's identity."""
    form = {"max_tokens_key": endpoint.request.max_tokens_key, "seed": endpoint.request.seed}
    request = {} if endpoint.request == Request() else {"request": form}
    if endpoint.served_by == "vllm":
        path = str(resolve(endpoint.path or ""))
        return {"path": path, "options": endpoint.options, **request}
    batch = {"batch": {"max_requests": endpoint.batch_requests}} if endpoint.batch else {}
    return {"base_url": endpoint.base_url, "key_env": endpoint.key_env, **request, **batch}


def endpoint_limits(endpoint: Endpoint) -> dict[str, Any]:
    """What a request costs and how fast requests may follow; no part of any cell's identity.

    Of a batch neither the rates nor the full prices hold.
    """
    limits = {key: getattr(endpoint, key) for key in LIMITS}
    if endpoint.batch:
        limits |= {"requests_per_minute": None, "tokens_per_minute": None}
        share = 1 - endpoint.batch_discount
        limits |= {key: share * limits[key] for key in ("prompt_price", "completion_price")}
    return limits


def open_requests(study: Study, endpoint: Endpoint) -> int:
    """Requests of one job that may be open at a time: with batches, those of a whole batch."""
    return endpoint.batch_requests if endpoint.batch else study.concurrency


def endpoint_resources(study: Study, endpoint: Endpoint) -> dict[str, Any]:
    """What a cell that calls an endpoint needs besides its identity."""
    return {
        "address": endpoint_address(endpoint),
        "limits": endpoint_limits(endpoint),
        "concurrency": open_requests(study, endpoint),
    }


def model_name(study: Study, endpoint: str | None) -> str | None:
    """The name of the model behind an endpoint of the study."""
    return endpoint_model(study.endpoints[endpoint])["model"] if endpoint else None


def is_dummy(study: Study, endpoint: str | None) -> bool:
    """Whether an endpoint of the study is the kit's dummy."""
    return endpoint is not None and study.endpoints[endpoint].served_by == "dummy"


@lru_cache
def content_hash(path: str) -> str:
    """sha256 of a file, read once in a process."""
    return sha256(resolve(path))


@lru_cache
def yaml_once(path: str) -> Any:
    """The value of a YAML file, read once in a process."""
    return read_yaml(resolve(path))[0]


load_recipe_once = lru_cache(load_recipe)
load_grpo_once = lru_cache(load_grpo)


def recipe_problems(path: str, kind: Any) -> tuple[Problem, ...]:
    """Every mistake in a recipe (dataclass `kind`: Grpo, or of core.recipe), with file and line."""
    try:
        load_grpo_once(path) if kind is Grpo else load_recipe_once(path, kind)
    except UserError as error:
        return error.problems
    return ()


@lru_cache
def fingerprint_once(path: str) -> dict[str, str]:
    """The sha256 of each of a folder's files by its name, read once in a process.

    Those of large files are remembered beside what the kit has downloaded.
    """
    return digests(resolve(path), cache_folder())


def cache_folder() -> Path:
    """The kit's folder in Hugging Face's cache."""
    from huggingface_hub import constants

    return Path(constants.HF_HOME).absolute() / "study"
