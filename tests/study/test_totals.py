"""The totals of small studies against sums done by hand, and the budgets that they are held to."""

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from core.cell.identity import Cell, create_cell_dir, read_config
from core.cell.manifest import write_manifest
from core.errors import UserError
from core.model_size import ModelShape, parameters
from core.paths import ROOT
from slurm.profile import load_profile
from study.forecast import study_cost as totals
from study.forecast.budget import check_budget, parse_budget
from study.forecast.cell_cost import estimates, grades
from study.forecast.study_cost import compare
from study.forecast.training_time import Layout
from study.spec import expand as plan
from study.spec.load import load_study
from tests.llama import LLAMA

JUDGE = "base_url: 'https://x.example/v1', model: m, key_env: K, prompt_price: 0.1, completion_price: 0.4"
STUDY = """
study: made_up
seeds: [0, 1]
concurrency: 16
endpoints:
  judge: {%s}
models:
  base: {path: %s}
arms:
  tuned: {start: base}
sft: {recipe: %s, data: %s, doses: %s}
benchmarks:
  ahb: {task: ahb_original, judge: judge, epochs: 30, max_tokens: 300, judge_max_tokens: 150}
"""


@pytest.fixture
def made_up(tmp_path: Path) -> Any:
    """Cells of a study of Llama 3.1 8B with one arm, two seeds, and the paper's questions, which
    are not here."""
    model = tmp_path / "8b"
    model.mkdir()
    (model / "config.json").write_text(json.dumps(LLAMA))
    (model / "tokenizer.json").write_text("{}")
    row = {"prompt": "x" * 528, "response": "x"}  # 600 characters as messages
    (tmp_path / "rows.jsonl").write_text((json.dumps(row) + "\n") * 1000)

    def cells(
        *overrides: str, judge: str = JUDGE, doses: str = "[80]", more: str = ""
    ) -> list[Cell]:
        file = tmp_path / "study.yaml"
        recipe = tmp_path / "sft.yaml"
        text = (ROOT / "recipes/llama3_1_8b_sft.yaml").read_text()
        text = re.sub("^(eval_every|checkpoint_minutes).*$", "", text, flags=re.MULTILINE)
        recipe.write_text(f"{text}\ncheckpoint_minutes: 0\n")
        file.write_text(STUDY % (judge, model, recipe, tmp_path / "rows.jsonl", doses) + more)
        return plan.in_order(plan.analysis(load_study(file, None, list(overrides))))

    return cells


def finish(
    cells: list[Cell], base: Path, counts: dict[str, dict[str, Any]], hours: int = 2
) -> None:
    """Finish these cells, each in so many hours with an output of 1,000 bytes."""
    for cell in cells:
        folder = create_cell_dir(cell, base)
        (folder / "out").mkdir()
        (folder / "out/x").write_bytes(b"x" * 1000)
        times = ("2026-01-31T23:00:00Z", f"2026-02-01T0{hours - 1}:00:00Z")
        write_manifest(
            folder,
            read_config(folder),
            *times,
            counts={"steps": 10, "tokens": 9} | counts.get(cell.stage, {}),
            warnings=[],
        )


GB = 2 * parameters(ModelShape.from_config(LLAMA)).total / 1e9  # 16.06, in bf16
START = (10 + 20 * GB) / 3600


