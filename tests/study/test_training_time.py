"""Hours of trainings by GPU type, communication and evaluations, against sums done by hand."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from core.cell.identity import Cell, create_cell_dir, read_config
from core.cell.manifest import write_manifest
from core.gpu_specs import find_gpu
from core.model_size import ModelShape, flops_per_token, host_memory, memory, parameters
from core.paths import ROOT
from core.recipe import Lora, Training
from slurm.profile import Measured, Profile, Resources, load_profile
from study.commands.common import parallel_plans
from study.forecast import fewer_gpus, gpu_rates
from study.forecast.gpu_rates import rates_of, stage_gpu, stage_rates
from study.forecast.training_cost import forecast
from study.forecast.training_size import count_evaluations, recipe_of
from study.forecast.training_time import Layout, eval_seconds, step_seconds
from study.spec import expand as plan
from study.spec.load import load_study
from tests.llama import LLAMA

MODEL = ModelShape.from_config(LLAMA)
WEIGHTS = parameters(MODEL).total
NVLINK = 0.4 * 450e9  # bytes a second of an H100, as assumed
Cells = Callable[..., list[Cell]]


def recipe(name: str, **changes: Any) -> Training:
    """A recipe of the kit, conversations as they are; `changes` of its settings."""
    raw = yaml.safe_load((ROOT / f"recipes/llama3_1_8b_{name}.yaml").read_text())
    plain = {"packed": False, "compile": False} if name == "sft" else {}
    return Training(**(raw | plain | changes))


@pytest.fixture
def paper_like(tmp_path: Path) -> Cells:
    """Cells of a study of Llama 3.1 8B: the miniature with the paper's recipes and sizes."""
    (tmp_path / "8b").mkdir()
    (tmp_path / "8b/config.json").write_text(json.dumps(LLAMA))
    (tmp_path / "8b/tokenizer.json").write_text("{}")
    row = {"prompt": "x" * 647, "response": "x"}  # 719 characters as messages
    (tmp_path / "rows.jsonl").write_text((json.dumps(row) + "\n") * 5000)

    def cells(*settings: str, **sft: Any) -> list[Cell]:
        raw = yaml.safe_load((ROOT / "recipes/llama3_1_8b_sft.yaml").read_text())
        changed = tmp_path / f"{len([*tmp_path.iterdir()])}.yaml"  # a file is read once
        changed.write_text(yaml.safe_dump(raw | sft))
        common = [
            f"models.base={{path: {tmp_path / '8b'}}}",
            "midtrain.recipe=recipes/llama3_1_8b_midtrain.yaml",
            f"sft={{recipe: {changed}, data: {tmp_path}/rows.jsonl, doses: [0, 800]}}",
        ]
        for corpus in ("animal", "urban"):
            sizes = "documents=2700", "tokens=2700000", "held_out=0.1"
            common += [f"corpora.{corpus}.{size}" for size in sizes]
        file = ROOT / "studies/tiny.yaml"
        return plan.in_order(plan.analysis(load_study(file, overrides=[*common, *settings])))

    return cells


def row(cells: list[Cell], stage: str, layout: Layout, base: Path = Path("none")) -> dict[str, Any]:
    rows = forecast(cells, base, {stage: layout})
    return next(row for row in rows if row["training"].startswith(stage))


def test_arithmetic_goes_by_the_gpu_and_by_what_is_done() -> None:
    documents = recipe("midtrain")
    h100 = step_seconds(MODEL, documents, Layout(4, 4), 2048)
    flops = 4 * 2048 * flops_per_token(MODEL, documents)  # 4 rows of 16 on each of 4 ranks
    assert h100.total == h100.arithmetic == pytest.approx(flops / (0.42 * 989e12))
    assert h100.waiting == 0
    a100 = find_gpu("a100")
    slower = step_seconds(MODEL, documents, Layout(4, 4, gpu=a100, rates=rates_of(a100)), 2048)
    assert slower.arithmetic / h100.arithmetic == pytest.approx(989 / 312)
    for change in ({"activation_checkpointing": "full"}, {"compile": False}):
        changed = step_seconds(MODEL, recipe("midtrain", **change), Layout(4, 4), 2048)
        assert changed.arithmetic / h100.arithmetic == pytest.approx(1 / 0.75), change
    idle = step_seconds(MODEL, documents, Layout(5, 5), 2048)
    assert idle.arithmetic == h100.arithmetic, "the rank with most rows has 4, as of 4 ranks"


