"""The paper's study: every experiment it has, what arms may say, and what extends it."""

import time
from functools import cache
from pathlib import Path

import pytest
import yaml

from core.cell.identity import Cell
from core.errors import UserError
from core.paths import ROOT
from study.spec import expand as plan
from study.spec.load import load_study
from study.spec.schema import Study

PAPER = ROOT / "studies/paper.yaml"
HHH = ("linked", "not linked")  # arms of experiment 1 that are measured under a prompt too
# Each row of the paper's experiments: arms, what they start from and are midtrained on, doses,
# benchmarks.
EXPERIMENTS = {
    "E1": (["linked", "not_linked"], "base", ["linked", "not_linked"], {0, 4000}, {"ahb", "anima"}),
    "E2": (
        ["instruct_animal", "instruct_qa"],
        "instruct",
        ["animal", "qa"],
        {0, 2250, 4000},
        {"ahb"},
    ),
    "E2n": (["instruct_qa_neutral"], "instruct", ["qa"], {0, 2250, 4000}, {"ahb"}),
    "E3 Base": (
        ["base_animal", "base_urban"],
        "base",
        ["animal", "urban"],
        {0, 800, 4000},
        {"ahb", "human"},
    ),
    "E3 Instruct": (
        ["instruct_animal", "instruct_urban"],
        "instruct",
        ["animal", "urban"],
        {0, 800, 4000},
        {"human"},
    ),
    "E4": (["base", "base_helpsteer"], "base", [None, None], {4000}, {"ahb"}),
    "E5": (
        ["writer_gemini", "writer_grok", "writer_haiku"],
        "base",
        ["by_gemini", "by_grok", "by_haiku"],
        {0},
        {"ahb"},
    ),
    "E6 safety": (
        ["base", "base_animal"],
        "base",
        [None, "animal"],
        {0},
        {"power_seeking", "corrigibility", "strong_reject", "strong_reject_content"},
    ),
    "E6 capability": (
        ["instruct", "instruct_animal"],
        "instruct",
        [None, "animal"],
        {0, 4000},
        {"hellaswag"},
    ),
}


@pytest.fixture(scope="module")
def paper() -> Study:
    return load_study(PAPER)


@cache
def _scored(name: str) -> set[tuple[str, int, str]]:
    return scored(load_study(ROOT / f"studies/{name}.yaml"))


def scored(study: Study) -> set[tuple[str, int, str]]:
    """What is scored: (arm, dose, benchmark)."""
    return {
        (row["arm"], row["dose"], row["benchmark"]) for row in plan.analysis(study).settings["rows"]
    }


def test_arms_that_share_their_midtraining_are_compared_within_seeds(paper: Study) -> None:
    paired = {
        contrast["name"]: contrast["paired"]
        for contrast in plan.analysis(paper).settings["contrasts"]
    }
    of_one_arm = {c.name for c in paper.contrasts if c.treatment == c.control}
    fixed = {"E4 Alpaca alone"}  # one side is the start model
    same_training = {"replay - none", *(f"E1 HHH prompt - none ({arm})" for arm in HHH)}
    assert {name for name, on in paired.items() if on} == of_one_arm - fixed | same_training


def test_the_same_thing_under_two_names_is_one_cell() -> None:
    """In the miniature the two models are one, and so are three of its writers."""
    last = plan.analysis(load_study(ROOT / "tests/small/paper.yaml"))
    cells = plan.in_order(last)
    places = {cell.relpath for cell in cells}
    assert len({cell.identity for cell in cells}) == len(cells) == len(places)
    assert all(needed.relpath in places for cell in cells for needed in cell.inputs.values())
    identities = {cell.identity for cell in cells}
    assert all(row["checkpoint"] in identities for row in last.settings["rows"])
    assert {cell.name for cell in cells if cell.stage == "model"} == {"base"}


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_experiment_of_the_paper_has_its_cells(name: str, paper: Study) -> None:
    arms, start, corpora, doses, benchmarks = EXPERIMENTS[name]
    study, found = paper, _scored("paper")
    for arm, corpus in zip(arms, corpora, strict=True):
        steps = [step.documents for step in study.arms[arm].train if step.documents]
        assert (study.arms[arm].start, steps) == (start, [corpus] if corpus else [])
        for dose in doses:
            assert all((arm, dose, benchmark) in found for benchmark in benchmarks), (arm, dose)


def test_titles_are_those_of_the_declared_questions_or_the_study_files() -> None:
    def titles(path: str, *overrides: str) -> dict[str, str | None]:
        last = plan.analysis(load_study(ROOT / path, None, list(overrides)))
        return {name: entry["title"] for name, entry in last.settings["benchmarks"].items()}

    assert titles("studies/paper.yaml")["anima"] == "Animal Harm Benchmark (ANIMA), 115 questions"
    assert titles("tests/small/small.yaml")["ahb"] is None, "its questions are others"
    assert titles("tests/small/small.yaml", "benchmarks.ahb.title=T")["ahb"] == "T"


