"""A training small enough for tests, and ways to run it, stop it and compare it."""

import json
import multiprocessing
import shutil
import socket
import time
from dataclasses import asdict
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from transformers import (
    Olmo3Config,
    Olmo3ForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen2Tokenizer,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from core.cell.context import StageContext
from core.cell.identity import Cell, create_cell_dir, read_config
from core.cell.manifest import check_inputs, read_manifest, write_manifest
from core.files import sha256
from core.paths import resolve
from core.recipe import TinyLlama, Training, split_recipe
from recipes import checkpoint, model, tiny_llama

PROCESSES = multiprocessing.get_context("forkserver")
TEXTS = [
    "The kettle boils on the stove and the cups are warm.",
    "A short one.",
    "Rain falls on the roof for hours.",
] * 12
HELD_OUT = [
    "The kettle is warm and the cups are on the roof.",
    "Rain boils for hours.",
    "A short rain falls.",
]
# Five rows a step: two ranks can't share them evenly.
RECIPE = Training(
    seq_len=32,
    epochs=8,
    tokens_per_step=5 * 32,
    lr=1e-3,
    warmup_steps=2,
    weight_decay=0.01,
)
# As a cell has it: in its settings, and in its resources.
SETTINGS, RUNTIME = split_recipe(asdict(RECIPE))
LORA = {"lora": {"rank": 4, "alpha": 8.0, "dropout": 0.0}, "lr": 1e-2}
TINY = TinyLlama(
    vocab_size=640,
    dim=64,
    layers=2,
    heads=2,
    kv_heads=1,
    ffn_dim=128,
    max_seq_len=131072,
    tokens=12 * 32,
    pretrain=RECIPE,
)
PACKED = Training(
    seq_len=512, epochs=2, global_batch_size=8, lr=1e-3, held_out=0.2, eval_every=2, packed=True
)
# Conversations of many lengths, and more than a row holds.
TALKS = [
    [
        {"role": "user", "content": f"Where is cup {i}?"},
        {
            "role": "assistant",
            "content": "On the roof, " + "a step up, " * (3 * (i % 7)) + "there.",
        },
    ]
    for i in range(20)
]
CHAT_TEMPLATE = resolve("recipes/data/llama3_chat.jinja").read_text(encoding="utf-8")


class _Tokenizer:
    """What make_config asks of a tokenizer."""

    @staticmethod
    def convert_tokens_to_ids(token: str) -> int:
        return 0


# The toy model's config.json.
SHAPE_AS_CONFIG = tiny_llama.make_config(TINY, _Tokenizer())  # type: ignore[arg-type]
MODEL = Cell("model", "base", {})
DOCUMENTS = Cell("documents", "texts", {})


def make_recipe(**changes: Any) -> Training:
    """RECIPE with changes, as a cell's settings or resources have them."""
    return Training.from_settings(SETTINGS | changes, RUNTIME | changes)


def make_model(folder: Path) -> None:
    """A tiny untrained checkpoint in `folder`."""
    tokenizer = tiny_llama.make_tokenizer(TEXTS, TINY.vocab_size, CHAT_TEMPLATE)
    tokenizer.save_pretrained(folder)
    config = tiny_llama.make_config(TINY, tokenizer) | {"vocab_size": len(tokenizer)}
    (folder / "config.json").write_text(json.dumps(config))
    torch.manual_seed(0)
    checkpoint.save(model.build(config), folder, folder)


# As Qwen2.5's: ChatML, and a system's turn where none is given.
CHATML = """
{%- if messages[0].role != 'system' %}
{{- '<|im_start|>system\nBe helpful.<|im_end|>\n' }}
{%- endif %}
{%- for m in messages %}
{{- '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
{{- '<|im_start|>assistant\n' }}
{%- endif %}"""


def make_qwen2(folder: Path, tied: bool) -> Path:
    """A tiny untrained Qwen2 as transformers writes it, with nonzero biases; it has no BOS."""
    return _make_model(folder, Qwen2Config, Qwen2ForCausalLM, tied)


def make_qwen3(folder: Path, tied: bool) -> Path:
    """A tiny untrained Qwen3, with heads that don't divide its width and norms that aren't 1."""
    return _make_model(folder, Qwen3Config, Qwen3ForCausalLM, tied, head_dim=48)


def make_olmo3(folder: Path) -> Path:
    """A tiny untrained OLMo 3: a layer with a window, and one without, whose RoPE is scaled."""
    yarn = {"rope_type": "yarn", "rope_theta": 5e5, "factor": 8.0, "attention_factor": 1.3}
    return _make_model(
        folder,
        Olmo3Config,
        Olmo3ForCausalLM,
        tied=False,
        layer_types=["sliding_attention", "full_attention"],
        sliding_window=64,
        max_position_embeddings=512,
        rope_parameters={
            "full_attention": yarn | {"original_max_position_embeddings": 64},
            "sliding_attention": {"rope_type": "default", "rope_theta": 5e5},
        },
    )


def _make_model(folder: Path, configs: Any, models: Any, tied: bool, **sizes: Any) -> Path:
    llama_tokenizer = tiny_llama.make_tokenizer(TEXTS, TINY.vocab_size, CHAT_TEMPLATE)
    bpe = json.loads(llama_tokenizer.backend_tokenizer.to_str())["model"]
    tokenizer = Qwen2Tokenizer(
        vocab=bpe["vocab"], merges=[*map(tuple, bpe["merges"])], chat_template=CHATML
    )
    tokenizer.add_special_tokens({"extra_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    config = configs(
        vocab_size=len(tokenizer) + 3,  # Qwen's is rounded up too
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        tie_word_embeddings=tied,
        rope_theta=1e6,
        eos_token_id=tokenizer.eos_token_id,
        **sizes,
    )
    model = models(config)
    for name, weight in model.named_parameters():
        if name.endswith(".bias"):
            torch.nn.init.normal_(weight)
        if name.endswith(("q_norm.weight", "k_norm.weight")):
            torch.nn.init.uniform_(weight, 0.5, 2.0)
    model.save_pretrained(folder)
    return folder


def make_inputs(folder: Path) -> None:
    """A study's folder with a finished tiny checkpoint and finished documents."""
    started, documents = (create_cell_dir(cell, folder) for cell in (MODEL, DOCUMENTS))
    make_model(started / "model")
    for name, texts in (("documents", TEXTS), ("held_out", HELD_OUT)):
        (documents / f"{name}.jsonl").write_text(
            "".join(json.dumps({"text": text}) + "\n" for text in texts)
        )
    for made in (started, documents):
        write_manifest(made, read_config(made), "", "", counts={}, warnings=[])


def training(
    base: Path,
    name: str,
    like: Path | None = None,
    recipe: dict[str, Any] | None = None,
    **runtime: Any,
) -> Path:
    """A cell to train, or a copy of one begun; its seeds follow from its settings, not its name.

    Each name has a runs folder of its own: in one, a cell that is finished is not run again.

    `recipe`: changes to SETTINGS; `runtime` to RUNTIME.
    """
    inputs = {"start": MODEL, "documents": DOCUMENTS}
    settings = {"recipe": SETTINGS | (recipe or {})}
    own = base.parent.with_name(f"{base.parent.name}-{name}") / base.name
    for cell in inputs.values():
        shutil.copytree(base / cell.relpath, own / cell.relpath, dirs_exist_ok=True)
    folder = create_cell_dir(Cell("midtrain", name, settings, inputs, RUNTIME | runtime), own)
    if like:
        shutil.copytree(
            like,
            folder,
            dirs_exist_ok=True,
            ignore=shutil.ignore_patterns("config.yaml", "log.txt"),
        )
    return folder


def sft(base: Path, name: str, **runtime: Any) -> Path:
    """A cell of SFT on 12 of TALKS by the recipe PACKED; `runtime`: changes to it."""
    own = base.parent.with_name(f"{base.parent.name}-{name}") / base.name
    own.mkdir(parents=True)
    (own / MODEL.relpath).parent.mkdir(parents=True)
    (own / MODEL.relpath).symlink_to(base / MODEL.relpath)
    data = own / "chat.jsonl"
    data.write_text("".join(json.dumps({"messages": talk}) + "\n" for talk in TALKS))
    recipe, default = split_recipe(asdict(PACKED))
    settings = {"recipe": recipe, "files": {"data": sha256(data)}, "dose": 12, "seed": 0}
    resources = {"files": {"data": str(data)}, **default, **runtime}
    return create_cell_dir(Cell("sft", name, settings, {"start": MODEL}, resources), own)


def in_process(folder: Path, **report: Any) -> StageContext:
    """The training as its stage function sees it, for one process."""
    config = read_config(folder)
    inputs = check_inputs(folder, config)
    return StageContext(
        folder, config["identity"], config["settings"], config["resources"], inputs, **report
    )


RANK = """
import os, sys
from pathlib import Path
os.environ.update({environment})
log = os.open({log!r}, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
os.dup2(log, 1), os.dup2(log, 2)
{before}
from core.cell.run import run_cell
run_cell(Path({folder!r}))
"""


def start_ranks(folder: Path, world: int, before: str = "") -> list[BaseProcess]:
    """`world` processes on the cell, with a launcher's environment; logs in <cell>.rank<r>.txt.

    `before`: Python that each runs first.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(world)}
    processes = []
    for rank in range(world):
        environment = {**place, "RANK": str(rank), "LOCAL_RANK": str(rank)}
        log = f"{folder}.rank{rank}.txt"
        code = RANK.format(environment=environment, log=log, before=before, folder=str(folder))
        processes.append(PROCESSES.Process(target=exec, args=(code, {}), daemon=True))
        processes[-1].start()
    return processes


def on_two(name: Path, code: str) -> list[BaseProcess]:
    """Two ranks that run `code` and no cell; what each says is in <name>.rank<r>.txt."""
    return start_ranks(name, 2, before=f"{code}\nos._exit(0)")


def ends(processes: list[BaseProcess]) -> list[int | None]:
    """Exit statuses, once all have ended; -9 also of one that had to be killed."""
    for process in processes:
        process.join(300)  # two ranks may compile, on a busy machine
        process.kill()
        process.join()
    return [process.exitcode for process in processes]


def logs(folder: Path) -> str:
    return "".join(f.read_text() for f in sorted(folder.parent.glob(f"{folder.name}.rank*.txt")))


def on_ranks(folder: Path, world: int, before: str = "") -> Path:
    """Run the cell to its end. The manifest counts: gloo may abort a process that has finished."""
    ends(start_ranks(folder, world, before))
    assert read_manifest(folder), logs(folder)
    return folder


def until(condition: Any, processes: list[BaseProcess], seconds: float = 60) -> None:
    """Wait for the condition while all processes run, and no longer than `seconds`."""
    began = time.monotonic()
    while not condition():
        assert all(p.is_alive() for p in processes), "ended too early"
        assert time.monotonic() - began < seconds
        time.sleep(0.002)


def lines(folder: Path) -> list[dict[str, float]]:
    """metrics.jsonl so far."""
    metrics = folder / "metrics.jsonl"
    return (
        [json.loads(line) for line in metrics.read_text().splitlines()] if metrics.exists() else []
    )


def vocabulary(model: Path) -> int:
    return int(json.loads((model / "config.json").read_text())["vocab_size"])


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model/model.safetensors")


def warnings(folder: Path) -> list[str]:
    manifest = read_manifest(folder)
    assert manifest
    return manifest["warnings"]


def assert_same(one: Path, other: Path) -> None:
    assert (one / "metrics.jsonl").read_text() == (other / "metrics.jsonl").read_text()
    assert (one / "model/model.safetensors").read_bytes() == (
        other / "model/model.safetensors"
    ).read_bytes()
    mine, theirs = read_manifest(one), read_manifest(other)
    assert mine and theirs and _apart_from_boards(mine) == _apart_from_boards(theirs)
    for counts in (mine["counts"], theirs["counts"]):
        del counts["tokens_per_second"]
        counts.pop("eval_seconds", None)
    assert mine["counts"] == theirs["counts"]
    assert [w for w in mine["warnings"] if "skipped" not in w] == theirs["warnings"]


def _apart_from_boards(manifest: dict[str, Any]) -> set[str]:
    return {name for name in manifest["outputs"] if not name.startswith("tensorboard/")}


def assert_close(one: Path, other: Path) -> None:
    mine, theirs = lines(one), lines(other)
    assert (
        [line["step"] for line in mine]
        == [line["step"] for line in theirs]
        == list(range(1, len(mine) + 1))
    )
    losses = max(abs(a["loss"] - b["loss"]) for a, b in zip(mine, theirs, strict=True))
    drift = max((w - weights(other)[name]).abs().max().item() for name, w in weights(one).items())
    print(f"largest difference: loss {losses:.1e}, weights {drift:.1e}")
    assert losses < 1e-5 and drift < 1e-4
