"""Model folders of a few kB in the forms that people have, and what each is right for.

`MODELS` are changes of one tiny Llama or Qwen, `TEMPLATES` chat templates by their kind. Each has
None, where it trains as transformers reads it, or what refuses it says.
"""

import json
import shutil
import struct
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)

from core.paths import ROOT

Json = dict[str, Any]
Change = Callable[[Path], object]
TEXTS = [
    "The kettle boils on the stove, and the cups are warm.",
    "Rain falls  on 20 roofs for hours.\nNobody doesn't hear it.",
    "Grüße aus Köln — 天气很好 🌧",
] * 4
SPECIAL = ["<|begin|>", "<|end|>", "<|eot|>", "<|im_start|>", "<|im_end|>", "<s>", "</s>"]
ROPE = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
SHORT_ROPE = {key: ROPE[key] for key in ROPE if key != "original_max_position_embeddings"}
SIZES = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 16384,
    "rms_norm_eps": 1e-5,
    "hidden_act": "silu",
    "tie_word_embeddings": False,
    "dtype": "float32",
}
QWEN_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
CHATML = (ROOT / "recipes/data/chatml.jinja").read_text(encoding="utf-8")


@cache
def byte_level(qwen: bool = False) -> str:
    """tokenizer.json of a byte-level BPE, as Llama 3's and Qwen2's are."""
    bpe = Tokenizer(models.BPE())
    if qwen:
        bpe.normalizer = normalizers.NFC()
        words = pre_tokenizers.Split(Regex(QWEN_WORDS), "isolated")
        bytes_ = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        bpe.pre_tokenizer = pre_tokenizers.Sequence([words, bytes_])
    else:
        bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=300, initial_alphabet=alphabet, show_progress=False)
    # Words that begin the answers of core.model_folder.chat, as tokens with their spaces.
    bpe.train_from_iterator([*TEXTS, " Water Frozen Gladly" * 9], trainer)
    special = ["<|endoftext|>", *SPECIAL] if qwen else SPECIAL
    bpe.add_special_tokens([AddedToken(name, normalized=False, special=True) for name in special])
    return bpe.to_str()


@cache
def sentencepiece_like() -> str:
    """tokenizer.json of a BPE with ▁ for spaces and bytes for what it lacks, as Llama 2's is."""
    bpe = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    bpe.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    bpe.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(content=" ", left=1),
        ]
    )
    names = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    letters = sorted({letter for text in TEXTS[:2] for letter in text} - {" ", "\n"})
    vocab = {name: number for number, name in enumerate([*names, "▁", *letters])}
    bpe.model = models.BPE(
        vocab=vocab, merges=[], unk_token="<unk>", fuse_unk=True, byte_fallback=True
    )
    bpe.add_special_tokens([AddedToken(name, special=True) for name in ("<unk>", "<s>", "</s>")])
    return bpe.to_str()


def id_of(folder: Path, token: str) -> int:
    number = Tokenizer.from_file(str(folder / "tokenizer.json")).token_to_id(token)
    assert number is not None
    return int(number)


def make(folder: Path, qwen: bool = False, changes: Json | None = None) -> Path:
    """A tiny model; `changes`: of its config.json, where None removes a key."""
    folder.mkdir(parents=True)
    (folder / "tokenizer.json").write_text(byte_level(qwen))
    kind = "Qwen2Tokenizer" if qwen else "PreTrainedTokenizerFast"
    names = {"eos_token": "<|endoftext|>", "pad_token": "<|endoftext|>", "bos_token": None}
    if not qwen:
        names = {"bos_token": "<|begin|>", "eos_token": "<|end|>"}
    write(folder, "tokenizer_config.json", {"tokenizer_class": kind, **names})
    (folder / "chat_template.jinja").write_text(CHATML)
    size = Tokenizer.from_file(str(folder / "tokenizer.json")).get_vocab_size()
    config: Json = {
        "architectures": ["Qwen2ForCausalLM" if qwen else "LlamaForCausalLM"],
        "model_type": "qwen2" if qwen else "llama",
        "vocab_size": size,
        "rope_theta": 10_000.0,
        "eos_token_id": id_of(folder, "<|endoftext|>" if qwen else "<|end|>"),
        **({} if qwen else {"rope_scaling": ROPE, "bos_token_id": id_of(folder, "<|begin|>")}),
        **SIZES,
        **(changes or {}),
    }
    config = {key: value for key, value in config.items() if value is not None}
    write(folder, "config.json", config)
    save_file(weights_of(config), folder / "model.safetensors", {"format": "pt"})
    return folder