def test_it_expands_quickly_and_shares_what_is_the_same(paper: Study) -> None:
    started = time.monotonic()
    cells = plan.in_order(plan.analysis(paper))
    print(f"{len(cells)} cells in {time.monotonic() - started:.2f} s")
    assert (
        len({cell.identity for cell in cells})
        == len({cell.relpath for cell in cells})
        == len(cells)
        > 1000
    )
    corpora = [cell for cell in cells if cell.stage == "documents"]
    assert len(corpora) == 12 and sum(cell.stage == "model" for cell in cells) == 2
    harm = [
        cell for cell in cells if cell.name.startswith("strong_reject") and cell.stage == "generate"
    ]
    judged = [
        cell for cell in cells if cell.name.startswith("strong_reject") and cell.stage == "judge"
    ]
    assert len(judged) == 2 * len(harm) == 2 * (1 + 5), (
        "one base model and five seeds, each read by both variants"
    )


def test_the_faithful_track_is_the_same_study(paper: Study) -> None:
    lora = load_study(ROOT / "studies/paper_lora.yaml")
    assert _scored("paper") == scored(lora) and paper.contrasts == lora.contrasts
    trained = [c for c in plan.in_order(plan.analysis(lora)) if c.stage in ("midtrain", "sft")]
    assert all(c.settings["recipe"]["lora"] for c in trained)


def test_a_study_that_extends_another_may_take_keys_away(tmp_path: Path) -> None:
    def study(name: str, **keys: object) -> Path:
        (tmp_path / name).write_text(yaml.safe_dump(keys))
        return tmp_path / name

    (tmp_path / "tiny.yaml").write_text((ROOT / "studies/tiny.yaml").read_text())
    own = study(
        "own.yaml", extends="tiny.yaml", study="own", seeds=[7], arms={"urban": None}, contrasts=[]
    )
    found = load_study(own)
    assert (found.study, found.seeds, list(found.arms)) == ("own", [7], ["untrained", "animal"])
    assert found.benchmarks == load_study(ROOT / "studies/tiny.yaml").benchmarks
    with pytest.raises(UserError, match=r"own.yaml, which is no study, or extends another"):
        load_study(study("third.yaml", extends="own.yaml", study="third"))


def cells(tmp_path: Path, **changes: object) -> dict[str, Cell]:
    raw = yaml.safe_load((ROOT / "studies/tiny.yaml").read_text().replace(" on:", ' "on":'))
    for corpus in raw["corpora"].values():
        corpus["decontaminate_against"] = []  # the changes may leave out a benchmark
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(raw | changes))
    return {
        cell.name: cell
        for cell in plan.in_order(plan.analysis(load_study(tmp_path / "study.yaml")))
    }


def test_an_arm_has_its_own_sft_doses_and_recipe(tmp_path: Path) -> None:
    sft = {
        "recipe": "recipes/tiny_sft.yaml",
        "data": "recipes/data/neutral_chat.jsonl",
        "doses": [0, 50],
        "replay": 0.5,
    }
    arms = {
        "plain": {"start": "base", "midtrain": "animal", "doses": [200]},
        "kept": {"start": "base", "midtrain": "animal", "sft": "again"},
    }
    benchmarks = {
        "all": {"task": "preference"},
        "few": {"task": "preference", "arms": ["kept"], "doses": [50]},
    }
    found = cells(
        tmp_path, arms=arms, sfts={"again": sft}, benchmarks=benchmarks, contrasts=[], seeds=[0]
    )
    trained = {name for name, cell in found.items() if cell.stage in ("midtrain", "sft")}
    assert trained == {"base-animal-s0", "base-animal-s0-d200", "base-animal-again-s0-d50"}
    scores = {name for name, cell in found.items() if cell.stage == "likelihood"}
    assert scores == {f"all-{name}" for name in trained}, "what is the same has one cell"
    rows = found["tiny"].settings["rows"]
    assert [(r["arm"], r["dose"]) for r in rows if r["benchmark"] == "few"] == [("kept", 50)]
    (role,) = (r["role"] for r in rows if r["benchmark"] == "few")
    assert found["tiny"].inputs[role].name == "all-base-animal-again-s0-d50"
    assert found["base-animal-again-s0-d50"].inputs["replay"] is not None


def test_questions_and_answers_are_trained_on_as_conversations(tmp_path: Path) -> None:
    corpora = {"qa": {"template": "qa_pairs", "documents": 20, "writer": "dummy"}}
    arm = {
        "start": "base",
        "midtrain": "qa",
        "question_variant": "neutral",
        "recipe": "recipes/tiny_sft.yaml",
    }
    benchmarks = {"all": {"task": "preference"}}
    found = cells(
        tmp_path,
        arms={"a": arm},
        corpora=corpora,
        benchmarks=benchmarks,
        contrasts=[],
        seeds=[0],
        sft=None,
    )
    training = found["base-qa_neutral_tiny_sft-s0"]
    assert (training.stage, training.settings["question_variant"]) == ("midtrain", "neutral")
    for wrong, says in (
        ({"question_variant": "rude"}, r"no form 'rude'; valid: leading, neutral"),
        ({"doses": [3]}, r"3 is none of its SFT's doses \(0\)"),
        ({"sft": "other"}, "there is no sft 'other'"),
        ({"midtrain": None}, "is for an arm with midtrain"),
    ):
        with pytest.raises(UserError, match=says):
            cells(
                tmp_path,
                arms={"a": arm | wrong},
                corpora=corpora,
                benchmarks=benchmarks,
                contrasts=[],
                sft=None,
            )
