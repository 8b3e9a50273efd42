"""A model's weight files, by the headers of safetensors: names, shapes and dtypes.

Only a head that the config says is the embedding is read, to compare the two.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from core.errors import UserError
from core.model_folder.config import DTYPES, read_json

INDEX = "model.safetensors.index.json"
EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
BLOCK = 2**26  # bytes that are compared at a time


@dataclass(frozen=True)
class Tensor:
    """A tensor of a safetensors file, as its header describes it."""

    file: Path
    dtype: str
    shape: tuple[int, ...]
    begin: int
    """Position of its first byte in the file."""
    end: int


def weight_files(folder: Path) -> list[Path]:
    """The *.safetensors that are the model: those of the index, where there is one.

    Raises UserError where transformers and vLLM would read different ones, or none is there.
    """
    files = sorted(folder.glob("*.safetensors"))
    index = folder / INDEX
    if index.exists():
        listed = _listed_files(index)
        if absent := sorted(listed - {file.name for file in files}):
            raise UserError(
                where=str(folder), what=f"lacks {', '.join(absent)}", fix="fetch the model again"
            )
        if "model.safetensors" not in listed and folder / "model.safetensors" in files:
            raise UserError(
                where=str(folder),
                what=f"has model.safetensors and other weights by {INDEX}: transformers reads the "
                "former, vLLM the latter",
                fix="keep the one that is the model's",
            )
        files = [file for file in files if file.name in listed]
    if not files:
        others = sorted(file.name for file in folder.glob("*.bin"))
        fix = "fetch the model again"
        if others:
            fix = 'save it as safetensors: python -c "from transformers import '
            fix += "AutoModelForCausalLM as M; M.from_pretrained('OLD', dtype='auto')."
            fix += "save_pretrained('NEW')\", and copy the tokenizer's files"
        with_bin = f", only {', '.join(others)}" if others else ""
        raise UserError(where=str(folder), what=f"has no *.safetensors{with_bin}", fix=fix)
    return files


def _listed_files(index: Path) -> set[str]:
    """The files that an index names. Raises UserError where it names none."""
    names = read_json(index).get("weight_map")
    if not isinstance(names, dict) or not names:
        raise UserError(
            where=str(index), what="has no weight_map of names to files", fix="fetch it again"
        )
    return {str(name) for name in names.values()}


def read_header(file: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file. Raises UserError where it is no whole one."""
    try:
        with open(file, "rb") as opened:
            start = 8 + int.from_bytes(opened.read(8), "little")
            header = json.loads(opened.read(start - 8) if start < 2**27 else b"")
        header.pop("__metadata__", None)
        tensors = {
            name: Tensor(
                file,
                entry["dtype"],
                tuple(entry["shape"]),
                *(start + offset for offset in entry["data_offsets"]),
            )
            for name, entry in header.items()
        }
        size = file.stat().st_size
        if size < max((tensor.end for tensor in tensors.values()), default=start):
            raise ValueError("it is cut short")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            where=str(file), what=f"can't be read: {error}", fix="fetch it again"
        ) from None
    return tensors


def read_headers(folder: Path) -> dict[str, Tensor]:
    """The tensors of all weight files. Raises UserError."""
    tensors: dict[str, Tensor] = {}
    for file in weight_files(folder):
        part = read_header(file)
        if twice := sorted(part.keys() & tensors.keys()):
            raise UserError(
                where=str(file),
                what=f"{twice[0]} is in another *.safetensors too",
                fix="keep the one that is the model's",
            )
        tensors |= part
    return tensors


