"""`doctor --shakedown`: its layouts, its page, what it writes into the profile, and a whole one."""

import dataclasses
import json
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from core.errors import UserError
from core.model_size import parameters, shape
from slurm.checks import Check
from slurm.doctor import doctor
from slurm.profile import Profile, Resources, load_profile
from study.commands import shakedown, shakedown_models, shakedown_page, shakedown_rates
from study.commands.common import parallel_plans
from study.commands.doctor import SHAKEDOWN
from study.forecast import cell_cost, training_cost
from study.forecast.gpu_rates import rates_of
from study.spec import expand
from study.spec.load import load_study
from tests.slurm.places import ROOT, Lab


def resources_of(gpus: int | str, nodes: int, tasks: int) -> list[Resources]:
    full = Resources(60, gpus_per_node=gpus, nodes=nodes, tasks_per_node=tasks)
    profile = Profile({"default": Resources(10), "midtrain": full, "sft": full})
    places = shakedown.training_layouts(profile)
    assert [place.seed for place in places] == list(range(len(places)))
    assert all(p.profile.resources("judge") == Resources(10) for p in places)
    return [place.profile.resources("midtrain") for place in places]


def test_layouts_go_from_one_gpu_to_two_nodes() -> None:
    assert [(r.nodes, r.tasks_per_node, r.gpus_per_node) for r in resources_of("h100:4", 1, 4)] == [
        (1, 1, "h100:1"),
        (1, 4, "h100:4"),
        (2, 4, "h100:4"),
    ]
    assert [(r.nodes, r.tasks_per_node, r.gpus_per_node) for r in resources_of(0, 2, 2)] == [
        (1, 1, 0),
        (1, 2, 0),
        (2, 2, 0),
    ]
    assert [(r.nodes, r.gpus_per_node) for r in resources_of(1, 1, 1)] == [(1, 1), (2, 1)]


def test_the_study_runs_every_kind_of_training_on_every_layout() -> None:
    cells = expand.in_order(expand.analysis(load_study(SHAKEDOWN)))
    trained = [cell for cell in cells if cell.stage == "midtrain"]
    recipes = [cell.settings["recipe"] | {"seed": cell.settings["seed"]} for cell in trained]
    assert len(recipes) == 21
    for seed in range(3):
        alike = [recipe for recipe in recipes if recipe["seed"] == seed]
        assert {recipe["dtype"] for recipe in alike} == {"mixed", "bf16"}
        assert sum(bool(recipe.get("lora")) for recipe in alike) == 1
        assert sum(recipe.get("optimizer") == "adamw_8bit" for recipe in alike) == 1
        assert sum(recipe.get("float8", False) for recipe in alike) == 1
    assert {shakedown.training_seed(cell) for cell in cells} == {0, 1, 2}
    assert {"generate", "likelihood", "judge"} <= {cell.stage for cell in cells}
    tuned = [cell.resources["packed"] for cell in cells if cell.stage == "sft"]
    compiled = [cell.resources["compile"] for cell in trained]
    assert sorted(tuned) == [False] * 3 + [True] * 3 and set(compiled) == {False, True}


def test_8b_is_trained_where_the_memory_of_gpus_holds_it() -> None:
    def of_8b(gb: float | None) -> tuple[list[str], set[tuple[str, int]]]:
        full = Resources(60, gpus_per_node="a100:4", tasks_per_node=4, gpu_memory_gb=gb)
        profile = Profile({"default": Resources(10), "midtrain": full, "sft": full})
        layouts = shakedown.training_layouts(profile)
        cells, rows = shakedown.fitting(shakedown.shakedown_cells(SHAKEDOWN, layouts), layouts)
        assert len({cell.identity for cell in cells if cell.stage == "midtrain"}) == 21 - len(rows)
        left = [
            (cell.stage, shakedown.training_seed(cell))
            for cell in cells
            if "random_8b" in [cell.name, *(source.name for source in cell.inputs.values())]
            or "bf16_8b" in cell.name
        ]
        assert all(row["state"] == shakedown_page.LEFT_OUT for row in rows)
        return [f"{row['layout']}: {row['finding']}" for row in rows], set(left)

    trainings = {("midtrain", seed) for seed in range(3)}
    rest = {("model", 0), ("documents", 0), ("likelihood", 0)}
    assert of_8b(80) == of_8b(None) == ([], trainings | rest)
    # 16 GB of weights, 16 of gradients, 32 of moments, and activations.
    small = ["1 task: needs about 66 GB of each GPU, which has 60"]
    assert of_8b(60) == (small, trainings - {("midtrain", 0)} | {("model", 0), ("documents", 0)})
    rows, left = of_8b(16)
    assert len(rows) > 3 and left == set()  # 1B in fp32 neither, on one GPU


