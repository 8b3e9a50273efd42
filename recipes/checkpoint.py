"""Hugging Face model folders to and from torchtune's models."""

import json
import math
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import split_torch_state_dict_into_shards
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    set_model_state_dict,
)
from torch.distributed.tensor import DTensor
from torchtune.modules import TransformerDecoder
from torchtune.modules.peft import get_merged_lora_ckpt

from core.errors import Problem, UserError
from core.files import read_text
from core.model_folder.chat import write_template
from core.model_folder.config import (
    as_list,
    effective,
    end_token_ids,
    read_config,
    read_json,
    stated_dtype,
)
from core.model_folder.weights import HEAD, check_weights, weight_files
from core.recipe import Training
from recipes.distributed import SINGLE_PROCESS, Ranks
from recipes.model import build, family, is_sharded, parallelize
from recipes.token_rows import ROWS, fill_row_ids

StateDict = dict[str, Any]  # of tensors
ITEM_BYTES = {"F32": 4, "BF16": 2, "F16": 2}  # of safetensors' dtypes
PART_BYTES = 2**28  # of weights that rank 0 reads at once
GENERATION_CONFIG = "generation_config.json"
# Of a start model, what would have transformers or vLLM load other weights than those beside it.
NOT_COPIED = ("adapter_config.json", "quantize_config.json", "hf_quant_config.json")
FILE_BYTES = 5 * 10**9  # of weights in a file, as Hugging Face writes them


def load(
    folder: Path,
    ranks: Ranks,
    recipe: Training,
    seed: int = 0,
    token_ids: list[int] | None = None,
) -> TransformerDecoder:
    """The model of a Hugging Face folder, compiled, checkpointed and sharded as the recipe says.

    Its weights are bf16 for dtype bf16, otherwise fp32. Rank 0 reads the files, some weights at a
    time; with FSDP2 each rank holds its shard only. LoRA's adapters follow from `seed` alone, on
    any number of ranks; `token_ids` as of `recipes.model.build`. Raises UserError, on all ranks,
    where the folder is not a complete model.
    """
    config = read_config(folder)
    dtype = torch.bfloat16 if recipe.dtype == "bf16" else torch.float32
    with torch.device("meta"):
        model = build(config, recipe.lora, token_ids).to(dtype)
    shapes = {name: weight.shape for name, weight in model.state_dict().items()}
    parallelize(model, recipe, ranks)
    model.to_empty(device=ranks.device)
    with ranks.device:
        for module in model.modules():
            if hasattr(module, "rope_init"):  # buffers that no checkpoint holds
                module.rope_init()
    fill_row_ids(model, token_ids or [])
    options = StateDictOptions(
        full_state_dict=True, broadcast_from_rank0=is_sharded(recipe, ranks), strict=False
    )
    parts = _read_weights(folder, config, shapes, dtype, seed)
    while True:
        part: StateDict | None = {}
        problems: tuple[Problem, ...] = ()
        if ranks.rank == 0:
            try:
                part = next(parts, None)
            except UserError as error:
                problems = error.problems
        is_end, problems = ranks.broadcast((part is None, problems))
        if problems:
            raise UserError.of(problems)
        if is_end:
            return model
        set_model_state_dict(model, part or {}, options=options)


def _read_weights(
    folder: Path,
    config: dict[str, Any],
    shapes: dict[str, torch.Size],
    dtype: torch.dtype,
    seed: int,
) -> Iterator[StateDict]:
    """All of the model's weights in parts, and the adapters last. Raises UserError."""
    check_weights(folder, config)
    for file in weight_files(folder):
        for part in _read_parts(file, config):
            for name in part:  # in place: the weights as read are freed one by one
                part[name] = part[name].to(dtype)
            yield part
            del part  # else it is held while the next is read
    yield _init_adapters(shapes, dtype, seed)


def _read_parts(file: Path, config: dict[str, Any]) -> Iterator[StateDict]:
    """The weights of one file by torchtune's names: PART_BYTES at a time, or one larger weight."""
    part: StateDict = {}
    try:
        with safe_open(file, framework="pt") as weights:
            for name in weights.keys():  # noqa: SIM118 (it is no mapping)
                if name == HEAD and config.get("tie_word_embeddings"):
                    continue  # the embedding, written a second time (`check_weights`)
                size = _nbytes(weights, name)  # before it is read, so that no two parts are held
                if part and sum(w.nbytes for w in part.values()) + size > PART_BYTES:
                    yield _from_hf(part, config, file)
                    part = {}
                part[name] = weights.get_tensor(name)
    except (SafetensorError, OSError) as error:
        raise UserError(
            where=str(file), what=f"can't be read: {error}", fix="fetch it again"
        ) from None
    yield _from_hf(part, config, file)


