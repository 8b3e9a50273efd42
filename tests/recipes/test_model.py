"""Models in and out: shapes, precisions, adapters; what a broken folder says."""

import json
import resource
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from core import model_size
from core.cell.failures import diagnose
from core.cell.identity import Cell, create_cell_dir, read_config
from core.cell.manifest import write_manifest
from core.cell.run import run_cell
from core.errors import UserError
from core.model_size import CONFIG_KEYS, KNOWN, parameters, trained
from core.recipe import Lora
from recipes import checkpoint
from recipes.distributed import SINGLE_PROCESS, process_group
from recipes.model import build, flops_per_token
from tests.llama import LLAMA
from tests.recipes.toy import (
    DOCUMENTS,
    LORA,
    RECIPE,
    RUNTIME,
    SETTINGS,
    assert_close,
    assert_same,
    lines,
    make_recipe,
    on_ranks,
    training,
    vocabulary,
    weights,
)


def ids(folder: Path) -> torch.Tensor:
    return torch.randint(0, vocabulary(folder), (2, 40), generator=torch.Generator().manual_seed(0))


@pytest.mark.multiprocess
@pytest.mark.parametrize(
    "which", ["start", "tied", "qwen2", "tied_qwen2", "qwen3", "tied_qwen3", "olmo3"]
)
def test_logits_are_those_of_transformers_before_and_after(
    which: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    folder = request.getfixturevalue(which)
    model = checkpoint.load(folder, SINGLE_PROCESS, RECIPE).eval()
    checkpoint.save(model, folder, tmp_path / "out", SINGLE_PROCESS, RECIPE)
    for place in (folder, tmp_path / "out"):
        theirs = AutoModelForCausalLM.from_pretrained(place).eval()
        with torch.no_grad():
            torch.testing.assert_close(
                model(ids(folder)), theirs(ids(folder)).logits, atol=1e-5, rtol=0
            )
    assert ("lm_head.weight" in load_file(tmp_path / "out/model.safetensors")) == (
        "tied" not in which
    )


def test_a_bf16_start_is_written_as_bf16(start: Path, tmp_path: Path) -> None:
    like = shutil.copytree(start, tmp_path / "like")
    config = json.loads((like / "config.json").read_text()) | {"dtype": "bfloat16"}
    (like / "config.json").write_text(json.dumps(config))
    checkpoint.save(
        checkpoint.load(start, SINGLE_PROCESS, RECIPE),
        like,
        tmp_path / "out",
        SINGLE_PROCESS,
        RECIPE,
    )
    assert {w.dtype for w in load_file(tmp_path / "out/model.safetensors").values()} == {
        torch.bfloat16
    }
    assert json.loads((tmp_path / "out/config.json").read_text())["dtype"] == "bfloat16"
    assert (tmp_path / "out/model.safetensors").stat().st_mode & 0o777 == 0o644


@pytest.mark.multiprocess
def test_mixed_precision_keeps_fp32_weights_and_goes_the_same_way(base: Path, alone: Path) -> None:
    folder = training(base, "mixed", recipe={"dtype": "mixed"})
    run_cell(folder)
    assert {w.dtype for w in weights(folder).values()} == {torch.float32}
    ours, theirs = lines(folder), lines(alone)
    assert abs(ours[-1]["loss"] - theirs[-1]["loss"]) < 0.1 and ours[0]["loss"] != theirs[0]["loss"]
    assert ours[-1]["loss"] < ours[0]["loss"] - 0.5


@pytest.mark.multiprocess
@pytest.mark.parametrize("kind", ["selective", "full"])
def test_activation_checkpointing_changes_no_bit(base: Path, alone: Path, kind: str) -> None:
    folder = training(base, f"checkpointed_{kind}", activation_checkpointing=kind)
    run_cell(folder)
    assert_same(folder, alone)


@pytest.mark.multiprocess
@pytest.mark.parametrize("which", ["tied", "tied_qwen2", "tied_qwen3", "olmo3"])
def test_a_model_of_each_family_trains_on_two_ranks_as_on_one(
    base: Path, which: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    started, start = Cell("model", which, {}), request.getfixturevalue(which)
    # Slowly: Adam makes much of the noise in the gradients of Qwen2's biases of keys, which are
    # next to nothing.
    settings = {"recipe": SETTINGS | {"lr": 1e-4}}
    inputs = {"start": started, "documents": DOCUMENTS}
    folders = []
    for name in ("one", "two"):  # in one runs folder the second would be found finished
        own = tmp_path / name / "study"
        made = create_cell_dir(started, own)
        shutil.copytree(start, made / "model")
        write_manifest(made, read_config(made), "", "", counts={}, warnings=[])
        shutil.copytree(base / DOCUMENTS.relpath, own / DOCUMENTS.relpath)
        folders.append(create_cell_dir(Cell("midtrain", name, settings, inputs, RUNTIME), own))
    one, two = folders
    run_cell(one)
    assert_close(one, on_ranks(two, 2))
    assert not torch.equal(
        weights(one)["model.embed_tokens.weight"],
        load_file(start / "model.safetensors")["model.embed_tokens.weight"],
    )


def test_flops_of_a_token() -> None:
    with torch.device("meta"):
        whole, lora = build(LLAMA), build(LLAMA, Lora(rank=16, alpha=8.0))
    assert sum(p.numel() for p in whole.parameters()) == 8_030_261_248
    assert (
        flops_per_token(whole, 2048) == 6 * (8_030_261_248 - 128256 * 4096) + 12 * 32 * 4096 * 2048
    )
    assert 0.6 < flops_per_token(lora, 2048) / flops_per_token(whole, 2048) < 0.72


CARDS = {
    "Qwen/Qwen3-0.6B": 596_049_920,
    "Qwen/Qwen3-1.7B": 1_720_574_976,
    "Qwen/Qwen3-4B": 4_022_468_096,
    "Qwen/Qwen3-8B": 8_190_735_360,
    "allenai/Olmo-3-1025-7B": 7_298_011_136,
    "allenai/Olmo-3-7B": 7_298_011_136,
}


@pytest.mark.parametrize("name", CARDS)
def test_a_plan_counts_a_model_as_it_is_built(name: str) -> None:
    """Sizes are those of the model's config.json, its counts those of the card."""
    shape = KNOWN[name]
    config = {key: getattr(shape, key) for key in CONFIG_KEYS}
    config |= {"architectures": [shape.architecture], "head_dim": shape.head_dim}
    config |= {"tie_word_embeddings": shape.tie_word_embeddings}
    config |= {"rms_norm_eps": 1e-6, "rope_theta": 1e6, "max_position_embeddings": 512}
    config |= {"layer_types": ["full_attention"] * shape.num_hidden_layers}
    recipe = make_recipe(**LORA)
    with torch.device("meta"):
        whole, lora = build(config), build(config, recipe.lora)
    count = sum(p.numel() for p in whole.parameters())
    assert count == parameters(shape).total == CARDS[name]
    assert sum(p.numel() for p in lora.parameters() if p.requires_grad) == trained(shape, recipe)
    planned = model_size.flops_per_token(shape, RECIPE)
    assert flops_per_token(whole, RECIPE.seq_len) == pytest.approx(planned, rel=1e-6)


CHANGES: dict[str, dict[str, Any]] = {
    "not Llama": {"architectures": ["GPT2LMHeadModel"]},
    "no scaling": {"rope_scaling": None},
    "other scaling": {
        "rope_scaling": {
            "rope_type": "llama3",
            "factor": 8.0,
            "low_freq_factor": 2.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192,
        }
    },
    "biases": {"attention_bias": True},
    "no factor": {
        "rope_scaling": {"rope_type": "llama3", "original_max_position_embeddings": 8192}
    },
}


def broken(start: Path, tmp_path: Path, how: str) -> Path:
    folder = shutil.copytree(start, tmp_path / "model")
    file = folder / "model.safetensors"
    tensors = load_file(file)
    if how == "truncated":
        file.write_bytes(file.read_bytes()[:-100])
    elif how == "no file":
        file.unlink()
    elif how == "lost":
        save_file({n: w for n, w in tensors.items() if "layers.1" not in n}, file)
    elif how == "twice":
        save_file(tensors, folder / "consolidated.safetensors")
    elif how == "no config":
        (folder / "config.json").unlink()
    elif how == "half a config":
        (folder / "config.json").write_text("{")
    elif how == "too much":
        save_file(tensors | {"model.layers.2.input_layernorm.weight": torch.ones(64)}, file)
    elif how == "other shape":
        save_file(tensors | {"model.norm.weight": torch.ones(3)}, file)
    else:
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | CHANGES[how]))
    return folder


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ("truncated", "model.safetensors: can't be read: .*; fetch it again"),
        ("no file", "has no .*; fetch the model again"),
        ("lost", "9 of 21 weights are in no .*, such as model.layers.1"),
        ("too much", "model.layers.2.input_layernorm.weight is .64., config.json has none"),
        ("other shape", "norm.weight is .3., config.json says .64."),
        (
            "twice",
            r"model.safetensors: lm_head.* is in another \*.safetensors too; keep the one that",
        ),
        ("no config", "config.json: can't be read: .*; fetch the model again"),
        ("half a config", "config.json: can't be read: .*; fetch the model again"),
        (
            "other scaling",
            "config.json: low_freq_factor is 2.0; this recipe trains Llama 3.1, 3.2 and 3.3",
        ),
        ("biases", "config.json: attention_bias is True; this recipe trains"),
        ("no factor", "config.json: lacks factor, .*; write them as the model"),
        (
            "not Llama",
            r"is \['GPT2LMHeadModel'\]; the recipes train LlamaForCausalLM, Qwen2ForCausalLM, Qwen3",
        ),
        ("no scaling", "rope_type is default; this recipe trains Llama 3.1, 3.2"),
    ],
)
def test_a_broken_model_is_refused(start: Path, tmp_path: Path, how: str, said: str) -> None:
    with pytest.raises(UserError, match=said) as caught:
        checkpoint.load(broken(start, tmp_path, how), SINGLE_PROCESS, RECIPE)
    (problem,) = caught.value.problems
    assert problem.where and problem.fix and "\n" not in str(problem)


def test_a_full_disk_is_reported_as_such(start: Path, tmp_path: Path) -> None:
    model = checkpoint.load(start, SINGLE_PROCESS, RECIPE)
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limit[1]))
        with pytest.raises(UserError) as caught:
            checkpoint.save(model, start, tmp_path / "out", SINGLE_PROCESS, RECIPE)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    (line,) = caught.value.lines
    assert f"{tmp_path / 'out'}: can't be written: " in line
    assert (known := diagnose(line)) and known.name == "limit on file size"


def test_a_group_of_one_can_be_made_again_and_again() -> None:
    for _ in range(2):
        with process_group(force=True) as ranks:
            assert ranks.world_size == 1 and ranks.broadcast("x") == "x"
