"""What a study's files and endpoints are, as far as it matters to results: hashes of contents, names of models."""

import hashlib
import json
from functools import lru_cache
from pathlib import Path
from typing import Any

from study.cells import sha256
from study.load import load_recipe, read_yaml
from study.references import resolve
from study.schema import Endpoint, Study


def endpoint_model(endpoint: Endpoint) -> dict[str, Any]:
    """What of an endpoint is identity: the model, not the address or the key."""
    if endpoint.served_by == "kit":
        # The stand-in's sentences and rules are its weights: other rules, another model.
        return {"served_by": "kit", "model": "stand-in", "rules_sha256": content_hash("study/stand_in.yaml")}
    if endpoint.served_by == "vllm":
        assert endpoint.path
        what: dict[str, Any] = {"files": _fingerprints_once(endpoint.path)}
        what["options"] = {name: value for name, value in endpoint.options.items() if name not in SERVING}
        # In the name too, by which ledgers know what answered.
        digest = hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()
        return {"served_by": "vllm", "model": f"{Path(endpoint.path).name}-{digest[:8]}", **what}
    return {"served_by": "url", "model": endpoint.model}


# Of an endpoint: no part of any cell's identity.
LIMITS = ("requests_per_minute", "tokens_per_minute", "prompt_price", "completion_price", "timeout")
# Options of a vLLM server that change its speed, not its answers.
SERVING = (
    *("tensor_parallel_size", "pipeline_parallel_size", "data_parallel_size", "distributed_executor_backend"),
    *("gpu_memory_utilization", "kv_cache_memory_bytes", "max_num_seqs", "max_num_batched_tokens"),
)


def endpoint_address(endpoint: Endpoint) -> dict[str, Any]:
    if endpoint.served_by == "vllm":
        return {"path": str(resolve(endpoint.path or "")), "options": endpoint.options}
    return {"base_url": endpoint.base_url, "key_env": endpoint.key_env}


def model_name(study: Study, endpoint: str | None) -> str | None:
    return endpoint_model(study.endpoints[endpoint])["model"] if endpoint else None


def is_stand_in(study: Study, endpoint: str | None) -> bool:
    return endpoint is not None and study.endpoints[endpoint].served_by == "kit"


@lru_cache
def content_hash(path: str) -> str:
    return sha256(resolve(path))


def fingerprints(folder: str) -> dict[str, str]:
    """Each file of a model folder by its content; of weight files only size and both ends are read, to plan quickly."""
    found = {}
    for path in sorted(p for p in resolve(folder).rglob("*") if p.is_file()):
        size = path.stat().st_size
        with open(path, "rb") as file:
            digest = hashlib.sha256(file.read(2**20))
            file.seek(max(0, size - 2**20))
            digest.update(file.read(2**20))
        found[str(path.relative_to(resolve(folder)))] = f"{size}-{digest.hexdigest()}"
    return found


@lru_cache
def yaml_once(path: str) -> Any:
    return read_yaml(resolve(path))[0]


load_recipe_once = lru_cache(load_recipe)
_fingerprints_once = lru_cache(fingerprints)
