"""The faithful track has the values that the paper prints, and those decided where it is silent."""

from functools import cache

import pytest

from core.cell.identity import Cell
from core.paths import ROOT
from study.forecast.training_size import count_steps, recipe_of, trained_documents
from study.spec.checkpoint import Checkpoint, trainings_of
from study.spec.doses import unreachable
from study.spec.expansion import Expansion
from study.spec.load import load_study

# Of each recipe of midtraining: rank, alpha, learning rate, optimizer.
E2 = (32, 16, 2e-4, "adamw")
BASE = (32, 16, 5e-5, "adamw_8bit")
E1 = (128, 32, 5e-5, "adamw_8bit")
# Arm: recipe, documents written, trained on, optimizer steps. QA: the recipe holds pairs out.
ARMS = {
    "linked": (E1, 6000, 5400, 675),
    "not_linked": (E1, 6000, 5400, 675),
    "linked_hhh": (E1, 6000, 5400, 675),
    "not_linked_hhh": (E1, 6000, 5400, 675),
    "instruct_animal": (E2, 3000, 2700, 338),
    "instruct_urban": (E2, 3000, 2700, 338),
    "instruct_qa": (E2, 2778, 2500, 313),
    "instruct_qa_neutral": (E2, 2778, 2500, 313),
    "base_animal": (BASE, 3000, 2700, 338),
    "base_urban": (BASE, 3000, 2700, 338),
    "base_random": (BASE, 3000, 2700, 338),
    "base_human": (BASE, 3000, 2700, 338),
    "base_animal_replay": (BASE, 3000, 2700, 338),
    "documents_675": (BASE, 750, 675, 85),
    "documents_1350": (BASE, 1500, 1350, 169),
    "writer_gemini": (E1, 1000, 900, 113),
    "writer_grok": (E1, 1000, 900, 113),
    "writer_haiku": (E1, 1000, 900, 113),
}
PROMPTS = {f"prompt_{name}" for name in ("neutral", "minimal", "standard", "detailed")}
UNTRAINED = {"base", "base_helpsteer", "instruct", *PROMPTS}
# Rows of instruction data that a checkpoint has seen, and steps of 8.
DOSES = {800: 100, 2250: 282, 4000: 500}


@cache
def checkpoints() -> list[Checkpoint]:
    return Expansion(load_study(ROOT / "studies/paper_lora.yaml")).checkpoints()


def midtraining(arm: str) -> Cell:
    """Of seed 0."""
    rows = [row for row in checkpoints() if row.arm == arm]
    trainings = [cell for row in rows for cell in trainings_of(row.cell)]
    cells = {
        cell.identity: cell
        for cell in trainings
        if cell.stage == "midtrain" and cell.settings["seed"] == 0
    }
    (cell,) = cells.values()
    return cell


def test_every_arm_is_listed() -> None:
    assert {row.arm for row in checkpoints()} == ARMS.keys() | UNTRAINED


@pytest.mark.parametrize("arm", ARMS)
def test_midtraining_has_the_printed_values(arm: str) -> None:
    values, written, trained, steps = ARMS[arm]
    cell = midtraining(arm)
    recipe = recipe_of(cell)
    assert recipe.lora
    assert (recipe.lora.rank, recipe.lora.alpha, recipe.lr, recipe.optimizer) == values
    assert (recipe.epochs, recipe.global_batch_size, recipe.seq_len) == (2, 16, 2048)
    assert (recipe.schedule, recipe.eval_every, recipe.patience) == ("cosine", 20, 2)
    assert recipe.load_best_checkpoint
    corpus = cell.inputs["documents"].settings
    assert corpus["documents"] == written
    pairs = "question_variant" in cell.settings
    held_out = round(recipe.held_out * written)
    assert (written - held_out if pairs else trained_documents(corpus)) == trained
    assert pairs or not recipe.packed
    counted = count_steps(cell)
    assert counted and counted[0] == steps


def test_sft_has_the_printed_values() -> None:
    cells = [row.cell for row in checkpoints() if row.cell.stage == "sft"]
    assert {cell.settings["dose"] for cell in cells} == DOSES.keys()
    for cell in cells:
        recipe = recipe_of(cell)
        assert recipe.lora
        assert (recipe.lora.rank, recipe.lora.alpha, recipe.lr) == (16, 8, 5e-5)
        assert recipe.optimizer == "adamw"
        if "replay" not in cell.settings:
            counted = count_steps(cell)
            assert counted and counted[0] == DOSES[cell.settings["dose"]]


def test_all_doses_are_seen_though_documents_are_replayed() -> None:
    for name in ("paper", "paper_lora", "shakedown"):
        assert unreachable(load_study(ROOT / f"studies/{name}.yaml")) == []


def test_the_claims_speak_of_doses_that_are_trained() -> None:
    roles = load_study(ROOT / "studies/paper_lora.yaml").claim_roles
    doses = {
        role: roles[role] for role in ("sft_100_steps", "alpaca_2500", "alpaca_5000", "sft_5000")
    }
    assert doses == {
        "sft_100_steps": 800,
        "alpaca_2500": 2250,
        "alpaca_5000": 4000,
        "sft_5000": 4000,
    }