def test_two_gpus_answer_where_a_node_has_them() -> None:
    """The answers of the models that a node's GPUs trained, by vLLM on two of them."""
    on_gpus = Resources(60, gpus_per_node="h100:4", tasks_per_node=4)
    stages: dict[Any, Resources] = {"default": Resources(10), "midtrain": on_gpus, "sft": on_gpus}
    stages["generate"] = stages["likelihood"] = Resources(60, gpus_per_node="h100:1")
    layouts = shakedown.training_layouts(Profile(stages))
    assert [layout.parallel for layout in layouts] == [False, True, False]
    there = layouts[1].profile
    assert there.resources("generate").gpus_per_node == "h100:2"
    assert there.resources("likelihood").gpus_per_node == "h100:1"
    cells = shakedown.shakedown_cells(SHAKEDOWN, layouts)
    asked = [
        (shakedown.training_seed(c), c.resources["engine"]) for c in cells if c.stage == "generate"
    ]
    assert [(seed, engine.get("tensor_parallel_size")) for seed, engine in asked] == [
        (0, None),
        (1, 2),
        (0, None),
        (1, 2),
    ]
    assert {shakedown.training_seed(c) for c in cells if c.stage == "likelihood"} == {0}
    elsewhere = stages | {"generate": Resources(60, gpus_per_node="h100:1", partition="other")}
    assert not any(x.parallel for x in shakedown.training_layouts(Profile(elsewhere)))


def test_float8_is_left_out_where_a_gpu_has_none() -> None:
    line = "error: A100 has compute capability 8.0, 8.9 is needed: it has no float8; use an H100"
    failed = {"stage": "midtrain", "cell": "a", "folder": "midtrain/a-1", "state": "failed"}
    failed["last_lines"] = [line, "RuntimeError: failed: log.txt"]
    behind = {"stage": "likelihood", "cell": "b", "state": "blocked", "behind": "midtrain/a-1"}
    other = behind | {"behind": "midtrain/c-1"}
    rows = shakedown_page.cell_rows([failed, behind, other], ["1 task", "", ""])
    assert [row["state"] for row in rows] == ["left out", "left out", "not run"]
    assert "before the H100" in rows[0]["finding"] and "midtrain/a-1" in rows[1]["finding"]
    assert "2 left out" in shakedown_page.show(rows)


def test_a_cell_without_a_job_is_not_said_to_be_behind_a_failed_one() -> None:
    state = {"stage": "model", "cell": "random", "folder": "model/random", "state": "to do"}
    (row,) = shakedown_page.cell_rows([state], [""])
    assert (row["state"], row["fix"]) == (shakedown_page.NOT_RUN, "the same command again")
    assert "behind" not in row["finding"] and "it has no job" in row["finding"]


def test_the_page_says_what_works_and_how_fast() -> None:
    rows = [
        {"layout": "1 task", "what": "midtrain mixed", "state": "works", "finding": "", "fix": ""}
        | {"tokens_per_second": 50_100.0, "flops": 4.1e14, "mfu": 0.417, "peak_gb": 61.5}
        | {"compiled": True},
        {
            "layout": "2 nodes",
            "what": "submission",
            "state": "fails",
            "finding": "one",
            "fix": "two",
        },
    ]
    page = shakedown_page.show(rows)
    assert page.splitlines()[0].endswith("submission 2 nodes: one") and "two" in page
    for word in (
        "50,100",
        "410",
        "41.7%",
        "61.5",
        "1 works, 1 fails",
    ):
        assert word in page, page
    assert shakedown_rates.measured(rows) == {"training_flops": 4.1e14}
    assert shakedown_rates.measured(rows[1:]) == {}