def weights_of(config: Json) -> dict[str, torch.Tensor]:
    d, inner, vocab = config["hidden_size"], config["intermediate_size"], config["vocab_size"]
    heads = config["num_attention_heads"]
    head = config.get("head_dim") or d // heads
    q, kv = head * heads, head * (config.get("num_key_value_heads") or heads)
    shapes: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (vocab, d),
        "model.norm.weight": (d,),
    }
    for layer in range(config["num_hidden_layers"]):
        at = f"model.layers.{layer}"
        shapes |= {f"{at}.{name}_layernorm.weight": (d,) for name in ("input", "post_attention")}
        shapes |= {f"{at}.mlp.{name}_proj.weight": (inner, d) for name in ("gate", "up")}
        shapes[f"{at}.mlp.down_proj.weight"] = (d, inner)
        for name, size in (("q", q), ("k", kv), ("v", kv), ("o", q)):
            shapes[f"{at}.self_attn.{name}_proj.weight"] = (d, q) if name == "o" else (size, d)
            if config["model_type"] == "qwen2" and name != "o":
                shapes[f"{at}.self_attn.{name}_proj.bias"] = (size,)
        if config["model_type"] == "qwen3":
            shapes |= {f"{at}.self_attn.{name}_norm.weight": (head,) for name in "qk"}
        if config["model_type"] == "olmo3":
            shapes |= {
                f"{at}.self_attn.q_norm.weight": (q,),
                f"{at}.self_attn.k_norm.weight": (kv,),
            }
            del shapes[f"{at}.input_layernorm.weight"]
            shapes[f"{at}.post_feedforward_layernorm.weight"] = (d,)
    if not config.get("tie_word_embeddings"):
        shapes["lm_head.weight"] = (vocab, d)
    generator = torch.Generator().manual_seed(0)
    return {
        name: torch.randn(shape, generator=generator) * 0.3 + ("norm" in name)
        for name, shape in shapes.items()
    }


def write(folder: Path, name: str, content: Json) -> None:
    (folder / name).write_text(json.dumps(content), encoding="utf-8")


def change(name: str, **values: Any) -> Change:
    """Change keys of a JSON file; None removes one."""

    def apply(folder: Path) -> None:
        content = json.loads((folder / name).read_text()) | values
        write(folder, name, {key: value for key, value in content.items() if value is not None})

    return apply


def config(**values: Any) -> Change:
    return change("config.json", **values)


def weights(edit: Callable[[dict[str, torch.Tensor]], object]) -> Change:
    """Edit the dict of weights in place."""

    def apply(folder: Path) -> None:
        tensors = load_file(folder / "model.safetensors")
        edit(tensors)
        save_file(tensors, folder / "model.safetensors", {"format": "pt"})

    return apply


def all_of(*changes: Change) -> Change:
    def apply(folder: Path) -> None:
        for one in changes:
            one(folder)

    return apply


def cast(dtype: torch.dtype) -> Change:
    return weights(lambda w: w.update({name: tensor.to(dtype) for name, tensor in w.items()}))


def tied(head: str | None = None, shard: bool = False) -> Change:
    """Tie the head; `head`: "equal" or "other" is written all the same, with `shard` by itself."""

    def apply(folder: Path) -> None:
        config(tie_word_embeddings=True)(folder)
        tensors = load_file(folder / "model.safetensors")
        tensors.pop("lm_head.weight")
        second = {}
        if head:
            embedding = tensors["model.embed_tokens.weight"]
            second["lm_head.weight"] = embedding.clone() if head == "equal" else embedding * 1.5
        if not shard:
            save_file(tensors | second, folder / "model.safetensors", {"format": "pt"})
            return
        (folder / "model.safetensors").unlink()
        write_shards(folder, [second, tensors], index=True)

    return apply


def write_shards(folder: Path, parts: list[dict[str, torch.Tensor]], index: bool) -> None:
    names = [f"model-{n:05}-of-{len(parts):05}.safetensors" for n in range(1, len(parts) + 1)]
    for name, part in zip(names, parts, strict=True):
        save_file(part, folder / name, {"format": "pt"})
    if index:
        named = {key: name for name, part in zip(names, parts, strict=True) for key in part}
        write(folder, "model.safetensors.index.json", {"metadata": {}, "weight_map": named})


def sharded(index: bool, keep: bool = False, stale: bool = False) -> Change:
    def apply(folder: Path) -> None:
        tensors = load_file(folder / "model.safetensors")
        if not keep:
            (folder / "model.safetensors").unlink()
        names = sorted(tensors)
        parts = [{name: tensors[name] for name in names[i::2]} for i in range(2)]
        write_shards(folder, parts, index)
        if stale:
            save_file({"model.norm.weight": torch.zeros(16)}, folder / "old.safetensors")

    return apply