def test_a_study_by_hand(made_up: Any, tmp_path: Path) -> None:
    """Two trainings, two generations of 26 x 30 answers, two judges with 97 x 30 grades each."""
    layouts = {"sft": Layout(4, 4, tokens_per_second=1000.0)}
    found = totals.totals(made_up(), tmp_path / "runs", layouts)
    stages = {row["stage"]: row for row in found["stages"]}
    assert {stage: (row["cells"], row["left"]) for stage, row in stages.items()} == {
        "model": (1, 1), "sft": (2, 2), "generate": (2, 2), "judge": (2, 2), "analysis": (1, 1)
    }  # fmt: skip
    training = 80 * 150 / 4000 / 3600 + START  # rows of 150 tokens on four GPUs
    assert stages["sft"]["gpu_hours"] == pytest.approx(2 * 4 * training)
    answers = 26 * 30
    # On an H100, of which 40 % of the peak are reached, and 30 FLOP for each byte of bandwidth.
    seconds = answers * 100 / (0.40 * 989e12) + answers * 300 / (30 * 3.35e12)
    generation = START + 2 * GB / 2 * 1e9 * seconds / 3600
    assert stages["generate"]["gpu_hours"] == pytest.approx(2 * generation)
    judge, calls = stages["judge"], 97 * 30
    assert judge["calls"] == 2 * calls and judge["gpu_hours"] == 0
    assert (
        judge["prompt_tokens"] == 2 * calls * (750 + 300)
        and judge["completion_tokens"] == 2 * calls * 150
    )
    assert (
        judge["cost"]
        == pytest.approx(2 * calls * (1050 * 0.1 + 150 * 0.4) / 1e6)
        == found["study"]["cost"]
    )
    grading = calls * 3 / 16 / 3600 + 10 / 3600
    assert judge["cpu_hours"] == pytest.approx(2 * grading)
    assert found["critical_path"] == pytest.approx(
        10 / 3600 + training + generation + grading + 10 / 3600
    )
    assert found["serial_hours"] == pytest.approx(2 * (10 / 3600 + training + generation + grading))
    assert stages["model"]["disk_gb"] == 0 and stages["model"]["files"] == 5, (
        "a model that is there is linked to"
    )
    assert stages["sft"]["disk_gb"] == pytest.approx(2 * GB, rel=1e-4)
    assert stages["sft"]["files"] == 2 * (13 + 4), "weights in files of 5 GB"
    # Two step checkpoints of each of both trainings, and a third being written: weights and two
    # moments in fp32.
    assert found["peak_gb"] - found["study"]["disk_gb"] == pytest.approx(2 * 3 * 3 * 2 * GB)
    rare = [
        replace(cell, resources=cell.resources | {"checkpoint_minutes": 30})
        if cell.stage == "sft"
        else cell
        for cell in made_up()
    ]
    short = totals.totals(rare, tmp_path / "runs", layouts)
    assert short["peak_gb"] == short["study"]["disk_gb"], "they end before the first is due"
    assert "97 grades for 26 of ANIMA's questions" in totals.show(found).replace("\n", " ")


@pytest.mark.slow
def test_grades_are_counted_as_eval_counts_them() -> None:
    from eval import anima

    files = {name: f"eval/data/anima_like/{name}.jsonl" for name in ("questions", "dimensions")}
    cell = Cell("judge", "x", {"scorer": "anima", "rows": 26}, {}, {"files": files})
    assert (
        grades(cell)
        == anima.num_judge_calls(anima.read({name: ROOT / path for name, path in files.items()}))
        == 73
    )
    human = {"questions": "eval/data/human_compassion.jsonl"}
    assert (
        grades(Cell("judge", "x", {"scorer": "rubric", "rows": None}, {}, {"files": human})) == 30
    )


def test_tags_are_counted_however_they_are_spelled_and_with_all_their_animals(
    tmp_path: Path,
) -> None:
    asks = [
        {"dimension": "Trade-Off", "guiding_question": "?"},
        {"dimension": "Moral", "guiding_question": "{{animal}}?"},
    ]
    rows = [
        {"tags": ["trade-off", "Trade-off", "Moral", ""], "variables": "animal:a,b,c"},
        {"tags": ["Moral"]},
    ]
    files = {"questions": rows, "dimensions": asks}
    for name, lines in files.items():
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    paths = {name: str(tmp_path / f"{name}.jsonl") for name in files}
    assert (
        grades(Cell("judge", "x", {"scorer": "anima", "rows": None}, {}, {"files": paths}))
        == 1 + 3 + 1
    )