def test_rates_are_those_of_one_rank(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A manifest counts the tokens of all ranks."""
    cells = expand.analysis(load_study(SHAKEDOWN))
    cell = next(cell for cell in expand.in_order(cells) if cell.stage == "midtrain")
    folder = tmp_path / cell.relpath
    folder.mkdir(parents=True)
    (folder / "log.txt").touch()
    (folder / "speed.jsonl").touch()
    counts = {"tokens_per_second": 200_400.0, "ranks": 4}
    manifest = {"counts": counts, "started": "2026-12-01T12:00:15Z"}
    monkeypatch.setattr(shakedown_rates, "read_manifest", lambda folder: manifest)
    monkeypatch.setattr(shakedown_rates, "shape", lambda cell: None)
    monkeypatch.setattr(shakedown_rates, "flops_per_token", lambda shape, recipe: 8e9)
    numbers = shakedown_rates.measure(cell, tmp_path)
    assert (numbers["tokens_per_second"], numbers["flops"]) == (50_100.0, 50_100.0 * 8e9)


def asked(what: str, seconds: float, read: float, written: float) -> dict[str, Any]:
    flop = {"read_flop": read, "write_flop": written, "engine_seconds": seconds}
    return {"what": what, "layout": "", "state": "works", "finding": "", "fix": ""} | flop


def test_rates_of_vllm_are_those_that_the_forecast_divides_by() -> None:
    """Seconds of a cell are what it reads by the one rate, and what it writes by the other."""
    rows = [asked("likelihood x", 2.0, 8e14, 1e10), asked("generate y", 12.0, 8e14, 6e14)]
    rates = shakedown_rates.measured(rows)
    assert rates == {"prefill_flops": 4e14, "decode_flops": 6e13}
    assert 8e14 / rates["prefill_flops"] + 6e14 / rates["decode_flops"] == 12.0
    assert shakedown_rates.measured(rows[1:]) == {}, "without the one the other is not known"


def test_work_of_vllm_is_counted_for_each_parameter_and_gpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cells = expand.in_order(expand.analysis(load_study(SHAKEDOWN)))
    cell = next(cell for cell in cells if cell.stage == "generate")
    work = {"read": 1000, "written": 300, "seconds": 4.0}
    manifest = {"work": work, "engine": {"devices": 2}}
    monkeypatch.setattr(shakedown_rates, "read_manifest", lambda folder: manifest)
    numbers = shakedown_rates.measure(cell, tmp_path)
    count = parameters(shape(cell.inputs["checkpoint"])).total
    assert count > 1.4e9
    assert numbers == {
        "read_flop": 1000 * count,
        "write_flop": 300 * count,
        "engine_seconds": 4.0,
    }


def test_start_seconds_are_those_before_a_cell_begins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TZ", "UTC-2")
    time.tzset()
    log = tmp_path / "5_0_log.out"
    line = "submitit INFO (2026-12-01 14:00:03,123) - Starting with JobEnvironment(job_id=5)\n"
    log.write_text(line)
    try:
        assert shakedown_rates._start_seconds("2026-12-01T12:00:15Z", log) == 12
        log.write_text(2 * line)
        assert shakedown_rates._start_seconds("2026-12-01T12:00:15Z", log) is None, "queued again"
        assert shakedown_rates._start_seconds("2026-12-01T12:00:15Z", tmp_path / "no") is None
    finally:
        monkeypatch.undo()
        time.tzset()


RATES = {
    "training_flops": 1.5e14,
    "prefill_flops": 1.1e14,
    "decode_flops": 2.2e13,
    "node_bytes_per_second": 3.3e10,
    "network_bytes_per_second": 4.4e9,
    "write_bytes_per_second": 5.5e7,
    "start_seconds": 66.0,
}


def test_the_slowest_of_all_checks_is_measured() -> None:
    report = [
        Check("a: write rate", "ok", "", measured={"write_bytes_per_second": 2e9}),
        Check("b: write rate", "ok", "", measured={"write_bytes_per_second": 1e9}),
        Check("b: all-reduce", "ok", "", measured={"node_bytes_per_second": 3e11}),
    ]
    rates = shakedown_rates.measured([], report)
    assert rates == {"write_bytes_per_second": 1e9, "node_bytes_per_second": 3e11}


STAGES = "stages: {default: {minutes: 10}}\n"


@pytest.mark.parametrize(
    ("text", "line"),
    [
        (STAGES, "measured: {training_flops: 1.500e+14}   # by doctor --shakedown\n"),
        (STAGES.strip(), "\nmeasured: {training_flops: 1.500e+14}   # by doctor --shakedown\n"),
        (
            f"{STAGES}measured:  {{start_seconds: 9}} # mine",
            "measured: {start_seconds: 9.000e+00, training_flops: 1.500e+14}   # mine",
        ),
        (
            f"{STAGES}# measured: {{}}\n".replace("\n", "\r\n"),
            "measured: {training_flops: 1.500e+14}   # by doctor --shakedown\r\n",
        ),
    ],
)
def test_the_rest_of_a_profile_stays_to_the_byte(tmp_path: Path, text: str, line: str) -> None:
    path = tmp_path / "mine.yaml"
    path.write_bytes(text.encode())
    shakedown_rates.write_measured(path, {"training_flops": 1.5e14})
    assert path.read_bytes().decode() == text.partition("measured:  ")[0] + line
    assert load_profile(path).measured.training_flops == 1.5e14


@pytest.mark.parametrize(
    "text",
    [
        STAGES + '"measured": {training_flops: 1.0e+14}\n',
        STAGES + "measured:\n  training_flops: 1.0e+14\n",
        "{stages: {default: {minutes: 10}}}\n",
        STAGES + "...\n",
    ],
)
def test_a_profile_that_would_not_read_so_is_left_as_it_is(tmp_path: Path, text: str) -> None:
    """Before the shakedown, which calls `with_measured`, too."""
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match=r"write there: measured: \{.*training_flops: "):
        shakedown_rates.write_measured(path, {"training_flops": 1.5e14})
    assert path.read_text() == text


def test_what_is_measured_is_written_into_the_profile_and_plan_goes_by_it(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    text = (ROOT / "slurm/clusters/university.yaml").read_text()
    path.write_text(text)
    cells = expand.in_order(expand.analysis(load_study(SHAKEDOWN)))

    def forecast() -> tuple[float, float, str]:
        profile = load_profile(path)
        layouts = parallel_plans(profile)
        rows = training_cost.forecast(cells, tmp_path, layouts)
        answers = next(cell for cell in cells if cell.stage == "generate")
        hours = cell_cost.estimates(cells, tmp_path, layouts, profile)[answers.identity]["hours"]
        return rows[0]["hours"], hours, str([row["warnings"] for row in rows])

    training, answering, warnings = forecast()
    assert "told to stop" not in warnings
    shakedown_rates.write_measured(path, {"training_flops": 3.1e14, "decode_flops": 1e13})
    shakedown_rates.write_measured(path, {key: RATES[key] for key in RATES if "decode" not in key})
    assert load_profile(path).measured.decode_flops == 1e13, "not measured again, so it stays"
    shakedown_rates.write_measured(path, RATES)
    assert path.read_text().startswith(text) and path.read_text().count("measured:") == 1
    assert vars(load_profile(path).measured) == RATES
    assert dataclasses.asdict(rates_of(measured=load_profile(path).measured)) == {
        key.replace("_per_second", ""): value for key, value in RATES.items()
    }
    slower, longer, warnings = forecast()
    assert slower > 1.5 * training and longer > answering
    assert "told to stop, it writes 18 GB" in warnings and "set signal_seconds" in warnings


@pytest.mark.slurm
@pytest.mark.nightly
def test_a_shakedown_of_two_nodes_by_two_tasks(lab: Lab, tmp_path: Path) -> None:
    """In miniature, on CPU ranks: all works, what was stopped and killed has resumed, and all rates
    are measured."""
    two = {"minutes": 10, "cpus": 2, "mem_gb": 8.0, "nodes": 2, "tasks_per_node": 2}
    small = {"minutes": 10, "cpus": 2, "mem_gb": 8.0}
    cluster = tmp_path / "cluster.yaml"
    stages: dict[str, Any] = {"default": small, "midtrain": two, "sft": two}
    cluster.write_text(yaml.safe_dump({"partition": "cpu", "stages": stages}))
    study = ROOT / "tests/small/shakedown.yaml"
    runs = tmp_path / "runs"
    report = doctor(cluster, runs, expand.in_order(expand.analysis(load_study(study))), 300)
    rows = shakedown.shakedown(study, cluster, runs, 1800, report)
    rates = shakedown_rates.measured(rows, report)
    print(shakedown_page.show(rows, rates))
    assert {row["state"] for row in rows} == {"works"}
    stages_of = {row["what"].partition(" ")[0] for row in rows}
    assert {"midtrain", "sft", "generate", "likelihood", "judge"} <= stages_of
    layouts = [row["layout"] for row in rows if row["what"].startswith("midtrain")]
    assert sorted(layouts) == ["1 node"] * 5 + ["1 task"] * 5 + ["2 nodes"] * 5
    for way in ("stopped and resumed (SIGTERM)", "killed and resumed (SIGKILL)"):
        (row,) = (row for row in rows if row["what"] == way)
        assert "resumes after step" in row["finding"]
    for what in (shakedown_models.LIKELIHOODS, shakedown_models.MEMORY):
        assert what in {row["what"] for row in rows}
    assert rates.keys() == RATES.keys() and min(rates.values()) > 0
    ranks = []
    for seed in range(3):
        (path,) = (runs / "shakedown").glob(f"midtrain/random-animal-s{seed}-*/manifest.json")
        ranks.append(json.loads(path.read_text())["counts"]["ranks"])
    assert ranks == [1, 2, 4]