def _nbytes(weights: Any, name: str) -> int:
    """Size of a weight in a file of safetensors that `safe_open` has opened."""
    weight = weights.get_slice(name)
    return int(math.prod(weight.get_shape())) * ITEM_BYTES.get(weight.get_dtype(), 8)


def _from_hf(weights: StateDict, config: dict[str, Any], file: Path) -> StateDict:
    try:
        converted: StateDict = family(config).from_hf(weights, **_head_sizes(config))
    except Exception as error:  # torchtune raises Exception itself for a name that it doesn't know
        raise UserError(
            where=str(file),
            what=f"is not of this model: {error}",
            fix="see config.json beside it",
        ) from None
    weights.clear()
    return converted


def _init_adapters(shapes: dict[str, torch.Size], dtype: torch.dtype, seed: int) -> StateDict:
    """LoRA's start: A random (torch's default of a linear layer), B zero: no output changes."""
    generator = torch.Generator().manual_seed(seed)
    adapters: StateDict = {}
    for name, shape in sorted(shapes.items()):
        if ".lora_a." in name:
            uniform = torch.empty(shape).uniform_(-1, 1, generator=generator)
            adapters[name] = uniform.div(math.sqrt(shape[1])).to(dtype)
        elif ".lora_b." in name or name.endswith(ROWS):
            adapters[name] = torch.zeros(shape, dtype=dtype)
    return adapters


def save(
    model: TransformerDecoder,
    template: Path,
    folder: Path,
    ranks: Ranks = SINGLE_PROCESS,
    recipe: Training | None = None,
    end_ids: list[int] | None = None,
    chat_template: str | None = None,
) -> None:
    """Write `model` as a Hugging Face folder, with adapters of the recipe's `lora` merged in.

    Config, tokenizer, chat template and the weights' dtype are those of the folder `template`, but
    for `end_ids`, tokens that end a text too, and the file `chat_template` in place of its own. All
    ranks give their shards, a tensor at a time, and rank 0 writes a file at a time: no rank holds
    more of the model. Sampling defaults of generation_config.json are left out: every caller states
    its own. Raises UserError where it can't be written.
    """
    config = effective(read_json(template / "config.json"))
    dtype = getattr(torch, stated_dtype(config) or "float32")
    shards: StateDict = get_model_state_dict(model)
    outputs: StateDict = {}
    names: dict[str, str] = {}
    for name, shard in shards.items():
        if ".lora_" not in name:
            empty = torch.empty(shard.shape, dtype=dtype, device="meta")
            ((output, _),) = _to_hf(config, name, empty).items()
            outputs[output] = empty
            names[output] = name
    split = split_torch_state_dict_into_shards(outputs, max_shard_size=FILE_BYTES)
    try:
        if ranks.rank == 0:
            copy_files(config, template, folder, end_ids or [], chat_template)
        for file, file_outputs in split.filename_to_tensors.items():
            part: StateDict = {}
            for output in file_outputs:
                weight = _gather(model, shards, names[output], ranks, recipe)
                if weight is not None:
                    part |= _to_hf(config, names[output], weight.to(dtype))
            if ranks.rank == 0:
                part = {name: weight.contiguous() for name, weight in part.items()}
                save_file(part, folder / file, metadata={"format": "pt"})
        if ranks.rank == 0:
            if split.is_sharded:
                index = {"metadata": split.metadata, "weight_map": split.tensor_to_filename}
                (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2))
            for path in folder.iterdir():
                path.chmod(0o644)  # safetensors writes 0600, which colleagues can't read
    except (OSError, SafetensorError) as error:
        raise UserError(
            where=str(folder),
            what=f"can't be written: {error}; is no space left on device, or no quota?",
            fix="make room and run it again",
        ) from None