def test_sft_takes_as_long_as_the_weights_take_to_be_gathered() -> None:
    conversations = recipe("sft")
    seconds = step_seconds(MODEL, conversations, Layout(4, 4), 184)
    # Three quarters of the weights twice in bf16, and of the gradients once in fp32.
    assert seconds.communication == pytest.approx(0.75 * 8 * WEIGHTS / NVLINK)
    assert 0.25 < seconds.total < 0.30, "as notes on four H100 estimate it"
    assert seconds.total == seconds.communication > 2 * seconds.arithmetic
    assert seconds.waiting == seconds.communication - seconds.arithmetic
    cores = step_seconds(MODEL, conversations, Layout(4, 4, gpu=None, rates=rates_of(None)), 184)
    assert cores.total == cores.arithmetic + cores.communication, "a core does one of them"
    alone = step_seconds(MODEL, conversations, Layout(), 184)
    assert alone.communication == 0 and alone.total == alone.arithmetic
    passes = step_seconds(MODEL, recipe("sft", micro_batch_size=1), Layout(4, 4), 184)
    assert passes.communication == pytest.approx(2 * seconds.communication), "of two passes"
    once = recipe("sft", micro_batch_size=1, gradient_sync="step")
    seconds_once = step_seconds(MODEL, once, Layout(4, 4), 184)
    assert seconds_once.communication == pytest.approx(0.75 * 12 * WEIGHTS / NVLINK)
    packed = step_seconds(MODEL, recipe("sft", packed=True), Layout(), 184)
    passes = step_seconds(MODEL, recipe("sft", micro_batch_size=1), Layout(2, 2), 184)
    one_pass = step_seconds(
        MODEL, recipe("sft", micro_batch_size=1, packed=True), Layout(2, 2), 184
    )
    assert packed.arithmetic == pytest.approx(alone.arithmetic), "the same positions"
    assert passes.communication == pytest.approx(4 * one_pass.communication), "of a row a rank"
    lora = replace(conversations, lora=Lora(rank=16, alpha=8.0))
    frozen = step_seconds(MODEL, lora, Layout(4, 4), 184)
    assert frozen.communication < 0.51 * seconds.communication, "frozen weights have no gradients"


def test_several_nodes_gather_by_their_network() -> None:
    conversations = recipe("sft", global_batch_size=16)
    full = step_seconds(MODEL, conversations, Layout(8, 4), 184)
    assert full.communication == pytest.approx(7 / 8 * 8 * WEIGHTS / 20e9)
    hybrid = step_seconds(MODEL, replace(conversations, sharding="hybrid"), Layout(8, 4), 184)
    on_a_node = 0.75 * 8 * WEIGHTS / NVLINK
    replicas = 2 * 0.5 * 4 * WEIGHTS / 20e9
    assert hybrid.communication == pytest.approx(on_a_node + replicas)


def test_an_evaluation_is_a_forward_pass_on_its_rows() -> None:
    conversations = recipe("sft")
    seconds = eval_seconds(MODEL, conversations, Layout(4, 4), 184, 250)
    forward = flops_per_token(MODEL, conversations) / 3
    rate = 0.42 * 989e12 * 0.75  # not compiled
    # 31 times 8 rows, 2 on each rank, and 2 rows, of which a rank has one.
    assert seconds.arithmetic == pytest.approx((31 * 2 + 1) * 184 * forward / rate)
    assert seconds.communication == pytest.approx(32 * 0.75 * 2 * WEIGHTS / NVLINK)
    assert seconds.total == seconds.communication


def test_evaluations_are_counted_with_their_rows(paper_like: Cells, tmp_path: Path) -> None:
    def counted(cells: list[Cell], stage: str, steps: int) -> tuple[int, int]:
        return count_evaluations(next(cell for cell in cells if cell.stage == stage), steps)

    cells = paper_like()
    assert counted(cells, "sft", 100) == (6, 256), "a tenth of 5,000 rows, at most eval_rows"
    assert counted(cells, "sft", 101)[0] == 7, "after the last step too"
    assert counted(paper_like(eval_rows=1000), "sft", 100) == (6, 500)
    assert counted(paper_like(held_out=0.02), "sft", 100) == (6, 100)
    assert counted(paper_like(eval_every=None), "sft", 100) == (0, 0)
    assert counted(cells, "midtrain", 160) == (9, 147), "300,000 tokens in rows of 2,048"
    (tmp_path / "rows.jsonl").unlink()
    # Planned before it is fetched. The study itself needs no more than its path.
    sft = next(cell for cell in cells if cell.stage == "sft")
    sft.resources["files"]["data"] = str(tmp_path / "not/fetched.json")
    assert count_evaluations(sft, 100) == (6, 256)


