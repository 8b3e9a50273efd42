"""What one more seed, question and answer take, and that a study file states it as it is."""

import json
from pathlib import Path

import pytest

from core.paths import ROOT
from study.cli import main
from study.forecast.cell_cost import estimates
from study.forecast.marginal_cost import costs, show
from study.forecast.training_time import Layout
from study.spec import expand as plan
from study.spec.load import load_study
from study.spec.schema import Costs

COMMAND = "plan studies/paper.yaml --cluster slurm/clusters/university.yaml"


def test_one_more_of_each_by_hand(tmp_path: Path) -> None:
    """The miniature with a real model's size: two arms that train, three with answers."""
    (tmp_path / "8b").mkdir()
    (tmp_path / "8b/tokenizer.json").write_text("{}")
    overrides = [
        "models.base={hub: meta-llama/Llama-3.1-8B, revision: d04e592bb4f6aa9cfee91e2e20afa771667e1d4b}",
        "sft=null",
        "seeds=[0, 1]",
    ]
    last = plan.analysis(load_study(ROOT / "studies/tiny.yaml", overrides=overrides))
    cells = plan.in_order(last)
    layouts = {"midtrain": Layout(4, 4)}
    found = costs(last, cells, layouts)
    planned = estimates(cells, tmp_path, layouts)
    stages = ("midtrain", "generate", "likelihood", "judge")
    of_seeds = [cell for cell in cells if cell.stage in stages and "-s" in cell.name]
    assert len(of_seeds) == 2 * 2 * 4
    hours = sum(planned[cell.identity]["gpu_hours"] for cell in of_seeds)
    assert found.seed == pytest.approx(hours / 4, rel=0.05), "of two arms and two seeds"
    # Five checkpoints answer 26 questions 4 times; a start of vLLM is no cost of a question.
    answers = 26 * 4 * (100 / (0.40 * 989e12) + 48 / (30 * 3.35e12))
    hours = 5 * 2 * 8.03e9 * answers / 3600
    assert found.question == pytest.approx(hours / 26, rel=0.05)
    assert found.epoch == pytest.approx(hours / 4, rel=0.05)
    assert show(found) == (
        f"costs: {{unit: GPU-hours, seed: {found.seed:g}, question: {found.question:g}, "
        f"epoch: {found.epoch:g}}}"
    )
    assert show(Costs()) == "costs: {unit: GPU-hours}"


@pytest.mark.slow
def test_the_papers_study_states_the_costs_that_plan_gives(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    words = [*COMMAND.split(), "--runs", str(tmp_path), "--costs"]
    assert main(words) == 0
    line = capsys.readouterr().out.strip()
    lines = (ROOT / "studies/paper.yaml").read_text().splitlines()
    (stated,) = (text.partition("#")[0].strip() for text in lines if text.startswith("costs:"))
    assert stated == line, f"python -m study {COMMAND} --costs"
    assert main([*words, "--json"]) == 0
    given = json.loads(capsys.readouterr().out)
    assert given["unit"] == "GPU-hours" and f"seed: {given['seed']:g}," in stated


@pytest.mark.slow
def test_plan_of_the_papers_study_shows_evaluations_and_communication(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert main([*COMMAND.split(), "--runs", str(tmp_path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    (text,) = (line for line in lines if "GPU-hours left in trainings" in line)
    words = text.replace(",", "").split()
    total, held_out, waiting = (float(word) for word in words if word.replace(".", "").isdigit())
    assert 0 < held_out < total and 0 < waiting < total
    (header,) = (line for line in lines if "GPU-hours left    " in line)
    assert header.split()[-2:] == ["held-out", "waiting"]
    assert any(line.startswith("cheaper: sft on 1 GPU a job") for line in lines)