def expected_shapes(config: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """The weights of a model by the name and shape that they have on Hugging Face."""
    vocab, d, inner = (config[k] for k in ("vocab_size", "hidden_size", "intermediate_size"))
    head = config.get("head_dim") or d // config["num_attention_heads"]
    q, kv = (head * config[f"num_{kind}_heads"] for kind in ("attention", "key_value"))
    layer: dict[str, tuple[int, ...]] = {
        "input_layernorm.weight": (d,),
        "post_attention_layernorm.weight": (d,),
        "self_attn.q_proj.weight": (q, d),
        "self_attn.k_proj.weight": (kv, d),
        "self_attn.v_proj.weight": (kv, d),
        "self_attn.o_proj.weight": (d, q),
        "mlp.gate_proj.weight": (inner, d),
        "mlp.up_proj.weight": (inner, d),
        "mlp.down_proj.weight": (d, inner),
    }
    if config["architectures"] == ["Qwen2ForCausalLM"]:
        layer |= {"self_attn.q_proj.bias": (q,)}
        layer |= {f"self_attn.{name}_proj.bias": (kv,) for name in "kv"}
    if config["architectures"] == ["Qwen3ForCausalLM"]:
        layer |= {f"self_attn.{name}_norm.weight": (head,) for name in "qk"}
    if config["architectures"] == ["Olmo3ForCausalLM"]:
        layer["post_feedforward_layernorm.weight"] = layer.pop("input_layernorm.weight")
        layer |= {"self_attn.q_norm.weight": (q,), "self_attn.k_norm.weight": (kv,)}
    shapes = {EMBEDDING: (vocab, d), "model.norm.weight": (d,)}
    for number in range(config["num_hidden_layers"]):
        shapes |= {f"model.layers.{number}.{name}": shape for name, shape in layer.items()}
    return shapes if config.get("tie_word_embeddings") else shapes | {HEAD: (vocab, d)}


def check_weights(folder: Path, config: dict[str, Any]) -> None:
    """Raise UserError where the weights are not all of this config's model, or of another.

    `config`: as `read_config` gives it.
    """
    tensors = read_headers(folder)
    shapes = expected_shapes(config)
    if config.get("tie_word_embeddings") and HEAD in tensors:
        _check_tied(folder, tensors)
    for name, tensor in sorted(tensors.items()):
        if "rotary_emb" in name or (name == HEAD and name not in shapes):
            continue  # what old files keep of RoPE, and the embedding a second time
        expected = shapes.get(name)
        if tensor.shape != expected:
            stated = "has none" if expected is None else f"says {[*expected]}"
            raise UserError(
                where=str(tensor.file),
                what=f"{name} is {[*tensor.shape]}, config.json {stated}",
                fix="give the config.json and the weights of one model",
            )
        if tensor.dtype not in DTYPES.values():
            raise UserError(
                where=str(tensor.file),
                what=f"{name} is {tensor.dtype}",
                fix="start from a model that is not quantized",
            )
    if missing := sorted(shapes.keys() - tensors.keys()):
        raise UserError(
            where=str(folder),
            what=f"{len(missing)} of {len(shapes)} weights are in no *.safetensors, such as "
            f"{missing[0]}",
            fix="set tie_word_embeddings to true if the head is the embedding, else fetch the "
            "model again"
            if missing == [HEAD]
            else "fetch the model again",
        )


def _check_tied(folder: Path, tensors: dict[str, Tensor]) -> None:
    """Raise UserError where a head that is said to be the embedding differs from it."""
    if EMBEDDING in tensors and _is_equal(tensors[EMBEDDING], tensors[HEAD]):
        return
    raise UserError(
        where=str(folder / "config.json"),
        what=f"tie_word_embeddings is true, but {HEAD} in {tensors[HEAD].file.name} is not the "
        "embedding: transformers would use it, vLLM would not",
        fix="set tie_word_embeddings to false, or remove that weight if the embedding is meant",
    )


def _is_equal(embedding: Tensor, head: Tensor) -> bool:
    if (embedding.dtype, embedding.shape) != (head.dtype, head.shape):
        return False
    first, second = (np.memmap(t.file, np.uint8, "r")[t.begin : t.end] for t in (embedding, head))
    blocks = range(0, len(first), BLOCK)
    return all(np.array_equal(first[i : i + BLOCK], second[i : i + BLOCK]) for i in blocks)