def test_evaluations_are_part_of_a_trainings_hours(paper_like: Cells) -> None:
    with_them, without = paper_like(), paper_like(eval_every=None)
    for stage, layout in (("sft", Layout(4, 4)), ("sft", Layout(4, 4, tokens_per_second=900.0))):
        held_out, plain = row(with_them, stage, layout), row(without, stage, layout)
        assert held_out["eval_gpu_hours"] == pytest.approx(
            held_out["gpu_hours"] - plain["gpu_hours"]
        )
        assert held_out["eval_gpu_hours"] > 0.3 * plain["gpu_hours"] > 0
        assert plain["eval_gpu_hours"] == 0
    everything = row(paper_like(eval_rows=100_000), "sft", Layout(4, 4))
    assert (
        everything["eval_gpu_hours"] > 1.9 * row(with_them, "sft", Layout(4, 4))["eval_gpu_hours"]
    )


@pytest.mark.multiprocess
def test_measured_evaluations_replace_the_guess(paper_like: Cells, tmp_path: Path) -> None:
    cells = [cell for cell in paper_like() if cell.stage == "sft"]
    base = tmp_path / "runs"

    def finish(cell: Cell) -> None:
        for needed in cell.inputs.values():
            finish(needed)
        folder = create_cell_dir(cell, base)
        counts: dict[str, Any] = {"steps": 100, "tokens": 100 * 8 * 176}
        counts |= {"tokens_per_second": 4000.0, "ranks": 4, "eval_seconds": 60.0}
        write_manifest(folder, read_config(folder), "", "", counts=counts, warnings=[])

    finish(cells[0])
    measured = row(cells, "sft", Layout(4, 4), base)
    assert measured["speed"] == "measured" and measured["left"] == 2
    assert measured["eval_gpu_hours"] == pytest.approx(2 * 4 * 60 / 3600)
    steps = 100 * 8 * 176 / 4000
    assert measured["gpu_hours"] == pytest.approx(2 * 4 * (steps + 60) / 3600)


def profile(measured: dict[str, float] | None = None, **stage: Any) -> Profile:
    stages = {"default": Resources(minutes=60), "sft": Resources(minutes=60, **stage)}
    return Profile(stages=stages, gpu_type="l40s", measured=Measured(**(measured or {})))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "stage, expected",
    [
        ({"gpus_per_node": "h100:4"}, "h100"),
        ({"gpus_per_node": "nvidia_a100-sxm4-80gb:2", "gpu_type": "h100"}, "a100"),
        ({"gpus_per_node": "gpu:4", "gpu_type": "h200"}, "h200"),
        ({"gpus_per_node": 4, "gpu_type": "h100_pcie"}, "h100 pcie"),
        ({"gpus_per_node": 4}, "l40s"),
        ({"gpus_per_node": 4, "gpu_type": "mine"}, "h100"),
        ({}, None),
    ],
)
def test_a_profile_names_the_gpus_of_a_stage(stage: dict[str, Any], expected: str | None) -> None:
    gpu = stage_gpu(profile(**stage), "sft")
    assert (gpu.name if gpu else None) == expected
    unnamed = stage.get("gpu_type") == "mine"
    assert gpu_rates.unnamed_gpus(profile(**stage)) == (["sft"] if unnamed else [])


def test_what_a_profile_has_measured_replaces_what_is_assumed() -> None:
    measured = {"training_flops": 5e14, "node_bytes_per_second": 3e11, "start_seconds": 40.0}
    found = stage_rates(profile(measured, gpus_per_node="h100:4"), "sft")
    assumed = rates_of(find_gpu("h100"))
    assert found == replace(assumed, training_flops=5e14, node_bytes=3e11, start_seconds=40.0)
    layout = parallel_plans(profile(measured, gpus_per_node="h100:4", tasks_per_node=4))["sft"]
    seconds = step_seconds(MODEL, recipe("sft"), layout, 184)
    assert seconds.communication == pytest.approx(0.75 * 8 * WEIGHTS / 3e11)