def hf_weights(
    model: TransformerDecoder, template: Path, recipe: Training
) -> Iterator[tuple[str, torch.Tensor]]:
    """The weights that `save` would write, by their names on Hugging Face, one after another.

    For a single process: an engine that samples takes them over.
    """
    config = effective(read_json(template / "config.json"))
    dtype = getattr(torch, stated_dtype(config) or "float32")
    weights: StateDict = get_model_state_dict(model)
    for name in weights:
        if ".lora_" not in name:
            weight = _gather(model, weights, name, SINGLE_PROCESS, recipe)
            assert weight is not None
            yield from _to_hf(config, name, weight.to(dtype)).items()


def _gather(
    model: TransformerDecoder,
    shards: StateDict,
    name: str,
    ranks: Ranks,
    recipe: Training | None,
) -> torch.Tensor | None:
    """A whole weight in rank 0's memory, with its adapter merged in; None on the others.

    A copy: merging would change the model, and safetensors refuses a view of a padded tensor.
    """
    layer = name.removesuffix(".weight")
    rows_name = f"{layer}.{ROWS}"
    adapters = [f"{layer}.lora_a.weight", f"{layer}.lora_b.weight", rows_name]
    part: StateDict = {}
    for key in (name, *(adapter for adapter in adapters if adapter in shards)):
        shard = shards[key]
        whole = shard.full_tensor() if isinstance(shard, DTensor) else shard
        if ranks.rank == 0:
            part[key] = whole.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)
    if not part:
        return None
    if rows_name in part:
        row_ids = model.get_submodule(layer).row_ids.cpu()
        part[name].index_add_(0, row_ids, part.pop(rows_name).to(part[name].dtype))
    elif recipe and recipe.lora:
        part = get_merged_lora_ckpt(part, recipe.lora.rank, recipe.lora.alpha)
    weight: torch.Tensor = part[name]
    return weight


def _to_hf(config: dict[str, Any], name: str, weight: torch.Tensor) -> StateDict:
    """A weight by its name, and in its order of heads, on Hugging Face."""
    converted: StateDict = family(config).to_hf({name: weight}, **_head_sizes(config))
    return converted


def is_complete(folder: Path, template: Path) -> bool:
    """Whether a folder has every file that `save` writes, and none of the weights' is cut short.

    Only the headers of the weights are read. `template`: the start model.
    """
    copied = {file.name for file in _copied_files(template)}
    if not all((folder / name).is_file() for name in {*copied, "generation_config.json"}):
        return False
    try:
        check_weights(folder, read_config(folder))
    except UserError:
        return False
    return True


def _copied_files(template: Path) -> list[Path]:
    """The files beside its weights that a model has from the start model: config and tokenizer."""
    return [
        file
        for file in template.iterdir()
        if file.suffix in (".json", ".jinja", ".txt", ".model", ".tiktoken")
        and not file.name.endswith(".index.json")
        and file.name not in NOT_COPIED
    ]


def copy_files(
    config: dict[str, Any],
    template: Path,
    folder: Path,
    end_ids: list[int],
    chat_template: str | None,
) -> None:
    """Write all files of a model but its weights.

    A text ends at the tokens that the start's config.json or generation_config.json name, and with
    `end_ids` at these too: transformers and vLLM look in the latter file, or the former.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for file in _copied_files(template):
        if template != folder:
            shutil.copyfile(file, folder / file.name)
    generation_file = template / GENERATION_CONFIG
    start = read_json(generation_file) if generation_file.exists() else {}
    token_ids = ("bos_token_id", "eos_token_id", "pad_token_id")
    generation = {
        key: values[key] for key in token_ids for values in (start, config) if key in values
    }
    ends = [*dict.fromkeys([*end_token_ids(template), *end_ids])]
    if ends and ends != as_list(config.get("eos_token_id")):
        generation["eos_token_id"] = ends[0] if len(ends) == 1 else ends
        changed = read_json(folder / "config.json") | {"eos_token_id": generation["eos_token_id"]}
        (folder / "config.json").write_text(json.dumps(changed, indent=2) + "\n")
    (folder / GENERATION_CONFIG).write_text(json.dumps(generation, indent=2) + "\n")
    if chat_template:
        write_template(folder, read_text(Path(chat_template)))


def _head_sizes(config: dict[str, Any]) -> dict[str, int]:
    heads = config["num_attention_heads"]
    return {
        "num_heads": heads,
        "num_kv_heads": config["num_key_value_heads"],
        "dim": config["hidden_size"],
        "head_dim": config.get("head_dim") or config["hidden_size"] // heads,
    }
