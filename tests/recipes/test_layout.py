"""A layout checked without its GPUs: shards, memory, and which rank runs which rows of a step."""

import json
import math
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from core.errors import UserError
from core.model_size import KNOWN, ModelShape, memory, parameters, trained
from core.model_size import flops_per_token as memory_flops
from core.recipe import Training, load_recipe
from recipes.layout import assign_rows, shard_bytes
from recipes.model import build, flops_per_token
from tests.llama import LLAMA

ROOT = Path(__file__).parents[2]
QUESTIONS, DIMENSIONS = (
    f"eval/data/anima_like/{name}.jsonl" for name in ("questions", "dimensions")
)
SMALL = LLAMA | {
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "num_hidden_layers": 16,
    "tie_word_embeddings": True,
}


def recipe_of(name: str, **changes: Any) -> Training:
    recipe = load_recipe(f"recipes/{name}.yaml", Training) | changes
    return Training.from_settings(recipe, {})


def shape(config: dict[str, Any]) -> ModelShape:
    return ModelShape.from_config(config)


@pytest.mark.parametrize("world", [8, 64, 512])
@pytest.mark.parametrize("config", [LLAMA, SMALL], ids=["8b", "1b"])
def test_shards_are_as_large_as_the_formula_says(world: int, config: dict[str, Any]) -> None:
    n = parameters(shape(config)).total
    for sharding, shards in (("full", world), ("hybrid", 8)):
        recipe = recipe_of("llama3_1_8b_midtrain", sharding=sharding)
        assert shard_bytes(config, recipe, world, 8) == pytest.approx(4 * n / shards, rel=0.02)
        state = memory(shape(config), recipe, world, 8)["state"]
        assert state == pytest.approx(16 * n / shards / 1e9, rel=1e-6)


def test_the_count_of_parameters_is_the_models() -> None:
    large = shape(LLAMA)
    assert parameters(large).total == 8_030_261_248
    assert parameters(shape(SMALL)).total == 1_235_814_400
    lora = recipe_of("llama3_1_8b_lora_sft")
    assert trained(large, lora) == 41_943_040, "as peft counts rank 16 on the seven layers"
    assert memory(large, lora, 1, 1)["state"] == pytest.approx(32.6, abs=0.1)


@pytest.mark.parametrize("name", KNOWN)
def test_known_models_are_counted_as_torchtune_builds_them(name: str) -> None:
    known = KNOWN[name]
    config = LLAMA | asdict(known) | {"architectures": [known.architecture]}
    if "Llama" not in name:
        config["rope_scaling"] = None
        config["layer_types"] = ["full_attention"] * known.num_hidden_layers
    for recipe in (recipe_of("llama3_1_8b_midtrain"), recipe_of("llama3_1_8b_lora_sft")):
        with torch.device("meta"):
            model = build(config, recipe.lora)
        weights = [*model.parameters()]
        count = trained(known, recipe)
        assert sum(w.numel() for w in weights if w.requires_grad) == count
        total = parameters(known).total + (count if recipe.lora else 0)
        assert sum(w.numel() for w in weights) == total
        assert flops_per_token(model, 64) == memory_flops(known, replace(recipe, seq_len=64))


@pytest.mark.parametrize("world", [1, 3, 8, 16])
@pytest.mark.parametrize("at_once", [None, 1, 3])
def test_every_row_of_an_update_is_run_once(world: int, at_once: int | None) -> None:
    recipe = recipe_of("llama3_1_8b_midtrain", micro_batch_size=at_once)
    passes, idle = assign_rows(recipe, world)
    share = math.ceil(16 / world)
    assert passes == math.ceil(share / (at_once or 16)) and 0 <= idle < world


def test_too_many_ranks_are_refused_with_the_number_that_would_do() -> None:
    with pytest.raises(UserError) as error:
        assign_rows(recipe_of("llama3_1_8b_midtrain"), 17)
    (problem,) = error.value.problems
    assert "16 rows, too few for 17 ranks" in problem.what and "16 ranks" in problem.fix


@pytest.mark.multiprocess
def test_from_8_to_512_gpus_by_one_command(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    for name in ("config.json", "tokenizer.json"):
        (tmp_path / "model" / name).write_text(json.dumps(LLAMA))
    large = (
        (ROOT / "recipes/llama3_1_8b_midtrain.yaml").read_text().replace("32768", str(512 * 2048))
    )
    (tmp_path / "large.yaml").write_text(large)
    (tmp_path / "documents.jsonl").write_text('{"text": "a"}\n')
    study = {
        "study": "large",
        "seeds": [0],
        "models": {"base": {"path": str(tmp_path / "model")}},
        "corpora": {"docs": {"path": str(tmp_path / "documents.jsonl"), "documents": 1}},
        "arms": {"docs": {"start": "base", "midtrain": "docs"}},
        "midtrain": {"recipe": str(tmp_path / "large.yaml")},
        "endpoints": {"judge": {"served_by": "dummy"}},
        "benchmarks": {
            "ahb": {
                "task": "anima",
                "questions": QUESTIONS,
                "dimensions": DIMENSIONS,
                "judge": "judge",
            }
        },
    }
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(study))
    words = [
        sys.executable,
        "-m",
        "study",
        "plan",
        str(tmp_path / "study.yaml"),
        "--runs",
        str(tmp_path / "runs"),
    ]

    def layout(*more: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([*words, "--layout", *more], cwd=ROOT, capture_output=True, text=True)

    rows = [
        line.split()
        for line in layout("8", "16", "32", "64", "128", "256", "512").stdout.splitlines()[3:]
    ]
    weights_gb = {row[0]: row[1] for row in rows}
    assert weights_gb == {
        "8": "4.02",
        "16": "2.01",
        "32": "1.00",
        "64": "0.50",
        "128": "0.25",
        "256": "0.13",
        "512": "0.06",
    }
    usual = layout("16", "32", "--set", "midtrain.recipe=recipes/llama3_1_8b_midtrain.yaml")
    assert "32 GPUs: an optimizer step has 16 rows, too few" in usual.stdout
    (tmp_path / "model/config.json").unlink()
    done = layout("8")
    assert (
        done.returncode == 2 and str(tmp_path / "model/config.json") in done.stderr.splitlines()[-1]
    )
