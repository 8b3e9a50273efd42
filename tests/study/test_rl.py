"""Steps of reinforcement learning in a study file: their cells, what differs, what is refused."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from core.cell.identity import Cell
from core.errors import UserError
from core.paths import ROOT
from study.forecast import cell_cost, training_cost, training_size
from study.forecast.training_time import Layout
from study.spec import expand
from study.spec.contrast_arms import audit
from study.spec.expansion import Expansion
from study.spec.load import load_study
from study.spec.rungs import rung
from study.spec.start_models import model_problems
from study.upkeep import cards
from study.upkeep.card_cells import FinishedCell

pytestmark = pytest.mark.multiprocess  # manifests ask git

TINY = ROOT / "studies/tiny_grpo.yaml"
PAPER = ROOT / "studies/paper_grpo.yaml"


def cells_of(file: Path, *overrides: str) -> list[Cell]:
    return expand.in_order(expand.analysis(load_study(file, None, [*overrides])))


def of_stage(cells: list[Cell], stage: str) -> list[Cell]:
    return [cell for cell in cells if cell.stage == stage]


def test_a_step_starts_from_the_step_before_it_and_reads_its_prompts() -> None:
    cells = cells_of(TINY)
    by_name = {cell.name: cell for cell in of_stage(cells, "rl")}
    assert set(by_name) == {
        "base-animal-word-s0",
        "base-animal-shuffled-s0",
        "base-animal-d200-word-s0",
    }
    plain, tuned = by_name["base-animal-word-s0"], by_name["base-animal-d200-word-s0"]
    assert plain.inputs["start"].stage == "midtrain" and tuned.inputs["start"].stage == "sft"
    assert plain.inputs["documents"].name == "questions"
    assert plain.settings["reward"] == {"contains": "the"}
    assert "engine_memory" in plain.resources and "engine_memory" not in plain.settings["grpo"]


def test_prompts_pass_the_gate_of_documents() -> None:
    """An evaluation of the trained model waits for the check of its prompts, and refuses by it."""
    cells = cells_of(TINY)
    checks = {cell.name for cell in of_stage(cells, "contamination")}
    assert {"questions-ahb", "questions-concern"} <= checks
    evaluated = {
        cell.inputs["checkpoint"].name: {
            used.name for role, used in cell.inputs.items() if role.startswith("contamination")
        }
        for cell in of_stage(cells, "generate")
    }
    assert evaluated["base-animal-word-s0"] == {"animal-ahb", "questions-ahb"}
    assert evaluated["base-animal-s0"] == {"animal-ahb"}


def test_a_trained_base_model_is_prompted_by_its_chat_template() -> None:
    cells = of_stage(cells_of(TINY), "generate")
    prompts = {cell.inputs["checkpoint"].name: cell.settings["prompt"] for cell in cells}
    assert prompts["base-animal-word-s0"] == "chat" != prompts["base-animal-s0"]


def test_what_differs_between_two_arms_is_named() -> None:
    study = load_study(TINY)
    listed = {row.contrast.name: row for row in audit(Expansion(study).checkpoints(), study)}
    assert listed["GRPO - shuffled rewards"].keys == ["step2.shuffled"]
    assert listed["GRPO - none"].keys == ["chain"]
    assert not any(row.undeclared for row in listed.values())


def test_a_chat_template_is_a_difference_of_the_start_model_alone() -> None:
    study = load_study(
        TINY,
        None,
        [
            "models.other={make: recipes/tiny_llama.yaml, chat_template: recipes/data/chatml.jinja}",
            "arms.other={start: other, train: [{documents: animal}, {rl: word}]}",
            "contrasts=[{name: c, treatment: plain, control: other, benchmarks: [ahb]}]",
        ],
    )
    (row,) = audit(Expansion(study).checkpoints(), study)
    assert row.keys == ["start.chat_template"] and not row.undeclared


def test_the_papers_arms_share_the_trainings_of_the_faithful_track() -> None:
    cells = cells_of(PAPER)
    lora = {cell.identity for cell in cells_of(ROOT / "studies/paper_lora.yaml")}
    trained = of_stage(cells, "midtrain") + of_stage(cells, "sft")
    assert len(trained) == 3 * 5 + 5 and {cell.identity for cell in trained} <= lora
    rl = of_stage(cells, "rl")
    assert len(rl) == 5 * 5
    hhh = next(cell for cell in rl if "grpo_hhh" in cell.name)
    assert hhh.settings["response_only"] and {"system", "prefill", "reward"} <= {
        *hhh.settings["files"]
    }


def test_a_forecast_counts_rollouts_and_what_vllm_holds(tmp_path: Path) -> None:
    (cell, *_) = of_stage(cells_of(PAPER), "rl")
    # 1,000 prompts thrice, 16 a step and 8 answers each.
    assert training_size.count_steps(cell) == (188, 1000 * 3 * 8 * (100 + 400))
    assert training_size.recipe_of(cell).rows_per_step == 16 * 8
    _, written = training_size.sampled_tokens(cell, 188)
    assert written == (188 * 128 + 11 * 100) * 400
    (row,) = training_cost.forecast([cell], tmp_path, {})
    amounts = cell_cost.estimates([cell], tmp_path, {})[cell.identity]
    # The model, and rollouts of 25 bytes a token.
    assert amounts["disk_gb"] == pytest.approx(16.06 + written * 25 / 1e9, abs=0.01)
    assert 2 * 16.06 < row["memory_gb"]["total"] < 80
    assert 0.5 < row["hours"] < 2
    # Of a GPU whose memory is known vLLM takes its whole share: weights and cache.
    layout = Layout(gpu_memory_gb=80)
    (on_gpu,) = training_cost.forecast([cell], tmp_path, {"rl": layout})
    more = on_gpu["memory_gb"]["total"] - row["memory_gb"]["total"]
    assert more == pytest.approx(0.45 * 80 - 16.06, abs=0.01)
    greedy = replace(cell, resources=cell.resources | {"engine_memory": 0.9})
    (refused,) = training_cost.forecast([greedy], tmp_path, {"rl": layout})
    assert "needs about" in refused["refused"]
    (several,) = training_cost.forecast([cell], tmp_path, {"rl": Layout(ranks=4, per_node=4)})
    assert "runs as one process, and the profile gives 4" in several["refused"]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("rl.word.prompts=question", "rl.word.prompts: there is no corpus 'question'"),
        ("rl.word.reward={}", "rl.word.reward: needs exactly one of model, contains"),
        ("rl.word.reward={model: judge}", "rl.word.reward.model: there is no model 'judge'"),
        ("rl.word.reward={model: base}", "rl.word.reward.model: is a toy Llama"),
        ("rl.word.system=none.txt", "rl.word.system: no such file: none.txt"),
        (
            "rl.word={recipe: recipes/tiny_grpo.yaml, prompts: animal, reward: {contains: a}, "
            "second_reward: {contains: b}}",
            "rl.word.second_reward: is of answers to held-out prompts, and animal holds out none",
        ),
        ("rl.word.recipe=recipes/tiny_sft.yaml", "tiny_sft.yaml"),
        ("arms.plain.train=[{rl: words}]", "there is no rl 'words'"),
        ("arms.plain.train=[{rl: word, doses: [0]}]", "is not for a step with rl"),
    ],
)
def test_mistakes_are_told_by_their_keys(override: str, message: str) -> None:
    with pytest.raises(UserError) as error:
        load_study(TINY, None, [override])
    assert message in "\n".join(error.value.lines)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"architectures": ["LlamaForCausalLM"]}, "is a LlamaForCausalLM, and a reward model is"),
        ({"architectures": ["BertForSequenceClassification"]}, "has 2 outputs"),
        ({"id2label": {"0": "a", "1": "b", "2": "c"}}, "has 3 outputs"),
        ({"architectures": ["BertForSequenceClassification"], "num_labels": 1}, None),
        ({"id2label": {"0": "LABEL_0"}}, None),
    ],
)
def test_a_reward_model_is_asked_before_anything_runs(
    tmp_path: Path, config: dict[str, Any], message: str | None
) -> None:
    (tmp_path / "config.json").write_text(json.dumps(config))
    judge = [f"models.judge={{path: {tmp_path}}}"]
    judge += [f"rl.{name}.second_reward={{model: judge}}" for name in ("word", "shuffled")]
    problems = [problem.what for problem in model_problems(cells_of(TINY, *judge))]
    assert (problems == []) if message is None else (message in problems[0] and len(problems) == 1)


def test_prompts_of_others_make_no_arm_a_reproduction_of_documents() -> None:
    study = load_study(TINY)
    assert {rung(study, arm) for arm in study.arms} == {"anew"}


def test_a_model_card_names_grpo_and_its_reward(tmp_path: Path) -> None:
    def finished(stage: str, name: str, settings: dict[str, Any], **inputs: FinishedCell) -> Any:
        manifest = {"stage": stage, "identity": name}
        return FinishedCell(tmp_path, name, "study", name, manifest, settings, {}, inputs)

    prompts = finished("documents", "questions", {})
    animals = finished("documents", "animal", {})
    reward = {"hub": "me/reward", "revision": "0" * 40, "file": None}
    settings = {"recipe": {"lr": 0.1}, "grpo": {"group_size": 8}}
    rewarded = settings | {"reward": {"model": True}, "files": {"reward": reward}}
    rl = finished("rl", "rl", rewarded, documents=prompts)
    runs = [finished("midtrain", "midtrain", settings, documents=animals), rl]
    assert cards._steps(runs) == ["midtrained on animal", "trained by GRPO"]
    assert cards._recipe(rl) == "`rl`: lr 0.1, group_size 8, reward by me/reward."
    tuned = finished("sft", "sft", {"recipe": {"lr": 0.1}, "replay": 0.5}, start=rl, replay=animals)
    assert cards._recipe(tuned) == "`sft`: lr 0.1, replay 0.5 of animal."
    assert {*cards._corpora([rl, tuned])} == {"questions", "animal"}