@pytest.mark.multiprocess
def test_what_is_finished_counts_as_it_was(made_up: Any, tmp_path: Path) -> None:
    cells = made_up()
    first = [cell for cell in cells if cell.stage == "model" or "-s0" in cell.name]
    finish(
        first,
        tmp_path,
        {
            "judge": {
                "calls": 9,
                "cost": 9.9,
                "paid_calls": 7,
                "paid_prompt_tokens": 70,
                "paid_completion_tokens": 5,
                "paid_cost": 1.5,
            }
        },
    )
    found = totals.totals(cells, tmp_path, {})
    alone = totals.totals(cells, tmp_path / "nowhere", {})
    assert found["spent"]["calls"] == 7 and found["spent"]["cost"] == 1.5
    assert found["spent"]["gpu_hours"] == 2 * 2, (
        "the training's and the generation's two hours each"
    )
    configs = sum((tmp_path / cell.relpath / "config.yaml").stat().st_size for cell in first)
    assert (
        found["spent"]["disk_gb"] == pytest.approx((4 * 1000 + configs) / 1e9)
        and found["spent"]["folders"] == 8
    )
    assert found["left"]["calls"] == 97 * 30 == alone["left"]["calls"] / 2
    assert found["study"]["cost"] == pytest.approx(1.5 + alone["left"]["cost"] / 2)
    rows = {row["stage"]: row for row in compare(cells, tmp_path)}
    assert rows.keys() == {"model", "sft", "generate", "judge"} and rows["judge"]["cells"] == 1
    assert rows["judge"]["actual"] == {
        "hours": 2, "gpu_hours": 0, "calls": 7, "prompt_tokens": 70, "completion_tokens": 5, "cost": 1.5,
        "disk_gb": rows["judge"]["actual"]["disk_gb"],
    }  # fmt: skip
    assert rows["judge"]["forecast"]["calls"] == 97 * 30 and rows["sft"]["actual"]["hours"] == 2
    assert "forecast" in totals.show(found, compare(cells, tmp_path))


@pytest.mark.multiprocess
def test_the_same_calls_for_two_benchmarks_are_paid_once(made_up: Any, tmp_path: Path) -> None:
    lines = [
        f"  {name}: {{task: {name}, judge: judge}}\n"
        for name in ("strong_reject", "strong_reject_content")
    ]
    one, two = made_up(more=lines[0]), made_up(more="".join(lines))
    calls = [totals.totals(cells, tmp_path / "x", {})["left"]["calls"] for cells in (one, two)]
    assert len(two) == len(one) + 2 and calls == [2 * (97 * 30 + 313)] * 2


def test_rates_of_an_endpoint_bind_all_its_jobs_together(made_up: Any, tmp_path: Path) -> None:
    cells = made_up(judge=JUDGE + ", requests_per_minute: 60")
    found = totals.totals(cells, tmp_path / "x", {})
    assert found["critical_path"] == pytest.approx(2 * 97 * 30 / 60 / 60), (
        "though each judge alone takes half of that"
    )


@pytest.mark.multiprocess
def test_drafts_share_the_calls_of_their_corpus(tmp_path: Path) -> None:
    real = f"endpoints.dummy={{{JUDGE}}}"
    cells = plan.in_order(
        plan.analysis(load_study(Path("studies/tiny.yaml"), [0], [real, "corpora.animal.shards=4"]))
    )
    found = estimates(cells, tmp_path, {})
    shares = [found[cell.identity] for cell in cells if cell.stage == "drafts"]
    whole = next(
        found[cell.identity]
        for cell in cells
        if cell.stage == "documents" and cell.name == "animal"
    )
    assert (
        len(shares) == 4 and sum(share["calls"] for share in shares) == 240 and whole["calls"] == 0
    )
    assert shares[0]["hours"] == pytest.approx(240 * 10 / 16 / 4 / 3600 + 10 / 3600)
    drafts = [cell for cell in cells if cell.stage in ("drafts", "model")]
    finish(drafts, tmp_path, {"drafts": {"paid_calls": 61, "paid_cost": 0.5}})
    assert totals.totals(cells, tmp_path, {})["spent"]["calls"] == 4 * 61
    finish(
        [cell for cell in cells if cell.name == "animal"],
        tmp_path,
        {"documents": {"calls": 250, "cost": 2.1, "paid_calls": 6, "paid_cost": 0.1}},
    )
    spent = totals.totals(cells, tmp_path, {})["spent"]
    assert spent["calls"] == 250 and spent["cost"] == pytest.approx(2.1), (
        "the drafts' calls are among them"
    )