def hub_cache(folder: Path) -> None:
    """Files as links to blobs, as Hugging Face's cache has them."""
    blobs = folder.with_name(f"{folder.name}-blobs")
    blobs.mkdir()
    for number, file in enumerate(sorted(folder.iterdir())):
        file.rename(blobs / f"{number:040x}")
        file.symlink_to(blobs / f"{number:040x}")


def tokenizer(text: str, names: Json, **options: Any) -> Change:
    """Another tokenizer.json, with a tokenizer_config.json and embeddings of its size."""

    def apply(folder: Path) -> None:
        (folder / "tokenizer.json").write_text(text)
        write(folder, "tokenizer_config.json", {**names, **options})
        size = Tokenizer.from_file(str(folder / "tokenizer.json")).get_vocab_size()
        embeddings = ("model.embed_tokens.weight", "lm_head.weight")
        weights(lambda w: w.update({n: w[n][:size].contiguous() for n in embeddings}))(folder)
        ids = {"bos_token_id": None, "eos_token_id": id_of(folder, names["eos_token"])}
        config(vocab_size=size, **ids)(folder)

    return apply


def ending_in_eos(folder: Path) -> None:
    """A post-processor that writes an end token behind every text."""
    text = Tokenizer.from_file(str(folder / "tokenizer.json"))
    eos = "<|endoftext|>"
    text.post_processor = processors.TemplateProcessing(
        single=f"$A {eos}", special_tokens=[(eos, text.token_to_id(eos))]
    )
    text.save(str(folder / "tokenizer.json"))


def edit_tokenizer(**values: Any) -> Change:
    """Change keys of tokenizer.json."""
    return change("tokenizer.json", **values)


def index(edit: Callable[[Json], Any]) -> Change:
    """Two shards, and an index whose weight_map is what `edit` makes of the right one."""

    def apply(folder: Path) -> None:
        sharded(index=True)(folder)
        content = json.loads((folder / "model.safetensors.index.json").read_text())
        content["weight_map"] = edit(content["weight_map"])
        write(folder, "model.safetensors.index.json", content)

    return apply


def swapped(names: Json) -> Json:
    first, second = sorted(set(names.values()))
    return {key: second if file == first else first for key, file in names.items()}


def custom_code(folder: Path) -> None:
    """Code beside the model, which transformers and vLLM run only where they are told to."""
    own = {"AutoModelForCausalLM": "own.OwnForCausalLM", "AutoConfig": "own.OwnConfig"}
    config(auto_map=own)(folder)
    change("tokenizer_config.json", auto_map={"AutoTokenizer": ["own.Own", None]})(folder)
    (folder / "own.py").write_text("raise RuntimeError('custom code was run')\n")


def original_beside(folder: Path) -> None:
    """The weights once more in the folder original/, as Meta's repositories have them."""
    (folder / "original").mkdir()
    shutil.copy(folder / "model.safetensors", folder / "original/consolidated.safetensors")


def drop(*names: str) -> Change:
    return lambda folder: [(folder / name).unlink() for name in names]


def truncate(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-10])


def as_bin(folder: Path) -> None:
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


def fp8(folder: Path) -> None:
    """The header of a weight says fp8, which torch's safetensors reads as well."""
    file = folder / "model.safetensors"
    content = file.read_bytes()
    (size,) = struct.unpack("<Q", content[:8])
    header = content[8 : 8 + size].replace(b'"F32"', b'"I32"', 1)
    file.write_bytes(content[:8] + header + content[8 + size :])


def nothing(folder: Path) -> None:
    pass