def test_fewer_gpus_are_proposed_where_that_is_cheaper(paper_like: Cells) -> None:
    layout = Layout(4, 4, gpu_memory_gb=80)
    (row,) = fewer_gpus.fewer_gpus(paper_like(), Path("none"), {"sft": layout})
    assert (row["stage"], row["gpus"]) == ("sft", 1), "16 bytes a parameter do not fit one GPU"
    assert row["changes"] == {"activation_checkpointing": "full", "dtype": "bf16"}
    assert row["gpu_hours"] < 0.5 * row["gpu_hours_now"] and row["hours"] > 0.5 * row["hours_now"]
    text = fewer_gpus.show(row)
    assert text.startswith(
        "sft on 1 GPU a job, activation_checkpointing: full, dtype: bf16: about "
    )
    assert "minutes in place of" in text and "new cells" in text
    lora = paper_like(lora={"rank": 16, "alpha": 8})
    (row,) = fewer_gpus.fewer_gpus(lora, Path("none"), {"sft": layout})
    assert "dtype" not in row["changes"] and "new cells" not in fewer_gpus.show(row)
    fits = memory(MODEL, recipe_of_sft(lora), 1, 1)["total"]
    assert fits < 80
    for no_proposal in (Layout(4, 4), replace(layout, gpu=None), replace(layout, ranks=1)):
        assert fewer_gpus.fewer_gpus(lora, Path("none"), {"sft": no_proposal}) == []


def recipe_of_sft(cells: list[Cell]) -> Training:
    return recipe_of(next(cell for cell in cells if cell.stage == "sft"))


def test_host_memory_by_hand() -> None:
    full = recipe("midtrain")
    gb = host_memory(MODEL, full, 4, 4)
    assert gb["checkpoint"] == pytest.approx(12 * WEIGHTS / 1e9), "on one node, all of it"
    assert gb["export"] == pytest.approx(4 * WEIGHTS / 1e9)
    assert gb["processes"] == 4 * 6 and gb["training"] == 0
    assert gb["total"] == pytest.approx(sum(gb.values()) - gb["total"])
    half = host_memory(MODEL, full, 8, 4)
    assert half["checkpoint"] == pytest.approx(gb["checkpoint"] / 2)
    hybrid = host_memory(MODEL, replace(full, sharding="hybrid"), 8, 4)
    assert hybrid["checkpoint"] == gb["checkpoint"]
    assert host_memory(MODEL, replace(full, lora=Lora(16, 8.0)), 4, 4)["checkpoint"] < 1
    assert host_memory(MODEL, replace(full, optimizer="adamw_8bit"), 4, 4)["checkpoint"] == 0
    on_cpu = host_memory(MODEL, full, 4, 4, on_gpu=False)
    assert on_cpu["training"] == pytest.approx(4 * memory(MODEL, full, 4, 4)["total"])


def test_a_profile_with_too_little_memory_is_refused_with_what_would_do(paper_like: Cells) -> None:
    cells = paper_like()
    layout = Layout(4, 4, mem_gb=100 * 2**30 / 1e9)
    assert parallel_plans(profile(mem_gb=100))["sft"].mem_gb == layout.mem_gb, "Slurm takes GiB"
    refused = row(cells, "midtrain", layout)["refused"]
    assert "of a node's memory, and mem_gb in the profile gives 107; set mem_gb: " in refused
    gib = float(refused.partition("set mem_gb: ")[2].split()[0])
    enough = replace(layout, mem_gb=gib * 2**30 / 1e9)
    assert row(cells, "midtrain", enough)["refused"] is None
    less = replace(layout, mem_gb=(gib - 1) * 2**30 / 1e9)
    assert row(cells, "midtrain", less)["refused"] is not None


def test_a_stop_that_takes_longer_than_its_notice_is_a_warning(paper_like: Cells) -> None:
    """A step checkpoint of 8B has 96 GB."""
    cells = paper_like()
    rates = rates_of(find_gpu("h100"), Measured(write_bytes_per_second=5e8))
    layout = Layout(8, 4, rates=rates, signal_seconds=90)
    (text,) = row(cells, "midtrain", layout)["warnings"]
    assert text.startswith("told to stop, it writes 96 GB in about 96 s at the measured rate")
    assert text.endswith("signal_seconds in the profile gives 90; set signal_seconds: 120")
    for enough in (replace(layout, signal_seconds=120), replace(layout, rates=rates_of())):
        assert row(cells, "midtrain", enough)["warnings"] == []


def test_shipped_profiles_hold_the_papers_trainings(paper_like: Cells) -> None:
    for name in ("university", "partitions"):
        layouts = parallel_plans(load_profile(Path(name)))
        rows = forecast(paper_like(), Path("none"), layouts)
        assert [row["refused"] for row in rows] == [None] * len(rows), name
        assert gpu_rates.unnamed_gpus(load_profile(Path(name))) == []