def test_a_profile_says_what_a_job_holds(made_up: Any, tmp_path: Path) -> None:
    profile = load_profile(Path("partitions"))  # sft: 4 GPUs and 4 x 12 cores; generate: 1 and 8
    cells = made_up()
    layouts = {"sft": Layout(4, 4, tokens_per_second=1000.0)}
    found = totals.totals(cells, tmp_path, layouts, profile)
    stages = {row["stage"]: row for row in found["stages"]}
    assert stages["sft"]["cpu_hours"] == pytest.approx(12 * stages["sft"]["gpu_hours"])
    assert stages["generate"]["cpu_hours"] == pytest.approx(8 * stages["generate"]["gpu_hours"])
    one = totals.totals(cells, tmp_path, layouts, replace(profile, array_parallelism=1))
    assert one["peak_gb"] - one["study"]["disk_gb"] == pytest.approx(
        (found["peak_gb"] - one["study"]["disk_gb"]) / 2
    )
    bare = replace(profile, stages={"default": profile.stages["default"]})  # type: ignore[index]
    slow = {row["stage"]: row for row in totals.totals(cells, tmp_path, {}, bare)["stages"]}
    alone = (
        GB * 1e9 * 26 * 30 * 400 / 30e9 / 3600 + START
    )  # on one of the two cores that its job then holds
    assert slow["generate"]["gpu_hours"] == 0 and slow["generate"]["cpu_hours"] == pytest.approx(
        2 * 2 * alone
    )


def test_doses_of_one_run_take_a_model_each_and_one_training(made_up: Any, tmp_path: Path) -> None:
    cells = made_up("sft.shared_run=true", doses="[40, 80]")
    stages = {row["stage"]: row for row in totals.totals(cells, tmp_path, {})["stages"]}
    assert stages["sft"]["cells"] == 4 and stages["sft"]["disk_gb"] == pytest.approx(
        2 * 2 * GB, rel=1e-4
    )
    assert stages["sft"]["files"] == 2 * (13 + 5 + 2 * 4) + 2 * 5


@pytest.mark.multiprocess
def test_a_budget_stops_what_exceeds_it_with_all_lines_at_once(
    made_up: Any, tmp_path: Path
) -> None:
    cells = made_up()
    found = totals.totals(cells, tmp_path, {})
    within = {"cost": found["study"]["cost"] + 0.01, "hours": 5.0, "disk_gb": 1000.0}
    check_budget(found, within)
    with pytest.raises(UserError) as error:
        check_budget(found, {"cost": 0.5, "disk_gb": 100, "files": 1000})
    problems = error.value.problems
    assert [problem.where for problem in problems] == ["cost", "disk_gb"]
    assert "about 0.96, 0.00 of it spent" in problems[0].what
    assert "--budget cost=0.5 is less" in problems[0].fix
    finish(
        [c for c in cells if c.stage in ("model", "sft", "generate", "judge")],
        tmp_path,
        {"judge": {"paid_cost": 9.0}},
    )
    with pytest.raises(UserError, match=r"cost: the study takes about 18.00, 18.00 of it spent"):
        check_budget(totals.totals(cells, tmp_path, {}), within)
    finish([c for c in cells if c.stage == "analysis"], tmp_path, {})
    check_budget(totals.totals(cells, tmp_path, {}), {"cost": 1.0})


def test_budgets_are_read_strictly() -> None:
    assert parse_budget(["cost=200", "gpu_hours=1.5"]) == {"cost": 200.0, "gpu_hours": 1.5}
    with pytest.raises(UserError) as error:
        parse_budget(
            ["price=3", "cost=2", "cost=3", "hours=many", "calls", "files=-1", "disk_gb=nan"]
        )
    problems = [problem.where.removeprefix("--budget ") for problem in error.value.problems]
    wrong = ["hours=many", "calls", "files=-1", "disk_gb=nan"]
    assert problems == ["price", "cost", *wrong]
    assert "cost, calls, gpu_hours" in error.value.problems[0].fix