LLAMA2 = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
YARN = {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 8192}
V5 = {"rope_scaling": None, "rope_theta": None}
QWEN3 = {"architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "head_dim": 32}
OLMO3 = {
    "architectures": ["Olmo3ForCausalLM"],
    "model_type": "olmo3",
    "rope_theta": 500_000,
    "sliding_window": 4096,
    "layer_types": ["sliding_attention", "full_attention"],
}
OLMO3_YARN = {
    "rope_type": "yarn",
    "factor": 8.0,
    "original_max_position_embeddings": 8192,
    "attention_factor": 1.2079441541679836,
    "beta_fast": 32.0,
    "beta_slow": 1.0,
}
NESTED = {"rope_type": "default", "rope_theta": 500_000}
EXTRA = {"model.layers.2.input_layernorm.weight": torch.ones(16)}

# name -> (Qwen?, config.json's differences when it is made, changes, what refuses it says)
MODELS: dict[str, tuple[bool, Json, Change, str | None]] = {
    "llama v4": (False, {"torch_dtype": "float32", "dtype": None}, nothing, None),
    "llama v5": (
        False,
        {**V5, "rope_parameters": {**ROPE, "rope_theta": 5e5}},
        nothing,
        None,
    ),
    "llama 3.2, factor 32": (False, {"rope_scaling": {**ROPE, "factor": 32.0}}, tied(), None),
    "rope_scaling counts before rope_parameters": (
        False,
        {
            "rope_scaling": {**ROPE, "factor": 32.0},
            "rope_parameters": {**ROPE, "rope_theta": 5e5},
        },
        nothing,
        None,
    ),
    "tied, head equal": (False, {}, tied("equal"), None),
    "tied, head equal in another shard": (False, {}, tied("equal", shard=True), None),
    "sharded with an index": (False, {}, sharded(index=True), None),
    "sharded without an index": (False, {}, sharded(index=False), None),
    "a file that the index does not name": (False, {}, sharded(index=True, stale=True), None),
    "hub cache": (False, {}, hub_cache, None),
    "bf16": (False, {"dtype": "bfloat16"}, cast(torch.bfloat16), None),
    "fp16": (False, {"dtype": "float16"}, cast(torch.float16), None),
    "no dtype": (False, {"dtype": None}, nothing, None),
    "inv_freq kept": (
        False,
        {},
        weights(
            lambda w: w.update({"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4)})
        ),
        None,
    ),
    "padded vocabulary": (False, {"vocab_size": 384}, nothing, None),
    "every head its own keys": (False, {"num_key_value_heads": None}, nothing, None),
    "head_dim stated": (False, {"head_dim": 8}, nothing, None),
    "merged adapter": (
        False,
        {},
        lambda folder: write(folder, "adapter_config.json", {"peft_type": "LORA", "r": 8}),
        None,
    ),
    "TokenizersBackend": (
        False,
        {},
        change("tokenizer_config.json", tokenizer_class="TokenizersBackend"),
        None,
    ),
    "Llama 2's tokenizer": (
        False,
        {},
        tokenizer(sentencepiece_like(), LLAMA2, tokenizer_class="LlamaTokenizer"),
        None,
    ),
    "Llama 2's tokenizer, fast": (
        False,
        {},
        tokenizer(sentencepiece_like(), LLAMA2, tokenizer_class="LlamaTokenizerFast"),
        None,
    ),
    "no BOS": (False, {}, change("tokenizer_config.json", bos_token=None), None),
    "generation_config of a chat": (
        False,
        {},
        lambda folder: write(
            folder,
            "generation_config.json",
            {"eos_token_id": [id_of(folder, "<|end|>"), id_of(folder, "<|eot|>")], "top_p": 0.5},
        ),
        None,
    ),
    "qwen2 v4": (True, {"rope_theta": 1e6}, nothing, None),
    "qwen2 v5": (
        True,
        {"rope_theta": None, "rope_parameters": {"rope_type": "default", "rope_theta": 1e6}},
        nothing,
        None,
    ),
    "qwen2 tied": (True, {}, tied(), None),
    "qwen2 with a window that is not used": (
        True,
        {"sliding_window": 4096, "use_sliding_window": False, "max_window_layers": 1},
        nothing,
        None,
    ),
    "qwen2, end token behind every text": (True, {}, ending_in_eos, None),
    "Qwen2TokenizerFast": (
        True,
        {},
        change("tokenizer_config.json", tokenizer_class="Qwen2TokenizerFast"),
        None,
    ),
    "qwen3": (True, QWEN3, nothing, None),
    "qwen3 tied, heads that don't divide the width": (
        True,
        {**QWEN3, "head_dim": 64},
        tied(),
        None,
    ),
    "olmo3 v4, as published": (
        True,
        {**OLMO3, "rope_scaling": OLMO3_YARN},
        nothing,
        None,
    ),
    "olmo3 v5, plain RoPE": (
        True,
        {
            **OLMO3,
            "rope_theta": None,
            "rope_parameters": {"full_attention": NESTED, "sliding_attention": NESTED},
        },
        nothing,
        None,
    ),
    "olmo3 v5, YaRN": (
        True,
        {
            **OLMO3,
            "rope_theta": None,
            "rope_parameters": {
                "full_attention": {**NESTED, **OLMO3_YARN},
                "sliding_attention": NESTED,
            },
        },
        nothing,
        None,
    ),
    # Refused.
    "olmo3, another theta": (
        True,
        {**OLMO3, "rope_theta": 10_000},
        nothing,
        "rope_theta is 10000; this recipe trains OLMo 3",
    ),
    "olmo3, YaRN of no kind of layer": (
        True,
        {**OLMO3, "rope_parameters": {**NESTED, **OLMO3_YARN}},
        nothing,
        "rope_parameters does not tell the kinds of layers apart",
    ),
    "olmo3, YaRN in the windows": (
        True,
        {
            **OLMO3,
            "rope_parameters": {
                "full_attention": NESTED,
                "sliding_attention": {**NESTED, **OLMO3_YARN},
            },
        },
        nothing,
        "RoPE of sliding_attention is not plain",
    ),
    "olmo3, YaRN as old files name it": (
        True,
        {**OLMO3, "rope_scaling": YARN},
        nothing,
        "RoPE has a type and no rope_type",
    ),
    "olmo3 without layer_types": (
        True,
        {**OLMO3, "layer_types": None},
        nothing,
        "lacks layer_types; write them as the model was made",
    ),
    "olmo3 with other layers": (
        True,
        {**OLMO3, "layer_types": ["chunked_attention", "full_attention", "full_attention"]},
        nothing,
        "layer_types has chunked_attention, layer_types names 3 layers; this recipe",
    ),
    "olmo3 with biases": (
        True,
        {**OLMO3, "attention_bias": True},
        nothing,
        "attention_bias is True",
    ),
    "qwen3 without head_dim": (
        True,
        {**QWEN3, "head_dim": None},
        nothing,
        "lacks head_dim; write them as the model was made",
    ),
    "qwen3 with biases": (
        True,
        {**QWEN3, "attention_bias": True},
        nothing,
        "attention_bias is True",
    ),
    "tied, another head": (False, {}, tied("other"), "tie_word_embeddings is true, but lm_head"),
    "tied, another head in another shard": (
        False,
        {},
        tied("other", shard=True),
        "lm_head.weight in model-00001-of-00002.safetensors is not the embedding",
    ),
    "YaRN beside plain RoPE": (
        True,
        {
            "rope_scaling": YARN,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e6},
        },
        nothing,
        "rope_type is yarn",
    ),
    "YaRN in a Llama": (False, {"rope_scaling": YARN}, nothing, "rope_type is yarn"),
    "plain RoPE in a Llama": (False, {"rope_scaling": None}, nothing, "rope_type is default"),
    "original length not stated": (
        False,
        {"rope_scaling": SHORT_ROPE},
        nothing,
        "original_max_position_embeddings is 16384",
    ),
    "dtype word": (False, {"dtype": "bf16"}, nothing, "dtype is 'bf16'"),
    "weights as .bin": (False, {}, as_bin, "has no .*, only pytorch_model.bin; save it as"),
    "quantization_config": (
        False,
        {"quantization_config": {"quant_method": "fp8"}},
        nothing,
        "has a quantization_config",
    ),
    "integers": (False, {}, fp8, "is I32; start from a model that is not quantized"),
    "biases": (False, {"attention_bias": True}, nothing, "attention_bias is True"),
    "head_dim of its own": (False, {"head_dim": 16}, nothing, "head_dim is 16"),
    "key-value heads that don't divide the heads": (
        False,
        {"num_key_value_heads": 3},
        nothing,
        "3 key-value heads don't divide ",
    ),
    "heads of an odd size": (
        False,
        {**QWEN3, "head_dim": 15},
        nothing,
        "heads have an odd size, 15",
    ),
    "qwen3, so many heads that none fills the width": (
        False,
        {**QWEN3, "num_attention_heads": 3, "num_key_value_heads": 1},
        nothing,
        "3 heads don't divide hidden_size",
    ),
    "sliding window": (
        True,
        {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 0},
        nothing,
        "use_sliding_window is True",
    ),
    "another model's type": (False, {"model_type": "mistral"}, nothing, "model_type is mistral"),
    "Mistral": (
        False,
        {"architectures": ["MistralForCausalLM"]},
        nothing,
        r"the model is \['MistralForCausalLM'\]",
    ),
    "a weight lost": (False, {}, weights(lambda w: w.pop("model.norm.weight")), "1 of 21 weights"),
    "a weight too many": (False, {}, weights(lambda w: w.update(EXTRA)), "config.json has none"),
    "more embeddings than stated": (False, {}, config(vocab_size=280), "config.json says .280, 16"),
    "cut short": (False, {}, truncate, "model.safetensors: can't be read: it is cut short"),
    "a shard lost": (
        False,
        {},
        all_of(sharded(index=True), drop("model-00002-of-00002.safetensors")),
        "lacks model-00002-of-00002.safetensors",
    ),
    "two sets of weights": (False, {}, sharded(index=True, keep=True), "transformers reads the"),
    "byte-level under LlamaTokenizerFast": (
        False,
        {},
        change("tokenizer_config.json", tokenizer_class="LlamaTokenizerFast"),
        'LlamaTokenizer reads other tokens than tokenizer.json; set "tokenizer_class": "PreTr',
    ),
    "another tokenizer under Qwen2's class": (
        True,
        {},
        lambda folder: (folder / "tokenizer.json").write_text(
            byte_level(qwen=True).replace('"type":"NFC"', '"type":"NFKC"')
        ),
        "Qwen2Tokenizer reads other tokens than tokenizer.json",
    ),
    "no tokenizer.json": (
        False,
        {},
        drop("tokenizer.json"),
        "has no tokenizer.json; copy tokenizer.json and tokenizer_config.json",
    ),
    "broken tokenizer.json": (
        False,
        {},
        lambda folder: (folder / "tokenizer.json").write_text("{}"),
        "its tokenizer can't be read: ",
    ),
    "no EOS": (False, {}, change("tokenizer_config.json", eos_token=None), "names no eos_token"),
    "more tokens than embeddings": (
        False,
        {"vocab_size": 290},
        nothing,
        "the tokenizer has 307 tokens, the model's config 290",
    ),
    # Made after public reports, when the code was done.
    "a class that transformers does not have": (
        False,
        {},
        change("tokenizer_config.json", tokenizer_class="LLaMATokenizer"),
        None,
    ),
    "Qwen2's tokenizer under LlamaTokenizerFast": (
        True,
        {},
        change("tokenizer_config.json", tokenizer_class="LlamaTokenizerFast"),
        None,
    ),
    "tokens as objects, in three files": (
        False,
        {},
        all_of(
            change(
                "tokenizer_config.json",
                bos_token={"__type": "AddedToken", "content": "<|begin|>", "special": True},
                eos_token={"__type": "AddedToken", "content": "<|end|>", "special": True},
                chat_template=CHATML,
                extra_special_tokens=["<|eot|>"],
            ),
            lambda folder: write(folder, "special_tokens_map.json", {"eos_token": "<|end|>"}),
            lambda folder: write(folder, "added_tokens.json", {}),
        ),
        None,
    ),
    "an end token added by tokenizer_config": (
        False,
        {},
        change("tokenizer_config.json", add_eos_token=True, add_bos_token=True),
        None,
    ),
    "a dtype stated that the weights don't have": (
        False,
        {"dtype": "float16"},
        cast(torch.bfloat16),
        None,
    ),
    "tied or not, not stated": (False, {"tie_word_embeddings": None}, nothing, None),
    "the original length beside the scaling": (
        False,
        {
            "rope_scaling": {"type": "llama3", **SHORT_ROPE},
            "original_max_position_embeddings": 8192,
        },
        nothing,
        None,
    ),
    "another EOS in the tokenizer than in the config": (
        True,
        {},
        change("tokenizer_config.json", eos_token="<|im_end|>"),
        None,
    ),
    "adapter weights beside merged ones": (
        False,
        {},
        lambda folder: save_file({"lora_A": torch.ones(2)}, folder / "adapter_model.safetensors"),
        "lora_A is .2., config.json has none",
    ),
    "names of a wrapped model": (
        False,
        {},
        weights(lambda w: [w.update({f"language_model.{name}": w.pop(name)}) for name in list(w)]),
        "language_model.lm_head.weight is .*, config.json has none",
    ),
    # Made after public reports once more.
    "padding kept in tokenizer.json": (
        False,
        {},
        edit_tokenizer(
            padding={
                "strategy": {"Fixed": 512},
                "direction": "Right",
                "pad_to_multiple_of": None,
                "pad_id": 0,
                "pad_type_id": 0,
                "pad_token": "!",
            }
        ),
        None,
    ),
    "truncation kept in tokenizer.json": (
        False,
        {},
        edit_tokenizer(
            truncation={
                "direction": "Right",
                "max_length": 16,
                "strategy": "LongestFirst",
                "stride": 0,
            }
        ),
        None,
    ),
    "padding on the left, a short model_max_length": (
        False,
        {},
        change("tokenizer_config.json", padding_side="left", model_max_length=16),
        None,
    ),
    "an index with the files swapped": (False, {}, index(swapped), None),
    "an index that lacks a weight of its files": (
        False,
        {},
        index(lambda names: {key: names[key] for key in names if key != "lm_head.weight"}),
        None,
    ),
    "custom code": (False, {}, custom_code, None),
    "weights once more in original/": (False, {}, original_beside, None),
    "a token added beyond tokenizer.json": (
        False,
        {"vocab_size": 384},
        change(
            "tokenizer_config.json",
            added_tokens_decoder={"307": {"content": "<new_word>", "special": False}},
        ),
        None,
    ),
    "two thetas": (
        False,
        {"rope_scaling": None, "rope_parameters": {**ROPE, "rope_theta": 5e5}},
        nothing,
        None,
    ),
    "a padding token of -1": (False, {"pad_token_id": -1}, nothing, None),
    "BOS is EOS": (True, {}, change("tokenizer_config.json", bos_token="<|endoftext|>"), None),
    "a window left in a Llama": (
        False,
        {"sliding_window": 8},
        nothing,
        "sliding_window is 8, by which vLLM computes otherwise",
    ),
    "attention to both sides": (False, {"is_causal": False}, nothing, "is_causal is False, by"),
    "scaled logits": (False, {"logit_scale": 0.5}, nothing, "logit_scale is 0.5, by which vLLM"),
    "Qwen2.5-1M's attention": (
        True,
        {"dual_chunk_attention_config": {"chunk_size": 262144, "local_size": 8192}},
        nothing,
        "dual_chunk_attention_config is .*, by which vLLM",
    ),
    "a padding token beyond the vocabulary": (
        False,
        {"pad_token_id": 307},
        nothing,
        "pad_token_id is 307, beyond the 307 tokens of vocab_size",
    ),
    "a token added beyond the embeddings": (
        False,
        {},
        change(
            "tokenizer_config.json",
            added_tokens_decoder={"307": {"content": "[PAD]", "special": True}},
        ),
        "the tokenizer has 308 tokens, the model's config 307",
    ),
    "untied, the head not saved": (
        False,
        {},
        weights(lambda w: w.pop("lm_head.weight")),
        "such as lm_head.weight; set tie_word_embeddings to true if the head is the embedding",
    ),
    "names of a compiled model": (
        False,
        {},
        weights(lambda w: [w.update({f"_orig_mod.{name}": w.pop(name)}) for name in list(w)]),
        "_orig_mod.lm_head.weight is .*, config.json has none",
    ),
    "an index without a map": (False, {}, index(lambda _: None), "index.json: has no weight_map"),
    "the original weights beside": (
        False,
        {},
        lambda folder: shutil.copy(
            folder / "model.safetensors", folder / "consolidated.safetensors"
        ),
        "lm_head.weight is in another .*safetensors too",
    ),
    "no architecture named": (False, {"architectures": None}, nothing, "the model is None; the"),
    "RoPE in a word": (True, {"rope_scaling": "linear"}, nothing, "rope_scaling is 'linear': it"),
    "a number as text": (False, {}, config(hidden_size="16"), "hidden_size is '16': Input should"),
    "RoPE with a text for a number": (
        False,
        {"rope_scaling": {**ROPE, "factor": "8.0"}},
        nothing,
        "rope_scaling.factor is '8.0': Input should be a valid number",
    ),
    "an end token by its name": (
        False,
        {"eos_token_id": "<|end|>"},
        nothing,
        "eos_token_id is '<.end.>': Input",
    ),
    "end tokens of generation_config by name": (
        False,
        {},
        lambda folder: write(folder, "generation_config.json", {"eos_token_id": ["<|end|>"]}),
        "generation_config.json: eos_token_id is ",
    ),
    "a text for the tokenizer's length": (
        False,
        {},
        change("tokenizer_config.json", model_max_length="512"),
        "its tokenizer can't be read: TypeError",
    ),
}


def model(name: str, folder: Path, **sizes: int) -> Path:
    """The folder of one of MODELS, perhaps of other sizes."""
    qwen, differences, apply, _ = MODELS[name]
    apply(make(folder, qwen, differences | sizes))
    return folder


LLAMA3 = (
    "{{ bos_token }}{% for m in messages %}[{{ m.role }}]\n{{ m.content | trim }}<|eot|>"
    "{% endfor %}{% if add_generation_prompt %}[assistant]\n{% endif %}"
)
# name -> (template, the end token of an answer, what refuses it says)
TEMPLATES: dict[str, tuple[Any, str | None, str | None]] = {
    "ChatML": (CHATML, "<|im_end|>", None),
    "ChatML with a system turn by default": (
        "{% if messages[0].role != 'system' %}<|im_start|>system\nHelp.<|im_end|>\n{% endif %}"
        + CHATML,
        "<|im_end|>",
        None,
    ),
    "Llama 3": (LLAMA3, "<|eot|>", None),
    "Llama 3.2, today's date": (
        "{% if strftime_now is defined %}{% set date = strftime_now('%d %b %Y') %}{% else %}"
        "{% set date = '26 Jul 2024' %}{% endif %}Today: {{ date }}\n" + LLAMA3,
        "<|eot|>",
        None,
    ),
    "Zephyr": (
        "{% for m in messages %}{{ '<|' + m.role + '|>\n' + m.content + eos_token + '\n' }}"
        "{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}",
        "<|end|>",
        None,
    ),
    "Llama 2": (
        "{% for m in messages %}{% if m.role == 'user' %}{{ bos_token + '[INST] ' + m.content + "
        "' [/INST]' }}{% else %}{{ ' ' + m.content + ' ' + eos_token }}{% endif %}{% endfor %}",
        "<|end|>",
        None,
    ),
    "Alpaca, ending in EOS": (
        "{% for m in messages %}{% if m.role == 'user' %}### Instruction:\n{{ m.content }}\n\n"
        "{% else %}### Response:\n{{ m.content }}{{ eos_token }}\n\n{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}### Response:\n{% endif %}",
        "<|end|>",
        None,
    ),
    "Alpaca without an end": (
        "{% for m in messages %}### {{ m.role }}:\n{{ m.content }}\n\n{% endfor %}"
        "{% if add_generation_prompt %}### assistant:\n{% endif %}",
        None,
        None,
    ),
    "generation tags": (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.role == 'assistant' %}"
        "{% generation %}{{ m.content }}<|im_end|>{% endgeneration %}{% else %}{{ m.content }}"
        "<|im_end|>{% endif %}\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n"
        "{% endif %}",
        "<|im_end|>",
        None,
    ),
    "parts or a text": (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.content is string %}"
        "{{ m.content }}{% else %}{% for part in m.content %}{{ part.text }}{% endfor %}{% endif %}"
        "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}",
        "<|im_end|>",
        None,
    ),
    "several, one of them default": (
        [{"name": "default", "template": CHATML}, {"name": "tool_use", "template": "x"}],
        "<|im_end|>",
        None,
    ),
    # Refused.
    "none": ("", None, "no chat template; give it one"),
    "no header of an answer": (
        LLAMA3.split("{% if add")[0],
        None,
        "ignores add_generation_prompt",
    ),
    "several, none of them default": (
        [{"name": "a", "template": CHATML}, {"name": "b", "template": "x"}],
        None,
        "the chat template fails: ValueError: ",
    ),
    "syntax": ("{% for m in messages %}{{ m.content }", None, "fails: TemplateSyntaxError"),
    "TypeError": ("{{ messages[0].content + 1 }}", None, "the chat template fails: TypeError"),
    "one turn alone": (
        "{% if messages | length > 2 %}{{ raise_exception('one turn') }}{% endif %}" + CHATML,
        None,
        "the chat template fails: TemplateError: one turn",
    ),
    "earlier answers rewritten": (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.role == 'user' or loop.last %}"
        "{{ m.content }}{% endif %}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}",
        None,
        "rewrites earlier turns",
    ),
    "as Qwen3's: the last answer has thoughts": (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n"
        "{% if m.role == 'assistant' and loop.last %}<think>\n\n</think>\n\n{% endif %}"
        "{{ m.content }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}",
        None,
        "rewrites earlier turns",
    ),
    "a header that ends in a space": (
        "{% for m in messages %}{{ m.role }}: {{ m.content }}<|eot|>\n{% endfor %}"
        "{% if add_generation_prompt %}assistant: {% endif %}",
        None,
        "header of an answer ends in ' ', which becomes one token with",
    ),
    "parts alone, as of models that see images": (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{% for part in m.content %}"
        "{% if part.type == 'text' %}{{ part.text }}{% endif %}{% endfor %}<|im_end|>\n"
        "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}",
        None,
        "leaves out the text of a turn of the user",
    ),
    "BOS twice": ("{{ bos_token }}" + LLAMA3, None, "begins with begin-of-text twice"),
    "drawn": ("{{ ['a', 'b'] | random }}" + CHATML, None, "uses random: another text each time"),
    "another clock": ("{{ now() }}" + CHATML, None, "fails: UndefinedError: 'now' is undefined"),
}


def with_template(name: str, folder: Path) -> Path:
    """A tiny Llama with one of TEMPLATES."""
    make(folder)
    template = TEMPLATES[name][0]
    (folder / "chat_template.jinja").unlink()
    if isinstance(template, list):
        change("tokenizer_config.json", chat_template=template)(folder)
    elif template:
        (folder / "chat_template.jinja").write_text(template)
    return folder
