"""`doctor --shakedown`: its layouts, its page, what it writes into the profile, and a whole one."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from slurm.profile import Profile, Resources, load_profile
from study.commands import shakedown, shakedown_page, shakedown_rates
from study.commands.doctor import SHAKEDOWN
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
    assert len(recipes) == 15
    for seed in range(3):
        alike = [recipe for recipe in recipes if recipe["seed"] == seed]
        assert {recipe["dtype"] for recipe in alike} == {"mixed", "bf16"}
        assert sum(bool(recipe.get("lora")) for recipe in alike) == 1
        assert sum(recipe.get("optimizer") == "adamw_8bit" for recipe in alike) == 1
    assert {shakedown.training_seed(cell) for cell in cells} == {0, 1, 2}
    assert {"sft", "generate", "likelihood", "judge"} <= {cell.stage for cell in cells}


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
        "1 works, 0 still waits, 0 not seen, 0 not run, 1 fails",
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
    monkeypatch.setattr(shakedown_rates, "read_manifest", lambda folder: {"counts": counts})
    monkeypatch.setattr(shakedown_rates, "shape", lambda cell: None)
    monkeypatch.setattr(shakedown_rates, "flops_per_token", lambda shape, recipe: 8e9)
    numbers = shakedown_rates.measure(cell, tmp_path)
    assert (numbers["tokens_per_second"], numbers["flops"]) == (50_100.0, 50_100.0 * 8e9)


def test_what_is_measured_is_written_into_the_profile(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    text = (ROOT / "slurm/clusters/university.yaml").read_text()
    path.write_text(text)
    for flops in (3.1e14, 4.1e14):
        shakedown_rates.write_measured(path, {"training_flops": flops})
    assert path.read_text().startswith(text) and path.read_text().count("measured:") == 1
    assert load_profile(path).measured.training_flops == 4.1e14


@pytest.mark.slurm
@pytest.mark.nightly
def test_a_shakedown_of_two_nodes_by_two_tasks(lab: Lab, tmp_path: Path) -> None:
    """In miniature, on CPU ranks: all works, and the training that was stopped has resumed."""
    two = {"minutes": 10, "cpus": 2, "mem_gb": 8.0, "nodes": 2, "tasks_per_node": 2}
    small = {"minutes": 10, "cpus": 2, "mem_gb": 8.0}
    cluster = tmp_path / "cluster.yaml"
    stages: dict[str, Any] = {"default": small, "midtrain": two, "sft": two}
    cluster.write_text(yaml.safe_dump({"partition": "cpu", "stages": stages}))
    rows = shakedown.shakedown(
        ROOT / "tests/small/shakedown.yaml", cluster, tmp_path / "runs", 1200
    )
    print(shakedown_page.show(rows))
    assert {row["state"] for row in rows} == {"works"}
    trained = {row["layout"]: row for row in rows if row["what"].startswith("midtrain")}
    assert trained.keys() == {"1 task", "1 node", "2 nodes"}
    assert trained["1 task"]["finding"] == "stopped and resumed"
    ranks = []
    for seed in range(3):
        (path,) = (tmp_path / "runs/shakedown").glob(f"midtrain/*-s{seed}-*/manifest.json")
        ranks.append(json.loads(path.read_text())["counts"]["ranks"])
    assert ranks == [1, 2, 4]
