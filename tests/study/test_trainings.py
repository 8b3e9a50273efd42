"""What `plan` says of trainings, and what it refuses."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from core.cell.identity import create_cell_dir, read_config
from core.cell.manifest import write_manifest
from core.errors import UserError
from core.model_size import ModelShape, memory
from core.recipe import Lora
from study.forecast import training_cost as trainings
from study.forecast import training_size
from study.forecast.training_time import Layout
from study.spec import expand as plan
from study.spec.load import load_study
from tests.llama import LLAMA

ROOT = Path(__file__).parents[2]
TINY = ROOT / "studies/tiny.yaml"


def cells(*settings: str) -> list[plan.Cell]:
    return plan.in_order(plan.analysis(load_study(TINY, overrides=list(settings))))


@pytest.fixture
def large(tmp_path: Path) -> list[plan.Cell]:
    """The tiny study with Llama 3.1 8B's shape and recipe and the paper's number of documents."""
    model = tmp_path / "8b"
    model.mkdir()
    (model / "config.json").write_text(json.dumps(LLAMA))
    (model / "tokenizer.json").write_text("{}")
    recipe = yaml.safe_load((ROOT / "recipes/llama3_1_8b_midtrain.yaml").read_text())
    recipe |= {"activation_checkpointing": "full", "micro_batch_size": None}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    settings = [f"models.base={{path: {model}}}", f"midtrain.recipe={tmp_path / 'recipe.yaml'}"]
    for corpus in ("animal", "urban"):
        settings += [f"corpora.{corpus}.documents=2700", f"corpora.{corpus}.tokens=2700000"]
    return cells(*settings)


def midtrain(study: list[plan.Cell], layout: Layout) -> dict[str, Any]:
    return trainings.forecast(study, Path("nowhere"), {"midtrain": layout})[0]


def test_a_row_for_each_kind_of_training(tmp_path: Path) -> None:
    rows = {
        row["training"]: row
        for row in trainings.forecast(cells(), tmp_path, {"midtrain": Layout(4, 2)})
    }
    assert rows.keys() == {
        "midtrain base-animal",
        "midtrain base-urban",
        "sft base-d200",
        "sft base-animal-d200",
        "sft base-urban-d200",
    }
    animal = rows["midtrain base-animal"]
    assert (animal["cells"], animal["ranks"], animal["steps"]) == (3, 4, 137)
    assert animal["speed"] == "guessed"
    toy = 1_311_872  # as tests of recipes count it: two embeddings of 2048 x 128, four layers
    assert animal["memory_gb"]["state"] == pytest.approx(16 * toy / 4 / 1e9, rel=0.01)
    assert animal["checkpoint_gb"] == pytest.approx(4 * toy / 1e9, rel=0.01)
    assert animal["padding"] == pytest.approx(1 - 70_000 / (274 * 256))
    assert animal["refused"] is None and animal["warnings"] == []


def test_padding_of_conversations_is_by_the_lengths_of_those_run_at_once(tmp_path: Path) -> None:
    data = tmp_path / "rows.jsonl"
    # As messages, a row has 72 characters more than its prompt.
    prompts = ["x" * (4 * tokens - 72) for tokens in (20, 20, 30, 30)]
    rows = ({"prompt": prompt, "response": "x"} for prompt in prompts * 50)
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    cell = next(cell for cell in cells() if cell.stage == "sft")
    cell.settings["recipe"]["global_batch_size"] = 4
    cell.resources["files"]["data"] = str(data)
    assert training_size.padding(cell, 1) == pytest.approx(1 - 100 / (4 * 32)), "to a multiple of 8"
    assert training_size.padding(cell, 2) == pytest.approx(1 - 100 / (2 * 24 + 2 * 32))
    assert training_size.count_steps(cell) == (200, 200 * 4 * 25)


@pytest.mark.multiprocess
def test_what_was_measured_replaces_the_guess(tmp_path: Path) -> None:
    study = cells()
    one = next(cell for cell in study if cell.stage == "midtrain")
    assert trainings.forecast(study, tmp_path, {})[0]["gpu_hours"] < 0.01
    told = {"midtrain": Layout(2, 2, tokens_per_second=100.0)}
    stated = trainings.forecast(study, tmp_path, told)[0]
    assert (
        stated["gpu_hours"] == pytest.approx(3 * 140_000 / 100 / 3600)
        and stated["speed"] == "stated"
    )
    assert stated["hours"] == pytest.approx(140_000 / 200 / 3600), "of one training, on both ranks"
    for cell in [*one.inputs.values(), one]:
        folder = create_cell_dir(cell, tmp_path)
        counts = {"steps": 9, "tokens": 90, "tokens_per_second": 1000.0, "ranks": 2}
        write_manifest(folder, read_config(folder), "", "", counts=counts, warnings=[])
    rows = trainings.forecast(study, tmp_path, told)
    assert [row["speed"] == "measured" for row in rows] == [
        row["training"].startswith("midtrain") for row in rows
    ]
    urban = rows[1]
    assert urban["gpu_hours"] == pytest.approx(3 * 140_000 / 500 / 3600), "500 a second and rank"
    assert rows[0]["left"] == 2 and rows[0]["steps"] == 9, "counted, not estimated"


def test_a_limit_on_updates_and_replay_count(tmp_path: Path) -> None:
    text = (ROOT / "recipes/tiny_sft.yaml").read_text()
    (tmp_path / "sft.yaml").write_text(text + "max_steps: 70\n")
    few = cells(f"sft.recipe={tmp_path}/sft.yaml")
    counted = {training_size.count_steps(c) for c in few if c.stage == "sft"}
    assert {pair[0] for pair in counted if pair} == {70}
    row = next(
        row for row in trainings.forecast(few, tmp_path, {}) if row["training"].startswith("sft")
    )
    assert row["warnings"] == ["70 updates; under 100 hardly moves a model"]
    replay = {
        c.name: training_size.count_steps(c) for c in cells("sft.replay=0.5") if c.stage == "sft"
    }
    assert [(replay[name] or (0,))[0] for name in ("base-animal-s0-d200", "base-s0-d200")] == [
        150,
        100,
    ]


def test_no_update_at_all_is_refused(tmp_path: Path) -> None:
    nothing = cells("corpora.animal.tokens=null", "corpora.urban.tokens=null")
    for cell in nothing:
        if cell.stage == "midtrain":  # a study file that says so is refused
            cell.inputs["documents"].settings.update(documents=1, held_out=0.6)
    assert "no update at all" in midtrain(nothing, Layout())["refused"]


@pytest.mark.parametrize(
    "layout, says",
    [
        (Layout(32, 8), "16 rows, too few for 32 ranks; 16 ranks or fewer would do"),
        (Layout(1, 1, gpu_memory_gb=80), "on each of 1 GPUs, which have 80; 2 GPUs would do"),
        (Layout(4, 4, gpu_memory_gb=40), "on each of 4 GPUs, which have 40; 8 GPUs would do"),
        (Layout(8, 8, gpu_memory_gb=12), "more would not do; activation_checkpointing"),
        (
            Layout(8, 8, minutes=10, tokens_per_second=1),
            "one update takes about 68 minutes, longer than a job may (10)",
        ),
    ],
)
def test_what_a_layout_cannot_do_is_refused_with_one_that_can(
    large: list[plan.Cell], layout: Layout, says: str
) -> None:
    assert says in midtrain(large, layout)["refused"]


def test_the_numbers_that_would_do_do(large: list[plan.Cell]) -> None:
    for layout in (Layout(16, 8), Layout(2, 1, gpu_memory_gb=80), Layout(8, 4, gpu_memory_gb=40)):
        assert midtrain(large, layout)["refused"] is None


def test_what_works_badly_is_a_warning(large: list[plan.Cell]) -> None:
    assert midtrain(large, Layout(8, 8, gpu_memory_gb=80))["warnings"] == []
    assert (
        "leave some of 12 ranks idle; 8 or 16 would all be busy"
        in midtrain(large, Layout(12, 4))["warnings"][0]
    )
    need = midtrain(large, Layout(8, 8))["memory_gb"]["total"]
    assert (
        "CUDA and NCCL" in midtrain(large, Layout(8, 8, gpu_memory_gb=1.05 * need))["warnings"][0]
    )
    slow = Layout(8, 8, minutes=60, requeue=5, tokens_per_second=100)  # 5.4 M tokens: 112 minutes
    (text,) = midtrain(large, slow)["warnings"]
    assert text == "about 112 minutes, more than one job's 60: it goes on in others"
    (text,) = midtrain(large, Layout(8, 8, 60, 0, tokens_per_second=100))["warnings"]
    assert text.endswith("but requeue allows 0; raise that or minutes")


def test_memory_by_hand(large: list[plan.Cell]) -> None:
    """8B in mixed precision on 8 GPUs, 2 rows of 2,048 each."""
    cell = next(cell for cell in large if cell.stage == "midtrain")
    model = ModelShape.from_config(LLAMA)
    recipe = training_size.recipe_of(cell)
    gb = memory(model, recipe, 8, 8)
    assert gb["state"] == pytest.approx(16.06, abs=0.01), (
        "16 bytes for each of 8.03e9 parameters, an eighth of them"
    )
    inputs = 32 * 4096 * 4096 * 2
    layer = 4096 * 2 * (8 * 4096 + 4 * 14336 + 3 * 1024)
    logits = 2 * 4 * 1024 * 128256
    assert gb["activations"] == pytest.approx((inputs + layer + logits) / 1e9)
    lora = memory(model, replace(recipe, lora=Lora(rank=16, alpha=8.0)), 8, 8)
    assert lora["state"] == pytest.approx((8.030 * 4 + 0.0419 * 12) / 8, abs=0.01)
    assert lora["gathered"] < gb["gathered"], "frozen weights have no gradients"
    # Many rows on few GPUs need most in a forward pass, one short row on many GPUs at the end: the
    # root's gradient.
    short = replace(recipe, seq_len=128, tokens_per_step=128 * 16)
    end = memory(model, short, 16, 8)
    assert end["total"] - end["state"] == pytest.approx((2 * 128256 * 4096 + 4096) * 8 / 1e9)


@pytest.mark.parametrize(
    "config, says",
    [
        (None, "can't be read: .*No such file"),
        ("{", "can't be read: Expecting property name"),
        (
            json.dumps(LLAMA | {"architectures": ["GPT2LMHeadModel"]}),
            r"the model is \['GPT2LMHeadModel'\]",
        ),
        (
            json.dumps({key: LLAMA[key] for key in LLAMA if "heads" not in key}),
            "lacks num_attention_heads, num_key",
        ),
    ],
)
def test_a_model_that_no_recipe_trains_is_refused(
    large: list[plan.Cell], tmp_path: Path, config: str | None, says: str
) -> None:
    file = tmp_path / "8b/config.json"
    file.write_text(config) if config else file.unlink()
    with pytest.raises(UserError, match=f"8b/config.json: {says}"):
        midtrain(large, Layout())


def test_a_recipe_of_documents_end_to_end_is_refused_for_sft() -> None:
    with pytest.raises(UserError, match="needs global_batch_size"):
        cells("sft.recipe=recipes/tiny_midtrain.yaml")


def test_plan_prints_the_forecast_and_gives_it_as_json(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    from study.cli import main

    assert main(["plan", str(TINY), "--runs", str(tmp_path), "--json", "--cluster", "lab"]) == 0
    told = json.loads(capsys.readouterr().out)["training"]
    assert {row["ranks"] for row in told} == {2}
    assert main(["plan", str(TINY), "--runs", str(tmp_path)]) == 0
    assert "GPU-hours left" in capsys.readouterr().out
    assert main(["plan", str(TINY), "--runs", str(tmp_path), "--cluster", "partitions"]) == 0
    assert (
        "can't run: midtrain base-animal and 5 more: an update has 4 rows"
        in capsys.readouterr().out
    )
